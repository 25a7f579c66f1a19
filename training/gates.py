"""Whether a new model is good enough to be published over the one being served."""

from __future__ import annotations

from pathlib import Path

from service import cpu
from service.engine import Engine, EngineError
from service.manifest import MODEL_FILE, Manifest
from training.datasets import LabelledImages
from training.errors import GateRefused, TrainingError
from training.finished import FinishedModel
from training.parity import BATCH, predict


def require_accuracy(model: FinishedModel, least: float) -> None:
    """Raises GateRefused when the test accuracy is below `least` (a fraction)."""
    accuracy = model.evaluation["accuracy"]
    if accuracy < least:
        raise GateRefused(f"not published: test accuracy {accuracy:.2%} is below --min-accuracy {least:.2%}")


def require_no_regression(
    model: FinishedModel, served: Manifest, folder: Path, test: LabelledImages, most: float
) -> None:
    """Raises GateRefused when accuracy is more than `most` (a fraction) below that of the served version in `folder`.

    Both on the same images: a served version that was evaluated on others is run on `test` first.
    """
    title = f"{served.name} version {served.version}"
    if served.labels != model.spec.classes:
        raise GateRefused(
            f"not published: {title} has other labels ({', '.join(served.labels)}); use another --name for "
            f"{', '.join(model.spec.classes)}"
        )
    accuracy, before = model.evaluation["accuracy"], served_accuracy(served, folder, model, test)
    # Accuracies are counts over n: the margin is given in decimals, and must not fail on their binary tails.
    if before - accuracy > most + 1e-9:
        raise GateRefused(
            f"not published: test accuracy {accuracy:.2%} is {100 * (before - accuracy):.2f} points below "
            f"{before:.2%} of {title}, which is served; --max-regression allows {100 * most:.2f}"
        )


def served_accuracy(served: Manifest, folder: Path, model: FinishedModel, test: LabelledImages) -> float:
    """The served version's accuracy on `test`: from its manifest if that speaks of these images, else measured."""
    if served.dataset.get("test_fingerprint") == model.dataset["test_fingerprint"]:
        return float(served.evaluation["accuracy"])
    if served.image_shape != model.spec.recipe.image_shape:
        raise GateRefused(
            f"not published: {served.name} version {served.version} takes images of {served.image_shape}, the new "
            f"model of {model.spec.recipe.image_shape}; use another --name"
        )
    try:
        engine = Engine(folder / MODEL_FILE, provider="cpu", threads=cpu.usable_cores(), max_batch_size=BATCH)
    except EngineError as error:
        raise TrainingError(f"the served version cannot be evaluated: {error}") from error
    return float((predict(engine, test).argmax(1) == test.labels).mean())
