"""The command line of the load test: sweeps, objectives, comparisons, and what is printed and written."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import sys
import tempfile
from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from service import connection_flags
from service.connection import Options
from service.loadtest import plan, report
from service.loadtest.measure import Level, measure, share
from service.loadtest.objective import Objective, highest_rate
from service.loadtest.plan import Load, LoadTestError, Work

SEARCH_STEPS = 7  # halvings of the range in which the highest rate lies
MISSED = 1  # exit status: the objective, or --min-rps, was not met


def run(options: argparse.Namespace) -> int:
    """The whole test. Exit status: 0 done; 1 it could not be made, or missed what was asked; 2 asked for wrongly."""
    try:
        slo = Objective.parse(options.slo) if options.slo else None
        old = json.loads(options.compare.read_text()) if options.compare else None
        result = asyncio.run(_Test(options, connection_flags.read(options)).run(slo))
    except (ValueError, OSError) as error:
        return _fail(str(error), 2)
    except LoadTestError as error:
        return _fail(str(error), 1)
    console = Console()
    console.print(report.sentence(result))
    if old:
        for row in report.compare(result, old):
            console.print(f"{row['load']}: {row['ratio']:.3f} times the older ({row['low']:.3f} to {row['high']:.3f})")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        options.out.with_suffix(".html").write_text(report.page(result, old))
        console.print(f"{options.out} and {options.out.with_suffix('.html')}")
    if slo and result["slo"]:
        console.print(result["slo"]["sentence"])
        if result["slo"]["requests_per_second"] < max(options.min_rps, 1e-9):
            return MISSED
    return MISSED if any(level["broken"] for level in result["levels"]) else 0


class _Test:
    def __init__(self, options: argparse.Namespace, connection: Options) -> None:
        self.options = options
        self.connection = connection
        self.processes = options.processes or max(1, (os.cpu_count() or 2) // 2)
        self.console = Console(stderr=True)
        self.levels: list[Level] = []

    async def run(self, slo: Objective | None) -> dict[str, Any]:
        options = self.options
        targets = tuple(options.target.split(","))
        shape = plan.ask_shape(targets[0], options.protocol, options.model, self.connection)
        pictures = plan.pictures_in(options.pictures) if options.pictures else []
        messages = plan.make_messages(options.protocol, shape, options.images, pictures, encoded=options.encoded)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "messages"
            plan.write_messages(path, messages)
            work = Work(
                targets=targets, method=self._method(), stream=options.stream, messages=str(path),
                images=options.images, load=self._load(), seed=0, options=_to_record(self.connection),
            )  # fmt: skip
            outcome = None
            try:
                for concurrency in options.concurrency or ([] if options.rate or slo else [1, 4, 16, 64]):
                    await self.level(work, concurrency=round(concurrency))
                for rate in options.rate or []:
                    await self.level(work, rate=rate)
                if slo:
                    outcome = await self._search(work, slo)
            except LoadTestError as error:
                if not self.levels:
                    raise
                # What was measured before is kept.
                self.levels[-1].broken = f"after this: {error}"
                self.console.print(f"ended early: {error}", markup=False)
        return {
            "target": options.target,
            "what": f"model {shape.model}, {options.images} image(s) of {shape.height}x{shape.width} in a request, "
            f"{'pictures' if pictures else 'noise'}{', encoded' if options.encoded else ''}, {work.method}",
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "client": f"{self.processes} client process(es) on {platform.processor() or platform.machine()}, "
            f"{os.cpu_count()} cores",
            "levels": [level.to_record() for level in self.levels],
            "slo": outcome,
        }

    def _method(self) -> str:
        if self.options.protocol == "classify":
            return plan.CLASSIFY_STREAM if self.options.stream else plan.CLASSIFY
        return plan.INFER_STREAM if self.options.stream else plan.INFER

    def _load(self) -> Load:
        options = self.options
        return Load(
            arrivals=options.arrivals, seconds=options.seconds, warm_up=options.warm_up, deadline=options.deadline
        )

    async def level(self, work: Work, *, concurrency: int = 0, rate: float = 0.0) -> Level:
        """Measure one load, and show it."""
        load = dataclasses.replace(work.load, concurrency=concurrency, rate=rate)
        works = share(dataclasses.replace(work, load=load), self.processes)
        with self.console.status(f"{concurrency or rate:g} ...") as status:

            def progress(level: Level) -> None:
                status.update(f"{report.title(level.to_record())}: {level.images_per_second:,.0f} images/s ...")

            level = await measure(works, self.options.metrics, progress)
        self.levels.append(level)
        self.console.print(_line(level))
        return level

    async def _search(self, work: Work, slo: Objective) -> dict[str, Any]:
        """The highest rate at which `slo` holds, between 0 and the capacity."""
        full = await self.level(work, concurrency=64)

        def at(rate: float) -> Awaitable[Level]:
            return self.level(work, rate=rate)

        found = await highest_rate(at, slo, 0.0, full.requests_per_second * 1.1, SEARCH_STEPS)
        best = found.requests_per_second if found else 0.0
        said = (
            f"{slo} holds up to {best:,.0f} requests/s, {best * work.images:,.0f} images/s."
            if best else f"{slo} holds at no rate that was tried."
        )  # fmt: skip
        return {
            "percentile": slo.percentile, "seconds": slo.seconds, "requests_per_second": best, "sentence": said,
        }  # fmt: skip


def _line(level: Level) -> Table:
    record = level.to_record()
    grid = Table.grid(padding=(0, 2))
    times = record["latency_seconds"]
    errors = ", ".join(f"{count} {code}" for code, count in level.errors.items())
    p50, p99 = (f"{name} {times[name] * 1e3:.2f} ms" if times[name] is not None else "" for name in ("p50", "p99"))
    limit = "the client was the limit" if level.client_was_the_limit else ""
    grid.add_row(
        report.title(record), f"{level.images_per_second:,.0f} images/s", p50, p99, errors, limit, level.broken
    )
    return grid


def _to_record(options: Options) -> dict[str, Any]:
    record = dataclasses.asdict(options)
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in record.items()}


def _fail(message: str, status: int) -> int:
    print(f"cifarserve: {message}", file=sys.stderr)  # noqa: T201
    return status
