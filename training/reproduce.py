"""Trains the lineage and puts what comes out beside what was published: one table, as text, Markdown and JSON.

Each network is trained, calibrated and evaluated as `cifarserve train` and `evaluate` do it, in a run folder of its
own. A network that was evaluated there is not trained again, and one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from service.terminal import Console
from training import checkpoint, finished
from training.datasets import Dataset
from training.errors import TrainingError
from training.files import write_atomically, write_json
from training.finished import FinishedModel
from training.hardware import choose
from training.lineage import CIFAR, LINEAGE, MNIST, Entry
from training.model import predict_logits
from training.recipes import named
from training.run import describe_run, require_same_run
from training.sources import read_data
from training.stages import new_console, train_run

HEADINGS = ("network", "data", "reference", "ours", "training", "images/s")


@dataclass(frozen=True)
class Result:
    """Of one entry. Accuracies and macro scores are fractions, for the weights as they are shipped; `seconds` are of
    training alone, `images_per_second` over all of it.
    """

    network: str
    data: str
    reference: str
    accuracy: float
    train_accuracy: float
    precision: float
    recall: float
    f1: float
    reached: bool  # the reference's accuracy, on its split
    epochs: int
    seconds: float
    images_per_second: float
    compute: str
    run: str


def reproduce(arguments: argparse.Namespace) -> None:
    """Train what the flags ask for and print the table. Raises TrainingError."""
    console = new_console()
    sources = {CIFAR: (arguments.data, arguments.data_name), MNIST: (arguments.mnist, arguments.mnist_name)}
    entries = [entry for entry in LINEAGE if sources[entry.data][0] and entry.recipe in arguments.only]
    if not entries:
        raise TrainingError("nothing to train: give --data, --mnist or both, and in --only networks that use them")
    results, datasets = [], dict[tuple[str, tuple[int, int, int]], Dataset]()
    for entry in entries:
        place = (entry.data, entry.image_shape)
        if place not in datasets:
            source, name = sources[entry.data]
            datasets[place] = read_data(
                source, name, entry.image_shape, arguments.download_folder, arguments.max_broken
            )
        results.append(_result(entry, datasets[place], arguments.runs, arguments.weights, console))
        _write(arguments.runs, results)
    console.print(_table(results))
    console.print(f"also in {arguments.runs / 'reproduce.md'} and reproduce.json")


def _result(entry: Entry, dataset: Dataset, runs: Path, weights: str, console: Console) -> Result:
    run = runs / entry.name
    model = _finished(entry, dataset, run, weights, console)
    predicted = predict_logits(model.classifier, dataset.train.images).argmax(1)
    train_accuracy = float((predicted == dataset.train.labels).mean())
    evaluation, history = model.evaluation, model.recipe["history"]
    accuracy = evaluation["accuracy"]
    seconds = sum(epoch["seconds"] for epoch in history)
    images = sum(epoch["seconds"] * epoch["images_per_second"] for epoch in history)
    compute = model.spec.compute
    return Result(
        network=entry.recipe,
        data=dataset.name,
        reference=entry.reference,
        accuracy=accuracy,
        train_accuracy=train_accuracy,
        precision=evaluation["macro"]["precision"],
        recall=evaluation["macro"]["recall"],
        f1=evaluation["macro"]["f1"],
        reached={"test": accuracy, "train": train_accuracy}[entry.measured_on] >= entry.accuracy,
        epochs=len(history),
        seconds=seconds,
        images_per_second=images / seconds,
        compute=f"{compute.device}, {compute.precision}",
        run=str(run),
    )


def _finished(entry: Entry, dataset: Dataset, run: Path, weights: str, console: Console) -> FinishedModel:
    """The entry's model: from its run folder, or trained, or trained to its end, and evaluated."""
    recipe = dataclasses.replace(named(entry.recipe), image_shape=entry.image_shape)
    spec = describe_run(recipe, choose("auto", "auto"), dataset)
    if (run / finished.RECORD_FILE).exists():
        model = finished.load(run)
        require_same_run(model.spec, spec)
        console.print(f"{entry.name}: done before, in {run}")
        return model
    console.print(f"{entry.name}: training, in {run}")
    train_run(spec, dataset, run, resume=checkpoint.exists(run), console=console)
    model = finished.finish(checkpoint.load(run), dataset, weights)
    finished.save(run, model)
    return model


def _cells(result: Result) -> tuple[str, ...]:
    ours = f"{result.accuracy:.2%} ({result.train_accuracy:.2%} on train)"
    if result.network == "simple":  # its reference has these too
        ours += f"; precision {result.precision:.4f}, recall {result.recall:.4f}, F1 {result.f1:.4f}"
    epochs = f"{result.seconds:,.0f} s, {result.epochs} epoch{'s' if result.epochs > 1 else ''}"
    return result.network, result.data, result.reference, ours, epochs, f"{result.images_per_second:,.0f}"


def _table(results: list[Result]) -> Table:
    table = Table(*HEADINGS, title="the lineage: test accuracy, one run each")
    for result in results:
        table.add_row(*_cells(result))
    return table


def _write(runs: Path, results: list[Result]) -> None:
    rows = [HEADINGS, ("---",) * len(HEADINGS), *map(_cells, results)]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    write_atomically(runs / "reproduce.md", text.encode())
    write_json(runs / "reproduce.json", [dataclasses.asdict(result) for result in results])
