"""The dynamic batcher: many callers' images in, full batches to the engine, each caller's own rows back.

Work-conserving: an idle engine starts at once on whatever waits; while it computes, the queue grows, so that batches
get larger just as load does. There is no delay timer. Each engine has one task that takes from the queue; what is
cancelled or past its deadline leaves the queue when the next batch is made up, before it costs compute.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from service.engine import Engine, Floats
from service.errors import DeadlineExceeded, QueueFull, Unavailable
from service.images import Pixels
from service.tracing import RequestTrace

# Weight of the newest batch in the moving average of the drain rate: the last ten or so batches count.
_RATE_WEIGHT = 0.2
PRIORITY_STEP = 1.0  # seconds
DEFAULT_PRIORITY, LOWEST_PRIORITY = 2, 3
_MIN_RETRY_AFTER = 0.01  # seconds; sooner, a caller would only be turned away again
_RETRY_AFTER_UNMEASURED = 1.0  # seconds, before the first batch has been timed


class BatchObserver(Protocol):
    """What the batcher reports of its work; `service.metrics` counts it."""

    def queue_changed(self, images: int) -> None:
        """`images` are now admitted and not yet computing."""

    def left_queue(self, seconds: float) -> None:
        """A request's first image goes to the engine, `seconds` after it was submitted."""

    def computed(self, images: int, bucket: int, seconds: float) -> None:
        """A batch of `images`, padded to `bucket`, took the engine `seconds`."""

    def predicted(self, probabilities: Floats) -> None:
        """What the engine gave for a batch, [n, classes]."""

    def dropped(self, reason: str, images: int) -> None:
        """`images` will not be computed: shed, expired or cancelled."""


@dataclass(frozen=True)
class Answer:
    probabilities: Floats  # [n, classes]
    logits: Floats  # [n, classes]
    queue_seconds: float  # from submission until the first image was computing
    compute_seconds: float  # of all batches that held its images


class Batcher:
    """Stands between the servicers and the engines of one version. To be used from one event loop.

    `max_queue_images` bounds the images that are admitted (being decoded, or queued) and not yet computing.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        max_queue_images: int,
        observer: BatchObserver,
        in_background: bool = False,
    ) -> None:
        """`in_background` lets the engines compute only when nothing else wants the processor."""
        self._max_queue_images = max_queue_images
        self.observer = observer
        # By due time, then by arrival: see Request.compute.
        self._queue: list[tuple[float, int, Request]] = []
        self._arrivals = itertools.count()
        self._admitted = 0
        self._images_per_second = 0.0
        self._closing = False
        self._wake = asyncio.Event()
        self._threads = ThreadPoolExecutor(len(engines), "engine", _yield_to_others if in_background else None)
        self._tasks = [asyncio.create_task(self._serve(engine), name="batcher") for engine in engines]

    @contextmanager
    def admit(self, images: int) -> Iterator[Request]:
        """Claim room in the queue for `images`, before they are decoded; leaving the block gives back what is unused.

        Raises QueueFull at once when there is no room, and Unavailable when the batcher is closing. A request
        larger than the whole queue is admitted when nothing else waits: otherwise it never would be.
        """
        if self._closing:
            raise Unavailable("draining: nothing new is accepted")
        if self._admitted and self._admitted + images > self._max_queue_images:
            self.observer.dropped("shed", images)
            raise QueueFull(f"{self._admitted} images wait, the limit is {self._max_queue_images}", self._wait(images))
        request = Request(self, images)
        self._admit(images)
        try:
            yield request
        except asyncio.CancelledError:
            self.observer.dropped("cancelled", request.unclaimed)
            raise
        finally:
            self._admit(-request.abandon())

    async def close(self) -> None:
        """Admit nothing more, finish what is admitted, then end the engines' threads."""
        self._closing = True
        self._wake.set()
        await asyncio.gather(*self._tasks)
        self._threads.shutdown()

    @property
    def queued_images(self) -> int:
        """Images that are admitted and not yet computing."""
        return self._admitted

    def oldest_seconds(self) -> float:
        """How long the oldest request in the queue has waited; 0 when none does. From any thread."""
        waiting = [request.submitted for _, _, request in list(self._queue)]
        return time.monotonic() - min(waiting) if waiting else 0.0

    def enqueue(self, request: Request, due: float) -> None:
        heapq.heappush(self._queue, (due, next(self._arrivals), request))
        self._wake.set()

    def give_back(self, images: int) -> None:
        self._admit(-images)

    def _admit(self, images: int) -> None:
        self._admitted += images
        self.observer.queue_changed(self._admitted)
        if self._closing and not self._admitted:
            self._wake.set()

    def _wait(self, images: int) -> float:
        """Seconds until the queue has room for `images`, by the rate of the last batches."""
        if not self._images_per_second:
            return _RETRY_AFTER_UNMEASURED
        return max(_MIN_RETRY_AFTER, (self._admitted + images - self._max_queue_images) / self._images_per_second)

    async def _serve(self, engine: Engine) -> None:
        while self._admitted or not self._closing:
            if batch := self._next_batch(engine.max_batch_size):
                await self._compute(engine, batch)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _next_batch(self, room: int) -> list[Part]:
        """The next live images, `room` at most."""
        batch: list[Part] = []
        now = time.monotonic()
        while self._queue and room:
            _, _, request = self._queue[0]
            if request.is_dead(now):
                heapq.heappop(self._queue)
                continue
            if request.untouched:
                self.observer.left_queue(request.start(now))
            part = request.claim(room)
            self._admit(-len(part.images))
            batch.append(part)
            room -= len(part.images)
            if not request.unclaimed:
                heapq.heappop(self._queue)
        return batch

    async def _compute(self, engine: Engine, batch: list[Part]) -> None:
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        try:
            pixels = [part.images for part in batch]
            images = pixels[0] if len(pixels) == 1 else np.concatenate(pixels)
            outputs = await loop.run_in_executor(self._threads, engine.run, images)
        except Exception as error:  # whatever the engine raises is the answer of this batch, and of no other
            for part in batch:
                part.request.fail(error)
            return
        seconds = time.monotonic() - started
        self.observer.computed(len(images), engine.bucket(len(images)), seconds)
        self.observer.predicted(outputs.probabilities)
        if traces := [part.request.trace for part in batch if part.request.trace is not None]:
            traces[0].batch(traces, started, seconds, len(images), engine.bucket(len(images)))
        self._measure(len(images), seconds)
        first = 0
        for part in batch:
            rows = slice(first, first + len(part.images))
            part.request.take(part.first, outputs.probabilities[rows], outputs.logits[rows], seconds)
            first += len(part.images)

    def _measure(self, images: int, seconds: float) -> None:
        weight = _RATE_WEIGHT if self._images_per_second else 1.0
        self._images_per_second += weight * (images / seconds - self._images_per_second)


