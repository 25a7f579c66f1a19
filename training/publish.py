"""Publishing: a version folder is built under a hidden name, fsynced, and becomes visible by one rename.

A reader sees no version or a whole one. Two publishers at once get two numbers. What a killed publisher left is
hidden, and the next one clears it away: each holds a lock on its unfinished folder for as long as it lives.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from service.folders import model_versions
from service.manifest import MANIFEST_FILE, SIGNATURE_FILE, Manifest, ManifestError, TensorSpec, read_manifest
from service.signing import KeyFileError, signature
from training.errors import TrainingError
from training.export import Export
from training.files import lock_folder, locked, sync_folder
from training.finished import FinishedModel
from training.provenance import provenance

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
UNFINISHED = ".tmp-"


def publish(
    run: Path, model: FinishedModel, export: Export, repository: Path, name: str, key: Path | None = None
) -> Manifest:
    """Put the export in `run` into `repository` as the next version of `name`; gives the manifest written.

    `key`, a file with an Ed25519 private key, signs it. Raises TrainingError: a name that cannot be one, a key that
    is none, or a repository that cannot be written.
    """
    check_name(name)
    try:
        return _publish(run, describe(model, export, name), repository / name, key)
    except KeyFileError as error:
        raise TrainingError(f"cannot sign: {error}") from None
    except OSError as error:
        raise TrainingError(f"cannot publish into {repository / name}: {error}") from error


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise TrainingError(f"{name!r} cannot name a model: letters, digits, '.', '_' and '-', 128 at most")


def check_key(key: Path | None) -> None:
    """Raises TrainingError when `key` is no file that can sign."""
    try:
        if key is not None:
            signature(b"", key)
    except KeyFileError as error:
        raise TrainingError(f"cannot sign: {error}") from None


def served(repository: Path, name: str) -> Manifest | None:
    """The manifest of the version that a server of `repository` serves, the highest; None before the first.

    Raises TrainingError when it is damaged.
    """
    check_name(name)
    versions = model_versions(repository / name)
    try:
        return read_manifest(repository / name / str(versions[-1])) if versions else None
    except ManifestError as error:
        raise TrainingError(f"the served version cannot be read: {error}") from None


def describe(model: FinishedModel, export: Export, name: str) -> Manifest:
    """The manifest, with version 1 until the rename settles which it is."""
    classes = len(model.spec.classes)
    return Manifest(
        name=name,
        version=1,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files=export.files,
        inputs=(TensorSpec("image", "uint8", (-1, *model.spec.recipe.image_shape)),),
        outputs=tuple(TensorSpec(output, "float32", (-1, classes)) for output in ("probabilities", "logits")),
        labels=model.spec.classes,
        precision="fp32",
        compute_precisions=export.compute_precisions,
        opset=export.opset,
        recipe=model.recipe,
        dataset=model.dataset,
        evaluation=model.evaluation,
        parity=[dataclasses.asdict(parity) for parity in export.parity],
        baseline=model.baseline,
        provenance=provenance(),
    )


def _publish(run: Path, manifest: Manifest, folder: Path, key: Path | None) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    with _unfinished_folder(folder) as building:
        for file in manifest.files:
            shutil.copyfile(run / file, building / file)
            _sync_file(building / file)
        while True:
            manifest = dataclasses.replace(manifest, version=max(model_versions(folder), default=0) + 1)
            content = manifest.to_json().encode()
            (building / MANIFEST_FILE).write_bytes(content)
            _sync_file(building / MANIFEST_FILE)
            if key is not None:
                (building / SIGNATURE_FILE).write_bytes(signature(content, key))
                _sync_file(building / SIGNATURE_FILE)
            sync_folder(building)
            if _rename(building, folder / str(manifest.version)):
                break
        sync_folder(folder)
    return manifest


def remove_unfinished(folder: Path) -> None:
    """Remove what killed publishers left in a model's folder; what a living one is at work on stays."""
    for left in folder.glob(f"{UNFINISHED}*"):
        try:
            with locked(left):
                shutil.rmtree(left)
        except OSError:
            continue  # locked: its publisher lives; or gone: published, or removed by another


@contextmanager
def _unfinished_folder(folder: Path) -> Iterator[Path]:
    """A locked, hidden folder in `folder`, removed if it has not been renamed by the end of the block."""
    path, descriptor = _new_unfinished(folder)
    try:
        path.chmod(0o755)  # mkdtemp lets nobody else read; a server may run as another user
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _new_unfinished(folder: Path) -> tuple[Path, int]:
    """A new folder and the lock on it. Until it is locked, another publisher may take it for a leftover: then again."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
        try:
            descriptor = lock_folder(path)
        except (BlockingIOError, FileNotFoundError):
            continue
        if os.fstat(descriptor).st_nlink:  # 0: removed between the two
            return path, descriptor
        os.close(descriptor)


def _rename(source: Path, target: Path) -> bool:
    """Give the folder its final name; False when another publisher took that name first."""
    try:
        source.rename(target)
    except OSError:
        # A folder cannot replace one that holds something, and a version always does.
        if target.exists():
            return False
        raise
    return True


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
