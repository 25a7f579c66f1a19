"""Whether a candidate is better than what there is, or only luckier."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.tune.candidates import Candidate

# Student's t for two-sided 95%, by degrees of freedom. Source: any table of it.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Gain:
    """A candidate's score over that of the present settings, with its 95% confidence interval."""

    ratio: float
    low: float
    high: float
    repeats: int

    def __str__(self) -> str:
        if not math.isfinite(self.ratio):
            sure = "it holds in all turns what the present settings hold in none, or at lower rates"
            return sure if self.low else "not to be compared: in some turns one of the two reached nothing"
        return f"{self.ratio:.3f} times the present ({self.low:.3f} to {self.high:.3f}, {self.repeats} repeats)"


@dataclass(frozen=True)
class Verdict:
    """`winner` is `present` unless a gain is certain; `gains` are of all the challengers that came to the finals."""

    winner: Candidate
    gains: Mapping[Candidate, Gain]
    reason: str


def paired(new: Sequence[float], old: Sequence[float]) -> Gain:
    """The gain of `new` over `old`, measured in turns: what slows the machine for a while slows both.

    By Student's t on the logarithms of the ratios of neighbours. Where a score is 0 there is no ratio: the gain is
    infinite when every one of `new` is above every one of `old`, else it may be anything.
    """
    pairs = list(zip(new, old, strict=True))
    if not all(map(all, pairs)):
        sure = bool(pairs) and min(new) > max(old)
        return Gain(math.inf, math.inf if sure else 0.0, math.inf, len(pairs))
    logs = [math.log(one / other) for one, other in pairs]
    middle = statistics.fmean(logs)
    if len(logs) < 2:
        return Gain(math.exp(middle), 0.0, math.inf, len(logs))
    half = _T[min(len(logs) - 1, len(_T)) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    return Gain(math.exp(middle), math.exp(middle - half), math.exp(middle + half), len(logs))


def decide(present: Candidate, finals: Mapping[Candidate, Sequence[float]], least_gain: float) -> Verdict:
    """The challenger with the highest gain that is certainly one, and is worth it; otherwise `present`.

    `finals` has the scores of all finalists in the order of their turns, `present` among them.
    """
    gains = {one: paired(scores, finals[present]) for one, scores in finals.items() if one != present}
    sure = [one for one, gain in gains.items() if gain.low > 1 and gain.ratio >= 1 + least_gain]
    if sure:
        winner = max(sure, key=lambda one: gains[one].ratio)
        return Verdict(winner, gains, str(gains[winner]))
    if not gains:
        return Verdict(present, gains, "nothing else came to the finals")
    best = max(gains, key=lambda one: gains[one].ratio)
    return Verdict(present, gains, f"no gain beyond the noise; the best other ({best}): {gains[best]}")
