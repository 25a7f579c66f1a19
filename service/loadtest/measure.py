"""Runs the drivers of one measurement, adds up what they saw, and asks the server's metrics about the same time."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from service.loadtest.driver import NOT_SENT, WINDOW
from service.loadtest.histogram import Histogram
from service.loadtest.plan import Load, LoadTestError, Work
from service.loadtest.server import Watch, between

_PATIENCE = 30.0  # seconds, for drivers to start, and to end after the last deadline
# A measurement may end early when so many windows in a row are alike, within a share (`Load.stable`).
_STABLE_WINDOWS = 5
# A client that uses more of its core than this is part of what was measured.
BUSY = 0.85


@dataclass
class Level:
    """What one load led to. Times in seconds; `windows` are requests/s, one by one."""

    concurrency: int
    rate: float
    images: int  # in one request
    seconds: float = 0.0
    latencies: Histogram = field(default_factory=Histogram)
    late: Histogram = field(default_factory=Histogram)
    errors: Counter[str] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)  # what the first error of each code said
    windows: list[float] = field(default_factory=list)
    client_cores: float = 0.0  # of the busiest client process
    server: dict[str, float] = field(default_factory=dict)
    broken: str = ""  # why it ended before its time

    @property
    def requests_per_second(self) -> float:
        """Of those answered OK."""
        return self.latencies.total / self.seconds if self.seconds else 0.0

    @property
    def images_per_second(self) -> float:
        return self.requests_per_second * self.images

    @property
    def client_was_the_limit(self) -> bool:
        """Its core was full, or it came to send later than a tenth of what the answers took."""
        late = self.late.percentile(99)
        behind = self.late.total and late > max(0.002, self.latencies.percentile(50) / 10)
        return bool(self.client_cores > BUSY or behind or self.errors[NOT_SENT])

    def to_record(self) -> dict[str, Any]:
        shares = (50, 90, 95, 99, 99.9, 99.99)
        return {
            "concurrency": self.concurrency, "rate": self.rate, "images_per_request": self.images,
            "seconds": round(self.seconds, 3), "requests_per_second": round(self.requests_per_second, 2),
            "images_per_second": round(self.images_per_second, 2),
            "latency_seconds": {"mean": _number(self.latencies.mean()),
                                **{f"p{share:g}": _number(self.latencies.percentile(share)) for share in shares}},
            "errors": dict(self.errors), "error_details": self.details,
            "windows": [round(one, 2) for one in self.windows],
            "client_cores": round(self.client_cores, 3), "client_was_the_limit": self.client_was_the_limit,
            "server": self.server, "broken": self.broken, "histogram": self.latencies.to_record(),
        }  # fmt: skip


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 7)


async def measure(
    works: list[Work], watch: Watch, progress: Callable[[Level], None], stop: asyncio.Event | None = None
) -> Level:
    """Run one driver for each of `works`, which share a load, and give what they saw after the warm-up.

    Ends early when the windows are alike, or when `stop` is set. Raises LoadTestError when a driver does not come up;
    when drivers die or the server goes away in the middle, what was seen until then is kept, and `broken` says so.
    """
    load = works[0].load
    level = Level(sum(work.load.concurrency for work in works), sum(work.load.rate for work in works), works[0].images)
    tally = _Tally(level, len(works), math.ceil(load.warm_up / WINDOW), progress)
    drivers = [await _start(work) for work in works]
    try:
        await asyncio.gather(*(_ready(driver, work) for driver, work in zip(drivers, works, strict=True)))
        for driver in drivers:
            _input(driver).write(b"go\n")
        reading = asyncio.gather(*(tally.read(driver) for driver in drivers))
        await _look_on(level, reading, load, watch, stop or asyncio.Event())
        for driver in drivers:
            _input(driver).close()
        await asyncio.wait([reading], timeout=load.deadline + _PATIENCE)
    finally:
        for driver in drivers:
            if driver.returncode is None and not tally.done(driver):
                driver.kill()
            await driver.wait()
    statuses = [driver.returncode for driver in drivers if driver.returncode]
    if statuses:
        level.broken = f"a client process ended with status {statuses[0]}"
    elif stop and stop.is_set():
        level.broken = "interrupted"
    elif not level.broken and not level.latencies.total and level.errors:
        code = level.errors.most_common(1)[0][0]
        level.broken = f"no request was answered: {code}: {level.details.get(code, '')}"
    return level


async def _look_on(level: Level, reading: asyncio.Future[Any], load: Load, watch: Watch, stop: asyncio.Event) -> None:
    """Until the drivers have ended, or need not go on; with the server's own metrics of that time."""
    began = time.monotonic()
    if watch:
        await asyncio.sleep(math.ceil(load.warm_up / WINDOW) * WINDOW)
        before = await asyncio.to_thread(watch.look)
    limit = load.seconds + load.warm_up + load.deadline + _PATIENCE
    while not (reading.done() or stop.is_set() or _is_stable(level.windows, load.stable)):
        await asyncio.wait([reading], timeout=WINDOW / 4)
        if time.monotonic() - began > limit:
            break
    if watch:
        try:
            level.server = between(before, await asyncio.to_thread(watch.look))
        except LoadTestError as error:  # it was there before: what the callers saw is worth keeping
            level.broken = str(error)


