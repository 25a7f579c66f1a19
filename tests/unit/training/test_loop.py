"""Training: repeatable, interruptible, and the same whether it was interrupted or not."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.unit.training import pictures
from training import checkpoint, loop
from training.checkpoint import Checkpoint, EpochRecord, Position
from training.datasets import Dataset
from training.errors import CheckpointError, Interrupted, TrainingError
from training.hardware import Compute
from training.run import RunSpec, describe_run

ROOT = Path(__file__).resolve().parents[3]
STEPS = 3  # 48 training images in batches of 16


def train(
    spec: RunSpec, dataset: Dataset, run: Path, *, resume: bool = False, stop: Callable[[], int] = lambda: 0
) -> Checkpoint:
    loop.train(spec, dataset, run, resume=resume, stop_signal=stop, console=Console(quiet=True))
    return checkpoint.load(run)


def stop_after(steps: int) -> Callable[[], int]:
    """A stop signal that comes after so many steps of this process."""
    left = iter([0] * (steps - 1))
    return lambda: next(left, signal.SIGINT)


def assert_same_tensors(first: Checkpoint, second: Checkpoint) -> None:
    assert first.tensors.keys() == second.tensors.keys()
    different = [name for name, tensor in first.tensors.items() if not torch.equal(tensor, second.tensors[name])]
    assert not different


def figures(position: Position) -> list[tuple[float, ...]]:
    """All of the history but the times."""
    return [(one.loss, one.accuracy, one.validation_loss, one.validation_accuracy) for one in position.history]


@pytest.fixture(scope="module")
def unbroken(spec: RunSpec, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return train(spec, dataset, tmp_path_factory.mktemp("unbroken"))


def test_training_learns(unbroken: Checkpoint) -> None:
    assert unbroken.position.epoch == 3
    best = unbroken.position.best(unbroken.spec.recipe)
    assert best is not None
    assert best.validation_accuracy > 0.6  # by chance a third


def test_the_same_seed_gives_the_same_run(
    spec: RunSpec, dataset: Dataset, tmp_path: Path, unbroken: Checkpoint
) -> None:
    again = train(spec, dataset, tmp_path)
    assert_same_tensors(again, unbroken)
    assert figures(again.position) == figures(unbroken.position)


def test_another_seed_gives_another_run(spec: RunSpec, dataset: Dataset, tmp_path: Path, unbroken: Checkpoint) -> None:
    recipe = dataclasses.replace(spec.recipe, seed=4)
    other = train(dataclasses.replace(spec, recipe=recipe), dataset, tmp_path)
    assert not torch.equal(other.tensors["model.network.0.weight"], unbroken.tensors["model.network.0.weight"])


@pytest.mark.parametrize("steps", [1, STEPS, STEPS + 2, 2 * STEPS + 1])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    spec: RunSpec, dataset: Dataset, tmp_path: Path, unbroken: Checkpoint, steps: int
) -> None:
    with pytest.raises(Interrupted, match="--resume"):
        train(spec, dataset, tmp_path, stop=stop_after(steps))
    left = checkpoint.load(tmp_path).position
    assert left.epoch * STEPS + left.step == steps
    resumed = train(spec, dataset, tmp_path, resume=True)
    assert_same_tensors(resumed, unbroken)
    assert figures(resumed.position) == figures(unbroken.position)


def test_resuming_is_exact_in_bf16_and_channels_last_too(spec: RunSpec, dataset: Dataset, tmp_path: Path) -> None:
    spec = dataclasses.replace(spec, compute=Compute("cpu", "bf16", "channels_last"))
    whole = train(spec, dataset, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(spec, dataset, tmp_path / "broken", stop=stop_after(STEPS + 1))
    assert_same_tensors(train(spec, dataset, tmp_path / "broken", resume=True), whole)


def test_a_finished_run_resumed_stays_as_it_is(
    spec: RunSpec, dataset: Dataset, tmp_path: Path, unbroken: Checkpoint
) -> None:
    checkpoint.save(tmp_path, unbroken)
    assert_same_tensors(train(spec, dataset, tmp_path, resume=True), unbroken)


def test_a_checkpoint_of_another_recipe_or_other_data_is_refused_by_name(
    spec: RunSpec, dataset: Dataset, tmp_path: Path, unbroken: Checkpoint
) -> None:
    checkpoint.save(tmp_path, unbroken)
    recipe = dataclasses.replace(spec.recipe, batch_size=8, learning_rate=0.5)
    with pytest.raises(
        CheckpointError, match=r"recipe\.batch_size was 16, is 8; recipe\.learning_rate was 0\.001, is 0\.5"
    ):
        train(dataclasses.replace(spec, recipe=recipe), dataset, tmp_path, resume=True)
    other = pictures.dataset(train=21)
    with pytest.raises(CheckpointError, match="fingerprint was"):
        train(describe_run(spec.recipe, spec.compute, other), other, tmp_path, resume=True)


@pytest.mark.parametrize(("warm_up", "expected"), [(-1.0, 2), (0.0, 4), (0.2, 4)])
def test_kept_is_the_epoch_with_the_highest_validation_accuracy_or_the_last_when_the_rate_falls_to_0(
    spec: RunSpec, warm_up: float, expected: int
) -> None:
    recipe = dataclasses.replace(spec.recipe, warm_up=warm_up)
    accuracies = (0.5, 0.8, 0.7, 0.8)
    history = tuple(EpochRecord(index + 1, 0, 0, 0, value, 1, 1) for index, value in enumerate(accuracies))
    best = Position(4, 0, 0.0, history).best(recipe)
    assert best is not None
    assert best.epoch == expected
    assert Position().best(recipe) is None


def test_the_best_weights_are_those_at_the_end_of_the_best_epoch(
    spec: RunSpec, dataset: Dataset, tmp_path: Path, unbroken: Checkpoint
) -> None:
    best = unbroken.position.best(unbroken.spec.recipe)
    assert best is not None
    until_best = dataclasses.replace(spec, recipe=dataclasses.replace(spec.recipe, epochs=best.epoch))
    short = train(until_best, dataset, tmp_path)
    kept, last = checkpoint.part(unbroken.tensors, "best."), checkpoint.part(short.tensors, "model.")
    assert all(torch.equal(kept[name], tensor) for name, tensor in last.items())


def test_a_diverging_run_stops_with_advice(spec: RunSpec, dataset: Dataset, tmp_path: Path) -> None:
    recipe = dataclasses.replace(spec.recipe, learning_rate=1e30)
    with pytest.raises(TrainingError, match="try a lower --learning-rate"):
        train(dataclasses.replace(spec, recipe=recipe), dataset, tmp_path)


def test_a_log_shows_each_epoch(spec: RunSpec, dataset: Dataset, tmp_path: Path) -> None:
    text = io.StringIO()
    loop.train(spec, dataset, tmp_path, resume=False, stop_signal=lambda: 0, console=Console(file=text, width=200))
    lines = re.findall(
        r"epoch (\d)/3 done  loss \d\.\d+  accuracy [\d.]+%  validation loss .* images/s", text.getvalue()
    )
    assert lines == ["1", "2", "3"]


def test_a_terminal_shows_a_bar_with_loss_accuracy_speed_and_time_left(spec: RunSpec, tmp_path: Path) -> None:
    text = io.StringIO()
    dataset = pictures.dataset(train=100)  # 15 steps: figures come every 10
    spec = describe_run(dataclasses.replace(spec.recipe, epochs=1), spec.compute, dataset)
    console = Console(file=text, width=160, force_terminal=True)
    loop.train(spec, dataset, tmp_path, resume=False, stop_signal=lambda: 0, console=console)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    assert re.search(r"epoch 1/1 .*\d+%.* loss \d\.\d+  accuracy [\d.]+%  [\d,]+ images/s .*\d:\d\d", shown)


def test_a_real_sigterm_in_the_middle_of_an_epoch_leaves_a_checkpoint(tmp_path: Path) -> None:
    folder = pictures.write_folder(tmp_path / "colours", train=120)
    flags = ["--data", str(folder), "--image-shape", "8x8x3", "--epochs", "2", "--batch-size", "4", "--device", "cpu"]
    command = [sys.executable, "-u", "-m", "service.cli", "train", *flags, "--run", str(tmp_path / "run")]
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 1/2 done"):
                process.send_signal(signal.SIGTERM)
                break
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "--resume" in errors
    left = checkpoint.load(tmp_path / "run").position
    assert left.epoch == 1
    assert 0 < left.step < 86  # 342 training images in batches of 4
