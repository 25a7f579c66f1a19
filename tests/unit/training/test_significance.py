"""Wilson's interval and McNemar's exact test, against published values."""

from __future__ import annotations

import numpy as np
import pytest

from training.significance import mcnemar, mcnemar_p_value, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_published_one(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_all_and_of_none_ends_at_the_scale_and_mirrors() -> None:
    assert wilson_interval(0, 50)[0] == 0.0
    assert wilson_interval(50, 50)[1] == 1.0
    low, high = wilson_interval(37, 50)
    assert wilson_interval(13, 50) == pytest.approx((1 - high, 1 - low))


def test_more_confidence_is_a_wider_interval() -> None:
    low, high = wilson_interval(899, 1000)
    wider_low, wider_high = wilson_interval(899, 1000, confidence=0.99)
    assert wider_low < low < 0.899 < high < wider_high


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    # The first two: M. W. Fagerland and others, BMC Medical Research Methodology 13:91 (2013), the exact conditional
    # test of their two examples. The third: S. Aoki's example of an approval survey, by R's binom.test.
    [(1, 7, 0.0703), (6, 16, 0.0525), (35, 28, 0.45), (0, 0, 1.0), (5, 5, 1.0), (0, 1, 1.0), (0, 10, 2 / 1024)],
)
def test_the_p_value_is_the_published_one(only_first: int, only_second: int, p_value: float) -> None:
    assert mcnemar_p_value(only_first, only_second) == pytest.approx(p_value, rel=2e-3)
    assert mcnemar_p_value(only_second, only_first) == mcnemar_p_value(only_first, only_second)


def test_thousands_of_discordant_images_are_no_overflow() -> None:
    assert mcnemar_p_value(5000, 5000) == 1.0
    assert 0.31 < mcnemar_p_value(4950, 5050) < 0.33  # by the normal approximation, corrected: 0.322
    assert mcnemar_p_value(2000, 8000) == pytest.approx(0, abs=1e-300)


def test_only_images_on_which_the_two_differ_count() -> None:
    first = np.array([True] * 50 + [False] * 50 + [True] * 1 + [False] * 7)
    second = np.array([True] * 50 + [False] * 50 + [False] * 1 + [True] * 7)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (1, 7)
    assert found.p_value == pytest.approx(18 / 256)


def test_answers_to_different_numbers_of_images_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="answers to 3 and 4 images cannot be paired"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))
