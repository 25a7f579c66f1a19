"""The train command as a person uses it: begin, interrupt, go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from service.cli import main
from tests.integration.server_process import ENVIRONMENT, command
from tests.unit.training import small_folder
from training import checkpoint
from training.files import lock_folder

# One epoch is 3 steps of 8 of the 24 images that remain for training.
FLAGS = ("--image-shape", "8x8x3", "--batch-size", "8", "--validation-fraction", "0.2", "--epochs", "1")
FIXED = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder.write(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `runs/` would be made."""
    monkeypatch.chdir(tmp_path)


def train(data: Path, run: Path, *flags: str) -> int:
    return main(["train", "--data", str(data), "--run", str(run), *FLAGS, *FIXED, *flags])


def test_training_leaves_a_checkpoint_and_says_what_comes_next(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(pictures, run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"training tutorial on colours: 30 + 6 images, 3 classes, on cpu in fp32, channels_last; run {run}"
    )
    assert lines[1].startswith("epoch 1/1 done  loss ")
    assert lines[2].startswith("kept: epoch 1, validation accuracy ")
    assert lines[3] == f"next: cifarserve evaluate --run {run}"
    found = checkpoint.load(run)
    assert found.position.epoch == 1
    assert found.spec.classes == ("blue", "green", "red")


def test_flags_replace_the_recipes_values_and_leave_the_others(pictures: Path, tmp_path: Path) -> None:
    assert train(pictures, tmp_path / "run", "--seed", "5", "--no-flip", "--data-name", "three colours") == 0
    spec = checkpoint.load_spec(tmp_path / "run")
    assert (spec.recipe.seed, spec.recipe.flip, spec.recipe.batch_size) == (5, False, 8)
    assert (spec.recipe.name, spec.recipe.learning_rate, spec.recipe.crop_padding) == ("tutorial", 1e-4, 4)
    assert spec.dataset == "three colours"


def test_without_a_run_folder_one_is_made_in_runs(pictures: Path, tmp_path: Path) -> None:
    assert main(["train", "--data", str(pictures), *FLAGS, *FIXED]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("tutorial-")
    assert checkpoint.exists(run)


def test_a_run_that_is_there_is_not_overwritten(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(pictures, run) == 0
    before = (run / checkpoint.FILE).read_bytes()
    capsys.readouterr()
    assert train(pictures, run) == 2
    output = capsys.readouterr()
    assert output.err == f"cifarserve train: {run} holds a run already: go on with --resume, or name another folder\n"
    assert (run / checkpoint.FILE).read_bytes() == before


def test_a_run_with_other_hyperparameters_is_not_resumed(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(pictures, run) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "--run", str(run), "--batch-size", "4", "--precision", "bf16"]) == 2
    error = capsys.readouterr().err
    assert "of another run: recipe.batch_size was 8, is 4; compute.precision was fp32, is bf16" in error
    assert error.count("\n") == 1


def test_a_resumed_run_finds_its_data_where_it_was_moved_but_takes_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there, run = tmp_path / "here", tmp_path / "there", tmp_path / "run"
    small_folder.write(here)
    assert train(here, run) == 0
    here.rename(there)
    assert main(["train", "--resume", "--run", str(run)]) == 2
    assert f"{here}: no such folder or archive" in capsys.readouterr().err
    assert main(["train", "--resume", "--run", str(run), "--data", str(there)]) == 0
    (there / "red" / "000.png").unlink()
    capsys.readouterr()
    assert main(["train", "--resume", "--run", str(run), "--data", str(there)]) == 2
    assert "of another run: fingerprint was" in capsys.readouterr().err


def test_two_trainings_in_one_folder_are_refused(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    descriptor = lock_folder(run)
    try:
        assert train(pictures, run) == 2
    finally:
        os.close(descriptor)
    assert capsys.readouterr().err == f"cifarserve train: another training is at work in {run}\n"
    assert train(pictures, run) == 0


def test_a_network_that_there_is_not_is_one_line(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(pictures, tmp_path / "run", "--architecture", "vgg") == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"cifarserve train: no architecture 'vgg'; known: .*tutorial.*\n", error)


def test_a_loss_that_is_no_number_is_one_line_and_no_checkpoint(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(pictures, tmp_path / "run", "--learning-rate", "1e30") == 2
    error = capsys.readouterr().err
    assert re.match(r"cifarserve train: the loss is (nan|inf) in epoch 1, step 3: ", error)
    assert error.endswith("try a lower --learning-rate\n")
    assert not checkpoint.exists(tmp_path / "run")


class Training:
    """`cifarserve train` as a process with its output in files."""

    def __init__(self, folder: Path, *flags: object) -> None:
        folder.mkdir(exist_ok=True)
        self.output, self.errors = folder / "output", folder / "errors"
        # One thread each: these networks are too small for two, and two of the processes run side by side.
        environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
        with self.output.open("w") as output, self.errors.open("w") as errors:
            self.process = subprocess.Popen(command("train", *flags), stdout=output, stderr=errors, env=environment)

    def wait_for(self, text: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.output.read_text():
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, f"no {text!r} within {seconds} s: {self.output.read_text()}"
            time.sleep(0.005)

    def end(self, seconds: float = 240) -> int:
        return self.process.wait(seconds)


def test_a_run_interrupted_by_ctrl_c_and_resumed_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    folder = small_folder.write(tmp_path / "colours", count=60)
    steps = 69  # 138 images are left for training
    flags = ("--data", folder, "--image-shape", "8x8x3", "--batch-size", "2", "--epochs", "2", "--crop-padding", "1")
    run = tmp_path / "broken"
    started: list[Training] = []
    try:
        broken = Training(tmp_path / "first", *flags, *FIXED, "--run", run)
        started.append(broken)
        broken.wait_for("epoch 1/2 done")
        broken.process.send_signal(signal.SIGINT)
        unbroken = Training(tmp_path / "unbroken", *flags, *FIXED, "--run", tmp_path / "whole")
        started.append(unbroken)

        assert broken.end() == 130
        left = checkpoint.load(run).position
        assert left.epoch == 1
        assert 0 < left.step < steps, "the signal was to come in the middle of an epoch"
        assert broken.errors.read_text() == (
            f"cifarserve train: stopped at epoch {left.epoch + 1}, step {left.step} of {steps};"
            f" go on with: cifarserve train --run {run} --resume\n"
        )

        # As the message says: recipe, hardware and data all come from the checkpoint.
        resumed = Training(tmp_path / "second", "--run", run, "--resume")
        started.append(resumed)
        assert (resumed.end(), unbroken.end()) == (0, 0)
        assert "epoch 1/2 done" not in resumed.output.read_text()
    finally:
        for one in started:
            one.process.kill()
            one.process.wait()
    found, expected = checkpoint.load(run), checkpoint.load(tmp_path / "whole")
    assert found.tensors.keys() == expected.tensors.keys()
    assert [name for name, tensor in expected.tensors.items() if not torch.equal(found.tensors[name], tensor)] == []
    for one, other in zip(found.position.history, expected.position.history, strict=True):
        assert (one.loss, one.accuracy) == (other.loss, other.accuracy)
        assert (one.validation_loss, one.validation_accuracy) == (other.validation_loss, other.validation_accuracy)
