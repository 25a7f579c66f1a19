"""Who is measured for how long: short looks at all, longer ones at the better half, finals in turns with the present.

The rungs are successive halving (K. Jamieson and A. Talwalkar, 2016). What they say only chooses the finalists; who
wins is decided by the finals alone, which no candidate entered because of them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from service.tune.candidates import Candidate
from service.tune.goal import Goal
from service.tune.verdict import Verdict, decide

FIRST_SECONDS = 2.0  # of the shortest looks
FINAL = "final"  # the stage that decides
LEAST_REPEATS, MOST_REPEATS = 3, 10
CHALLENGERS = 2  # in the finals, beside the present settings
_RUNGS_END = 0.5  # share of the time after which the finals begin at the latest


class TrialFailed(RuntimeError):
    """A candidate does not serve, or not without errors. Fit for people."""


@dataclass(frozen=True)
class Result:
    """Of one trial. Times in seconds; zeros where the goal was not reached."""

    score: float  # in the goal's unit, higher is better
    images_per_second: float
    p50: float
    p99: float
    note: str = ""


@dataclass(frozen=True)
class Trial:
    stage: str
    candidate: Candidate
    seconds: float  # of each load that was measured
    result: Result


class Budget:
    """The time that all this may take, in seconds of `clock`."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = seconds, clock
        self._began = clock()

    def spent(self) -> float:
        return self._clock() - self._began

    def left(self, until: float = 1.0) -> float:
        """Until the share `until` of it is spent."""
        return self.seconds * until - self.spent()


Measure = Callable[[Candidate, float], Awaitable[Result]]


class Race:
    """`trials` and `dropped` (what, and why) fill as it goes, so that they are there when it is stopped."""

    def __init__(
        self, measure: Measure, budget: Budget, goal: Goal, levels: int, told: Callable[[Trial], None]
    ) -> None:
        """`levels` is how many loads of so many seconds a trial puts on; `told` is called after each trial."""
        self._measure, self._budget, self._goal, self._levels, self._told = measure, budget, goal, levels, told
        self.trials: list[Trial] = []
        self.dropped: list[tuple[str, str]] = []
        self._tried: set[Candidate] = set()
        self._cost = 0.0  # seconds that a trial takes beside its loads, at most as seen

    async def run(
        self, present: Candidate, challengers: Sequence[Candidate], variants: Callable[[Candidate], Sequence[Candidate]]
    ) -> Verdict:
        """Raises TrialFailed when the present settings themselves cannot be measured."""
        seconds = FIRST_SECONDS
        first = await self._trial("first look", present, seconds)
        ranked = await self._rung("first look", challengers, seconds)
        # Of the better half and, from the best of all, those with other batches and delays.
        best = ranked[0][0] if ranked and ranked[0][1] > first.score else present
        pool = _better_half(ranked)
        pool += [one for one in variants(best) if one not in pool]
        looks = 1
        while len(pool) > CHALLENGERS or looks < 2:
            looks, seconds = looks + 1, min(1.5 * seconds, self._goal.final_seconds)
            ranked = await self._rung(f"look {looks}", pool, seconds, ranked)
            pool = _better_half(ranked)[: max(CHALLENGERS, len(ranked) // 2)]
            if not pool or self._left_for_rungs() <= 0:
                break
        # Where there was no time for looks, whoever the engine alone speaks for.
        pool = pool or [one for one in challengers if one not in self._tried]
        return await self._finals(present, pool[:CHALLENGERS])

    async def _rung(
        self, stage: str, pool: Sequence[Candidate], seconds: float, before: Sequence[tuple[Candidate, float]] = ()
    ) -> list[tuple[Candidate, float]]:
        """Candidates with their scores, the best first. Whom the time does not suffice for keeps its score `before`."""
        known = dict(before)
        scores: dict[Candidate, float] = {}
        for candidate in pool:
            if self._estimate(seconds) > self._left_for_rungs():
                if candidate in known:
                    scores[candidate] = known[candidate]
                else:
                    self.dropped.append((str(candidate), "not measured: the time did not suffice"))
                continue
            try:
                scores[candidate] = (await self._trial(stage, candidate, seconds)).score
            except TrialFailed as failure:
                self.dropped.append((str(candidate), str(failure)))
        return sorted(scores.items(), key=lambda one: -one[1])

    async def _finals(self, present: Candidate, challengers: Sequence[Candidate]) -> Verdict:
        """As many turns as the time allows, settled before the first; another first in each."""
        turn = self._estimate(self._goal.final_seconds)
        entered = list(challengers)
        while entered and self._budget.left() < LEAST_REPEATS * turn * (1 + len(entered)):
            entered.pop()
        if not entered:
            if not challengers:
                return Verdict(present, {}, "nothing else is left to compare with")
            minutes = (self._budget.spent() + LEAST_REPEATS * turn * 2) / 60
            return Verdict(present, {}, f"too little time to tell a gain from noise: --minutes {minutes:.1f} or more")
        repeats = min(MOST_REPEATS, int(self._budget.left() / (turn * (1 + len(entered)))))
        finals: dict[Candidate, list[float]] = {one: [] for one in (present, *entered)}
        for repeat in range(repeats):
            if self._budget.left() < 0 and repeat >= LEAST_REPEATS:
                break
            order = list(finals)
            shift = repeat % len(order)
            for candidate in (*order[shift:], *order[:shift]):
                try:
                    finals[candidate].append((await self._trial(FINAL, candidate, self._goal.final_seconds)).score)
                except TrialFailed as failure:
                    if candidate == present:
                        raise
                    self.dropped.append((str(candidate), str(failure)))
                    del finals[candidate]
        return decide(present, finals, self._goal.least_gain)

    async def _trial(self, stage: str, candidate: Candidate, seconds: float) -> Result:
        began = self._budget.spent()
        self._tried.add(candidate)
        result = await self._measure(candidate, seconds)
        self._cost = max(self._cost, self._budget.spent() - began - self._levels * seconds)
        self.trials.append(Trial(stage, candidate, seconds, result))
        self._told(self.trials[-1])
        return result

    def _left_for_rungs(self) -> float:
        """What the finals of one challenger need is not for them."""
        finals = 2 * LEAST_REPEATS * self._estimate(self._goal.final_seconds)
        return min(self._budget.left(_RUNGS_END), self._budget.left() - finals)

    def _estimate(self, seconds: float) -> float:
        return self._cost + self._levels * seconds


def _better_half(ranked: Sequence[tuple[Candidate, float]]) -> list[Candidate]:
    """At least one, and none that reached nothing."""
    return [candidate for candidate, score in ranked[: max(1, (len(ranked) + 1) // 2)] if score > 0]
