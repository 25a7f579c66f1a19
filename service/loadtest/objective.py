"""An objective, as "p99<10ms", and the search for the highest rate at which it holds."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from service.loadtest.measure import Level

_FORM = re.compile(r"p(\d{1,2}(?:\.\d+)?)\s*<\s*(\d+(?:\.\d+)?)\s*(us|ms|s)")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Objective:
    """That `percentile` per cent of the requests are answered within `seconds`, and that none fails."""

    percentile: float
    seconds: float

    @classmethod
    def parse(cls, text: str) -> Objective:
        """(99, 0.01) of "p99<10ms". Raises ValueError."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ValueError(f'--slo: {text!r} is not of the form "p99<10ms"')
        return cls(float(match[1]), float(match[2]) * _UNITS[match[3]])

    def held(self, level: Level) -> bool:
        return level.latencies.percentile(self.percentile) < self.seconds and not level.errors.total()

    def __str__(self) -> str:
        return f"p{self.percentile:g} < {self.seconds * 1e3:g} ms"


async def highest_rate(
    at: Callable[[float], Awaitable[Level]], objective: Objective, low: float, high: float, steps: int
) -> Level | None:
    """The level of the highest rate that held, of `steps` halvings of the range from `low` to `high`; None: none did.

    `at` measures a rate, in requests/s.
    """
    best: Level | None = None
    for _ in range(steps):
        rate = (low + high) / 2
        if rate <= 0:
            break
        level = await at(rate)
        if objective.held(level):
            low = rate
            best = level if best is None or level.requests_per_second > best.requests_per_second else best
        else:
            high = rate
    return best