def _input(driver: asyncio.subprocess.Process) -> asyncio.StreamWriter:
    assert driver.stdin is not None
    return driver.stdin


class _Tally:
    """Adds the drivers' windows to the level; a window counts among the series when all have said theirs."""

    def __init__(self, level: Level, drivers: int, skipped: int, progress: Callable[[Level], None]) -> None:
        self._level, self._drivers, self._skipped, self._progress = level, drivers, skipped, progress
        self._windows: dict[int, list[tuple[float, float]]] = {}
        self._ended: set[asyncio.subprocess.Process] = set()

    def done(self, driver: asyncio.subprocess.Process) -> bool:
        """Whether it has said all it had to say."""
        return driver in self._ended

    async def read(self, driver: asyncio.subprocess.Process) -> None:
        assert driver.stdout is not None
        cpu = seconds = 0.0
        while line := await driver.stdout.readline():
            record = json.loads(line)
            if record["window"] < self._skipped:
                continue
            level, latencies = self._level, Histogram.from_record(record["latencies"])
            level.latencies.merge([latencies])
            level.late.merge([Histogram.from_record(record["late"])])
            level.errors.update(record["errors"])
            level.details = record["details"] | level.details
            cpu, seconds = cpu + record["cpu_seconds"], seconds + record["seconds"]
            level.client_cores = max(level.client_cores, cpu / seconds)
            level.seconds = max(level.seconds, seconds)
            seen = self._windows.setdefault(record["window"], [])
            seen.append((latencies.total, record["seconds"]))
            # The last one is cut short.
            if len(seen) == self._drivers and all(length > WINDOW / 2 for _, length in seen):
                level.windows.append(sum(count / length for count, length in seen))
                self._progress(level)
        self._ended.add(driver)


def _is_stable(windows: list[float], within: float) -> bool:
    last = windows[-_STABLE_WINDOWS:]
    mean = statistics.fmean(last) if last else 0.0
    return len(last) == _STABLE_WINDOWS and mean > 0 and max(abs(one - mean) for one in last) <= within * mean


async def _start(work: Work) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    driver = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service.loadtest.driver", stdin=pipe, stdout=pipe, stderr=pipe, limit=1 << 24,
        process_group=0,  # a Ctrl-C is for this process, which has the drivers end in order
    )  # fmt: skip
    assert driver.stdin is not None
    driver.stdin.write(json.dumps(work.to_record()).encode() + b"\n")
    return driver


async def _ready(driver: asyncio.subprocess.Process, work: Work) -> None:
    assert driver.stdout is not None
    assert driver.stderr is not None
    if not await driver.stdout.readline():
        said = (await driver.stderr.read()).decode().strip().splitlines()
        if said and ("TimeoutError" in said[-1] or "ConnectionRefusedError" in said[-1]):
            raise LoadTestError(f"cannot connect to {', '.join(work.targets)}")
        if said and (problem := said[-1].partition(f"{LoadTestError.__name__}: ")[2]):
            raise LoadTestError(problem)
        raise LoadTestError(f"a client process did not start: {said[-1] if said else 'it said nothing'}")


def share(work: Work, processes: int) -> list[Work]:
    """The work of `processes` drivers that together make the load; fewer when there are not so many calls."""
    load = work.load
    count = max(1, min(processes, load.concurrency or processes))
    return [
        dataclasses.replace(
            work,
            seed=work.seed + number,
            load=dataclasses.replace(
                load,
                concurrency=load.concurrency // count + (number < load.concurrency % count),
                rate=load.rate / count,
            ),
        )
        for number in range(count)
    ]
