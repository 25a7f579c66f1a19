"""Which ways to serve a model are worth trying on the whole server, judged by the engine alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from service.tune.goal import Goal

GPUS = ("cuda", "tensorrt")  # as service.providers.GPUS, which would bring ONNX Runtime into this process
# Times of the engine that differ by less say nothing: the machine may have been busy.
MARGIN = 0.1
MOST_WORKERS = 16


@dataclass(frozen=True)
class Candidate:
    """One way to serve. Nothing in it is `auto`: what that stands for has been found out."""

    provider: str
    precision: str
    threads: int
    workers: int
    max_batch_size: int
    max_queue_delay: float = 0.0  # seconds
    buckets: tuple[int, ...] = ()  # empty: those that suit the provider
    target_latency: float = 0.0  # seconds; 0: none

    def __str__(self) -> str:
        parts = [
            f"{self.provider} {self.precision}",
            counted(self.threads, "thread"),
            counted(self.workers, "worker"),
            f"batches to {self.max_batch_size}",
        ]
        if self.buckets:
            parts.append(f"in {'/'.join(map(str, self.buckets))}")
        if self.target_latency:
            parts.append(f"within {self.target_latency * 1e3:g} ms")
        if self.max_queue_delay:
            parts.append(f"delay {self.max_queue_delay * 1e3:g} ms")
        return ", ".join(parts)


@dataclass(frozen=True)
class Curve:
    """The engine alone: seconds of a warm batch, by its size."""

    provider: str
    precision: str
    threads: int
    seconds: Mapping[int, float]

    def __str__(self) -> str:
        return f"{self.provider} {self.precision}, {counted(self.threads, 'thread')}"

    def images_per_second(self, size: int) -> float:
        return size / self.seconds[size]

    def knee(self) -> int:
        """The smallest batch that has all the throughput but a twentieth."""
        best = max(map(self.images_per_second, self.seconds))
        return min(size for size in self.seconds if self.images_per_second(size) >= 0.95 * best)

    def largest_within(self, seconds: float) -> int:
        """The largest batch with which an image is answered in time, as Engine.largest_batch; at least the smallest."""
        fitting = [size for size, took in self.seconds.items() if 2 * took <= seconds]
        return max(fitting, default=min(self.seconds))

    def worthwhile_buckets(self) -> tuple[int, ...]:
        """Sizes that are computed notably faster than padded up to the next one, and the largest."""
        kept: list[int] = []
        for size in sorted(self.seconds, reverse=True):
            if not kept or self.seconds[size] < 0.95 * self.seconds[kept[-1]]:
                kept.append(size)
        return tuple(reversed(kept))


def undominated(curves: Sequence[Curve], cores: int) -> tuple[list[Curve], list[tuple[str, str]]]:
    """The curves worth going on with; what of the others is beaten, and by what."""
    arms: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        arms.setdefault((curve.provider, curve.precision), []).append(curve)
    kept, beaten = [], []
    for arm, own in arms.items():
        by = {other: least for other, theirs in arms.items() if (least := _least_gain(theirs, own, cores)) > 1 + MARGIN}
        if by:
            best = max(by, key=lambda other: by[other])
            beaten.append((" ".join(arm), f"{' '.join(best)} is at least {by[best]:.1f} times as fast at every size"))
            continue
        for curve in own:
            if (fewer := _as_fast_with_fewer_threads(curve, own)) is not None:
                beaten.append((str(curve), f"no faster than with {fewer.threads}"))
            else:
                kept.append(curve)
    return kept, beaten


def structural(curves: Iterable[Curve], present: Candidate, cores: int, goal: Goal) -> list[Candidate]:
    """Every provider, precision, and division of the cores that is left, the most promising first."""
    promises: dict[Candidate, float] = {}
    for curve in curves:
        batch = present.max_batch_size
        if goal.objective is not None:
            batch = min(batch, curve.largest_within(goal.objective.seconds))
        size = max(size for size in curve.seconds if size <= max(batch, min(curve.seconds)))
        for workers in _worker_counts(curve, cores, goal):
            same_arm = (curve.provider, curve.precision) == (present.provider, present.precision)
            buckets = tuple(one for one in present.buckets if one <= batch) if same_arm else ()
            made = Candidate(curve.provider, curve.precision, curve.threads, workers, batch, buckets=buckets)
            copies = 1 if curve.provider in GPUS else workers
            smallest = min(curve.seconds)
            promises[made] = (
                -curve.seconds[smallest] if goal.kind == "latency" else copies * curve.images_per_second(size)
            )
    promises.pop(present, None)
    return sorted(promises, key=lambda made: -promises[made])


def variants(base: Candidate, curve: Curve | None, present: Candidate, goal: Goal) -> list[Candidate]:
    """`base` with other batches and delays, as the engine's times suggest. None for latency: nothing waits there."""
    if curve is None or (goal.kind == "latency" and goal.concurrency * goal.images <= 1):
        return []
    knee = curve.knee()
    if goal.objective is not None:
        fitting = curve.largest_within(goal.objective.seconds)
        sizes = {fitting, max(1, fitting // 2), min(2 * fitting, max(curve.seconds))}
        delays = {0.0, _rounded(goal.objective.seconds / 10)}
    else:
        sizes = {knee, min(4 * knee, max(curve.seconds)), present.max_batch_size}
        delays = {0.0, _rounded(curve.seconds[knee] / 4)}
    made = [dataclasses.replace(base, max_batch_size=size, buckets=(), target_latency=0.0) for size in sorted(sizes)]
    made += [dataclasses.replace(base, max_queue_delay=delay) for delay in sorted(delays)]
    if curve.provider != "cpu":  # the CPU provider takes every size as it comes
        chosen = tuple(size for size in curve.worthwhile_buckets() if size < base.max_batch_size)
        made.append(dataclasses.replace(base, buckets=(*chosen, base.max_batch_size)))
    return [one for one in dict.fromkeys(made) if one not in (base, present)]


def _worker_counts(curve: Curve, cores: int, goal: Goal) -> list[int]:
    """One, and so many that they take all cores or half of them; a GPU is shared by a few. For latency, one."""
    if goal.kind == "latency" and goal.concurrency <= 1:
        return [1]
    full = max(1, cores // (2 if curve.provider in GPUS else curve.threads))
    return sorted({1, min(MOST_WORKERS, max(1, full // 2)), min(MOST_WORKERS, full)})


def _least_gain(curves: Sequence[Curve], others: Sequence[Curve], cores: int) -> float:
    """How many times as fast as `others` the `curves` are at least: at every size, alone and with all cores in use."""
    if curves is others:
        return 0.0
    gains = []
    for speed in (_alone, _in_all):
        ours, theirs = speed(curves, cores), speed(others, cores)
        gains += [ours[size] / theirs[size] for size in ours.keys() & theirs.keys()]
    return min(gains, default=0.0)


def _alone(curves: Sequence[Curve], cores: int) -> dict[int, float]:  # noqa: ARG001 - as _in_all
    """The fastest single engine's images/s, by the size of its batches."""
    return _best((size, curve.images_per_second(size)) for curve in curves for size in curve.seconds)


def _in_all(curves: Sequence[Curve], cores: int) -> dict[int, float]:
    """Images/s of the machine with as many engines as have room on its cores."""
    copies = [1 if curve.provider in GPUS else max(1, cores // curve.threads) for curve in curves]
    return _best(
        (size, copy * curve.images_per_second(size))
        for curve, copy in zip(curves, copies, strict=True)
        for size in curve.seconds
    )


def _best(pairs: Iterable[tuple[int, float]]) -> dict[int, float]:
    found: dict[int, float] = {}
    for size, value in pairs:
        found[size] = max(value, found.get(size, 0.0))
    return found


def _as_fast_with_fewer_threads(curve: Curve, others: Sequence[Curve]) -> Curve | None:
    for other in others:
        common = curve.seconds.keys() & other.seconds.keys()
        if (
            other.threads < curve.threads
            and common
            and all(other.seconds[size] <= 1.05 * curve.seconds[size] for size in common)
        ):
            return other
    return None


def _rounded(seconds: float) -> float:
    """To a tenth of a millisecond, at least one."""
    return max(1e-4, round(seconds, 4))


def counted(number: int, noun: str) -> str:
    """1 thread, 2 threads."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
