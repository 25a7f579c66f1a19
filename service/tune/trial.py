"""One trial: the whole server with a candidate's settings, driven by the load test."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service import config, model_config
from service.config import Settings
from service.connection import Options
from service.loadtest import messages, plan
from service.loadtest.measure import Level, measure, share
from service.loadtest.objective import highest_rate
from service.loadtest.plan import Load, LoadTestError, Work
from service.loadtest.server import Watch
from service.tune import files
from service.tune.candidates import Candidate
from service.tune.goal import Goal
from service.tune.present import Present
from service.tune.race import Result, TrialFailed

START_SECONDS = 60.0  # for a server to be ready
STOP_SECONDS = 15.0  # for a server to end by itself
WARM_UP = 1.0
DEADLINE = 5.0  # of a call
SEARCH_STEPS = 5  # loads in a search for the highest rate: halvings of the range in which it lies


@dataclass(frozen=True)
class Traffic:
    """What callers send. `connections` are what the kernel spreads over workers."""

    pictures: Sequence[Path]
    encoded: bool
    connections: int
    processes: int


class Trials:
    """Starts servers on a copy of the version in `folder`, which is its own. One trial at a time."""

    def __init__(self, folder: Path, present: Present, now: Candidate, goal: Goal, traffic: Traffic) -> None:
        """`now` is what `present` has come to."""
        self._present, self._now, self._goal, self._traffic = present, now, goal, traffic
        self._repository = folder / "models"
        self._settings_file = folder / "cifarserve.toml"
        self._log = folder / "log"
        self._messages = folder / "messages"
        self._made = False
        self._capacity: dict[Candidate, float] = {}  # requests/s of a closed loop
        self._model = self._repository / present.name
        shutil.copytree(present.folder, self._model / str(present.version))

    @property
    def levels(self) -> int:
        """How many loads a trial puts on a server."""
        return 1 if self._goal.objective is None else SEARCH_STEPS

    async def measure(self, candidate: Candidate, seconds: float) -> Result:
        """Raises TrialFailed when the server does not start so, or does not answer."""
        try:
            async with self._serving(candidate) as target:
                return await self._drive(candidate, target, seconds)
        except LoadTestError as error:
            raise TrialFailed(f"{error}{self._last_words()}") from None

    async def _drive(self, candidate: Candidate, target: str, seconds: float) -> Result:
        work = await asyncio.to_thread(self._work, target, seconds)
        if self._goal.objective is None:
            level = await self._level(work, concurrency=self._goal.concurrency)
            if level.errors or not level.latencies.total:
                said = ", ".join(f"{count} {code}" for code, count in level.errors.items())
                raise TrialFailed(f"calls failed: {said or level.broken}")
            p50 = level.latencies.percentile(50)
            return _result(level, 1 / p50 if self._goal.kind == "latency" else level.images_per_second)
        best = await self._highest_rate(candidate, work)
        return Result(0.0, 0.0, 0.0, 0.0) if best is None else _result(best, best.images_per_second)

    async def _highest_rate(self, candidate: Candidate, work: Work) -> Level | None:
        """Anywhere below what the server can do at all, which is found out once.

        Not only near where it held before: a burst of other work on the machine would then tell of all that follows.
        """

        def at(rate: float) -> Awaitable[Level]:
            return self._level(work, rate=rate)

        objective, steps = self._goal.objective, SEARCH_STEPS
        assert objective is not None
        if candidate not in self._capacity:
            full, steps = await self._level(work, concurrency=self._goal.concurrency), SEARCH_STEPS - 1
            if not full.latencies.total:
                raise TrialFailed(f"calls failed: {full.broken}")
            self._capacity[candidate] = full.requests_per_second
        return await highest_rate(at, objective, 0.0, 1.1 * max(self._capacity.values()), steps)

    async def _level(self, work: Work, *, concurrency: int = 0, rate: float = 0.0) -> Level:
        load = dataclasses.replace(work.load, concurrency=concurrency, rate=rate)
        works = share(dataclasses.replace(work, load=load), self._traffic.processes)
        level = await measure(works, Watch(), lambda _: None)
        if level.broken and not level.errors:
            raise LoadTestError(level.broken)
        return level

    def _work(self, target: str, seconds: float) -> Work:
        """Of the load test: the messages are made once, for the shape that the first server says."""
        traffic, options = self._traffic, Options()
        if not self._made:
            shape = plan.ask_shape(target, "classify", self._present.name, options)
            pictures, images = traffic.pictures, self._goal.images
            made = messages.make_messages("classify", shape, images, pictures, encoded=traffic.encoded)
            messages.write_messages(self._messages, made)
            self._made = True
        connections = math.ceil(traffic.connections / traffic.processes)
        return Work(
            targets=(target,) * connections, method=plan.CLASSIFY, stream=False, messages=str(self._messages),
            images=self._goal.images, load=Load(seconds=seconds, warm_up=WARM_UP, deadline=DEADLINE), seed=0,
            options=_record(options),
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def _serving(self, candidate: Candidate) -> AsyncIterator[str]:
        """The address of a server with these settings, in a process group of its own: Ctrl-C is for us, who end it.

        It ends by itself when we are killed.
        """
        self._write(candidate)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(config.ENVIRONMENT_PREFIX)
        }
        with self._log.open("wb") as log:
            server = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "service.tune.server_process", "--config", str(self._settings_file),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, process_group=0,
                env=environment | {"OTEL_SDK_DISABLED": "true"},
            )  # fmt: skip
        try:
            async with asyncio.timeout(START_SECONDS):
                target = await _announced(server)
            if not target:
                raise TrialFailed(f"does not serve{self._last_words()}")
            yield target
        except TimeoutError:
            raise TrialFailed(f"not ready within {START_SECONDS:g} s{self._last_words()}") from None
        finally:
            await _stop(server)

    def _write(self, candidate: Candidate) -> None:
        """The files that the server reads: the very keys that are to be written in the end, and the rest as it is."""
        present = self._present
        keys = files.model_keys(candidate, self._now, present.compute) | {"cache_bytes": 0}
        # Without the cache: it would answer the few messages that come again and again.
        text = files.rewritten(present.config_text, keys, (*files.MODEL_KEYS, "cache_bytes"))
        (self._model / model_config.CONFIG_FILE).write_text(text, encoding="utf-8")
        model_config.write_pin(self._model, present.version)
        private = dataclasses.replace(_private(present.settings, self._repository), workers=candidate.workers)
        lines = [f"{name} = {files.toml(getattr(private, name))}" for name in config.FIELDS]
        self._settings_file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _last_words(self) -> str:
        """What the server said last, for people."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f": {lines[-1].removeprefix('cifarserve: ')}" if lines else ""


