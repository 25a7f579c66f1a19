"""What tuning is for: most images a second, the quickest answer, or the highest rate that holds an objective."""

from __future__ import annotations

from dataclasses import dataclass

from service.loadtest.objective import Objective

KINDS = ("throughput", "latency")
SLO = "slo"


@dataclass(frozen=True)
class Goal:
    """Scores are better when higher: images/s or, for latency, one over the median seconds of a request.

    The median, since a p99 of a few seconds' requests is itself mostly noise.
    """

    kind: str  # of KINDS, or SLO
    objective: Objective | None  # set exactly for SLO
    images: int  # in a request
    concurrency: int  # requests in flight, of a closed loop

    def words(self) -> str:
        request = f"{self.images} image{'s' if self.images > 1 else ''} a request"
        if self.objective is not None:
            return f"highest rate at which {self.objective}, {request}"
        most = "most images/s" if self.kind == "throughput" else "lowest median latency"
        return f"{most} with {self.concurrency} in flight, {request}"

    def show(self, score: float) -> str:
        """A score in the unit that people know it in."""
        if not score:
            return "not held" if self.objective else "nothing"
        return f"{1e3 / score:.2f} ms" if self.kind == "latency" else f"{score:,.0f} images/s"

    @property
    def final_seconds(self) -> float:
        """Of each load in the finals; the search for a rate puts on several in a trial."""
        return 3.0 if self.objective is not None else 4.0

    @property
    def least_gain(self) -> float:
        """Gains below this share are not worth a change; a rate is found to some 4% of the capacity."""
        return 0.05 if self.objective is not None else 0.02
