"""`cifarserve models compare`: two published versions side by side, and whether they differ by more than chance.

Needs no torch: both either left their answers to the same test images in predictions.npz, or answer those of a data
set in ONNX Runtime now.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service import cpu
from service.engine import Engine, EngineError
from service.manifest import MODEL_FILE, Manifest, ManifestError, file_entry, read_manifest
from training import predictions
from training.datasets import Dataset
from training.errors import TrainingError
from training.evaluate import evaluate
from training.inference import BATCH, predict
from training.predictions import PREDICTIONS_FILE, PredictionsError
from training.significance import McNemar, mcnemar, wilson_interval
from training.sources import KNOWN_DATA, read_data

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Version:
    """A published version: its folder and what its manifest says."""

    folder: Path
    manifest: Manifest

    @property
    def title(self) -> str:
        return f"{self.manifest.name}:{self.manifest.version}"


@dataclass(frozen=True)
class Side:
    """One of the two on the compared images. `evaluation` is as in the manifest, `right` [n] its answers."""

    version: Version
    evaluation: dict[str, Any]
    right: npt.NDArray[np.bool_]

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(int(self.right.sum()), len(self.right))


@dataclass(frozen=True)
class Comparison:
    """`images` says in words on what the two were compared."""

    first: Side
    second: Side
    images: str
    test: McNemar

    @property
    def verdict(self) -> str:
        better, worse = self.first, self.second
        if self.test.only_second > self.test.only_first:
            better, worse = worse, better
        points = 100 * (better.evaluation["accuracy"] - worse.evaluation["accuracy"])
        if self.test.p_value < SIGNIFICANT:
            return (
                f"{better.version.title} is better than {worse.version.title} by {points:.2f} points; by chance alone "
                f"so much would be seen in {_chance(self.test.p_value)} of such comparisons"
            )
        if self.test.only_first == self.test.only_second:
            return f"{better.version.title} and {worse.version.title} have as many images right"
        return (
            f"no difference is shown: {better.version.title} is ahead by {points:.2f} points, but by chance alone so "
            f"much would be seen in {_chance(self.test.p_value)} of such comparisons"
        )


def find(repository: Path, name: str, text: str) -> Version:
    """`text` is a version of the model `name`, or name:version. Raises TrainingError."""
    model, _, number = text.rpartition(":")
    if not number.isdecimal():
        raise TrainingError(f"{text!r} is no version: give a number, or name:number")
    folder = repository / (model or name) / str(int(number))
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no such version")
    try:
        return Version(folder, read_manifest(folder))
    except ManifestError as error:
        raise TrainingError(str(error)) from None


def compare(first: Version, second: Version, source: str | None, download_folder: Path) -> Comparison:
    """Compare on the test split of `source`, or without it on the one that both were evaluated on.

    Raises TrainingError: other labels, or nothing in common to compare on.
    """
    if first.manifest.labels != second.manifest.labels:
        raise TrainingError(f"{first.title} and {second.title} have other labels: they do not answer the same question")
    if source is not None:
        return _on_data(first, second, source, download_folder)
    return _on_predictions(first, second)


def _on_predictions(first: Version, second: Version) -> Comparison:
    fingerprints = {version.manifest.dataset.get("test_fingerprint") for version in (first, second)}
    if len(fingerprints) > 1 or None in fingerprints:
        raise TrainingError(
            f"{first.title} and {second.title} were evaluated on other test images; "
            "give --data to run both on those of a data set"
        )
    sides = [Side(version, version.manifest.evaluation, _right(version)) for version in (first, second)]
    name = first.manifest.dataset.get("name", "their data set")
    return _compare(
        sides[0], sides[1], f"the {len(sides[0].right):,} test images of {name}, as evaluated when published"
    )


def _right(version: Version) -> npt.NDArray[np.bool_]:
    entry, path = version.manifest.files.get(PREDICTIONS_FILE), version.folder / PREDICTIONS_FILE
    if entry is None:
        raise TrainingError(
            f"{version.title} was published without {PREDICTIONS_FILE}; give --data to run both on a data set"
        )
    try:
        found = predictions.load(path)
        if file_entry(path) != entry:
            raise TrainingError(f"{path}: damaged: its size or SHA-256 is not the one in the manifest")
    except (OSError, PredictionsError) as error:
        raise TrainingError(str(error)) from None
    return found.right


def _on_data(first: Version, second: Version, source: str, download_folder: Path) -> Comparison:
    datasets: dict[tuple[int, int, int], Dataset] = {}
    for version in (first, second):
        shape = version.manifest.image_shape
        if shape not in datasets:
            datasets[shape] = read_data(source, None, shape, download_folder, KNOWN_DATA)
    sides = [_run(version, datasets[version.manifest.image_shape]) for version in (first, second)]
    name = first.manifest.dataset.get("name", "")
    known = datasets[first.manifest.image_shape].test.fingerprint() == first.manifest.dataset.get("test_fingerprint")
    return _compare(
        sides[0],
        sides[1],
        f"the {len(sides[0].right):,} test images of {name if known else source}, run now in ONNX Runtime on the CPU",
    )


def _run(version: Version, dataset: Dataset) -> Side:
    if dataset.classes != version.manifest.labels:
        raise TrainingError(
            f"{dataset.source} has the classes {', '.join(dataset.classes)}, "
            f"{version.title} {', '.join(version.manifest.labels)}"
        )
    try:
        engine = Engine(
            version.folder / MODEL_FILE,
            provider="cpu",
            precision=version.manifest.precision,
            threads=cpu.usable_cores(),
            max_batch_size=BATCH,
        )
    except EngineError as error:
        raise TrainingError(f"{version.title} cannot be run: {error}") from error
    probabilities = predict(engine, dataset.test)
    evaluation = dataclasses.asdict(evaluate(probabilities, dataset.test.labels, dataset.classes))
    return Side(version, evaluation, probabilities.argmax(1) == dataset.test.labels)


def _compare(first: Side, second: Side, images: str) -> Comparison:
    return Comparison(first, second, images, mcnemar(first.right, second.right))


def _chance(p_value: float) -> str:
    return f"{p_value:.1%}" if p_value >= 0.001 else "less than 0.1%"
