"""Whether a new model is good enough to be published over the one being served: every gate, with its numbers.

Both models are asked about the same test images, on this machine, in the precision and on the provider that a server
here would take.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service import config
from service.engine import Engine, EngineError
from service.manifest import Manifest
from service.model_config import Compute, read_model_config
from service.serving import open_engine
from training.datasets import LabelledImages
from training.errors import GateRefused, TrainingError
from training.export import Export
from training.finished import FinishedModel
from training.inference import BATCH, predict
from training.predictions import PREDICTIONS_FILE, Predictions
from training.predictions import load as load_predictions
from training.publish import describe
from training.significance import mcnemar, wilson_interval

ROUNDS = 7
# Accuracies are counts over n: a margin given in decimals must not fail on their binary tails.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Limits:
    """What is asked of a new model; each but the last is a fraction, and each has a flag of its name."""

    min_accuracy: float
    max_regression: float
    max_class_regression: float
    max_calibration_error: float
    max_slowdown: float  # seconds an image, as a multiple of the served version's


@dataclass(frozen=True)
class Verdict:
    """Of one gate; `message` has the numbers either way."""

    gate: str
    passed: bool
    message: str


def judge(
    model: FinishedModel,
    exported: Export,
    run: Path,
    served: tuple[Manifest, Path] | None,
    test: LabelledImages,
    limits: Limits,
) -> list[Verdict]:
    """The verdict of every gate on the export in `run`; `served` is the version to compare with, and its folder.

    Raises GateRefused when the two cannot be compared, TrainingError when one of them does not run here.
    """
    verdicts = [_accuracy(model, limits.min_accuracy), _calibration(model, limits.max_calibration_error)]
    verdicts.append(_parity(exported))
    if served is None:
        return verdicts
    manifest, folder = served
    _require_comparable(model, manifest)
    try:
        compute = _as_served(folder.parent)
        ours = open_engine(run, describe(model, exported, manifest.name), compute)
        theirs = open_engine(folder, manifest, compute)
    except (EngineError, ValueError) as error:
        raise TrainingError(f"the two versions cannot be compared: {error}") from error
    new = load_predictions(run / PREDICTIONS_FILE)
    old = Predictions.of(predict(theirs, test), test.labels)
    title = f"{manifest.name} version {manifest.version}, which is served"
    verdicts.append(_regression(new, old, title, limits.max_regression))
    verdicts.append(_class_regression(new, old, title, model.spec.classes, limits.max_class_regression))
    verdicts.append(_slowdown(ours, theirs, title, test, limits.max_slowdown))
    return verdicts


def _as_served(model: Path) -> Compute:
    """What a server here computes the model in this folder with, but in the batches of the comparison.

    Raises ConfigError.
    """
    compute = read_model_config(model, config.load({})).compute
    return dataclasses.replace(compute, max_batch_size=BATCH, buckets=())


def require(verdicts: list[Verdict]) -> None:
    """Raises GateRefused with the message of every gate that was not passed."""
    failed = [verdict.message for verdict in verdicts if not verdict.passed]
    if failed:
        raise GateRefused("not published: " + "; ".join(failed))


def _accuracy(model: FinishedModel, least: float) -> Verdict:
    accuracy, n = model.evaluation["accuracy"], model.evaluation["n"]
    low, high = wilson_interval(round(accuracy * n), n)
    passed = accuracy >= least - _ROUNDING
    message = (
        f"test accuracy {accuracy:.2%} (95% interval {low:.2%} to {high:.2%}, n {n:,}) is "
        f"{'at least' if passed else 'below'} --min-accuracy {least:.2%}"
    )
    return Verdict("accuracy", passed, message)


def _calibration(model: FinishedModel, most: float) -> Verdict:
    error = model.evaluation["ece"]
    passed = error <= most + _ROUNDING
    message = f"calibration error {error:.4f} is {'within' if passed else 'above'} --max-calibration-error {most:.4f}"
    return Verdict("calibration", passed, message)


def _parity(exported: Export) -> Verdict:
    """fp32 has passed, or there would be no export; the message tells what else may be computed in."""
    kept = [each.precision for each in exported.parity if each.precision in exported.compute_precisions]
    dropped = [each.precision for each in exported.parity if each.precision not in exported.compute_precisions]
    message = f"PyTorch's answers in {', '.join(kept)}" + (f"; not in {', '.join(dropped)}" if dropped else "")
    return Verdict("parity", "fp32" in kept, message)


def _require_comparable(model: FinishedModel, served: Manifest) -> None:
    title = f"{served.name} version {served.version}"
    if served.labels != model.spec.classes:
        raise GateRefused(
            f"not published: {title} has other labels ({', '.join(served.labels)}); use another --name for "
            f"{', '.join(model.spec.classes)}"
        )
    if served.image_shape != model.spec.recipe.image_shape:
        raise GateRefused(
            f"not published: {title} takes images of {served.image_shape}, the new model of "
            f"{model.spec.recipe.image_shape}; use another --name"
        )


def _regression(new: Predictions, old: Predictions, title: str, most: float) -> Verdict:
    accuracy, before = float(new.right.mean()), float(old.right.mean())
    pairs = mcnemar(new.right, old.right)
    message = (
        f"test accuracy {accuracy:.2%} is {100 * abs(accuracy - before):.2f} points "
        f"{'below' if accuracy < before else 'above'} {before:.2%} of {title} (only the new one right "
        f"{pairs.only_first}, only the old one {pairs.only_second}, p {pairs.p_value:.2g}); "
        f"--max-regression allows {100 * most:.2f}"
    )
    return Verdict("regression", before - accuracy <= most + _ROUNDING, message)


def _class_regression(new: Predictions, old: Predictions, title: str, classes: tuple[str, ...], most: float) -> Verdict:
    losses = {
        label: float(old.right[of_class].mean() - new.right[of_class].mean())
        for index, label in enumerate(classes)
        if (of_class := _members(new.labels, index)).any()
    }
    worst = max(losses, key=lambda label: losses[label])
    message = (
        f"recall of {worst} is {100 * losses[worst]:.2f} points below that of {title}, the most of any class; "
        f"--max-class-regression allows {100 * most:.2f}"
    )
    return Verdict("class regression", losses[worst] <= most + _ROUNDING, message)


def _members(labels: npt.NDArray[np.int64], index: int) -> npt.NDArray[np.bool_]:
    members: npt.NDArray[np.bool_] = labels == index
    return members


def _slowdown(ours: Engine, theirs: Engine, title: str, test: LabelledImages, most: float) -> Verdict:
    """Taken in turns, so that what else this machine does meets both; the fastest round of each counts."""
    seconds: dict[Engine, list[float]] = {ours: [], theirs: []}
    batch = test.images[:BATCH]
    for _ in range(ROUNDS):
        for engine, rounds in seconds.items():
            began = time.perf_counter()
            engine.run(batch)
            rounds.append(time.perf_counter() - began)
    new, old = (min(rounds) / len(batch) for rounds in seconds.values())
    message = (
        f"an image takes {new * 1e6:,.0f} µs in {ours.precision} on {ours.provider}, {new / old:.2f} times the "
        f"{old * 1e6:,.0f} µs of {title} in {theirs.precision}; --max-slowdown allows {most:.2f}"
    )
    return Verdict("latency", new / old <= most, message)
