"""The versions that come with the project: each is whole, and as good as its manifest says."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from service.client import Client, Options
from service.manifest import read_manifest, verify_files
from tests.integration.server_process import ROOT, serving

MODELS = ROOT / "models"
VERSIONS = (4, 5)
# CIFAR-10 as JPEG (quality 75), in ImageFolder layout; not part of the project.
ARCHIVE = Path(os.environ.get("CIFARSERVE_TEST_DATA", ROOT.parent / "shared" / "data" / "cifar10-jpeg.tar.xz"))
IMAGES_PER_REQUEST = 100


@pytest.mark.parametrize("version", VERSIONS)
def test_its_files_are_what_its_manifest_says(version: int) -> None:
    folder = MODELS / "cifar10" / str(version)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    assert manifest.labels == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    assert manifest.image_shape == (32, 32, 3)
    assert "JPEG" in manifest.dataset["name"], "it is not a plain CIFAR-10 result, and must not look like one"
    assert sum(entry.size for entry in manifest.files.values()) < 11_000_000


def pictures() -> Iterator[tuple[str, bytes]]:
    """Label and file content of every test picture."""
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            if member.isfile() and "test" in parts:
                file = archive.extractfile(member)
                assert file is not None
                yield parts[-2], file.read()


@pytest.mark.skipif(not ARCHIVE.exists(), reason=f"needs the pictures in {ARCHIVE}; CIFARSERVE_TEST_DATA names another")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_served_model_has_the_accuracy_of_its_manifest_on_the_real_test_pictures(
    tmp_path: Path, version: int
) -> None:
    (tmp_path / "cifar10").mkdir()
    shutil.copytree(MODELS / "cifar10" / str(version), tmp_path / "cifar10" / str(version))
    manifest = read_manifest(tmp_path / "cifar10" / str(version))
    examples = list(pictures())
    assert len(examples) == manifest.evaluation["n"]
    batches = [examples[start : start + IMAGES_PER_REQUEST] for start in range(0, len(examples), IMAGES_PER_REQUEST)]
    with serving(tmp_path, tmp_path / "log") as server, Client(server.target, Options(timeout=200)) as client:
        precision = client.model().precision
        requests = ([data for _, data in batch] for batch in batches)
        answers = [
            one
            for answer in client.classify_stream(requests, model="cifar10", version=version, top_k=1)
            for one in answer
        ]
    right = sum(answer.best.label == label for answer, (label, _) in zip(answers, examples, strict=True))
    (measured,) = (each["accuracy"] for each in manifest.parity if each["precision"] == precision)
    # An image whose two best classes are equal to a few digits may fall either way, on another processor or provider.
    assert right / len(examples) == pytest.approx(measured, abs=2e-4 if precision == "fp32" else 2e-3)
