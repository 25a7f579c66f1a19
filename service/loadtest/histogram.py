"""Latencies counted in buckets that are a fixed share of their value wide, so that runs can be added up.

As G. Tene's HdrHistogram: a value is known to within 1/64 of itself from a microsecond to hours, in constant memory,
and percentiles far out in the tail are counts, not guesses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

_BITS = 6  # of a value that are kept behind its leading one


class Histogram:
    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter(counts or {})

    def add(self, seconds: float) -> None:
        self.counts[_bucket(round(seconds * 1e6))] += 1

    def merge(self, others: Iterable[Histogram]) -> Histogram:
        for other in others:
            self.counts.update(other.counts)
        return self

    @property
    def total(self) -> int:
        return self.counts.total()

    def percentile(self, share: float) -> float:
        """Seconds within which `share` per cent of the values lie: the middle of their bucket; NaN without values."""
        wanted, seen = max(1, -(-self.total * share // 100)), 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return _middle(bucket) / 1e6
        return float("nan")

    def mean(self) -> float:
        """In seconds; NaN without values."""
        if not self.total:
            return float("nan")
        return sum(_middle(bucket) * count for bucket, count in self.counts.items()) / self.total / 1e6

    def to_record(self) -> dict[str, int]:
        return {str(bucket): count for bucket, count in sorted(self.counts.items())}

    @classmethod
    def from_record(cls, record: Mapping[str, int]) -> Histogram:
        return cls({int(bucket): count for bucket, count in record.items()})


def _bucket(microseconds: int) -> int:
    """0, 1, 2 ... one by one up to 2^(_BITS + 1), then 2^_BITS to each doubling."""
    value = max(0, microseconds)
    shift = max(0, value.bit_length() - _BITS - 1)
    return (shift << _BITS) + (value >> shift)


def _middle(bucket: int) -> float:
    shift = max(0, (bucket >> _BITS) - 1)
    low = (bucket - (shift << _BITS)) << shift
    return low + ((1 << shift) - 1) / 2
