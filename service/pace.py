"""How fast batches go, measured on the batches themselves: when there will be room, and what comes too late."""

from __future__ import annotations

# Weight of the newest batch in a moving average: the last ten or so count.
_WEIGHT = 0.2
# Batches before anything is said to be too late: a single one may have been slow because the machine was.
_ENOUGH = 10
_SHORTEST = 1e-9  # seconds; a clock that is too coarse may say that a batch took none
_MIN_RETRY_AFTER = 0.01  # seconds; sooner, a caller would only be turned away again
_RETRY_AFTER_UNMEASURED = 1.0  # seconds, before the first batch has been timed
# How much longer than expected it may take behind a long queue: what is admitted to be answered at the last moment is
# often computed, and answered too late.
_MARGIN = 1.4


class Pace:
    """Moving averages over the last batches.

    Owned by the thread that calls `measured`: the batcher's event loop. Any thread may call `too_late`, which reads a
    count and a dictionary that never grows: a batch of a new size replaces it. The other methods are for the owner.
    """

    def __init__(self, engines: int) -> None:
        self._engines = engines  # that compute at the same time
        self._batches = 0
        self._seconds: dict[int, float] = {}  # of a batch, by its bucket
        self._drained = 0.0  # images per second of one engine
        self._largest = 0  # images in one batch
        self._full = 0.0  # images per second of one engine, in batches of at least half of that

    def measured(self, images: int, bucket: int, seconds: float) -> None:
        """A batch of `images`, computed as `bucket`, took so long."""
        self._batches += 1
        seconds = max(seconds, _SHORTEST)
        before = self._seconds.get(bucket)
        if before is None:
            self._seconds = {**self._seconds, bucket: seconds}  # another thread may be reading the old one
        else:
            self._seconds[bucket] = before + _WEIGHT * (seconds - before)
        self._drained += (_WEIGHT if self._drained else 1.0) * (images / seconds - self._drained)
        if images >= 2 * self._largest:
            self._full = 0.0  # what was large before is so no more
        self._largest = max(self._largest, images)
        if 2 * images >= self._largest:
            self._full += (_WEIGHT if self._full else 1.0) * (images / seconds - self._full)

    def room_in(self, images: int) -> float:
        """Seconds after which so many images will have gone; they go by whole batches."""
        if not self._drained:
            return _RETRY_AFTER_UNMEASURED
        return max(_MIN_RETRY_AFTER, max(images, self._largest) / self._drained / self._engines)

    def too_late(self, remaining: float, images: int) -> bool:
        """Whether `images` that are next cannot be done in the `remaining` seconds even when all goes well."""
        return self._batches >= _ENOUGH and remaining < self._shortest(images)

    def hardly_in_time(self, remaining: float, ahead: int, images: int) -> bool:
        """Whether `images` behind `ahead` others will hardly be done in the `remaining` seconds, as things go now.

        A queue that is long is emptied in large batches, so their latest rate counts: small ones are slow by the image
        on a GPU, and the best rate ever seen may be from quieter times.
        """
        if self._batches < _ENOUGH:
            return False
        if ahead < self._largest:
            return remaining < self._shortest(ahead + images)  # they are all in the next batch
        # Half a batch until the one that is running is done, on average, and a whole one for their own.
        batches = ahead / self._engines + 1.5 * self._largest
        return remaining < _MARGIN * batches / self._full

    def _shortest(self, images: int) -> float:
        """Seconds of the quickest batch that could hold them; 0 when none so large has been measured."""
        return min((took for size, took in self._seconds.items() if size >= images), default=0.0)
