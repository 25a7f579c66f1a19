"""The stages from pictures to a published version, as the commands share them: flags in, lines on the terminal out."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.table import Table

from service import cpu
from service.manifest import MODEL_FILE, Manifest
from service.terminal import Console
from training import checkpoint, finished, loop
from training import export as exporting
from training import publish as publishing
from training.checkpoint import Position, Tensors
from training.datasets import Dataset, listed
from training.errors import CheckpointError
from training.export import Export
from training.files import lock_folder
from training.finished import FinishedModel
from training.hardware import Compute, choose, keep_memory
from training.recipes import Recipe, named
from training.report import REPORT_FILE
from training.run import RunSpec, Start, describe_run
from training.signals import stop_requests
from training.sources import CIFAR10, KNOWN_DATA, read_data
from training.warm_start import kept_weights


def new_console() -> Console:
    return Console(soft_wrap=True)


def train(arguments: argparse.Namespace, console: Console) -> tuple[Path, Dataset]:
    """Train, or go on, as the flags say; gives the run folder and the data that was loaded for it."""
    recipe, compute, run = _settings(arguments)
    max_broken = KNOWN_DATA if arguments.resume else arguments.max_broken
    dataset = read_data(*_data(arguments), recipe.image_shape, arguments.download_folder, max_broken)
    if dataset.skipped:
        console.print(f"skipped {len(dataset.skipped)} broken pictures: {listed(dataset.skipped)}")
    start, weights = _start(arguments, recipe, dataset)
    spec = describe_run(recipe, compute, dataset, start)
    console.print(
        f"training {recipe.architecture} on {dataset.name}: {len(dataset.train):,} + {len(dataset.test):,} images, "
        f"{len(dataset.classes)} classes, on {compute.device} in {compute.precision}, {compute.layout}; run {run}"
    )
    position = train_run(spec, dataset, run, resume=arguments.resume, console=console, weights=weights)
    if best := position.best(recipe):
        console.print(f"kept: epoch {best.epoch}, validation accuracy {best.validation_accuracy:.2%}")
    return run, dataset


def _start(arguments: argparse.Namespace, recipe: Recipe, dataset: Dataset) -> tuple[Start | None, Tensors | None]:
    """The weights that --start-from names. A resumed run has its own, and says itself what it began with."""
    if arguments.resume:
        if arguments.start_from is not None:
            raise CheckpointError("--start-from is for a new run; one that is resumed goes on with its own weights")
        return checkpoint.load_spec(arguments.run).start, None
    return (None, None) if arguments.start_from is None else kept_weights(arguments.start_from, recipe, dataset)


def train_run(
    spec: RunSpec, dataset: Dataset, run: Path, *, resume: bool, console: Console, weights: Tensors | None = None
) -> Position:
    """Train to the end, alone in the folder `run`, with Ctrl-C and SIGTERM heard. Raises what `loop.train` raises."""
    # torch counts the host's cores, not those of the container's quota.
    torch.set_num_threads(min(torch.get_num_threads(), cpu.usable_cores()))
    keep_memory()
    with _only_training_in(run), stop_requests() as stop_signal:
        return loop.train(spec, dataset, run, resume=resume, stop_signal=stop_signal, console=console, weights=weights)


@contextmanager
def _only_training_in(run: Path) -> Iterator[None]:
    """Two trainings in one folder would take turns in replacing each other's checkpoint."""
    run.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = lock_folder(run)
    except BlockingIOError:
        raise CheckpointError(f"another training is at work in {run}") from None
    try:
        yield
    finally:
        os.close(descriptor)


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


def run_data(spec: RunSpec, arguments: argparse.Namespace) -> Dataset:
    """The data that a run was trained on, from where it lay then or where --data says it is now."""
    source = arguments.data or spec.source
    return read_data(source, spec.dataset, spec.recipe.image_shape, arguments.download_folder, KNOWN_DATA)


def evaluate(run: Path, dataset: Dataset, weights: str, console: Console, *, six_views: bool) -> FinishedModel:
    """Turn the best epoch of a run into a finished model, and show how good it is."""
    model = finished.finish(checkpoint.load(run), dataset, weights, six_views=six_views)
    finished.save(run, model)
    evaluation = model.evaluation
    table = Table("class", "images", "precision", "recall", "F1", title=f"{dataset.name}, test split")
    for scores in (*evaluation["per_class"], {"label": "macro", "support": evaluation["n"], **evaluation["macro"]}):
        ratios = (f"{scores[key]:.2%}" for key in ("precision", "recall", "f1"))
        table.add_row(scores["label"], str(scores["support"]), *ratios)
    console.print(table)
    console.print(
        f"accuracy {evaluation['accuracy']:.2%} with {weights} weights "
        f"({evaluation['accuracy_before_rounding']:.2%} before rounding), epoch {model.recipe['best_epoch']}\n"
        f"calibration error {evaluation['ece']:.4f} at temperature {model.recipe['temperature']:.4f}, "
        f"fitted on {model.dataset['splits']['validation']:,} validation images "
        f"({evaluation['ece_before_calibration']:.4f} before)"
    )
    if six_views:
        console.print(f"accuracy in six views: {evaluation['accuracy_in_six_views']:.2%}")
    return model


def export(run: Path, model: FinishedModel, dataset: Dataset, precisions: Sequence[str], console: Console) -> Export:
    """Write the ONNX files of a finished model and its report, and show what each precision costs."""
    exported = exporting.export(run, model, dataset, precisions)
    for parity in exported.parity:
        allowed = "" if parity.precision in exported.compute_precisions else "; not good enough to be used"
        console.print(
            f"parity with PyTorch on {parity.provider}, {parity.precision}: same top class for {parity.agreement:.2%} "
            f"of {parity.n:,} images, largest difference of a probability {parity.max_abs_difference:.2g}, "
            f"accuracy {parity.accuracy:.2%}, at most {100 * parity.class_drop:.1f} points down in a class{allowed}"
        )
    console.print(f"{run / MODEL_FILE}: {exported.files[MODEL_FILE].size / 1e6:.2f} MB, opset {exported.opset}")
    console.print(f"{run / REPORT_FILE}: all of it, drawn")
    return exported


def publish(
    arguments: argparse.Namespace, run: Path, model: FinishedModel, exported: Export, console: Console
) -> Manifest:
    """Put an export into the repository as its next version."""
    manifest = publishing.publish(run, model, exported, arguments.models, arguments.name, arguments.sign_key)
    folder = arguments.models / manifest.name / str(manifest.version)
    console.print(f"published {manifest.name} version {manifest.version} in {folder}")
    return manifest
