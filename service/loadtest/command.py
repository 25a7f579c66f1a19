"""The command line of the load test: sweeps, objectives, comparisons, and what is printed and written."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import signal
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from service import connection_flags, cpu
from service.connection import Options
from service.loadtest import messages, plan, report
from service.loadtest.measure import Level, measure, share
from service.loadtest.objective import Objective, highest_rate
from service.loadtest.page import page
from service.loadtest.plan import Load, LoadTestError, Shape, Work
from service.loadtest.server import Watch
from service.terminal import Console, plain
from service.terminal import fail as _fail

SEARCH_STEPS = 7  # halvings of the range in which the highest rate lies
MISSED, INTERRUPTED = 1, 130  # exit statuses: the objective, or --min-rps, was not met; SIGINT or SIGTERM


def run(options: argparse.Namespace) -> int:
    """The whole test.

    Exit status: 0 done; 1 it could not be made, or missed what was asked; 2 asked for wrongly; 130 interrupted, with
    what was measured until then.
    """
    try:
        slo = Objective.parse(options.slo) if options.slo else None
        old = report.read(options.compare) if options.compare else None
        if options.out and not options.out.absolute().parent.is_dir():  # not after minutes of measuring
            raise ValueError(f"--out: {options.out.parent} is no folder")
        test = _Test(options, _connection(options))
        result = asyncio.run(test.run(slo))
    except (ValueError, OSError) as error:
        return _fail(str(error), 2)
    except LoadTestError as error:
        return _fail(str(error), 1)
    _say(result, old, options.out)
    if test.stop.is_set():
        return INTERRUPTED
    if result["slo"] and result["slo"]["requests_per_second"] < max(options.min_rps, 1e-9):
        return MISSED
    return MISSED if any(level["broken"] for level in result["levels"]) else 0


def _say(result: dict[str, Any], old: dict[str, Any] | None, out: Path | None) -> None:
    """Print what was found, and write it where `out` says."""
    console = Console(soft_wrap=True)
    console.print(report.sentence(result))
    for row in report.compare(result, old) if old else ():
        console.print(f"{row['load']}: {row['ratio']:.3f} times the older ({row['low']:.3f} to {row['high']:.3f})")
    for line in report.advice(result):
        console.print(f"- {line}")
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")
        out.with_suffix(".html").write_text(page(result, old))
        console.print(f"{out} and {out.with_suffix('.html')}")
    if result["slo"]:
        console.print(result["slo"]["sentence"])


class _Test:
    def __init__(self, options: argparse.Namespace, connection: Options) -> None:
        self.options = options
        self.connection = connection
        self.targets = tuple(filter(None, options.target.split(",")))
        if not self.targets:
            raise ValueError("--target: names no address")
        if options.body and options.protocol != "http":
            raise ValueError("--body is for --protocol http")
        self.processes = options.processes or max(1, cpu.usable_cores() // 2)
        self.watch = Watch(tuple(filter(None, options.metrics.split(","))), options.server_pid)
        self.console = Console(stderr=True, soft_wrap=True)
        self.levels: list[Level] = []
        self.stop = asyncio.Event()

    async def run(self, slo: Objective | None) -> dict[str, Any]:
        self._mind_signals()
        contents, content_type, what = await asyncio.to_thread(self._contents)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "messages"
            messages.write_messages(path, contents)
            work = Work(
                targets=self.targets, method=self._method(), stream=self.options.stream, messages=str(path),
                images=self.options.images, load=self._load(), seed=0, options=_to_record(self.connection),
                content_type=content_type,
            )  # fmt: skip
            outcome = None
            try:
                outcome = await self._levels(work, slo)
            except LoadTestError as error:
                if not self.levels:
                    raise
                # What was measured before is kept.
                self.levels[-1].broken = self.levels[-1].broken or f"after this: {error}"
                self.console.print(f"ended early: {error}")
        return {
            "target": self.options.target,
            "what": what,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "client": f"{self.processes} client process(es) on {report.processor()}, {cpu.usable_cores()} cores",
            "levels": [level.to_record() for level in self.levels],
            "slo": outcome,
        }

    async def _levels(self, work: Work, slo: Objective | None) -> dict[str, Any] | None:
        options = self.options
        self.console.print(report.heads())
        for concurrency in options.concurrency or ([] if options.rate or slo else [1, 4, 16, 64]):
            await self.level(work, concurrency=max(1, round(concurrency)))
        for rate in options.rate or []:
            await self.level(work, rate=rate)
        return await self._search(work, slo) if slo else None

    def _mind_signals(self) -> None:
        """The first SIGINT or SIGTERM ends the load, a second one the program."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            self.stop.set()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

        with contextlib.suppress(NotImplementedError):  # Windows
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop)

    def _contents(self) -> tuple[list[bytes], str, str]:
        """The messages, their content type over HTTP, and what they are, for people. Raises LoadTestError."""
        options = self.options
        pictures = messages.pictures_in(options.pictures) if options.pictures else []
        sent = "pictures" if pictures else "noise"
        if options.protocol == "http":
            if options.stream or not (options.body or (pictures and options.encoded and options.images == 1)):
                raise LoadTestError("--protocol http sends --body files, or --pictures one by one with --encoded")
            bodies, kind = messages.http_bodies(options.body or pictures)
            return bodies, kind, f"POSTs of {options.images} image(s) as {kind}"
        shape = plan.ask_shape(self.targets[0], options.protocol, options.model, self.connection)
        made = messages.make_messages(options.protocol, shape, options.images, pictures, encoded=options.encoded)
        return made, "", self._describe(shape, sent)

    def _describe(self, shape: Shape, sent: str) -> str:
        inputs = ", ".join("x".join(map(str, one.shape[1:])) or "1" for one in shape.inputs)
        model = " ".join(filter(None, (f"model {shape.model}", shape.served)))
        encoded = "encoded " if self.options.encoded else ""
        return f"{model}; {self.options.images} image(s) of {inputs} a request, {encoded}{sent}; {self._method()}"

    def _method(self) -> str:
        if self.options.protocol == "http":
            return plan.HTTP
        if self.options.protocol == "classify":
            return plan.CLASSIFY_STREAM if self.options.stream else plan.CLASSIFY
        return plan.INFER_STREAM if self.options.stream else plan.INFER

    def _load(self) -> Load:
        names = ("arrivals", "seconds", "warm_up", "deadline", "stable")
        return Load(**{name: getattr(self.options, name) for name in names})

    async def level(self, work: Work, *, concurrency: int = 0, rate: float = 0.0) -> Level:
        """Measure one load, and show it. Raises LoadTestError."""
        if self.stop.is_set():
            raise LoadTestError("interrupted")
        load = dataclasses.replace(work.load, concurrency=concurrency, rate=rate)
        works = share(dataclasses.replace(work, load=load), self.processes)
        with self.console.status(f"{concurrency or rate:g}: warming up ...") as status:

            def progress(level: Level) -> None:
                seconds = f"{level.seconds:.0f} of at most {load.seconds:g} s"
                status.update(Text(plain(f"{report.line(level.to_record())}   {seconds}")))

            level = await measure(works, self.watch, progress, self.stop)
        self.levels.append(level)
        self.console.print(report.line(level.to_record()))
        return level

    async def _search(self, work: Work, slo: Objective) -> dict[str, Any]:
        """The highest rate at which `slo` holds, between 0 and the capacity."""
        full = await self.level(work, concurrency=64)
        clients_limit = False

        async def at(rate: float) -> Level:
            nonlocal clients_limit
            level = await self.level(work, rate=rate)
            clients_limit |= level.client_was_the_limit and not slo.held(level)
            return level

        found = await highest_rate(at, slo, 0.0, full.requests_per_second * 1.1, SEARCH_STEPS)
        best = found.requests_per_second if found else 0.0
        said = (
            f"{slo} holds up to {best:,.0f} requests/s, {best * work.images:,.0f} images/s."
            if best else f"{slo} holds at no rate that was tried."
        )  # fmt: skip
        if clients_limit:
            said += " The client was the limit at a rate that missed it: with more --processes it may be higher."
        return {"percentile": slo.percentile, "seconds": slo.seconds, "requests_per_second": best, "sentence": said}


def _connection(options: argparse.Namespace) -> Options:
    return dataclasses.replace(connection_flags.read(options), round_robin=options.round_robin)


def _to_record(options: Options) -> dict[str, Any]:
    record = dataclasses.asdict(options)
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in record.items()}
