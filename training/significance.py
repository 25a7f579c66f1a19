"""How far a measured accuracy can be trusted, and whether two of them on the same images differ by more than chance.

`wilson_interval` is the score interval of Wilson (1927), method 3 of R. G. Newcombe, "Two-sided confidence intervals
for the single proportion" (1998). `mcnemar` is McNemar's test (1947) in its exact form, a binomial test of the
images on which just one of the two is right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Answers = npt.NDArray[np.bool_]  # [n]: whether each image was classified right


@dataclass(frozen=True)
class McNemar:
    """`p_value` is the chance of a split of the discordant images as uneven as this, or more, were both as good."""

    only_first: int  # images that only the first has right
    only_second: int
    p_value: float


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper limit of a share of which `successes` of `n` were seen; n is at least 1."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    middle = share + z**2 / (2 * n)
    margin = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # At no success, and at nothing else, one limit is a bound of the scale; rounding must not cross it.
    return max(0.0, (middle - margin) / scale), min(1.0, (middle + margin) / scale)


def mcnemar(first: Answers, second: Answers) -> McNemar:
    """Compare two classifiers by their answers to the same images. Raises ValueError when they are not as many."""
    if first.shape != second.shape:
        raise ValueError(f"answers to {first.size} and {second.size} images cannot be paired")
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    return McNemar(only_first, only_second, mcnemar_p_value(only_first, only_second))


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Two-sided: twice P(X <= the smaller count) for X binomial with chance 1/2, and at most 1. In integers: exact."""
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    ways = tail = 1
    for count in range(fewer):
        ways = ways * (discordant - count) // (count + 1)
        tail += ways
    p_value: float = 2 * tail / 2**discordant
    return min(1.0, p_value)
