"""The dynamic batcher: many callers' images in, full batches to the engine, each caller's own rows back.

Work-conserving: an idle engine starts at once on whatever waits; while it computes, the queue grows, so that batches
get larger just as load does. There is no delay unless it is asked for. Each engine has a thread of its own, which takes
its next batch from the queue the moment it has finished one: the event loop, which may be in the middle of sixty
requests, is not waited for. What is cancelled or past its deadline leaves the queue when the next batch is made up,
before it costs compute.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

from service.engine import Engine, Outputs
from service.errors import DeadlineExceeded, QueueFull, ServiceError, Unavailable
from service.pace import Pace
from service.pending import Part, Request
from service.runners import Floats

# A single batch may fail by itself; so many one after the other say that the engine no longer computes.
FAILURES_IN_A_ROW = 3
_DROPPED: dict[type[ServiceError], str] = {QueueFull: "shed", DeadlineExceeded: "late"}


class BatchObserver(Protocol):
    """What the batcher reports of its work; `service.version_metrics` counts it. From any thread, but for
    `computed`, `predicted` and `failed`, which are called on the loop.
    """

    def queue_changed(self, images: int) -> None:
        """`images` are now admitted and not yet computing."""

    def left_queue(self, seconds: float) -> None:
        """A request's first image goes to the engine, `seconds` after it was submitted."""

    def computed(self, images: int, bucket: int, seconds: float) -> None:
        """A batch of `images`, padded to `bucket`, took the engine `seconds`."""

    def predicted(self, probabilities: Floats) -> None:
        """What the engine gave for a batch, [n, classes]."""

    def failed(self) -> None:
        """The engine failed on a batch."""

    def dropped(self, reason: str, images: int) -> None:
        """`images` will not be computed: shed, late, expired or cancelled."""


