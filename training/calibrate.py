"""Temperature scaling: one number that makes the probabilities honest and leaves the ranking alone.

From Guo et al., "On Calibration of Modern Neural Networks" (2017): divide the logits by the temperature that
minimises the negative log likelihood of held-out data.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Beyond these the data has no say: a model without an error on the validation split would want 0.
LOWEST, HIGHEST = 0.05, 20.0
_HALVINGS = 60


def fit_temperature(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """The temperature in [0.05, 20] that minimises the negative log likelihood of `labels` [n] given `logits` [n, c].

    The likelihood is concave in 1/temperature, so the sign of its slope says on which side the optimum lies:
    bisection cannot miss it.
    """
    scores = logits.astype(np.float64)
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _slope(scores, labels, middle) > 0 else (middle, high)
    return 2 / (low + high)


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Over the last axis, in the dtype given."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    quotient: npt.NDArray[np.floating] = exponentials / exponentials.sum(-1, keepdims=True)
    return quotient


def _slope(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], inverse_temperature: float) -> float:
    """Derivative of the mean negative log likelihood by the inverse temperature: E[expected logit - true logit]."""
    expected = (softmax(scores * inverse_temperature) * scores).sum(1)
    return float((expected - scores[np.arange(len(labels)), labels]).mean())
