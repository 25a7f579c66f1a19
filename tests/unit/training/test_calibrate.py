"""Temperature scaling finds a temperature that is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.calibrate import HIGHEST, LOWEST, fit_temperature, softmax
from training.evaluate import negative_log_likelihood


def sampled(seed: int, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from exactly the distribution that they state."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (count, 5)).astype(np.float32)
    gumbel = generator.gumbel(size=logits.shape)
    return logits, (logits + gumbel).argmax(1)


@pytest.mark.parametrize("scaling", [0.4, 1.0, 2.5])
def test_logits_scaled_by_a_factor_get_that_factor_as_temperature(scaling: float) -> None:
    logits, labels = sampled(seed=7)
    assert fit_temperature(logits * np.float32(scaling), labels) == pytest.approx(scaling, rel=0.03)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scaling=st.floats(0.2, 5))
def test_no_other_temperature_is_more_likely(seed: int, scaling: float) -> None:
    logits, labels = sampled(seed, count=200)
    logits = logits * np.float32(scaling)
    fitted = fit_temperature(logits, labels)
    best = negative_log_likelihood(softmax(logits.astype(np.float64) / fitted), labels)
    for other in np.geomspace(LOWEST, HIGHEST, 40):
        assert best <= negative_log_likelihood(softmax(logits.astype(np.float64) / other), labels) + 1e-9


def test_a_model_without_errors_gets_the_lowest_temperature_not_zero() -> None:
    assert fit_temperature(np.eye(4, dtype=np.float32), np.arange(4)) == pytest.approx(LOWEST)


def test_a_model_that_knows_nothing_gets_the_highest() -> None:
    logits, labels = sampled(seed=3)
    assert fit_temperature(-logits, labels) == pytest.approx(HIGHEST)


def test_softmax_survives_large_logits() -> None:
    assert softmax(np.array([[1000.0, 0.0]])).tolist() == [[1.0, 0.0]]
