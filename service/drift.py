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
# What the alert CifarserveDrift compares the index with (deploy/prometheus/alerts.yml).
ALERT = 0.25
# The index is given once chance alone lifts it above this in about 1 of 10,000 windows: so many standard deviations of
# a normal distribution. Bins that are rare in the baseline make it a few more.
_MOST_BY_CHANCE, _DEVIATIONS = ALERT / 2, 3.7
_PENDING_IMAGES = 64


def images_needed(bins: int, baseline_images: float) -> int | None:
    """How many images tell a change from chance, in histograms of `bins`; None if the baseline has too few for that.

    Without a change, the index of n images against a baseline of m is about (1 / n + 1 / m) times a chi-squared value
    of bins - 1 degrees of freedom, whose quantile is approximated here after Wilson and Hilferty.
    """
    freedom = bins - 1
    if not freedom:
        return 1
    spread = 2 / (9 * freedom)
    quantile = freedom * (1 - spread + _DEVIATIONS * math.sqrt(spread)) ** 3
    left = _MOST_BY_CHANCE / quantile - 1 / baseline_images
    return math.ceil(1 / left) if left > 0 else None


class DriftWindow:
    """The last `size` images: their predicted classes and confidences, as the population stability index.

    The index of two distributions p (baseline) and q (window) is the sum of (q - p) ln(q / p). By the custom of
    credit scoring, where it comes from, below 0.1 is quiet, and above 0.25 something has changed.

    The event loop adds, the thread that answers a scrape asks: `_lock` guards all that changes.
    """

    def __init__(self, manifest: Manifest, size: int) -> None:
        """Raises ValueError when the manifest has no usable baseline."""
        shares = manifest.baseline["class_distribution"]
        self._class_baseline = np.array([shares[label] for label in manifest.labels], np.float64)
        self._edges = np.array(manifest.baseline["confidence_edges"], np.float64)
        self._confidence_baseline = np.array(manifest.baseline["confidence_counts"], np.float64)
        if self._edges.shape != (len(self._confidence_baseline) + 1,):
            raise ValueError("confidence_edges and confidence_counts do not fit")
        for counts in (self._class_baseline, self._confidence_baseline):
            if counts.ndim != 1 or not (np.isfinite(counts) & (counts >= 0)).all() or not counts.sum() > 0:
                raise ValueError("class_distribution and confidence_counts must be numbers from 0, and not all 0")
        images = self._confidence_baseline.sum()
        self._class_images = images_needed(len(self._class_baseline), images)
        self._confidence_images = images_needed(len(self._confidence_baseline), images)
        self._baseline_images = round(images)
        self._classes = np.zeros(size, np.int32)
        self._bins = np.zeros(size, np.int32)
        self._next = 0
        self._settled = 0
        # Answers not yet in the window: for the arithmetic, sixty-four rows at once cost little more than one.
        self._pending: list[Floats] = []
        self._pending_images = 0
        self._lock = threading.Lock()
        self.size = size

    def problems(self) -> list[str]:
        """Why an index will never be given, and what to do, in words."""
        found = []
        for of, bins, needed in (
            ("classes", len(self._class_baseline), self._class_images),
            ("confidence", len(self._confidence_baseline), self._confidence_images),
        ):
            if needed is None:
                problem = f"a test split of {self._baseline_images} images is too small for {bins} bins"
            elif needed > self.size:
                problem = f"{bins} bins need a window of {needed} images, drift_images is {self.size}; raise it"
            else:
                continue
            found.append(f"drift of {of} is not measured: {problem}")
        return found

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
        pending, self._pending, self._pending_images = self._pending, [], 0
        rows = np.concatenate(pending)[-len(self._classes) :]
        places = np.arange(self._next, self._next + len(rows)) % len(self._classes)
        self._classes[places] = rows.argmax(axis=1)
        inner = np.searchsorted(self._edges, rows.max(axis=1), side="right") - 1
        self._bins[places] = np.clip(inner, 0, len(self._confidence_baseline) - 1)
        self._next = int(places[-1] + 1) % len(self._classes)
        self._settled = min(self._settled + len(rows), len(self._classes))

    def class_index(self) -> float:
        """Of the predicted classes; NaN while the window holds too few images."""
        return self._index(self._classes, self._class_baseline, self._class_images)

    def confidence_index(self) -> float:
        """Of the probability of the predicted class; NaN while the window holds too few images."""
        return self._index(self._bins, self._confidence_baseline, self._confidence_images)

    def _index(self, values: npt.NDArray[np.int32], baseline: npt.NDArray[np.float64], needed: int | None) -> float:
        with self._lock:
            self._settle()
            if needed is None or self._settled < needed:
                return math.nan
            found = np.bincount(values[: self._settled], minlength=len(baseline))
        return stability_index(baseline, found)


def stability_index(expected: Any, found: Any) -> float:
    """The population stability index of two histograms with the same bins."""
    p = np.asarray(expected, np.float64) / np.sum(expected) + _FLOOR
    q = np.asarray(found, np.float64) / np.sum(found) + _FLOOR
    return float(((q - p) * np.log(q / p)).sum())
