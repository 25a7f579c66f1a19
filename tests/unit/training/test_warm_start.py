"""Runs that begin with the weights of others."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from service.cli import main
from tests.unit.training import small_folder
from training import checkpoint, finished

FLAGS = ("--image-shape", "8x8x3", "--batch-size", "8", "--epochs", "1", "--device", "cpu", "--precision", "fp32")
SPLIT = ("--validation-fraction", "0.2")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder.write(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def first(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "first"
    assert train(pictures, run, *SPLIT) == 0
    return run


def train(data: Path, run: Path, *flags: str) -> int:
    return main(["train", "--data", str(data), "--run", str(run), *FLAGS, *flags])


def test_it_begins_where_the_other_ended_and_the_manifest_says_so(pictures: Path, first: Path, tmp_path: Path) -> None:
    run = tmp_path / "second"
    still = ("--learning-rate", "1e-12")  # so that the weights stay what they were
    assert train(pictures, run, "--start-from", str(first), *SPLIT, *still) == 0
    before, after = checkpoint.load(first), checkpoint.load(run)
    kept = checkpoint.part(before.tensors, "best.")
    name = "network.0.weight"
    assert torch.allclose(after.tensors[f"model.{name}"], kept[name], atol=1e-6)
    assert after.spec.start is not None
    assert after.spec.start.sha256 == hashlib.sha256(safetensors.torch.save(kept)).hexdigest()
    assert after.spec.start.seconds == pytest.approx(sum(record.seconds for record in before.position.history))
    assert main(["evaluate", "--run", str(run)]) == 0
    assert finished.load(run).recipe["start"]["recipe"]["learning_rate"] == before.spec.recipe.learning_rate
    third = tmp_path / "third"
    assert train(pictures, third, "--start-from", str(run), *SPLIT) == 0
    again = checkpoint.load_spec(third).start
    assert again is not None
    assert again.seconds > after.spec.start.seconds


def test_it_is_resumed_without_naming_the_start_again(pictures: Path, first: Path, tmp_path: Path) -> None:
    run = tmp_path / "second"
    assert train(pictures, run, "--start-from", str(first), *SPLIT) == 0
    before = checkpoint.load(run)
    assert main(["train", "--run", str(run), "--resume"]) == 0
    assert checkpoint.load(run).spec == before.spec


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            (*SPLIT, "--recipe", "scratch", "--image-shape", "16x16x3"),
            r"architecture was tutorial, is scratch; image_shape",
        ),
        (("--validation-fraction", "0.3"), "validation_fraction was 0.2, is 0.3, which is more"),
        ((*SPLIT, "--seed", "7"), "seed was 0, is 7"),
    ],
)
def test_another_network_or_another_division_of_the_same_pictures_is_refused(
    pictures: Path,
    first: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    assert train(pictures, tmp_path / "run", "--start-from", str(first), *flags) == 2
    error = capsys.readouterr().err
    assert f"{first}: cannot start from it: " in error
    assert message in error
    assert not checkpoint.exists(tmp_path / "run")


def test_more_of_the_same_pictures_may_be_trained_on(pictures: Path, first: Path, tmp_path: Path) -> None:
    assert train(pictures, tmp_path / "run", "--start-from", str(first), "--validation-fraction", "0.1") == 0


def test_other_pictures_may_be_divided_as_they_like(first: Path, tmp_path: Path) -> None:
    others = small_folder.write(tmp_path / "others", count=15)
    assert train(others, tmp_path / "run", "--start-from", str(first), "--validation-fraction", "0.3") == 0


def test_a_folder_without_a_run_and_a_start_for_a_resumed_run_are_refused(
    pictures: Path, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(pictures, tmp_path / "run", "--start-from", str(tmp_path), *SPLIT) == 2
    assert "no checkpoint there" in capsys.readouterr().err
    assert main(["train", "--run", str(first), "--resume", "--start-from", str(first)]) == 2
    assert "--start-from is for a new run" in capsys.readouterr().err
