"""Totals of one version in plain arrays and numbers, for the metrics and the Open Inference Protocol's statistics."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the supervisor of workers, which merges their metrics, is without ONNX Runtime
    from service.runners import Floats

CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Predictions:
    """What one version predicted. Plain arrays, added to once a batch: a metric's own object would cost every image.

    The event loop adds, the thread that answers a scrape reads: a lock guards all.
    """

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self._classes = np.zeros(len(labels), np.int64)
        self._confidences = np.zeros(len(CONFIDENCES) + 1, np.int64)  # the last is beyond the last bound
        self._confidence_sum = 0.0
        self._lock = threading.Lock()

    def add(self, probabilities: Floats) -> None:
        """Take in the rows of a batch, [n, classes]."""
        confidences = probabilities.max(axis=1)
        classes = np.bincount(probabilities.argmax(axis=1), minlength=len(self._classes))
        bounds = np.bincount(np.searchsorted(CONFIDENCES, confidences), minlength=len(self._confidences))
        total = float(confidences.sum())
        with self._lock:
            self._classes += classes
            self._confidences += bounds
            self._confidence_sum += total

    def by_class(self) -> list[int]:
        with self._lock:
            counts: list[int] = self._classes.tolist()
        return counts

    def by_confidence(self) -> tuple[list[int], float]:
        """How many lay at or below each of CONFIDENCES, and in all, and the sum of all confidences."""
        with self._lock:
            return self._confidences.cumsum().tolist(), self._confidence_sum


@dataclass
class Statistics:
    """Totals since the version was loaded, as the Open Inference Protocol reports them. In seconds.

    Owned by the event loop.
    """

    succeeded: int = 0
    success_seconds: float = 0.0
    failed: int = 0
    failure_seconds: float = 0.0
    computed: int = 0  # requests that went through the engine
    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    reply_seconds: float = 0.0
    images: int = 0
    last: float = 0.0  # time.time() of the last batch
    batches: dict[int, tuple[int, float]] = field(default_factory=dict)  # by size: how many, seconds
