"""`predictions.npz`: what a version said to each image of its test split, so that two versions can be compared later.

The images themselves are not needed for it: two files of one test split, which its fingerprint in the manifest
tells, list the same images in the same order.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

PREDICTIONS_FILE = "predictions.npz"

Labels = npt.NDArray[np.int64]


class PredictionsError(ValueError):
    """The file is no predictions.npz. The message names it."""


@dataclass(frozen=True)
class Predictions:
    """By image [n]: the true class, the predicted class (both int64) and the probability of the latter (float32)."""

    labels: Labels
    predicted: Labels
    probability: npt.NDArray[np.float32]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        answers: npt.NDArray[np.bool_] = self.predicted == self.labels
        return answers

    @classmethod
    def of(cls, probabilities: npt.NDArray[np.floating], labels: Labels) -> Self:
        """From the probabilities [n, classes]."""
        return cls(labels, probabilities.argmax(1), probabilities.max(1).astype(np.float32))

    def to_npz(self) -> bytes:
        """Classes in the smallest unsigned integers that hold them; 10,000 images of 10 classes take some 45 kB."""
        file = io.BytesIO()
        kind = np.min_scalar_type(max(self.labels.max(), self.predicted.max()))
        np.savez_compressed(
            file,
            allow_pickle=False,
            labels=self.labels.astype(kind),
            predicted=self.predicted.astype(kind),
            probability=self.probability,
        )
        return file.getvalue()


def load(path: Path) -> Predictions:
    """What `to_npz` gave. Raises PredictionsError: not there, damaged, or arrays of other shapes or kinds."""
    try:
        with np.load(path, allow_pickle=False) as file:
            labels, predicted, probability = (file[name] for name in ("labels", "predicted", "probability"))
    # As zip archives and arrays in them can be damaged, and for a lone array.
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise PredictionsError(f"{path}: no predictions can be read from it: {error}") from None
    kinds = (labels.dtype.kind, predicted.dtype.kind, probability.dtype)
    if kinds != ("u", "u", np.float32) or not (labels.shape == predicted.shape == probability.shape == (labels.size,)):
        raise PredictionsError(f"{path}: labels, predicted and probability must be unsigned, unsigned, float32 [n]")
    if len(wrong := np.flatnonzero(~np.isfinite(probability))):
        raise PredictionsError(f"{path}: probability[{wrong[0]}] must be a finite number, is {probability[wrong[0]]}")
    return Predictions(labels.astype(np.int64), predicted.astype(np.int64), probability)
