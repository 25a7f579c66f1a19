"""One process of a load test: sends ready-made messages, and once a second says what it has seen since.

Reads a Work as one line of JSON, prints {"ready": true} when it is connected, begins at the next line of its standard
input, and ends when the time is over or that input ends. Every answer is counted once, in the second it came. In an
open loop a request's time begins when it was to be sent, not when the client came to send it: a server that stalls is
charged for all that waited meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from cifarserve.v1 import classifier_pb2

from service.connection import Options
from service.event_loop import new_loop
from service.loadtest.histogram import Histogram
from service.loadtest.plan import CLASSIFY_STREAM, Work, open_inference, read_messages

WINDOW = 1.0  # seconds
# Requests that may be under way in an open loop; beyond, the server is hopelessly behind, and the client would be next.
MOST_UNDER_WAY = 20_000
NOT_SENT = "NOT_SENT"


class Window:
    """What was seen in one window."""

    def __init__(self) -> None:
        self.latencies = Histogram()
        self.late = Histogram()  # how late requests were sent
        self.errors: Counter[str] = Counter()

    def to_record(self, number: int, seconds: float, cpu: float) -> dict[str, Any]:
        return {
            "window": number, "seconds": seconds, "cpu_seconds": cpu, "latencies": self.latencies.to_record(),
            "late": self.late.to_record(), "errors": dict(self.errors),
        }  # fmt: skip


class Driver:
    def __init__(self, work: Work) -> None:
        self.work = work
        self.options = _options(work.options)
        self.messages = itertools.cycle(list(read_messages(Path(work.messages))))
        self.window = Window()
        self.over = asyncio.Event()  # nothing more is sent
        self.finished = asyncio.Event()  # everything is answered

    async def run(self, channels: list[grpc.aio.Channel], windows: Callable[[dict[str, Any]], None]) -> None:
        """Send until it is over."""
        load = self.work.load
        watcher = asyncio.create_task(self._report(windows))
        ending = asyncio.get_running_loop().call_later(load.seconds + load.warm_up, self.over.set)
        try:
            if load.rate:
                await self._open_loop(channels)
            elif self.work.stream:
                each = max(1, load.concurrency // len(channels))
                await asyncio.gather(*(self._stream(channel, each) for channel in channels))
            else:
                calls = [self._caller(channel) for channel in channels]
                places = zip(range(load.concurrency), itertools.cycle(calls), strict=False)
                await asyncio.gather(*(self._closed_loop(call) for _, call in places))
        finally:
            self.over.set()
            self.finished.set()
            ending.cancel()
            await watcher

    def _caller(self, channel: grpc.aio.Channel) -> Any:
        return channel.unary_unary(self.work.method)

    async def _call(self, call: Any, due: float) -> None:
        try:
            await call(next(self.messages), timeout=self.work.load.deadline, metadata=self.options.metadata())
        except grpc.aio.AioRpcError as error:
            self.window.errors[error.code().name] += 1
            return
        self.window.latencies.add(time.perf_counter() - due)

    async def _closed_loop(self, call: Any) -> None:
        while not self.over.is_set():
            errors = self.window.errors.total()
            await self._call(call, time.perf_counter())
            if self.window.errors.total() > errors:
                await asyncio.sleep(0.01)  # a server that refuses at once is not to be asked as fast as can be

    async def _open_loop(self, channels: list[grpc.aio.Channel]) -> None:
        load, chance = self.work.load, random.Random(self.work.seed)
        calls = itertools.cycle([self._caller(channel) for channel in channels])
        under_way: set[asyncio.Task[None]] = set()
        due = time.perf_counter()
        while not self.over.is_set():
            due += chance.expovariate(load.rate) if load.arrivals == "poisson" else 1 / load.rate
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            self.window.late.add(max(0.0, time.perf_counter() - due))
            if len(under_way) >= MOST_UNDER_WAY:
                self.window.errors[NOT_SENT] += 1
                await asyncio.sleep(0)
                continue
            task = asyncio.create_task(self._call(next(calls), due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    async def _stream(self, channel: grpc.aio.Channel, unanswered: int) -> None:
        """One stream with so many requests unanswered at any time, which are answered in order."""
        call: Any = channel.stream_stream(self.work.method)(metadata=self.options.metadata())
        sent: list[float] = []
        answered = 0
        try:
            for _ in range(unanswered):
                sent.append(time.perf_counter())
                await call.write(next(self.messages))
            while answered < len(sent):
                reply = await call.read()
                if reply is grpc.aio.EOF:
                    self.window.errors["UNAVAILABLE"] += len(sent) - answered
                    return
                if problem := _problem(self.work.method, reply):
                    self.window.errors[problem] += 1
                else:
                    self.window.latencies.add(time.perf_counter() - sent[answered])
                answered += 1
                if not self.over.is_set():
                    sent.append(time.perf_counter())
                    await call.write(next(self.messages))
            await call.done_writing()
        except grpc.aio.AioRpcError as error:
            self.window.errors[error.code().name] += len(sent) - answered

    async def _report(self, windows: Callable[[dict[str, Any]], None]) -> None:
        for number in itertools.count():
            began, used = time.perf_counter(), time.process_time()
            try:
                async with asyncio.timeout(WINDOW):
                    await self.finished.wait()
            except TimeoutError:
                pass
            window, self.window = self.window, Window()
            windows(window.to_record(number, time.perf_counter() - began, time.process_time() - used))
            if self.finished.is_set():
                return


def _problem(method: str, reply: bytes) -> str:
    """The code of an answer on a stream that is an error; empty for one that is none."""
    if method == CLASSIFY_STREAM:
        parsed = classifier_pb2.ClassifyResponse.FromString(reply)
        codes = {code.value[0]: code.name for code in grpc.StatusCode}
        return codes.get(parsed.error.code, "UNKNOWN") if parsed.HasField("error") else ""
    return "ERROR" if open_inference().ModelStreamInferResponse.FromString(reply).error_message else ""


def _options(record: dict[str, Any]) -> Options:
    texts = {name: value.encode() if name in ("root_certificates", "certificate", "key") else value
             for name, value in record.items()}  # fmt: skip
    return Options(**texts)


async def main() -> None:
    loop = asyncio.get_running_loop()
    work = Work.from_record(json.loads(await loop.run_in_executor(None, sys.stdin.readline)))
    driver = Driver(work)
    settings, credentials = driver.options.channel_options(), driver.options.credentials()
    # Connections of their own: several channels of one process to one server would share one.
    settings = [*settings, ("grpc.use_local_subchannel_pool", 1)]
    channels = [
        grpc.aio.secure_channel(target, credentials, settings)
        if credentials
        else grpc.aio.insecure_channel(target, settings)
        for target in work.targets
    ]
    async with asyncio.timeout(driver.options.timeout):
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
    _say({"ready": True})
    if not await loop.run_in_executor(None, sys.stdin.readline):
        return
    asyncio.ensure_future(_end_with_input(driver))  # noqa: RUF006 - it ends with the loop
    await driver.run(channels, _say)
    await asyncio.gather(*(channel.close() for channel in channels))


async def _end_with_input(driver: Driver) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    driver.over.set()


def _say(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)  # noqa: T201


def run() -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


if __name__ == "__main__":
    run()
