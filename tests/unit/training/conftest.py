from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.training import pictures
from training import checkpoint, export, finished, loop
from training.datasets import Dataset
from training.export import Export
from training.finished import FinishedModel
from training.hardware import Compute
from training.recipes import Recipe
from training.run import RunSpec, describe_run

RECIPE = Recipe(
    name="small",
    architecture="tutorial",
    image_shape=(8, 8, 3),
    epochs=3,
    batch_size=16,
    learning_rate=1e-3,
    crop_padding=1,
    flip=True,
    validation_fraction=0.2,
    seed=3,
)


@dataclass(frozen=True)
class FinishedRun:
    """A run folder after training, evaluation and export, with all that is in it."""

    folder: Path
    dataset: Dataset
    model: FinishedModel
    export: Export


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return pictures.dataset()


@pytest.fixture(scope="session")
def spec(dataset: Dataset) -> RunSpec:
    return describe_run(RECIPE, Compute("cpu", "fp32", "contiguous"), dataset)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, spec: RunSpec, dataset: Dataset) -> FinishedRun:
    """Made once; tests that change files take a copy."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    loop.train(spec, dataset, folder, resume=False, stop_signal=lambda: 0, console=Console(quiet=True))
    model = finished.finish(checkpoint.load(folder), dataset, "int8")
    finished.save(folder, model)
    return FinishedRun(folder, dataset, model, export.export(folder, model, dataset))
