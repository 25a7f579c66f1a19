"""Totals of one version in plain arrays and numbers, for the metrics and the Open Inference Protocol's statistics."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from service.runners import Floats

CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Predictions:
    """What one version predicted. Plain arrays, added to once a batch: a metric's own object would cost every image."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.classes = np.zeros(len(labels), np.int64)
        self.confidences = np.zeros(len(CONFIDENCES) + 1, np.int64)  # the last is beyond the last bound
        self.confidence_sum = 0.0

    def add(self, probabilities: Floats) -> None:
        """Take in the rows of a batch, [n, classes]."""
        confidences = probabilities.max(axis=1)
        self.classes += np.bincount(probabilities.argmax(axis=1), minlength=len(self.classes))
        self.confidences += np.bincount(np.searchsorted(CONFIDENCES, confidences), minlength=len(self.confidences))
        self.confidence_sum += float(confidences.sum())


@dataclass
class Statistics:
    """Totals since the version was loaded, as the Open Inference Protocol reports them. In seconds."""

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
