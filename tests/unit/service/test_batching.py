"""The batcher against a real engine: who gets what, what is refused, and what is never computed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import pending
from service.batching import Batcher
from service.engine import Engine, Outputs
from service.errors import DeadlineExceeded, InternalError, QueueFull, Unavailable
from service.manifest import MODEL_FILE
from service.pending import Answer
from tests import colour_model

BATCH = 8


class Recorder:
    """Counts what the batcher reports."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []
        self.queue_images = 0
        self.waited = 0
        self.failures = 0
        self.lost: Counter[str] = Counter()

    def queue_changed(self, images: int) -> None:
        self.queue_images = images

    def left_queue(self, seconds: float) -> None:
        assert seconds >= 0
        self.waited += 1

    def computed(self, images: int, bucket: int, seconds: float) -> None:
        assert seconds > 0
        self.batches.append((images, bucket))

    def predicted(self, probabilities: np.ndarray) -> None:
        assert len(probabilities) == self.batches[-1][0]

    def failed(self) -> None:
        self.failures += 1

    def dropped(self, reason: str, images: int) -> None:
        self.lost[reason] += images


class HeldEngine(Engine):
    """The real engine, behind a gate: a batch computes only when the test lets it."""

    def __init__(self, model: Path) -> None:
        super().__init__(model, provider="cpu", max_batch_size=BATCH)
        self.gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)

    def compute(self, parts: Sequence[np.ndarray]) -> Outputs:
        self.entered.release()
        assert self.gate.acquire(timeout=20)
        if any((images == 255).all() for images in parts):
            raise RuntimeError("the engine broke")
        return super().compute(parts)

    async def busy(self) -> None:
        """Until a batch is in the engine."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=20)

    def let(self, batches: int = 1000) -> None:
        self.gate.release(batches)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_model.publish(tmp_path_factory.mktemp("models")) / MODEL_FILE


Scenario = Callable[[Batcher, HeldEngine, Recorder], Awaitable[None]]


def run(
    model: Path,
    scenario: Scenario,
    max_queue_images: int = 100,
    engine_type: type[HeldEngine] | None = None,
    **settings: float,
) -> Recorder:
    async def main() -> Recorder:
        engine, recorder = (engine_type or HeldEngine)(model), Recorder()
        batcher = Batcher([engine], max_queue_images=max_queue_images, observer=recorder, **settings)
        try:
            async with asyncio.timeout(30):
                await scenario(batcher, engine, recorder)
        finally:
            engine.let()
            await batcher.close()
        assert recorder.queue_images == 0, "whatever happened, nothing may stay in the account"
        return recorder

    return asyncio.run(main())


async def classify(batcher: Batcher, images: np.ndarray, deadline: float | None = None, priority: int = 0) -> Answer:
    with batcher.admit(len(images), deadline=deadline) as request:
        return await request.compute(images, priority)


def start(
    batcher: Batcher, images: np.ndarray, deadline: float | None = None, priority: int = 0
) -> asyncio.Task[Answer]:
    return asyncio.create_task(classify(batcher, images, deadline, priority))


def assert_answers(answer: Answer, images: np.ndarray) -> None:
    np.testing.assert_allclose(answer.probabilities, colour_model.expected(images), atol=1e-5)
    assert answer.compute_seconds > 0


def test_an_idle_engine_starts_at_once_and_a_busy_one_lets_the_batch_grow(model: Path) -> None:
    images = colour_model.distinct(12)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        first = start(batcher, images[:1])
        await engine.busy()
        rest = [start(batcher, images[number : number + 1]) for number in range(1, 12)]
        await asyncio.sleep(0)
        engine.let()
        for number, task in enumerate([first, *rest]):
            assert_answers(await task, images[number : number + 1])

    assert run(model, scenario).batches == [(1, 1), (8, 8), (3, 3)]


def test_a_request_is_split_over_batches_and_put_together_in_order(model: Path) -> None:
    images = colour_model.distinct(30)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        engine.let()
        parts = [images[:5], images[5:25], images[25:]]
        for part, answer in zip(parts, await asyncio.gather(*(classify(batcher, one) for one in parts)), strict=True):
            assert_answers(answer, part)

    recorder = run(model, scenario)
    assert sum(count for count, _ in recorder.batches) == 30
    assert recorder.waited == 3


def test_cancelling_in_the_queue_frees_the_room_and_costs_no_compute(model: Path) -> None:
    images = colour_model.distinct(20)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        blocker = start(batcher, images[:1])
        await engine.busy()
        doomed, other = start(batcher, images[1:11]), start(batcher, images[11:])
        await asyncio.sleep(0)
        assert recorder.queue_images == 19
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        assert recorder.queue_images == 9
        engine.let()
        assert_answers(await other, images[11:])
        await blocker

    recorder = run(model, scenario)
    assert recorder.batches == [(1, 1), (8, 8), (1, 1)]
    assert recorder.lost == {"cancelled": 10}


def test_cancelling_during_compute_leaves_the_batch_mates_alone_and_stops_the_rest(model: Path) -> None:
    images = colour_model.distinct(32)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        blocker = start(batcher, images[:1])
        await engine.busy()
        mate, doomed = start(batcher, images[1:4]), start(batcher, images[4:])
        await asyncio.sleep(0)
        engine.let(1)
        await blocker
        await engine.busy()
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        engine.let()
        assert_answers(await mate, images[1:4])

    recorder = run(model, scenario)
    assert recorder.batches == [(1, 1), (8, 8)]
    assert recorder.lost == {"cancelled": 23}


def test_a_full_queue_refuses_at_once_with_a_time_to_come_back(model: Path) -> None:
    images = colour_model.distinct(12)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        first = start(batcher, images[:1])
        await engine.busy()
        waiting = start(batcher, images[1:11])
        await asyncio.sleep(0)
        with pytest.raises(QueueFull) as caught:
            await classify(batcher, images[11:])
        assert caught.value.retry_after > 0
        engine.let()
        await asyncio.gather(first, waiting)
        assert_answers(await classify(batcher, images[11:]), images[11:])

    assert run(model, scenario, max_queue_images=10).lost == {"shed": 1}


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits(model: Path) -> None:
    images = colour_model.distinct(25)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        engine.let()
        assert_answers(await classify(batcher, images), images)

    run(model, scenario, max_queue_images=10)


def test_room_claimed_for_images_that_turn_out_bad_is_given_back(model: Path) -> None:
    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        with pytest.raises(ValueError, match="broken"), batcher.admit(100):
            raise ValueError("broken")
        with batcher.admit(100):
            assert recorder.queue_images == 100

    assert run(model, scenario).batches == []


def test_a_deadline_that_passes_in_the_queue_costs_no_compute(model: Path) -> None:
    images = colour_model.distinct(3)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        blocker = start(batcher, images[:1])
        await engine.busy()
        late = start(batcher, images[1:2], deadline=time.monotonic())
        in_time = start(batcher, images[2:], deadline=time.monotonic() + 60)
        await asyncio.sleep(0)
        engine.let()
        with pytest.raises(DeadlineExceeded):
            await late
        assert_answers(await in_time, images[2:])
        await blocker

    recorder = run(model, scenario)
    assert recorder.lost == {"expired": 1}
    assert recorder.batches == [(1, 1), (1, 1)]


def test_what_cannot_be_done_in_time_is_refused_before_it_is_queued(model: Path) -> None:
    images = colour_model.distinct(8)

    class Slow(HeldEngine):
        def compute(self, parts: Sequence[np.ndarray]) -> Outputs:
            time.sleep(0.1)
            return super().compute(parts)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        engine.let()
        for count in (1, 8) * 5:  # now it is known how long they take
            await classify(batcher, images[:count])
        with pytest.raises(DeadlineExceeded, match="before the deadline"):
            await classify(batcher, images[:1], deadline=time.monotonic() + 0.05)
        assert_answers(await classify(batcher, images[:1], deadline=time.monotonic() + 60), images[:1])

    recorder = run(model, scenario, engine_type=Slow)
    assert recorder.lost == {"late": 1}
    assert recorder.batches == [*[(1, 1), (8, 8)] * 5, (1, 1)]


def test_messages_are_bounded_in_bytes_and_room_comes_back(model: Path) -> None:
    images = colour_model.distinct(3)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        problem = "5000 bytes are being answered, the limit is 1000"
        # Larger than the bound, and admitted since it is alone.
        with batcher.admit(1, lambda: 5000), pytest.raises(QueueFull, match=problem):
            batcher.admit(1, lambda: 1)
        with batcher.admit(1, lambda: 600) as first, batcher.admit(1, lambda: 400) as second:
            with pytest.raises(QueueFull) as caught, batcher.admit(1, lambda: 1):
                pass
            assert caught.value.retry_after > 0
            engine.let()
            for number, request in enumerate((first, second)):
                assert_answers(await request.compute(images[number : number + 1]), images[number : number + 1])
        with batcher.admit(1, lambda: 1000) as request:
            assert_answers(await request.compute(images[2:]), images[2:])

    assert run(model, scenario, max_queue_bytes=1000).lost == {"shed": 2}


def test_an_engine_that_raises_fails_its_batch_and_no_other(model: Path) -> None:
    images = colour_model.distinct(2)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        broken = start(batcher, np.full_like(images[:1], 255))
        await engine.busy()
        after = start(batcher, images)
        engine.let()
        with pytest.raises(InternalError):
            await broken
        assert_answers(await after, images)

    run(model, scenario)


def test_the_rest_of_a_request_whose_batch_failed_is_not_computed(model: Path) -> None:
    images = colour_model.distinct(BATCH + 4)
    images[:BATCH] = 255
    asked: list[int] = []

    class Counting(HeldEngine):
        def compute(self, parts: Sequence[np.ndarray]) -> Outputs:
            asked.append(sum(map(len, parts)))
            return super().compute(parts)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        broken = start(batcher, images)
        await engine.busy()
        engine.let()
        time.sleep(0.05)  # noqa: ASYNC251  # the engine goes on before the loop can tell the caller
        with pytest.raises(InternalError):
            await broken
        assert recorder.queue_images == 0

    run(model, scenario, engine_type=Counting)
    assert asked == [BATCH]


@pytest.mark.parametrize(
    ("outcomes", "calls"),
    [("FFF", 1), ("FFAFF", 0), ("FFFFF", 1), ("FFFFFF", 2), ("FFAFFFAFFF", 2), ("MMMM", 0), ("FFMF", 1)],
)
def test_an_engine_that_fails_batch_after_batch_is_reported(model: Path, outcomes: str, calls: int) -> None:
    """F: the engine fails; M: there is no memory, which is no fault of its; A: it answers."""
    left = list(outcomes)
    reports: list[int] = []

    class Failing(HeldEngine):
        def compute(self, parts: Sequence[np.ndarray]) -> Outputs:
            outcome = left.pop(0)
            if outcome != "A":
                raise MemoryError if outcome == "M" else RuntimeError("lost")
            return Engine.compute(self, parts)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        batcher._broken = lambda _reason: reports.append(recorder.failures)
        for outcome in outcomes:
            (ended,) = await asyncio.gather(classify(batcher, colour_model.distinct(1)), return_exceptions=True)
            assert isinstance(ended, Answer) == (outcome == "A")

    recorder = run(model, scenario, engine_type=Failing)
    assert len(reports) == calls
    assert recorder.failures == len(outcomes) - outcomes.count("A")


def test_closing_refuses_new_requests_and_finishes_the_accepted_ones(model: Path) -> None:
    images = colour_model.distinct(30)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        accepted = [start(batcher, images[number : number + 3]) for number in range(0, 30, 3)]
        await engine.busy()
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await classify(batcher, images[:1])
        assert not closing.done()
        engine.let()
        await closing
        for number, task in enumerate(accepted):
            assert_answers(await task, images[3 * number : 3 * number + 3])

    run(model, scenario)


def test_closing_waits_for_a_request_that_is_still_being_decoded(model: Path) -> None:
    images = colour_model.distinct(4)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        engine.let()
        with batcher.admit(4) as request:
            closing = asyncio.create_task(batcher.close())
            await asyncio.sleep(0.01)
            assert not closing.done()
            assert_answers(await request.compute(images), images)
        await closing

    run(model, scenario)


def order_of_answers(model: Path, priorities: list[int], monkeypatch: pytest.MonkeyPatch, step: float) -> list[int]:
    """The numbers of full-batch requests, sent one after the other, in the order in which they were answered."""
    monkeypatch.setattr(pending, "PRIORITY_STEP", step)
    images = colour_model.distinct(BATCH)
    order: list[int] = []

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        blocker = start(batcher, images[:1])
        await engine.busy()
        tasks = []
        for number, priority in enumerate(priorities):
            task = start(batcher, images, priority=priority)
            task.add_done_callback(lambda _, number=number: order.append(number))
            tasks.append(task)
            await asyncio.sleep(0.02)
        engine.let()
        for task in tasks:
            assert_answers(await task, images)
        await blocker

    run(model, scenario)
    return order


def test_a_higher_priority_leaves_the_queue_first(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1 is the highest; 0 is the default, 2; what is beyond 3 is 3.
    assert order_of_answers(model, [3, 0, 9, 2, 1], monkeypatch, step=1000) == [4, 1, 3, 0, 2]


def test_a_lower_priority_does_not_starve(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A step is worth as much as waiting that long: with one of a millisecond, the older goes first all the same.
    assert order_of_answers(model, [3, 2, 1], monkeypatch, step=0.001) == [0, 1, 2]


def test_with_a_delay_a_batch_waits_until_it_is_full(model: Path) -> None:
    images = colour_model.distinct(BATCH)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        engine.let()
        tasks = []
        for number in range(BATCH):
            tasks.append(start(batcher, images[number : number + 1]))
            await asyncio.sleep(0.01)
            assert number == BATCH - 1 or not recorder.waited, "it must not start before it is full"
        for number, task in enumerate(tasks):
            assert_answers(await task, images[number : number + 1])

    assert run(model, scenario, max_delay=10.0).batches == [(BATCH, BATCH)]


def test_with_a_delay_a_lone_request_is_computed_when_it_has_passed(model: Path) -> None:
    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        engine.let()
        answer = await classify(batcher, colour_model.distinct(1))
        assert answer.queue_seconds >= 0.05

    assert run(model, scenario, max_delay=0.05).batches == [(1, 1)]


def test_closing_does_not_wait_for_the_delay(model: Path) -> None:
    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        engine.let()
        waiting = start(batcher, colour_model.distinct(1))
        await asyncio.sleep(0)
        await batcher.close()
        assert (await waiting).queue_seconds < 5

    run(model, scenario, max_delay=10.0)


def test_with_a_target_latency_batches_are_no_larger_than_it_allows(model: Path) -> None:
    images = colour_model.distinct(20)

    async def scenario(batcher: Batcher, engine: HeldEngine, recorder: Recorder) -> None:
        engine.let()
        assert_answers(await classify(batcher, images), images)

    class TimedEngine(HeldEngine):
        def __init__(self, model: Path) -> None:
            super().__init__(model)
            self.bucket_seconds = {1: 0.01, 2: 0.015, 4: 0.024, 8: 0.04}

    assert TimedEngine(model).largest_batch(0.05) == 4
    assert TimedEngine(model).largest_batch(0.08) == 8
    assert TimedEngine(model).largest_batch(0.001) == 1, "what cannot be met is met as well as can be"
    recorder = run(model, scenario, engine_type=TimedEngine, target_latency=0.05)
    assert recorder.batches == [(4, 4)] * 5


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 3), st.data())
@hypothesis.settings(max_examples=25, deadline=None)
def test_whatever_comes_and_goes_everyone_who_stays_gets_his_own_rows(
    model: Path, sizes: list[int], engines: int, data: st.DataObject
) -> None:
    """Requests of any sizes, on any number of engines, some cancelled at any moment: nothing is lost or mixed up."""
    gone = data.draw(st.sets(st.integers(0, len(sizes) - 1)), "cancelled")
    pauses = data.draw(st.lists(st.sampled_from([0, 0.0005]), min_size=len(sizes), max_size=len(sizes)), "pauses")
    pool = colour_model.distinct(sum(sizes))

    async def main() -> Recorder:
        recorder = Recorder()
        made = [Engine(model, provider="cpu", max_batch_size=BATCH) for _ in range(engines)]
        batcher = Batcher(made, max_queue_images=1000, observer=recorder)
        tasks, first = [], 0
        for size, pause in zip(sizes, pauses, strict=True):
            tasks.append((pool[first : first + size], start(batcher, pool[first : first + size])))
            first += size
            await asyncio.sleep(pause)
        for number in gone:
            tasks[number][1].cancel()
        for number, (images, task) in enumerate(tasks):
            try:
                assert_answers(await task, images)
            except asyncio.CancelledError:
                assert number in gone
        await batcher.close()
        assert all(images <= bucket <= BATCH for images, bucket in recorder.batches)
        assert recorder.queue_images == 0
        return recorder

    recorder = asyncio.run(main())
    assert sum(images for images, _ in recorder.batches) + recorder.lost["cancelled"] == sum(sizes)
