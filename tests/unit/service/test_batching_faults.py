"""Faults of the server's own around a batch: every caller is answered all the same, and a dead engine is reported."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from service import status
from service.batching import Batcher
from service.engine import Engine, Outputs
from service.errors import InternalError, OutOfMemory, ServiceError, Unavailable
from service.manifest import MODEL_FILE
from service.pending import Answer
from tests import colour_model
from tests.unit.service.test_batching import BATCH, HeldEngine, Recorder, assert_answers, classify, start

PATIENCE = 20.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_model.publish(tmp_path_factory.mktemp("models")) / MODEL_FILE


Scenario = Callable[[Batcher, list[str]], Awaitable[None]]


def run(engines: Sequence[Engine], recorder: Recorder, scenario: Scenario, **settings: float) -> None:
    """Whatever `scenario` does to a batcher, within its patience it also closes. Its second argument is what the
    batcher reports as broken.
    """

    async def main() -> None:
        reasons: list[str] = []
        batcher = Batcher(
            engines,
            max_queue_images=100,
            observer=recorder,
            broken=reasons.append,
            title="colours version 1",
            **settings,  # type: ignore[arg-type]
        )
        async with asyncio.timeout(PATIENCE):
            await scenario(batcher, reasons)
            await batcher.close()
        assert batcher.queued_images == 0, "whatever happened, nothing may stay in the account"
        assert recorder.queue_images == 0

    asyncio.run(main())


async def outcomes(*calls: Awaitable[Answer]) -> list[Answer | BaseException]:
    return await asyncio.gather(*calls, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def logged_ids(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The ids of the internal errors in the log, each of which has a stack."""
    lines = [record for record in caplog.records if record.getMessage().startswith("internal error")]
    assert all(record.exc_info for record in lines)
    return [record.getMessage().split()[2].rstrip(":") for record in lines]


class Failing(Recorder):
    """A recorder that raises where it is told to, for `error` may be anything."""

    def __init__(self, where: str, error: BaseException | None = None) -> None:
        super().__init__()
        self.where, self.error = where, error or KeyError("a fault of the observer's")

    def _at(self, where: str) -> None:
        if where in self.where.split():
            raise self.error

    def left_queue(self, seconds: float) -> None:
        super().left_queue(seconds)
        self._at("left_queue")

    def dropped(self, reason: str, images: int) -> None:
        super().dropped(reason, images)
        self._at("dropped")

    def computed(self, images: int, bucket: int, seconds: float) -> None:
        super().computed(images, bucket, seconds)
        self._at("computed")

    def predicted(self, probabilities: np.ndarray) -> None:
        super().predicted(probabilities)
        self._at("predicted")

    def failed(self) -> None:
        super().failed()
        self._at("failed")


