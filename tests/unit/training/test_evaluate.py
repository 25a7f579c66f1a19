"""Scores against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluate import (
    baseline,
    confusion_matrix,
    evaluate,
    expected_calibration_error,
    negative_log_likelihood,
)

CLASSES = ("ant", "bee", "cow")
# True classes, and the winners of PROBABILITIES: ant, bee, ant, bee, bee, ant.
LABELS = np.array([0, 0, 0, 1, 1, 2])
PROBABILITIES = np.array(
    [[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.25, 0.5, 0.25], [0.4, 0.3, 0.3]]
)


def test_confusion_matrix_counts_true_class_by_predicted_class() -> None:
    expected = [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert confusion_matrix(PROBABILITIES.argmax(1), LABELS, 3).tolist() == expected
    assert [list(row) for row in evaluate(PROBABILITIES, LABELS, CLASSES).confusion_matrix] == expected


def test_accuracy_is_the_share_of_hits() -> None:
    result = evaluate(PROBABILITIES, LABELS, CLASSES)
    assert result.n == 6
    assert result.accuracy == pytest.approx(4 / 6)


def test_precision_recall_and_f1_of_each_class() -> None:
    ant, bee, cow = evaluate(PROBABILITIES, LABELS, CLASSES).per_class
    assert (ant.label, ant.support, ant.precision, ant.recall) == ("ant", 3, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (bee.support, bee.precision, bee.recall, bee.f1) == (2, pytest.approx(2 / 3), 1.0, pytest.approx(0.8))
    assert cow.support == 1


def test_a_class_that_is_never_predicted_scores_zero_not_nan() -> None:
    cow = evaluate(PROBABILITIES, LABELS, CLASSES).per_class[2]
    assert (cow.precision, cow.recall, cow.f1) == (0.0, 0.0, 0.0)


def test_macro_scores_weigh_every_class_the_same() -> None:
    macro = evaluate(PROBABILITIES, LABELS, CLASSES).macro
    assert macro.precision == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert macro.recall == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert macro.f1 == pytest.approx((2 / 3 + 0.8 + 0) / 3)


def test_negative_log_likelihood_by_hand() -> None:
    expected = -np.log([0.7, 0.3, 0.9, 0.8, 0.5, 0.3]).mean()
    assert negative_log_likelihood(PROBABILITIES, LABELS) == pytest.approx(expected)


def test_negative_log_likelihood_stays_finite_when_a_probability_underflowed() -> None:
    assert np.isfinite(negative_log_likelihood(np.array([[1.0, 0.0]]), np.array([1])))


def test_calibration_error_by_hand() -> None:
    # Two bins. In (0, 0.5]: confidences 0.5 (right) and 0.4 (wrong): |1 - 0.9| = 0.1.
    # In (0.5, 1]: 0.7, 0.9, 0.8 right and 0.6 wrong: |3 - 3.0| = 0. Sum over 6 images.
    assert expected_calibration_error(PROBABILITIES, LABELS, bins=2) == pytest.approx(0.1 / 6)


def test_calibration_error_separates_bins_that_would_cancel() -> None:
    # Overconfident by 0.4 at 0.9, underconfident by 0.4 at 0.6: one bin sees nothing, fifteen see all of it.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = np.array([0, 1, 0, 0])
    assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(0.0)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.4)


def test_certain_and_right_has_no_calibration_error() -> None:
    assert expected_calibration_error(np.eye(3), np.array([0, 1, 2])) == 0.0


def test_baseline_holds_the_predicted_classes_and_their_confidence() -> None:
    result = baseline(PROBABILITIES, CLASSES)
    assert result.class_distribution == {"ant": 0.5, "bee": 0.5, "cow": 0.0}
    assert len(result.confidence_edges) == len(result.confidence_counts) + 1
    assert sum(result.confidence_counts) == 6
    assert result.confidence_counts[result.confidence_edges.index(0.9)] == 1
