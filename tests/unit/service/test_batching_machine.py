"""The batcher as a state machine: whatever arrives, goes, fails or drains in whatever order, the account is right.

The batcher is the real one, with its threads and an event loop. Its clock is the test's, and its engines compute when
the test lets them: every image carries a number of its own, and its row is that number.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from unittest import mock

import hypothesis
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from service import batching, pending
from service.batching import FAILURES_IN_A_ROW, Batcher
from service.engine import Outputs
from service.errors import DeadlineExceeded, InternalError, QueueFull, Unavailable
from service.pending import Answer
from tests.unit.service.test_batching import Recorder

BATCH = 8
MOST_IMAGES, MOST_BYTES = 40, 1000
PATIENCE = 20.0  # seconds, for a thread to do what it must


class Clock:
    """In the place of the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Engine:
    """Computes a batch when it is let: `inside` is the batch that waits for that."""

    max_batch_size = BATCH

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.inside: list[int] = []
        self.in_a_row = 0  # its failures
        self.dead = False  # its thread has ended
        self.error: BaseException | None = None
        self._gate = threading.Semaphore(0)

    def bucket(self, images: int) -> int:
        return images

    def compute(self, parts: Sequence[np.ndarray]) -> Outputs:
        numbers = np.concatenate(parts).reshape(-1, 3).astype(np.int64) @ (1, 256, 65536)
        self.inside = numbers.tolist()
        assert self._gate.acquire(timeout=PATIENCE)
        self.inside = []
        self.clock.now += 0.01
        if self.error is not None:
            raise self.error
        rows = numbers.astype(np.float32)[:, None]
        return Outputs(rows, -rows)

    def let(self, error: BaseException | None) -> None:
        self.error = error
        self._gate.release()


@dataclass
class Caller:
    numbers: list[int]  # of its images
    size: int
    deadline: float | None
    decoded: asyncio.Event = field(default_factory=asyncio.Event)
    bad: bool = False  # a picture of it turns out to be none
    cached: int = 0  # so many of its images need no compute
    accepted: bool = False
    cancelled: bool = False
    failed: bool = False  # a batch with an image of it did
    claimed: set[int] = field(default_factory=set)
    task: asyncio.Task[Answer] = field(init=False)

    @property
    def waiting(self) -> int:
        """Images that count against the queue's bound."""
        if not self.accepted or self.task.done():
            return 0
        return len(self.numbers) - self.cached - len(self.claimed)