def test_batches_of_ever_new_sizes_with_deadlines_never_stop_an_engine() -> None:
    """The engines' threads look through the sizes that were measured while the loop adds to them."""
    sizes = 600

    class Wide:
        max_batch_size = sizes

        def bucket(self, images: int) -> int:
            return images

        def compute(self, parts: Sequence[np.ndarray]) -> Outputs:
            rows = np.zeros((sum(map(len, parts)), 2), np.float32)
            return Outputs(rows, rows)

    async def scenario(batcher: Batcher, reasons: list[str]) -> None:
        order = np.random.default_rng(0).permutation(sizes) + 1
        pixels = np.zeros((sizes, 1, 1, 3), np.uint8)
        for first in range(0, sizes, 20):
            calls = (classify(batcher, pixels[:count], time.monotonic() + 60) for count in order[first : first + 20])
            for answer in await outcomes(*calls):
                assert isinstance(answer, Answer)
        assert not reasons

    async def main() -> None:
        for _ in range(5):
            reasons: list[str] = []
            engines = [Wide(), Wide()]
            batcher = Batcher(engines, max_queue_images=10**6, observer=Recorder(), broken=reasons.append)  # type: ignore[arg-type]
            async with asyncio.timeout(3 * PATIENCE):
                await scenario(batcher, reasons)
                await batcher.close()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        asyncio.run(main())
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("observer"),
        RuntimeError("Event loop is closed"),
        RuntimeError("dictionary changed size during iteration"),
        MemoryError(),
        StopIteration(),
        CancelledError(),
        asyncio.CancelledError(),
        SystemExit(1),
        KeyboardInterrupt(),
    ],
)
def test_an_engines_thread_that_ends_by_itself_leaves_nobody_waiting_and_is_reported(
    model: Path, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    images, recorder = colour_model.distinct(6), Failing("", error)
    engine = HeldEngine(model)

    async def scenario(batcher: Batcher, reasons: list[str]) -> None:
        first = start(batcher, images[:1])
        await engine.busy()
        next_ones = [start(batcher, images[number : number + 1]) for number in range(1, 4)]
        with batcher.admit(1) as decoding:
            await asyncio.sleep(0)
            recorder.where = "left_queue"
            engine.let()
            assert_answers(await first, images[:1])
            assert all(isinstance(one, ServiceError) for one in await outcomes(*next_ones))
            await until(lambda: reasons)
            with pytest.raises(Unavailable, match="colours version 1 is not ready"):
                await decoding.compute(images[4:5])
        with pytest.raises(Unavailable, match="colours version 1 is not ready"):
            batcher.admit(1)
        assert reasons == ["the thread of an engine of it ended"]
        assert batcher.broken_for == reasons[0]

    run([engine], recorder, scenario)
    assert recorder.failures == 1
    assert len(logged_ids(caplog)) == 1


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
@pytest.mark.parametrize("others", [False, True])
def test_what_a_dying_engine_had_in_its_hands_is_failed_at_once_and_the_others_take_the_queue(
    model: Path, caplog: pytest.LogCaptureFixture, error: BaseException, others: bool
) -> None:
    images = colour_model.distinct(20)

    class Dying(HeldEngine):
        def largest_batch(self, target_latency: float) -> int:
            return BATCH

        def compute(self, parts: Sequence[np.ndarray]) -> Outputs:
            taken.set()
            self.entered.release()
            assert self.gate.acquire(timeout=PATIENCE)
            raise error

    class Second(HeldEngine):
        def largest_batch(self, target_latency: float) -> int:
            assert taken.wait(PATIENCE), "of two idle engines either may take a batch: this one waits for the first's"
            return BATCH

    async def scenario(batcher: Batcher, reasons: list[str]) -> None:
        in_hands = [start(batcher, images[number : number + 1]) for number in range(BATCH)]
        await dying.busy()
        second.let()
        queued = [start(batcher, images[BATCH : BATCH + 3]), start(batcher, images[12:])]
        await asyncio.sleep(0)
        dying.let()
        ids = {one.error_id for one in await outcomes(*in_hands) if isinstance(one, InternalError)}
        assert len(ids) == 1
        assert [*ids] == logged_ids(caplog)
        ended = await outcomes(*queued)
        if others:
            assert all(isinstance(answer, Answer) for answer in ended)
            assert_answers(await classify(batcher, images), images)
        else:
            assert all(isinstance(answer, Unavailable) for answer in ended)
        assert reasons == ["the thread of an engine of it ended"]

    taken, dying, second = threading.Event(), Dying(model), Second(model)
    run([dying, second] if others else [dying], Recorder(), scenario, target_latency=1.0)


def test_an_engine_that_stops_is_closed_even_if_that_cannot_be_counted(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(batcher: Batcher, reasons: list[str]) -> None:
        (ended,) = await outcomes(classify(batcher, colour_model.distinct(1)))
        assert isinstance(ended, ServiceError)
        await until(lambda: reasons)

    run([Engine(model)], Failing("left_queue failed"), scenario)
    assert len(logged_ids(caplog)) == 2


def test_an_engine_whose_thread_ends_before_its_first_batch_is_reported_and_refuses(model: Path) -> None:
    class Untimed(Engine):
        def largest_batch(self, target_latency: float) -> int:
            raise ValueError("max() iterable argument is empty")

    async def scenario(batcher: Batcher, reasons: list[str]) -> None:
        (ended,) = await outcomes(classify(batcher, colour_model.distinct(1)))
        assert isinstance(ended, ServiceError)
        await until(lambda: reasons)

    run([Untimed(model)], Recorder(), scenario, target_latency=0.1)


def test_a_thread_that_cannot_be_started_is_reported(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> None:
        raise PermissionError("not here")

    async def scenario(batcher: Batcher, reasons: list[str]) -> None:
        (ended,) = await outcomes(classify(batcher, colour_model.distinct(1)))
        assert isinstance(ended, ServiceError)
        await until(lambda: reasons)

    monkeypatch.setattr(os, "setpriority", refused)
    run([Engine(model)], Recorder(), scenario, in_background=True)


@pytest.mark.parametrize("where", ["computed", "predicted"])
def test_callers_get_their_answers_even_if_the_batch_cannot_be_counted(
    model: Path, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    images = colour_model.distinct(3 * BATCH)

    async def scenario(batcher: Batcher, reasons: list[str]) -> None:
        assert_answers(await classify(batcher, images), images)
        assert not reasons

    run([Engine(model, max_batch_size=BATCH)], Failing(where), scenario)
    assert len(logged_ids(caplog)) == 3


def test_failures_are_answered_and_reported_even_if_they_cannot_be_counted(model: Path) -> None:
    images = np.full((1, 8, 8, 3), 255, np.uint8)  # which HeldEngine fails on
    engine = HeldEngine(model)
    engine.let()

    async def scenario(batcher: Batcher, reasons: list[str]) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        for _ in range(3):
            (ended,) = await outcomes(classify(batcher, images))
            assert isinstance(ended, InternalError)
        assert len(reasons) == 1

    run([engine], Failing("failed"), scenario)


Change = Callable[[np.ndarray], np.ndarray]
CHANGES: dict[str, Change] = {
    "too few rows": lambda rows: rows[:-1],
    "no rows": lambda rows: rows[:0],
    "too many rows": lambda rows: np.concatenate([rows, rows]),
    "no classes": lambda rows: rows[:, 0],
    "a dimension more": lambda rows: rows[None],
    "not finite": lambda rows: np.full_like(rows, np.nan),
    "infinite": lambda rows: np.full_like(rows, np.inf),
    "of both signs": lambda rows: np.where(np.arange(len(rows[0])) % 2, np.inf, -np.inf) * np.ones_like(rows),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_engine_that_gives_what_is_no_answer_fails_the_batch_and_is_reported(model: Path, change: str) -> None:
    class Wrong(Engine):
        def compute(self, parts: Sequence[np.ndarray]) -> Outputs:
            right = super().compute(parts)
            return Outputs(CHANGES[change](right.probabilities), right.logits)

    recorder, images = Recorder(), colour_model.distinct(4)

    async def scenario(batcher: Batcher, reasons: list[str]) -> None:
        for _ in range(3):
            ended = await outcomes(classify(batcher, images[:3]), classify(batcher, images[3:]))
            assert [type(one) for one in ended] == [InternalError, InternalError]
        assert reasons == ["an engine of it failed several batches in a row"]

    run([Wrong(model)], recorder, scenario)
    assert recorder.failures == 3
    assert not recorder.batches


def test_a_row_that_is_not_finite_fails_its_own_request_and_no_other(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Spotted(Engine):
        def compute(self, parts: Sequence[np.ndarray]) -> Outputs:
            right = super().compute(parts)
            right.probabilities[2] = np.nan
            return right

    class Finite(Recorder):
        def predicted(self, probabilities: np.ndarray) -> None:
            assert len(probabilities) == 4
            assert np.isfinite(probabilities).all()

    images = colour_model.distinct(5)

    async def scenario(batcher: Batcher, reasons: list[str]) -> None:
        ended = await outcomes(*(classify(batcher, part) for part in (images[:2], images[2:4], images[4:])))
        assert isinstance(ended[0], Answer)
        assert isinstance(ended[1], InternalError)
        assert isinstance(ended[2], Answer)
        assert_answers(ended[0], images[:2])
        assert_answers(ended[2], images[4:])
        assert logged_ids(caplog) == [ended[1].error_id]
        assert not reasons

    run([Spotted(model)], Finite(), scenario)


def test_the_success_of_one_engine_does_not_hide_that_another_fails(model: Path) -> None:
    images = colour_model.distinct(2)

    class Turns(HeldEngine):
        def compute(self, parts: Sequence[np.ndarray]) -> Outputs:
            self.entered.release()
            assert self.gate.acquire(timeout=PATIENCE)
            if self is dead:
                raise RuntimeError("no device")
            return Engine.compute(self, parts)

    dead, healthy = Turns(model), Turns(model)

    async def scenario(batcher: Batcher, reasons: list[str]) -> None:
        for round_number in range(3):
            assert not reasons
            tasks = [start(batcher, images[:1])]
            await until(lambda: dead.entered._value + healthy.entered._value)  # type: ignore[attr-defined]
            tasks.append(start(batcher, images[1:]))  # the first one is busy: the other gets it
            await asyncio.gather(dead.busy(), healthy.busy())
            dead.let(1)
            await until(lambda number=round_number: recorder.failures == number + 1)
            healthy.let(1)
            ended = await outcomes(*tasks)
            assert sorted(type(one).__name__ for one in ended) == ["Answer", "InternalError"]
        assert reasons == ["an engine of it failed several batches in a row"]

    recorder = Recorder()
    run([dead, healthy], recorder, scenario)


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError])
def test_a_failed_batch_is_one_stack_under_one_id_that_all_its_callers_get(
    model: Path, caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    images = colour_model.distinct(BATCH + 1)

    class Broken(HeldEngine):
        def compute(self, parts: Sequence[np.ndarray]) -> Outputs:
            self.entered.release()
            assert self.gate.acquire(timeout=PATIENCE)
            if len(parts) == 1:
                return Engine.compute(self, parts)
            raise kind("secret")

    async def named(batcher: Batcher, number: int) -> Answer:
        with batcher.admit(1) as request:
            request.name = f"photo-{number}" if number % 2 else ""
            return await request.compute(images[number : number + 1])

    async def scenario(batcher: Batcher, _reasons: list[str]) -> None:
        first = start(batcher, images[:1])
        await engine.busy()
        together = [asyncio.create_task(named(batcher, number)) for number in range(1, BATCH + 1)]
        await asyncio.sleep(0)
        engine.let()
        assert_answers(await first, images[:1])
        errors = await outcomes(*together)
        assert {type(error) for error in errors} == {OutOfMemory if kind is MemoryError else InternalError}
        (error_id,) = logged_ids(caplog)
        statuses = [status.from_error(error) for error in errors if isinstance(error, Exception)]
        assert len(statuses) == BATCH
        assert all(error_id in one.message and "secret" not in one.message for one in statuses)
        assert len({id(error) for error in errors}) == BATCH, "an exception that many raise grows by each one's stack"

    engine = Broken(model)
    run([engine], Recorder(), scenario)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "colours version 1" in line
    assert f"requests: {BATCH}, images: {BATCH}, ids: 'photo-1', 'photo-3'" in line


def test_what_was_admitted_is_finished_although_nobody_waits_for_the_end(model: Path) -> None:
    """A recovery that is given up cancels the closing of the version that it was about."""
    images, engine = colour_model.distinct(3), HeldEngine(model)

    async def scenario(batcher: Batcher, _reasons: list[str]) -> None:
        tasks = [start(batcher, images[:1])]
        await engine.busy()
        tasks.append(start(batcher, images[1:]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        engine.let()
        for answer, expected in zip(await asyncio.gather(*tasks), (images[:1], images[1:]), strict=True):
            assert_answers(answer, expected)

    run([engine], Recorder(), scenario)


def test_the_threads_end_with_a_loop_that_was_closed_over_their_heads(model: Path) -> None:
    engine = HeldEngine(model)
    before = set(threading.enumerate())
    loop = asyncio.new_event_loop()

    async def begin() -> Batcher:
        batcher = Batcher([engine], max_queue_images=10, observer=Recorder())
        caller = start(batcher, colour_model.distinct(1))
        await engine.busy()
        caller.cancel()
        await asyncio.wait([caller])
        return batcher

    batcher = loop.run_until_complete(begin())
    threads = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("engine")]
    assert len(threads) == 1
    loop.close()
    engine.let()
    batcher._threads.shutdown(wait=False)
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()
    for task in batcher._tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