class Batcher:
    """Stands between the servicers and the engines of one version. To be used from one event loop.

    `max_queue_images` bounds the images that are admitted (being decoded, or queued) and not yet computing,
    `max_queue_bytes` the messages of the requests that are not yet answered.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        max_queue_images: int,
        max_queue_bytes: int = 1 << 62,
        observer: BatchObserver,
        in_background: bool = False,
        max_delay: float = 0.0,
        target_latency: float = 0.0,
        broken: Callable[[], None] | None = None,
    ) -> None:
        """`in_background` lets the engines compute only when nothing else wants the processor.

        `max_delay`, in seconds, is how long a batch that is not full waits for more images. With `target_latency`, in
        seconds, batches are no larger than Engine.largest_batch says. `broken` is called on the loop when
        FAILURES_IN_A_ROW batches have failed, one after the other.
        """
        self._max_delay = max_delay
        self._target_latency = target_latency
        self._max_queue_images = max_queue_images
        self._max_queue_bytes = max_queue_bytes
        self._crowd = min(max_queue_images, *(engine.max_batch_size for engine in engines))
        self.observer = observer
        self._broken = broken
        self._failures = 0  # since the last batch that was computed
        self._loop = asyncio.get_running_loop()
        # Guards what the loop and the engines' threads share: the queue and the account of what is admitted.
        self._changed = threading.Condition()
        # By due time, then by arrival: see Request.compute.
        self._queue: list[tuple[float, int, Request]] = []
        self._arrivals = itertools.count()
        self._admitted = 0
        self._bytes = 0
        self._idle = 0  # engines that wait for a request
        self._ringing = False  # whether _ring is about to be called
        self._pace = Pace(len(engines))
        self._closing = self._ended = False
        self._threads = ThreadPoolExecutor(len(engines), "engine", _yield_to_others if in_background else None)
        self._tasks = [asyncio.create_task(self._keep(engine), name="batcher") for engine in engines]

    def admit(self, images: int, size: Callable[[], int] = int, deadline: float | None = None) -> Request:
        """Claim room in the queue for `images`, before they are decoded; leaving the request's context gives back
        what is unused. `size` tells the bytes of the request's message, and is asked only when there is room for its
        images; `deadline` is as of Request.compute.

        Raises QueueFull at once when there is no room, DeadlineExceeded when they would hardly be done in time, and
        Unavailable when the batcher is closing. A request larger than the whole queue is admitted when nothing else
        waits: otherwise it never would be.
        """
        if (refusal := self.refusal(images, deadline)) is not None:
            if (reason := _DROPPED.get(type(refusal))) is not None:
                self.observer.dropped(reason, images)
            raise refusal
        held, taken = self._bytes, size()
        if held and held + taken > self._max_queue_bytes:
            self.observer.dropped("shed", images)
            problem = f"requests of {held} bytes are being answered, the limit is {self._max_queue_bytes}"
            raise QueueFull(problem, self._pace.room_in(self._admitted))
        with self._changed:
            self._admit(images)
            self._bytes += taken
        return Request(self, images, self._loop.create_future(), taken, deadline)

    @property
    def crowded(self) -> bool:
        """Whether a whole batch waits, or as much as may: what comes now may well be turned away."""
        return self._admitted >= self._crowd

    def refusal(self, images: int, deadline: float | None = None) -> ServiceError | None:
        """Why `admit` would turn these away, were their message of no size; None when it would not."""
        if self._closing:
            return Unavailable("draining: nothing new is accepted")
        # Read without the lock, as in admit: only this thread adds to it.
        waiting = self._admitted
        if waiting and waiting + images > self._max_queue_images:
            retry_after = self._pace.room_in(waiting + images - self._max_queue_images)
            return QueueFull(f"{waiting} images wait, the limit is {self._max_queue_images}", retry_after)
        if deadline is not None and self._pace.hardly_in_time(deadline - time.monotonic(), waiting, images):
            return DeadlineExceeded(f"{waiting} images wait: these would hardly be done before the deadline")
        return None

    async def close(self) -> None:
        """Admit nothing more, finish what is admitted, then end the engines' threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        await asyncio.gather(*self._tasks)
        self._threads.shutdown()

    @property
    def queued_images(self) -> int:
        """Images that are admitted and not yet computing."""
        return self._admitted

    def oldest_seconds(self) -> float:
        """How long the oldest request in the queue has waited; 0 when none does. From any thread."""
        with self._changed:
            waiting = [request.submitted for _, _, request in self._queue]
        return time.monotonic() - min(waiting) if waiting else 0.0

    def enqueue(self, request: Request, due: float) -> None:
        with self._changed:
            heapq.heappush(self._queue, (due, next(self._arrivals), request))
            if not self._idle or self._ringing:
                return
            self._ringing = True
        # The requests that came in with this one go into the same batch, and one call wakes the engine for all.
        self._loop.call_soon(self._ring)

    def give_back(self, images: int) -> None:
        with self._changed:
            self._admit(-images)

    def release(self, request: Request, cancelled: bool) -> None:
        """Nobody waits for `request` any more."""
        with self._changed:
            unclaimed = request.abandon()
            self._bytes -= request.size
            if unclaimed:
                self._admit(-unclaimed)
        if cancelled:
            self.observer.dropped("cancelled", unclaimed)

    def _admit(self, images: int) -> None:
        self._admitted += images
        self.observer.queue_changed(self._admitted)
        if self._closing and not self._admitted:
            self._changed.notify_all()

    def _ring(self) -> None:
        with self._changed:
            self._ringing = False
            self._changed.notify_all()

    async def _keep(self, engine: Engine) -> None:
        try:
            await self._loop.run_in_executor(self._threads, self._serve, engine)
        finally:  # when the loop is torn down, too: the thread must not wait for ever
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _serve(self, engine: Engine) -> None:
        """On the engine's thread: compute batch after batch until the batcher is closed."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits for what was computed
            room = engine.largest_batch(self._target_latency) if self._target_latency else engine.max_batch_size
            while batch := self._take(room):
                self._compute(engine, batch)

    def _take(self, room: int) -> list[Part]:
        """Wait for the next batch; empty when there will be none."""
        with self._changed:
            while not self._ended:
                delay = self._delay(room) if self._max_delay else 0.0
                if delay <= 0 and (batch := self._next_batch(room)):
                    return batch
                if self._closing and not self._admitted:
                    break
                self._idle += 1
                self._changed.wait(delay if delay > 0 else None)
                self._idle -= 1
            return []

    def _delay(self, room: int) -> float:
        """Seconds for which the requests in the queue may still wait for others; none when they fill the batch."""
        waiting = [request for _, _, request in self._queue if not request.done]
        if not waiting or self._closing or sum(request.unclaimed for request in waiting) >= room:
            return 0.0
        return min(request.submitted for request in waiting) + self._max_delay - time.monotonic()

    def _next_batch(self, room: int) -> list[Part]:
        """The next live images, `room` at most."""
        batch: list[Part] = []
        now = time.monotonic()
        while self._queue and room:
            _, _, request = self._queue[0]
            if request.done or self._expires(request, now):
                heapq.heappop(self._queue)
                continue
            if request.untouched:
                self.observer.left_queue(request.start(now))
            part = request.claim(room)
            batch.append(part)
            room -= len(part.images)
            if not request.unclaimed:
                heapq.heappop(self._queue)
        if batch:
            self._admit(-sum(len(part.images) for part in batch))
        return batch

    def _expires(self, request: Request, now: float) -> bool:
        """Whether its deadline has passed, or will before it can be computed; it is then told so.

        That counts only until compute has begun.
        """
        if request.deadline is None or not request.untouched:
            return False
        remaining = request.deadline - now
        if remaining > 0 and not self._pace.too_late(remaining, request.unclaimed):
            return False
        self.observer.dropped("late" if remaining > 0 else "expired", request.unclaimed)
        error = DeadlineExceeded("the deadline came while the request waited in the queue")
        self._loop.call_soon_threadsafe(request.fail, error)
        return True

    def _compute(self, engine: Engine, batch: list[Part]) -> None:
        started = time.monotonic()
        try:
            outputs = engine.compute([part.images for part in batch])
        except Exception as error:  # whatever the engine raises is the answer of this batch, and of no other
            for part in batch:
                part.request.doomed = True  # at once: this thread takes the next batch before the loop can tell it
            self._loop.call_soon_threadsafe(self._fail, batch, error)
            return
        self._loop.call_soon_threadsafe(self._finish, engine, batch, outputs, started, time.monotonic() - started)

    def _finish(self, engine: Engine, batch: list[Part], outputs: Outputs, started: float, seconds: float) -> None:
        """On the loop: give every request in the batch its rows."""
        self._failures = 0
        first = 0
        for part in batch:
            rows = slice(first, first + len(part.images))
            part.request.take(part.first, outputs.probabilities[rows], outputs.logits[rows], seconds)
            first = rows.stop
        self.observer.computed(first, engine.bucket(first), seconds)
        self.observer.predicted(outputs.probabilities)
        if traces := [part.request.trace for part in batch if part.request.trace is not None]:
            traces[0].batch(traces, started, seconds, first, engine.bucket(first))
        self._pace.measured(first, engine.bucket(first), seconds)

    def _fail(self, batch: list[Part], error: Exception) -> None:
        """On the loop: this is the answer of every request in the batch."""
        for part in batch:
            part.request.fail(error)
        self.observer.failed()
        if isinstance(error, MemoryError):
            return  # of this process, and no fault of the engine
        self._failures += 1
        if self._failures == FAILURES_IN_A_ROW and self._broken is not None:
            self._broken()


def _yield_to_others() -> None:
    """Give the calling thread the lowest priority. Only Linux has priorities of single threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, 19)