class BatcherMachine(RuleBasedStateMachine):
    callers = Bundle("callers")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.patches = [mock.patch.object(module, "time", self.clock) for module in (batching, pending)]
        for patch in self.patches:
            patch.start()
        self.loop = asyncio.new_event_loop()
        self.recorder = Recorder()
        self.all: list[Caller] = []
        self.images = 1
        self.broken = self.expect_broken = 0
        self.closing: asyncio.Task[None] | None = None

    @initialize(engines=st.integers(1, 3))
    def begin(self, engines: int) -> None:
        self.engines = [Engine(self.clock) for _ in range(engines)]

        async def make() -> Batcher:
            return Batcher(
                self.engines,  # type: ignore[arg-type]
                max_queue_images=MOST_IMAGES,
                max_queue_bytes=MOST_BYTES,
                observer=self.recorder,
                broken=self.on_broken,
            )

        self.batcher = self.loop.run_until_complete(make())

    def on_broken(self, _reason: str) -> None:
        self.broken += 1

    @property
    def alive(self) -> list[Engine]:
        return [engine for engine in self.engines if not engine.dead]

    async def call(self, caller: Caller, priority: int) -> Answer:
        with self.batcher.admit(len(caller.numbers), lambda: caller.size, caller.deadline) as request:
            caller.accepted = True
            await caller.decoded.wait()
            if caller.bad:
                raise ValueError("no picture")
            if caller.cached:
                request.shrink(len(caller.numbers) - caller.cached)
            numbers = np.array(caller.numbers[caller.cached :])
            pixels = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=1).astype(np.uint8)
            return await request.compute(pixels[:, None, None], priority)

    @rule(
        target=callers,
        images=st.integers(1, 30),
        size=st.integers(0, 600),
        patience=st.none() | st.floats(-0.01, 0.2),
        priority=st.integers(0, 4),
    )
    def arrive(self, images: int, size: int, patience: float | None, priority: int) -> Caller:
        deadline = None if patience is None else self.clock.now + patience
        caller = Caller(list(range(self.images, self.images + images)), size, deadline)
        self.images += images
        waiting = sum(other.waiting for other in self.all)
        held = sum(other.size for other in self.all if other.accepted and not other.task.done())
        full = (waiting and waiting + images > MOST_IMAGES) or (held and held + size > MOST_BYTES)
        caller.task = self.loop.create_task(self.call(caller, priority))
        self.all.append(caller)
        self.settle()
        if caller.accepted:
            assert not full
            assert self.closing is None
            assert self.alive
            return caller
        refusal = caller.task.exception()
        if self.closing is not None or not self.alive:
            assert isinstance(refusal, Unavailable)
        elif full:
            assert isinstance(refusal, QueueFull)
            assert refusal.retry_after > 0
        else:
            assert isinstance(refusal, DeadlineExceeded)
            assert deadline is not None
        return caller

    @rule(caller=callers, cached=st.integers(0, 3))
    def pictures_are_decoded(self, caller: Caller, cached: int) -> None:
        if not caller.decoded.is_set():
            # The cache has some of them, never all: such a request does not come to the batcher.
            caller.cached = min(cached, len(caller.numbers) - 1)
            caller.decoded.set()
        self.settle()

    @rule(caller=callers)
    def a_picture_is_bad(self, caller: Caller) -> None:
        if not caller.decoded.is_set():
            caller.bad = True
            caller.decoded.set()
        self.settle()

    @rule(caller=consumes(callers))
    def cancel(self, caller: Caller) -> None:
        if not caller.task.done():
            caller.cancelled = True
            caller.task.cancel()
        self.settle()

    @precondition(lambda self: any(engine.inside for engine in self.engines))
    @rule(outcome=st.sampled_from([*["computed"] * 5, *["failed"] * 3, "no memory", "dies"]), last=st.booleans())
    def a_batch_ends(self, outcome: str, last: bool) -> None:
        engine = [engine for engine in self.engines if engine.inside][-1 if last else 0]
        batch, done = set(engine.inside), len(self.recorder.batches) + self.recorder.failures
        if outcome in ("computed", "failed"):
            engine.in_a_row = engine.in_a_row + 1 if outcome == "failed" else 0
        engine.dead = outcome == "dies"
        self.expect_broken += engine.dead or (outcome == "failed" and engine.in_a_row % FAILURES_IN_A_ROW == 0)
        errors = {"failed": RuntimeError("broke"), "no memory": MemoryError(), "dies": SystemExit("broke")}
        for caller in self.all:
            if outcome != "computed" and batch & set(caller.numbers):
                caller.failed = True
        engine.let(errors.get(outcome))
        self.spin(lambda: len(self.recorder.batches) + self.recorder.failures > done)
        self.settle()

    @rule(seconds=st.floats(0.001, 0.1))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: self.closing is None)
    @rule(chance=st.integers(0, 9))
    def drain(self, chance: int) -> None:
        if chance == 0:
            self.closing = self.loop.create_task(self.batcher.close())
            self.settle()

    @invariant()
    def the_account_is_right(self) -> None:
        if not self.all:
            return
        waiting = [caller.waiting for caller in self.all]
        assert self.batcher.queued_images == self.recorder.queue_images == sum(waiting)
        assert sum(waiting) <= MOST_IMAGES or sum(map(bool, waiting)) == 1, "more only for one that is alone"
        held = [caller.size for caller in self.all if caller.accepted and not caller.task.done()]
        assert self.batcher._bytes == sum(held)
        assert sum(held) <= MOST_BYTES
        assert all(images <= BATCH for images, _ in self.recorder.batches)
        assert self.broken == self.expect_broken

    @invariant()
    def every_outcome_is_one_that_it_may_be(self) -> None:
        for caller in self.all:
            if not caller.accepted or not caller.task.done():
                continue
            if caller.task.cancelled():
                assert caller.cancelled
                continue
            error = caller.task.exception()
            if error is None:
                rows = caller.task.result().probabilities[:, 0].astype(int).tolist()
                assert rows == caller.numbers[caller.cached :], "its own rows, in their order"
                assert caller.claimed == set(rows)
            elif isinstance(error, DeadlineExceeded):
                assert caller.deadline is not None
                assert not caller.claimed, "once its compute has begun, it is finished"
            elif isinstance(error, Unavailable):
                assert not self.alive
            elif isinstance(error, InternalError):
                assert caller.failed
            else:
                assert caller.bad
                assert isinstance(error, ValueError)

    def teardown(self) -> None:
        try:
            for caller in self.all:
                caller.decoded.set()
            self.closing = self.closing or self.loop.create_task(self.batcher.close())
            while not self.closing.done():
                self.settle()
                if any(engine.inside for engine in self.engines):
                    self.a_batch_ends("computed", False)
            assert all(caller.task.done() for caller in self.all), "everyone was told"
            self.every_outcome_is_one_that_it_may_be()
            assert self.recorder.queue_images == 0
            assert self.batcher._bytes == 0
        finally:
            for patch in self.patches:
                patch.stop()
            self.loop.close()

    def settle(self) -> None:
        """Until every engine is in a batch, or there is none to make up, and the loop has nothing to do."""

        def still() -> bool:
            with self.batcher._changed:
                live = any(not request.done and request.unclaimed for _, _, request in self.batcher._queue)
                return not self.batcher._ringing and (not live or all(engine.inside for engine in self.alive))

        self.spin(still)
        self.spin(still)  # what the engines' threads had handed to the loop by then is done now
        owner = {number: caller for caller in self.all for number in caller.numbers}
        for engine in self.engines:
            for number in engine.inside:
                caller = owner[number]
                if number not in caller.claimed:
                    assert not caller.task.done(), "nothing is computed for who is gone"
                    caller.claimed.add(number)
        computed = [number for caller in self.all for number in caller.claimed]
        assert len(computed) == len(set(computed)), "nothing is computed twice"

    def spin(self, condition: object) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            for _ in range(5):
                self.loop.run_until_complete(asyncio.sleep(0))
            if condition():  # type: ignore[operator]
                return
            assert time.monotonic() < deadline, "the engines' threads stand still"
            time.sleep(0.0002)


TestBatcher = BatcherMachine.TestCase
TestBatcher.settings = hypothesis.settings(max_examples=60, stateful_step_count=40, deadline=None)