def _private(settings: Settings, repository: Path) -> Settings:
    """The same, but for a server that only this machine sees, for a short time."""
    key = settings.model_public_key
    return dataclasses.replace(
        settings, model_repository=repository, host="127.0.0.1", port=0, metrics_host="", metrics_port=0,
        tls_certificate="", tls_key="", tls_client_ca="", token_file="", admin_token_file="", insecure=False,
        model_public_key=str(Path(key).absolute()) if key else "", model_control="none", load_model=(),
        lame_duck_seconds=0.0, drain_seconds=2.0, log_level="warning", log_format="text", access_log_share=0.0,
    )  # fmt: skip


def _result(level: Level, score: float) -> Result:
    p50, p99 = (level.latencies.percentile(share) for share in (50, 99))
    note = "the client was the limit" if level.client_was_the_limit else ""
    return Result(score, level.images_per_second, p50, p99, note)


def _record(options: Options) -> dict[str, Any]:
    record = dataclasses.asdict(options)
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in record.items()}


async def _announced(server: asyncio.subprocess.Process) -> str:
    """The address that the server says once it is ready; empty when it ends before."""
    assert server.stdout is not None
    target = ""
    while line := (await server.stdout.readline()).decode():
        first, *others = line.split()
        if first == "gRPC":
            target = others[-1]
        if first == "try":
            return target
    return ""


async def _stop(server: asyncio.subprocess.Process) -> None:
    """End the server and, if it does not end by itself, all that it has started."""
    if server.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            server.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await server.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
    await server.wait()
