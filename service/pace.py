"""How fast batches go, measured on the batches themselves: when there will be room, and what comes too late."""

from __future__ import annotations

# Weight of the newest batch in a moving average: the last ten or so count.
_WEIGHT = 0.2
# Batches before anything is said to be too late: a single one may have been slow because the machine was.
_ENOUGH = 10
_MIN_RETRY_AFTER = 0.01  # seconds; sooner, a caller would only be turned away again
_RETRY_AFTER_UNMEASURED = 1.0  # seconds, before the first batch has been timed


class Pace:
    """Moving averages over the last batches. Written by one thread, read by any."""

    def __init__(self, engines: int) -> None:
        self._engines = engines  # that compute at the same time
        self._batches = 0
        self._seconds: dict[int, float] = {}  # of a batch, by its bucket
        self._drained = 0.0  # images per second of one engine
        self._best = 0.0  # the same, of the bucket that is best at it
        self._worst = 0.0  # seconds of the longest batch

    def measured(self, images: int, bucket: int, seconds: float) -> None:
        """A batch of `images`, computed as `bucket`, took so long."""
        self._batches += 1
        before = self._seconds.get(bucket, seconds)
        self._seconds[bucket] = before + _WEIGHT * (seconds - before)
        self._drained += (_WEIGHT if self._drained else 1.0) * (images / seconds - self._drained)
        self._best = max([size / took for size, took in self._seconds.items()])
        self._worst = max(self._seconds.values())

    def room_in(self, images: int) -> float:
        """Seconds after which so many images will have gone."""
        if not self._drained:
            return _RETRY_AFTER_UNMEASURED
        return max(_MIN_RETRY_AFTER, images / self._drained / self._engines)

    def too_late(self, remaining: float, ahead: int, images: int) -> bool:
        """Whether `images` behind `ahead` others cannot be done in the `remaining` seconds even when all goes well."""
        if self._batches < _ENOUGH:
            return False
        waiting = ahead / self._best / self._engines
        if remaining > waiting + self._worst:
            return False
        return remaining < waiting + self._shortest(images)

    def _shortest(self, images: int) -> float:
        """Seconds of the quickest batch that could hold them; 0 when none so large has been measured."""
        return min((took for size, took in self._seconds.items() if size >= images), default=0.0)
