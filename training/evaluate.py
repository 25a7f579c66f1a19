"""How good predictions are: plain NumPy on probabilities and labels, whoever computed them.

Precision, recall and F1 are those of each class against the rest; a ratio without a case to count is 0. The expected
calibration error is that of Guo et al., "On Calibration of Modern Neural Networks" (2017), with 15 bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]

CALIBRATION_BINS = 15
HISTOGRAM_BINS = 20


@dataclass(frozen=True)
class ClassScores:
    """Of one class; `support` counts its images in the split."""

    label: str
    support: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class MacroScores:
    """Means over the classes, each class counting the same."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Evaluation:
    """Of one model on one split of `n` images. `confusion_matrix[true][predicted]` counts images."""

    n: int
    accuracy: float
    nll: float  # mean negative log likelihood, in nats
    ece: float
    macro: MacroScores
    per_class: tuple[ClassScores, ...]
    confusion_matrix: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Baseline:
    """What predictions looked like on the test split, for the server to tell later that its input has changed.

    `confidence_counts[i]` counts top probabilities between `confidence_edges[i]` and `[i + 1]`.
    """

    class_distribution: dict[str, float]
    confidence_edges: tuple[float, ...]
    confidence_counts: tuple[int, ...]


def evaluate(probabilities: Probabilities, labels: Labels, classes: tuple[str, ...]) -> Evaluation:
    """Score `probabilities` [n, classes], rows summing to 1, against true `labels` [n]; n is at least 1."""
    matrix = confusion_matrix(probabilities.argmax(1), labels, len(classes))
    per_class = _class_scores(matrix, classes)
    return Evaluation(
        n=len(labels),
        accuracy=float(np.trace(matrix) / len(labels)),
        nll=negative_log_likelihood(probabilities, labels),
        ece=expected_calibration_error(probabilities, labels),
        macro=MacroScores(
            precision=float(np.mean([scores.precision for scores in per_class])),
            recall=float(np.mean([scores.recall for scores in per_class])),
            f1=float(np.mean([scores.f1 for scores in per_class])),
        ),
        per_class=per_class,
        confusion_matrix=tuple(tuple(int(count) for count in row) for row in matrix),
    )


def confusion_matrix(predicted: Labels, labels: Labels, classes: int) -> npt.NDArray[np.int64]:
    """Counts [true class, predicted class]."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def negative_log_likelihood(probabilities: Probabilities, labels: Labels) -> float:
    """Mean of -ln p(true class); a probability that has underflowed to 0 counts as the smallest float32."""
    of_truth = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(of_truth, np.finfo(np.float32).tiny)).mean())


def expected_calibration_error(probabilities: Probabilities, labels: Labels, bins: int = CALIBRATION_BINS) -> float:
    """Mean distance between confidence and accuracy over bins (k/bins, (k+1)/bins], weighted by their images."""
    confidence = probabilities.max(1).astype(np.float64)
    correct = (probabilities.argmax(1) == labels).astype(np.float64)
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def baseline(probabilities: Probabilities, classes: tuple[str, ...]) -> Baseline:
    """Distribution of the predicted classes and of their probabilities, over [n, classes]."""
    predicted = np.bincount(probabilities.argmax(1), minlength=len(classes)) / len(probabilities)
    counts, edges = np.histogram(probabilities.max(1), bins=HISTOGRAM_BINS, range=(0.0, 1.0))
    return Baseline(
        class_distribution={label: float(share) for label, share in zip(classes, predicted, strict=True)},
        confidence_edges=tuple(round(float(edge), 6) for edge in edges),
        confidence_counts=tuple(int(count) for count in counts),
    )


def _class_scores(matrix: npt.NDArray[np.int64], classes: tuple[str, ...]) -> tuple[ClassScores, ...]:
    scores = []
    for index, label in enumerate(classes):
        hits, support, predicted = matrix[index, index], matrix[index].sum(), matrix[:, index].sum()
        scores.append(
            ClassScores(
                label=label,
                support=int(support),
                precision=_ratio(hits, predicted),
                recall=_ratio(hits, support),
                f1=_ratio(2 * hits, support + predicted),
            )
        )
    return tuple(scores)


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else 0.0
