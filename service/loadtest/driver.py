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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from service.connection import Options
from service.event_loop import new_loop
from service.loadtest.histogram import Histogram
from service.loadtest.messages import read_messages
from service.loadtest.plan import Work
from service.loadtest.senders import Refused, Sender, connect

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
        self.details: dict[str, str] = {}  # what the first error of each code said

    def to_record(self, number: int, seconds: float, cpu: float) -> dict[str, Any]:
        return {
            "window": number, "seconds": seconds, "cpu_seconds": cpu, "latencies": self.latencies.to_record(),
            "late": self.late.to_record(), "errors": dict(self.errors), "details": self.details,
        }  # fmt: skip


class Driver:
    def __init__(self, work: Work) -> None:
        self.work = work
        self.messages = itertools.cycle(list(read_messages(Path(work.messages))))
        self.window = Window()
        self.over = asyncio.Event()  # nothing more is sent
        self.finished = asyncio.Event()  # everything is answered

    async def run(self, senders: Sequence[Sender], windows: Callable[[dict[str, Any]], None]) -> None:
        """Send until it is over."""
        load = self.work.load
        watcher = asyncio.create_task(self._report(windows))
        ending = asyncio.get_running_loop().call_later(load.seconds + load.warm_up, self.over.set)
        try:
            if load.rate:
                await self._open_loop(senders)
            else:
                places = zip(range(load.concurrency), itertools.cycle(senders), strict=False)
                await asyncio.gather(*(self._closed_loop(sender) for _, sender in places))
        finally:
            self.over.set()
            self.finished.set()
            ending.cancel()
            await watcher

    async def _call(self, sender: Sender, due: float) -> bool:
        """Whether the answer was good."""
        try:
            await sender.call(next(self.messages))
        except Refused as refused:
            self.window.errors[refused.code] += 1
            self.window.details.setdefault(refused.code, refused.detail)
            return False
        self.window.latencies.add(time.perf_counter() - due)
        return True

    async def _closed_loop(self, sender: Sender) -> None:
        while not self.over.is_set():
            if not await self._call(sender, time.perf_counter()):
                await asyncio.sleep(0.01)  # a server that refuses at once is not to be asked as fast as can be

    async def _open_loop(self, senders: Sequence[Sender]) -> None:
        load, chance = self.work.load, random.Random(self.work.seed)
        turns = itertools.cycle(senders)
        under_way: set[asyncio.Task[bool]] = set()
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
            task = asyncio.create_task(self._call(next(turns), due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

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


def _options(record: dict[str, Any]) -> Options:
    texts = {name: value.encode() if name in ("root_certificates", "certificate", "key") else value
             for name, value in record.items()}  # fmt: skip
    return Options(**texts)


async def main() -> None:
    loop = asyncio.get_running_loop()
    work = Work.from_record(json.loads(await loop.run_in_executor(None, sys.stdin.readline)))
    driver = Driver(work)
    senders = await connect(work, _options(work.options))
    _say({"ready": True})
    if not await loop.run_in_executor(None, sys.stdin.readline):
        return
    ending = asyncio.create_task(_end_with_input(driver))  # held: nothing else refers to it, nor to its reader
    await driver.run(senders, _say)
    ending.cancel()
    await asyncio.gather(*(sender.close() for sender in senders))


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
