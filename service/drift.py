"""Drift: what a version predicts lately, against what it predicted on its test split (the manifest's baseline)."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from service.manifest import Manifest
from service.runners import Floats

# Added to every share, so that a class that never occurs does not make the index infinite.
_FLOOR = 1e-4
# Fewer images than this, and the index measures chance: the window counts as empty.
MIN_IMAGES = 200
_PENDING_IMAGES = 64


class DriftWindow:
    """The last `size` images: their predicted classes and confidences, as the population stability index.

    The index of two distributions p (baseline) and q (window) is the sum of (q - p) ln(q / p). By the custom of
    credit scoring, where it comes from, below 0.1 is quiet, and above 0.25 something has changed.
    """

    def __init__(self, manifest: Manifest, size: int) -> None:
        """Raises ValueError when the manifest has no usable baseline."""
        shares = manifest.baseline["class_distribution"]
        self._class_baseline = np.array([shares[label] for label in manifest.labels], np.float64)
        self._edges = np.array(manifest.baseline["confidence_edges"], np.float64)
        self._confidence_baseline = np.array(manifest.baseline["confidence_counts"], np.float64)
        if len(self._edges) != len(self._confidence_baseline) + 1 or not self._confidence_baseline.sum() > 0:
            raise ValueError("confidence_edges and confidence_counts do not fit")
        self._classes = np.zeros(size, np.int32)
        self._bins = np.zeros(size, np.int32)
        self._next = 0
        self._settled = 0
        # Answers not yet in the window: for the arithmetic, sixty-four rows at once cost little more than one.
        self._pending: list[Floats] = []
        self._pending_images = 0
        self._lock = threading.Lock()  # the index is asked for by the thread that answers a scrape
        self.size = size

    @property
    def images(self) -> int:
        """How many images the window holds."""
        return min(self._settled + self._pending_images, self.size)

    def add(self, probabilities: Floats) -> None:
        """Take the rows of an answer, [n, classes], into the window."""
        with self._lock:
            self._pending.append(probabilities)
            self._pending_images += len(probabilities)
            if self._pending_images >= _PENDING_IMAGES:
                self._settle()

    def _settle(self) -> None:
        """Bring the pending rows into the window."""
        if not self._pending:
            return
        rows = np.concatenate(self._pending)[-len(self._classes) :]
        self._pending.clear()
        self._pending_images = 0
        places = np.arange(self._next, self._next + len(rows)) % len(self._classes)
        self._classes[places] = rows.argmax(axis=1)
        inner = np.searchsorted(self._edges, rows.max(axis=1), side="right") - 1
        self._bins[places] = np.clip(inner, 0, len(self._confidence_baseline) - 1)
        self._next = int(places[-1] + 1) % len(self._classes)
        self._settled = min(self._settled + len(rows), len(self._classes))

    def class_index(self) -> float:
        """Of the predicted classes; NaN while the window holds too few images."""
        return self._index(self._classes, self._class_baseline)

    def confidence_index(self) -> float:
        """Of the probability of the predicted class; NaN while the window holds too few images."""
        return self._index(self._bins, self._confidence_baseline)

    def _index(self, values: npt.NDArray[np.int32], baseline: npt.NDArray[np.float64]) -> float:
        with self._lock:
            self._settle()
            if self._settled < MIN_IMAGES:
                return math.nan
            found = np.bincount(values[: self._settled], minlength=len(baseline))
        return stability_index(baseline, found)


def stability_index(expected: Any, found: Any) -> float:
    """The population stability index of two histograms with the same bins."""
    p = np.asarray(expected, np.float64) / np.sum(expected) + _FLOOR
    q = np.asarray(found, np.float64) / np.sum(found) + _FLOOR
    return float(((q - p) * np.log(q / p)).sum())
