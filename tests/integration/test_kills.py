"""`cifarserve retrain` killed with SIGKILL at moments drawn by chance, and resumed, until it is through.

Whenever that is, every version that can be seen is whole; in the end, what is published is what an undisturbed run
publishes, to the last bit of the weights.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from service.folders import model_versions
from service.manifest import MODEL_FILE, Manifest, read_manifest, verify_files
from tests.integration.server_process import ENVIRONMENT
from tests.unit.training import pictures
from training import checkpoint

SEEDS = range(2)
MOST_KILLS = 3  # of one run; then it is let be
# Has everything imported, and forks for each command, so that a kill meets the work and not the imports.
FORKING = """
import json, os, sys
import onnxruntime, onnxscript, torch
import training.checkpoint, training.commands, training.evaluate, training.export, training.loop, training.publish
from service.cli import main
print("ready", flush=True)
for line in sys.stdin:
    process = os.fork()
    if not process:
        os._exit(main(json.loads(line)))
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Trainer:
    """Runs `cifarserve retrain` on the same pictures with the same seed, each time in a process that can be killed."""

    def __init__(self, folder: Path) -> None:
        self._data = pictures.write_folder(folder / "pictures", train=30)
        self._log = (folder / "log").open("w")
        environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            text=True, env=environment, cwd=folder,
        )  # fmt: skip
        assert self._says() == "ready"

    def retrain(self, run: Path, models: Path, kill_after: float | None = None) -> int:
        """The exit status; -9 when it was killed, so many seconds after its begin."""
        arguments = ["retrain", "--run", run, "--models", models, "--name", "colours"]
        if checkpoint.exists(run):
            arguments.append("--resume")
        else:
            arguments += ["--data", self._data, "--image-shape", "8x8x3", "--batch-size", 16, "--epochs", 3]
            arguments += ["--learning-rate", "1e-3", "--device", "cpu", "--precision", "fp32", "--seed", 5]
        arguments += ["--max-calibration-error", 1, "--max-slowdown", 1000]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(one) for one in arguments]) + "\n")
        self._process.stdin.flush()
        process = int(self._says())
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):  # it was through before
                os.kill(process, signal.SIGKILL)
        return int(self._says())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _says(self) -> str:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline().strip():
            if line == "ready" or line.lstrip("-").isdigit():
                return line
        raise AssertionError("the process that trains has ended")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    trainer = Trainer(tmp_path_factory.mktemp("trainer"))
    yield trainer
    trainer.close()


@pytest.fixture(scope="module")
def undisturbed(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, float]:
    """What is published without a kill, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    assert trainer.retrain(folder / "run", folder / "models") == 0
    return read_manifest(folder / "models" / "colours" / "1"), time.monotonic() - began


def whole_versions(models: Path) -> list[int]:
    versions = model_versions(models / "colours")
    for version in versions:
        folder = models / "colours" / str(version)
        verify_files(folder, read_manifest(folder))
    return versions


def _moment(chance: random.Random, seconds: float) -> float:
    return chance.uniform(0, 0.9 * seconds)


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_anywhere_it_resumes_and_publishes_what_it_would_have(
    trainer: Trainer, undisturbed: tuple[Manifest, float], tmp_path: Path, seed: int
) -> None:
    expected, seconds = undisturbed
    chance, kills = random.Random(seed), 0
    while not kills:
        run, models = tmp_path / f"run-{seconds}", tmp_path / f"models-{seconds}"
        while (status := trainer.retrain(run, models, _moment(chance, seconds) if kills < MOST_KILLS else None)) != 0:
            assert status == -signal.SIGKILL
            whole_versions(models)
            kills += 1
        seconds /= 2  # if it was through before the first: the undisturbed run was slow
    versions = whole_versions(models)
    assert versions
    for version in versions:  # one that was killed just after it had published may publish the same again
        found = read_manifest(models / "colours" / str(version))
        assert found.files[MODEL_FILE] == expected.files[MODEL_FILE]
        assert found.evaluation == expected.evaluation
    assert not [path for path in (models / "colours").iterdir() if path.name.startswith(".tmp-")]