@dataclass(frozen=True)
class Part:
    """The images of one request, from number `first` on, that are in one batch."""

    request: Request
    first: int
    images: Pixels


class Request:
    """One caller's images on their way through the batcher: admitted, submitted, claimed by batches, answered."""

    def __init__(self, batcher: Batcher, images: int) -> None:
        self.unclaimed = images  # not yet computing; these count against the queue's bound
        self._batcher = batcher
        self._count = images
        self.trace: RequestTrace | None = None
        self._images: Pixels | None = None
        self._deadline: float | None = None
        self._answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        # By the number of their first image: with several engines, parts may finish in another order.
        self._rows: dict[int, tuple[Floats, Floats]] = {}
        self.submitted = self._queue_seconds = self._compute_seconds = 0.0

    async def compute(self, images: Pixels, deadline: float | None = None, priority: int = 0) -> Answer:
        """Queue uint8 [n, height, width, channels], n as admitted, and wait for their rows.

        `deadline` is in seconds on time.monotonic()'s clock. `priority` is 1 (highest), 2 (which 0 means too) or
        beyond: each step down counts like having arrived PRIORITY_STEP later, so that nobody starves. Raises
        DeadlineExceeded when the deadline passes before compute begins, and whatever the engine raises.
        """
        if len(images) != self._count:
            raise ValueError(f"{self._count} images were admitted, {len(images)} submitted")
        self._images, self._deadline, self.submitted = images, deadline, time.monotonic()
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

    def is_dead(self, now: float) -> bool:
        """Whether nobody waits for it any more. A deadline counts only until compute has begun."""
        if not self._answer.done() and self._deadline is not None and self._deadline <= now and self.untouched:
            self._batcher.observer.dropped("expired", self.unclaimed)
            self._answer.set_exception(DeadlineExceeded("the deadline passed while the request waited in the queue"))
        return self._answer.done()

    def start(self, now: float) -> float:
        """Note that compute begins; returns the seconds it waited."""
        self._queue_seconds = now - self.submitted
        return self._queue_seconds

    def claim(self, room: int) -> Part:
        """The next images, at most `room`, for a batch."""
        assert self._images is not None
        first = self._count - self.unclaimed
        images = self._images[first : first + room]
        self.unclaimed -= len(images)
        return Part(self, first, images)

    def take(self, first: int, probabilities: Floats, logits: Floats, seconds: float) -> None:
        """Rows of its images from number `first` on, from a batch that took `seconds`; the last complete the answer."""
        if self._answer.done():
            return
        self._rows[first] = probabilities, logits
        self._compute_seconds += seconds
        if sum(len(rows) for rows, _ in self._rows.values()) < self._count:
            return
        if len(self._rows) > 1:
            in_order = (self._rows[first] for first in sorted(self._rows))
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


def _yield_to_others() -> None:
    """Give the calling thread the lowest priority. Only Linux has priorities of single threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, 19)
