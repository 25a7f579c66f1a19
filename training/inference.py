"""An exported model's answers to a whole split, through the server's own engine. Imports no torch."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from service.engine import Engine
from training.datasets import LabelledImages

Probabilities = npt.NDArray[np.floating]

BATCH = 64


def predict(engine: Engine, test: LabelledImages) -> Probabilities:
    """Probabilities [n, classes] of all images, in batches as large as the engine takes."""
    return timed_predictions(engine, test)[0]


def timed_predictions(engine: Engine, test: LabelledImages) -> tuple[Probabilities, float]:
    """As `predict`, with the median of the seconds that a batch took."""
    step = engine.max_batch_size
    found, seconds = [], []
    for start in range(0, len(test), step):
        began = time.perf_counter()
        found.append(engine.run(test.images[start : start + step]).probabilities)
        seconds.append(time.perf_counter() - began)
    return np.concatenate(found), float(np.median(seconds))
