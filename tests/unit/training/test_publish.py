"""Publishing: whole or not at all, never over another version, and only what is good enough."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from service.config import Settings
from service.folders import model_names, model_versions
from service.manifest import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, read_manifest, verify_files
from service.model_config import read_model_config
from service.serving import load
from tests.unit.training.conftest import FinishedRun
from training import publish
from training.errors import TrainingError

ROOT = Path(__file__).resolve().parents[3]
NAME = "colours"

# Publishes a finished run again and again: `python -c PUBLISHER RUN REPOSITORY TIMES`.
PUBLISHER = """
import sys
from pathlib import Path
from training import finished, publish
from training.export import load as load_export
run, repository, times = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
model, export = finished.load(run), load_export(run)
print("ready", flush=True)
for _ in range(times):
    print(publish.publish(run, model, export, repository, "colours").version, flush=True)
"""


def publisher(run: FinishedRun, repository: Path, times: int) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", PUBLISHER, str(run.folder), str(repository), str(times)]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)


def assert_whole(repository: Path, version: int) -> None:
    folder = repository / NAME / str(version)
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.version) == (NAME, version)
    verify_files(folder, manifest)
    assert {path.name for path in folder.iterdir()} >= {MODEL_FILE, GOLDEN_FILE, MANIFEST_FILE}


def test_versions_count_up_and_pass_the_servers_checks(finished_run: FinishedRun, tmp_path: Path) -> None:
    for expected in (1, 2):
        run = finished_run
        assert publish.publish(run.folder, run.model, run.export, tmp_path, NAME).version == expected
        assert_whole(tmp_path, expected)
    compute = read_model_config(tmp_path / NAME, Settings(provider="cpu")).compute
    loaded = load(tmp_path / NAME / "2", NAME, 2, compute)
    found = loaded.engines[0].run(run.dataset.test.images[:16]).probabilities
    with np.load(tmp_path / NAME / "2" / GOLDEN_FILE) as golden:
        assert golden["image"].dtype == np.uint8
        assert golden["probabilities"].shape == (len(golden["image"]), 3)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)


def test_the_manifest_says_where_the_version_comes_from(finished_run: FinishedRun, tmp_path: Path) -> None:
    run = finished_run
    publish.publish(run.folder, run.model, run.export, tmp_path, NAME)
    manifest = read_manifest(tmp_path / NAME / "1")
    assert manifest.dataset["name"] == run.dataset.name
    assert manifest.dataset["fingerprint"] == run.dataset.fingerprint()
    assert sum(manifest.dataset["splits"].values()) == len(run.dataset.train) + len(run.dataset.test)
    assert manifest.evaluation["n"] == len(run.dataset.test)
    assert set(manifest.baseline["class_distribution"]) == set(manifest.labels)
    assert {"commit", "packages", "python"} <= set(manifest.provenance)
    assert manifest.recipe["architecture"] == "tutorial"
    assert "/" not in str(manifest.dataset), "no paths of the machine that trained"


def test_publishers_that_race_never_take_each_others_number(finished_run: FinishedRun, tmp_path: Path) -> None:
    racers = [publisher(finished_run, tmp_path, 5) for _ in range(3)]
    versions = [int(line) for racer in racers for line in racer.communicate(timeout=120)[0].splitlines()[1:]]
    assert sorted(versions) == list(range(1, 16))
    assert model_versions(tmp_path / NAME) == list(range(1, 16))
    for version in versions:
        assert_whole(tmp_path, version)


@pytest.mark.parametrize("pause", [0.0, 0.003, 0.01, 0.03])
def test_a_killed_publisher_leaves_whole_versions_only_and_the_next_one_clears_up(
    finished_run: FinishedRun, tmp_path: Path, pause: float
) -> None:
    victim = publisher(finished_run, tmp_path, 1000)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "ready\n"
    time.sleep(pause)  # not a synchronisation: wherever the kill meets it, the promise holds
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    for version in model_versions(tmp_path / NAME):
        assert_whole(tmp_path, version)
    run = finished_run
    after = publish.publish(run.folder, run.model, run.export, tmp_path, NAME)
    assert after.version == model_versions(tmp_path / NAME)[-1]
    assert not list((tmp_path / NAME).glob(".tmp-*"))


def test_an_unfinished_folder_is_no_version_to_a_server(tmp_path: Path) -> None:
    (tmp_path / NAME / ".tmp-abc").mkdir(parents=True)
    assert model_versions(tmp_path / NAME) == []
    assert model_names(tmp_path) == set()


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "x" * 129])
def test_a_name_that_cannot_be_a_folder_is_refused(finished_run: FinishedRun, tmp_path: Path, name: str) -> None:
    run = finished_run
    with pytest.raises(TrainingError, match="cannot name a model"):
        publish.publish(run.folder, run.model, run.export, tmp_path, name)
    assert not list(tmp_path.iterdir())
