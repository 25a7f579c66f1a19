"""What the training commands do with their parsed flags."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from training import checkpoint, loop
from training.cifar10 import read_original
from training.datasets import Dataset, ImageShape, read_pictures
from training.errors import CheckpointError, TrainingError
from training.hardware import Compute, choose
from training.recipes import Recipe, named
from training.run import describe_run
from training.signals import stop_requests

CIFAR10 = "cifar10"


def train(arguments: argparse.Namespace) -> None:
    _train(arguments, Console())


def _train(arguments: argparse.Namespace, console: Console) -> tuple[Path, Dataset]:
    """Train, or go on, as the flags say; gives the run folder and the data that was loaded for it."""
    recipe, compute, run = _settings(arguments)
    dataset = read_data(*_data(arguments), recipe.image_shape, arguments.download_folder)
    spec = describe_run(recipe, compute, dataset)
    console.print(
        f"training {recipe.architecture} on {dataset.name}: {len(dataset.train):,} + {len(dataset.test):,} images, "
        f"{len(dataset.classes)} classes, on {compute.device} in {compute.precision}, {compute.layout}; run {run}",
        highlight=False,
        soft_wrap=True,
    )
    with stop_requests() as stop_signal:
        position = loop.train(spec, dataset, run, resume=arguments.resume, stop_signal=stop_signal, console=console)
    best = position.best
    if best:
        console.print(f"best: epoch {best.epoch}, validation accuracy {best.validation_accuracy:.2%}", highlight=False)
    return run, dataset


def _settings(arguments: argparse.Namespace) -> tuple[Recipe, Compute, Path]:
    """Recipe, compute and run folder: from the checkpoint when resuming, changed by the flags that were given."""
    changes = {
        field.name: value
        for field in dataclasses.fields(Recipe)
        if field.name != "name" and (value := getattr(arguments, field.name)) is not None
    }
    if arguments.resume:
        if arguments.run is None:
            raise CheckpointError("--resume needs --run, the folder with the checkpoint")
        spec = checkpoint.load_spec(arguments.run)
        recipe = named(arguments.recipe) if arguments.recipe else spec.recipe
        compute = choose(arguments.device or spec.compute.device, arguments.precision or spec.compute.precision)
        return dataclasses.replace(recipe, **changes), compute, arguments.run
    recipe = named(arguments.recipe or "tutorial")
    run = arguments.run or Path("runs") / f"{recipe.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if checkpoint.exists(run):
        raise CheckpointError(f"{run} holds a run already: go on with --resume, or name another folder")
    compute = choose(arguments.device or "auto", arguments.precision or "auto")
    return dataclasses.replace(recipe, **changes), compute, run


def _data(arguments: argparse.Namespace) -> tuple[str, str | None]:
    """Source and name of the data: the flags', else the resumed run's, else the original CIFAR-10."""
    if arguments.resume:
        spec = checkpoint.load_spec(arguments.run)
        return arguments.data or spec.source, arguments.data_name or spec.dataset
    return arguments.data or CIFAR10, arguments.data_name


def read_data(source: str, name: str | None, shape: ImageShape, download_folder: Path) -> Dataset:
    """Read "cifar10" or a path. Raises TrainingError."""
    if source != CIFAR10:
        return read_pictures(Path(source), shape, name)
    dataset = read_original(download_folder)
    if shape != dataset.train.images.shape[1:]:
        raise TrainingError(f"cifar10 is 32x32x3, the recipe's image_shape is {'x'.join(map(str, shape))}")
    return dataset


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": train,
}
