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
from typing import Any, Protocol

from service import outcomes
from service.engine import Engine
from service.errors import DeadlineExceeded, QueueFull, ServiceError, Unavailable, hidden
from service.outcomes import Computed
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


class _Instance:
    """One engine of a batcher.

    `hand`, the part of the queue that its thread has taken and not yet handed to the loop, belongs to that thread until
    the thread ends; `failures`, the failed batches since the last that was computed, to the loop.
    """

    __slots__ = ("engine", "failures", "hand")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failures = 0
        self.hand: list[Part] = []


class Batcher:
    """Stands between the servicers and the engines of one version. To be used from one event loop.

    `max_queue_images` bounds the images that are admitted (being decoded, or queued) and not yet computing,
    `max_queue_bytes` the messages of the requests that are not yet answered.

    Owners: the lock in `_changed` guards the queue, `_admitted` (the loop may look at it without), `_idle`, `_ringing`,
    `_alive`, `_closing` and `_ended`; all else belongs to the loop. An engine's thread has its own `hand`, and hands
    each batch to the loop, which alone answers requests.

    Whatever fails here, a request that was admitted is answered. If the thread of an engine ends by itself, the batch
    in its hands fails, the other engines take the queue, and `broken` is called; without another engine the queue
    fails, and nothing is admitted any more.
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
        broken: Callable[[str], None] | None = None,
        title: str = "the model",
    ) -> None:
        """`in_background` lets the engines compute only when nothing else wants the processor.

        `max_delay`, in seconds, is how long a batch that is not full waits for more images. With `target_latency`, in
        seconds, batches are no larger than Engine.largest_batch says. `broken` is called on the loop with the
        reason when FAILURES_IN_A_ROW batches of one engine have failed, one after the other (and at each so many more),
        or when its thread has ended. `title` names the version in the log.
        """
        self._max_delay = max_delay
        self._target_latency = target_latency
        self._max_queue_images = max_queue_images
        self._max_queue_bytes = max_queue_bytes
        self._crowd = min(max_queue_images, *(engine.max_batch_size for engine in engines))
        self.observer = observer
        self._broken = broken
        self.broken_for = ""  # the reason that `broken` was last called with
        self._title = title
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        # By due time, then by arrival: see Request.compute.
        self._queue: list[tuple[float, int, Request]] = []
        self._arrivals = itertools.count()
        self._admitted = 0
        self._bytes = 0
        self._alive = len(engines)  # engines whose threads have not ended
        self._idle = 0  # engines that wait for a request
        self._ringing = False  # whether _ring is about to be called
        self._pace = Pace(len(engines))
        self._closing = self._ended = False
        self._threads = ThreadPoolExecutor(len(engines), "engine", _yield_to_others if in_background else None)
        self._tasks = [asyncio.create_task(self._keep(_Instance(engine)), name="batcher") for engine in engines]

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
        request = Request(self, images, self._loop.create_future(), taken, deadline)
        with self._changed:
            # Told first: if that fails, nothing is admitted.
            self.observer.queue_changed(self._admitted + images)
            self._admitted += images
            self._bytes += taken
        return request

    @property
    def crowded(self) -> bool:
        """Whether a whole batch waits, or as much as may: what comes now may well be turned away."""
        return self._admitted >= self._crowd

    def refusal(self, images: int, deadline: float | None = None) -> ServiceError | None:
        """Why `admit` would turn these away, were their message of no size; None when it would not."""
        if self._closing:
            return Unavailable("draining: nothing new is accepted")
        if not self._alive:
            return self._stopped()
        # Read without the lock, as in admit: only this thread adds to it.
        waiting = self._admitted
        if waiting and waiting + images > self._max_queue_images:
            retry_after = self._pace.room_in(waiting + images - self._max_queue_images)
            return QueueFull(f"{waiting} images wait, the limit is {self._max_queue_images}", retry_after)
        if deadline is not None and self._pace.hardly_in_time(deadline - time.monotonic(), waiting, images):
            return DeadlineExceeded(f"{waiting} images wait: these would hardly be done before the deadline")
        return None

    async def close(self) -> None:
        """Admit nothing more, finish what is admitted, then end the engines' threads.

        Cancelled, it does not wait, and what is admitted is finished all the same.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        try:
            await asyncio.shield(asyncio.gather(*self._tasks))
        finally:
            self._threads.shutdown(wait=all(task.done() for task in self._tasks))

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
            if not self._alive:
                request.fail(self._stopped())
                return
            heapq.heappush(self._queue, (due, next(self._arrivals), request))
            if not self._idle or self._ringing:
                return
            self._ringing = True
        # The requests that came in with this one go into the same batch, and one call wakes the engine for all.
        self._loop.call_soon(self._ring)

    def give_back(self, images: int) -> None:
        with self._changed:
            self._leave(images)

    def release(self, request: Request, cancelled: bool) -> None:
        """Nobody waits for `request` any more."""
        with self._changed:
            unclaimed = request.abandon()
            self._bytes -= request.size
            if unclaimed:
                self._leave(unclaimed)
        if cancelled:
            self.observer.dropped("cancelled", unclaimed)

    def _leave(self, images: int) -> None:
        """Images that were admitted wait no more."""
        self._admitted -= images
        if self._closing and not self._admitted:
            self._changed.notify_all()
        self.observer.queue_changed(self._admitted)

    def _stopped(self) -> Unavailable:
        return Unavailable(f"{self._title} is not ready: its engine has stopped; the log says why")

    def _ring(self) -> None:
        with self._changed:
            self._ringing = False
            self._changed.notify_all()

    async def _keep(self, instance: _Instance) -> None:
        """The life of an engine's thread, and what is to be done when it ends by itself."""
        try:
            error = await self._loop.run_in_executor(self._threads, self._serve, instance)
        except Exception as problem:  # the thread could not be started
            error = problem
        except BaseException:  # the loop is torn down: the threads must not wait for ever
            self._end()
            raise
        if error is None:
            return
        try:
            self._lost(instance, error)
        except Exception as problem:  # `close` waits for this task: it must not fail there
            hidden(problem, f"{self._title}: reporting that an engine has stopped failed")

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _serve(self, instance: _Instance) -> BaseException | None:
        """On the engine's thread: compute batch after batch until the batcher is closed. Gives what ended it before."""
        engine = instance.engine
        try:
            room = engine.largest_batch(self._target_latency) if self._target_latency else engine.max_batch_size
            while self._take(instance.hand, room):
                self._compute(instance)
        except BaseException as error:  # given, not raised: the loop would take a SystemExit for one of its own
            return error
        return None

    def _take(self, hand: list[Part], room: int) -> bool:
        """Wait for the next batch, and take it in hand; False when there will be none."""
        with self._changed:
            while not self._ended:
                delay = self._delay(room) if self._max_delay else 0.0
                if delay <= 0 and self._next_batch(hand, room):
                    return True
                if self._closing and not self._admitted:
                    break
                self._idle += 1
                try:
                    self._changed.wait(delay if delay > 0 else None)
                finally:
                    self._idle -= 1
            return False

    def _delay(self, room: int) -> float:
        """Seconds for which the requests in the queue may still wait for others; none when they fill the batch."""
        waiting = [request for _, _, request in self._queue if not request.done]
        if not waiting or self._closing or sum(request.unclaimed for request in waiting) >= room:
            return 0.0
        return min(request.submitted for request in waiting) + self._max_delay - time.monotonic()

    def _next_batch(self, hand: list[Part], room: int) -> bool:
        """Take the next live images in hand, `room` at most; False when there are none."""
        now = time.monotonic()
        try:
            while self._queue and room:
                _, _, request = self._queue[0]
                if request.done or self._expires(request, now):
                    heapq.heappop(self._queue)
                    continue
                if request.untouched:
                    self.observer.left_queue(request.start(now))
                part = request.claim(room)
                hand.append(part)
                room -= len(part.images)
                if not request.unclaimed:
                    heapq.heappop(self._queue)
        finally:  # the account is right even if this thread ends here
            if hand:
                self._leave(sum(len(part.images) for part in hand))
        return bool(hand)

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
        self._on_loop(request.fail, error)
        return True

    def _on_loop(self, callback: Callable[..., None], *arguments: Any) -> None:
        """From an engine's thread: call this on the loop. If the loop is closed, nobody waits any more: end."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            self._end()

    def _compute(self, instance: _Instance) -> None:
        """On the engine's thread: compute what it has in hand, and hand the outcome to the loop."""
        batch, began = instance.hand.copy(), time.monotonic()
        try:
            outputs = instance.engine.compute([part.images for part in batch])
            computed = outcomes.checked(outputs, batch, began, time.monotonic() - began)
        except Exception as error:  # whatever the engine raises is the answer of this batch, and of no other
            with self._changed:
                for part in batch:
                    part.request.doomed = True  # at once: this thread takes the next batch before the loop can tell it
            self._on_loop(self._fail, instance, batch, error)
        else:
            self._on_loop(self._finish, instance, batch, computed)
        instance.hand.clear()

    def _finish(self, instance: _Instance, batch: list[Part], computed: Computed) -> None:
        """On the loop: give every request in the batch its rows, and count the batch."""
        instance.failures = 0
        try:
            outcomes.deliver(batch, computed, self._title)
        except Exception as error:  # a fault of ours
            outcomes.fail(batch, error, f"{self._title}: a batch could not be delivered")
        try:
            self._count(instance.engine, batch, computed)
        except Exception as error:  # a fault of ours that no caller need hear of
            hidden(error, f"{self._title}: a batch was delivered, and could not be counted")

    def _count(self, engine: Engine, batch: list[Part], computed: Computed) -> None:
        images, seconds = len(computed.outputs.probabilities), computed.seconds
        bucket = engine.bucket(images)
        self._pace.measured(images, bucket, seconds)
        self.observer.computed(images, bucket, seconds)
        self.observer.predicted(computed.finite)
        if traces := [part.request.trace for part in batch if part.request.trace is not None]:
            traces[0].batch(traces, computed.began, seconds, images, bucket)

    def _fail(self, instance: _Instance, batch: list[Part], error: Exception) -> None:
        """On the loop: the engine has failed on this batch."""
        outcomes.fail(batch, error, f"{self._title}: a batch failed in the engine")
        try:
            self.observer.failed()
        finally:
            if not isinstance(error, MemoryError):  # of this process, and no fault of the engine
                instance.failures += 1
                if instance.failures % FAILURES_IN_A_ROW == 0:
                    self._report("an engine of it failed several batches in a row")

    def _lost(self, instance: _Instance, error: BaseException) -> None:
        """On the loop: the thread of an engine has ended, and not because the batcher is closed."""
        with self._changed:
            self._alive -= 1
            stranded = [] if self._alive else [request for _, _, request in self._queue]
            if stranded:
                self._queue.clear()
            self._changed.notify_all()  # what it was about to take is for the others
        outcomes.fail(instance.hand, error, f"{self._title}: the thread of an engine ended")
        for request in stranded:
            request.fail(self._stopped())
        try:
            self.observer.failed()
        finally:
            self._report("the thread of an engine of it ended")

    def _report(self, reason: str) -> None:
        self.broken_for = reason
        if self._broken is not None:
            self._broken(reason)


def _yield_to_others() -> None:
    """Give the calling thread the lowest priority. Only Linux has priorities of single threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, 19)
