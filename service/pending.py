"""One caller's images on their way through the batcher: admitted, submitted, claimed by batches, answered.

The engines' threads look at a request and claim from it only while they hold the batcher's lock. Its answer is always
given on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np

from service.images import Pixels
from service.runners import Floats
from service.tracing import RequestTrace

PRIORITY_STEP = 1.0  # seconds
DEFAULT_PRIORITY, LOWEST_PRIORITY = 2, 3


@dataclass(frozen=True, slots=True)
class Answer:
    probabilities: Floats  # [n, classes]
    logits: Floats  # [n, classes]
    queue_seconds: float  # from submission until the first image was computing
    compute_seconds: float  # of all batches that held its images


class Part:
    """The images of one request, from number `first` on, that are in one batch."""

    __slots__ = ("first", "images", "request")

    def __init__(self, request: Request, first: int, images: Pixels) -> None:
        self.request = request
        self.first = first
        self.images = images


class Queue(Protocol):
    """What a request asks of the batcher that admitted it."""

    def enqueue(self, request: Request, due: float) -> None: ...

    def give_back(self, images: int) -> None: ...

    def release(self, request: Request, cancelled: bool) -> None: ...


class Request:
    """To be used as a context: leaving it gives back to the queue what no batch has claimed.

    Owned by the event loop. From `compute` on until it leaves the queue, `unclaimed`, `doomed` and the images are
    guarded by the batcher's lock; engines' threads only ask whether the answer is there.
    """

    __slots__ = (
        "_answer", "_batcher", "_compute_seconds", "_count", "_images", "_queue_seconds", "_rows", "deadline",
        "doomed", "name", "size", "submitted", "trace", "unclaimed",
    )  # fmt: skip

    def __init__(
        self, batcher: Queue, images: int, answer: asyncio.Future[Answer], size: int = 0, deadline: float | None = None
    ) -> None:
        self.unclaimed = images  # not yet computing; these count against the queue's bound
        self.size = size  # bytes of its message
        self.doomed = False  # a batch with images of it has failed, and it is about to be told
        # In seconds on time.monotonic()'s clock.
        self.deadline = deadline
        self.trace: RequestTrace | None = None
        self.name = ""  # the caller's id of it, for the log
        self._batcher = batcher
        self._count = images
        self._images: Pixels | None = None
        self._answer = answer
        # By the number of their first image: with several engines, parts may finish in another order.
        self._rows: dict[int, tuple[Floats, Floats]] | None = None
        self.submitted = 0.0  # on time.monotonic()'s clock
        self._queue_seconds = self._compute_seconds = 0.0

    def __enter__(self) -> Request:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        self._batcher.release(self, cancelled=kind is asyncio.CancelledError)

    async def compute(self, images: Pixels, priority: int = 0) -> Answer:
        """Queue uint8 [n, height, width, channels], n as admitted, and wait for their rows.

        `priority` is 1 (highest), 2 (which 0 means too) or
        beyond: each step down counts like having arrived PRIORITY_STEP later, so that nobody starves. Raises
        DeadlineExceeded when the deadline comes before compute can begin, and whatever the engine raises.
        """
        if len(images) != self._count:
            raise ValueError(f"{self._count} images were admitted, {len(images)} submitted")
        self._images, self.submitted = images, time.monotonic()
        level = min(max(priority or DEFAULT_PRIORITY, 1), LOWEST_PRIORITY)
        self._batcher.enqueue(self, self.submitted + level * PRIORITY_STEP)
        return await self._answer

    def shrink(self, images: int) -> None:
        """Before `compute`: only `images` of the admitted are left to compute."""
        self._batcher.give_back(self.unclaimed - images)
        self._count = self.unclaimed = images

    @property
    def untouched(self) -> bool:
        """Whether no batch has claimed any of its images."""
        return self.unclaimed == self._count

    @property
    def done(self) -> bool:
        """Whether it is answered, or will be without more compute, or nobody waits for it any more."""
        return self.doomed or self._answer.done()

    def start(self, now: float) -> float:
        """Note that compute begins; returns the seconds it waited."""
        self._queue_seconds = now - self.submitted
        return self._queue_seconds

    def claim(self, room: int) -> Part:
        """The next images, at most `room`, for a batch."""
        assert self._images is not None
        if self.unclaimed == self._count <= room:
            self.unclaimed = 0
            return Part(self, 0, self._images)
        first = self._count - self.unclaimed
        images = self._images[first : first + room]
        self.unclaimed -= len(images)
        return Part(self, first, images)

    def take(self, first: int, probabilities: Floats, logits: Floats, seconds: float) -> None:
        """Rows of its images from number `first` on, from a batch that took `seconds`; the last complete the answer."""
        if self._answer.done():
            return
        self._compute_seconds += seconds
        if len(probabilities) < self._count:
            rows = self._rows = self._rows or {}
            rows[first] = probabilities, logits
            if sum(len(one) for one, _ in rows.values()) < self._count:
                return
            in_order = (rows[first] for first in sorted(rows))
            probabilities, logits = (np.concatenate(parts) for parts in zip(*in_order, strict=True))
        self._answer.set_result(Answer(probabilities, logits, self._queue_seconds, self._compute_seconds))

    def fail(self, error: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)

    def abandon(self) -> int:
        """Nobody waits any more: let the images go, and return how many of them still counted against the queue."""
        self._answer.cancel()
        self._images = None
        unclaimed, self.unclaimed = self.unclaimed, 0
        return unclaimed
