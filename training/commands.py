"""What the training commands do with their parsed flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from training import checkpoint, finished, stages
from training import export as exporting
from training.pipeline import retrain


def train(arguments: argparse.Namespace) -> None:
    """Train, or go on, and leave the checkpoint."""
    console = stages.new_console()
    run, _ = stages.train(arguments, console)
    console.print(f"next: cifarserve evaluate --run {run}")


def evaluate(arguments: argparse.Namespace) -> None:
    """Turn the best epoch of a run into a finished model, and show how good it is."""
    saved = checkpoint.load(arguments.run)
    dataset = stages.run_data(saved.spec, arguments)
    console = stages.new_console()
    stages.evaluate(arguments.run, dataset, arguments.weights, console, six_views=arguments.six_views)
    console.print(f"next: cifarserve export --run {arguments.run}")


def export(arguments: argparse.Namespace) -> None:
    """Write the ONNX file of a finished model, if it gives PyTorch's answers."""
    model = finished.load(arguments.run)
    dataset = stages.run_data(model.spec, arguments)
    console = stages.new_console()
    stages.export(arguments.run, model, dataset, arguments.precisions, console)
    console.print(f"next: cifarserve publish --run {arguments.run}")


def publish(arguments: argparse.Namespace) -> None:
    """Put an exported model into the repository. No gate: whoever publishes by hand has decided."""
    model, exported = finished.load(arguments.run), exporting.load(arguments.run)
    stages.publish(arguments, arguments.run, model, exported, stages.new_console())


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "publish": publish,
    "retrain": retrain,
}
