"""The command line of tuning: what is asked, shown meanwhile, and written in the end."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from service import config, cpu
from service.config import ConfigError
from service.loadtest import messages
from service.loadtest.objective import Objective
from service.loadtest.plan import LoadTestError
from service.manifest import ManifestError
from service.model_config import CONFIG_FILE
from service.terminal import Console, plain_lines
from service.terminal import fail as _fail
from service.tune import engines, files, page
from service.tune.candidates import Candidate, Curve, structural, variants
from service.tune.engines import Engines, EnginesFailed
from service.tune.findings import Findings, means
from service.tune.goal import SLO, Goal
from service.tune.present import Present, find
from service.tune.race import Budget, Race, Trial, TrialFailed
from service.tune.trial import Traffic, Trials


def run(options: argparse.Namespace) -> int:
    """The whole of it. Exit status: as the epilog of the flags says."""
    try:
        return _Tuning(options).run()
    except (ConfigError, ManifestError, ValueError, OSError) as error:
        return _fail(str(error), 2)
    except (EnginesFailed, TrialFailed, LoadTestError) as error:
        return _fail(str(error), 1)


class _Tuning:
    def __init__(self, options: argparse.Namespace) -> None:
        """Raises ConfigError, ValueError or LoadTestError for what is wrong with the flags, before anything runs."""
        flags = {"config": options.config}
        if options.model_repository is not None:
            flags["model_repository"] = str(options.model_repository)
        settings = config.load(flags)
        self.present: Present = find(settings, options.config or config.DEFAULT_FILE, options.model)
        objective = Objective.parse(options.slo) if options.slo else None
        concurrency = options.concurrency or (1 if options.goal == "latency" and objective is None else 64)
        self.goal = Goal(SLO if objective else options.goal, objective, options.images, concurrency)
        if options.images > settings.max_images_per_request:
            raise ConfigError(f"--images-per-request: the server takes {settings.max_images_per_request} at most")
        if options.encoded and not options.pictures:
            raise ConfigError("--encoded needs --pictures")
        pictures = messages.pictures_in(options.pictures) if options.pictures else []
        processes = options.processes or max(1, (os.cpu_count() or 2) // 2)
        self.traffic = Traffic(pictures, options.encoded, min(options.connections, concurrency), processes)
        folder: Path | None = options.out
        self.config_file = folder / CONFIG_FILE if folder else self.present.config_file
        self.settings_file = folder / config.DEFAULT_FILE if folder else self.present.settings_file
        self.page_file: Path = options.page
        self.force: bool = options.force
        if not options.force:
            self._refuse_to_overwrite()
        self.wanted: tuple[str, ...] = options.providers
        self.seconds = 60 * options.minutes
        self.console = Console(stderr=True)
        model = f"{self.present.name} version {self.present.version}"
        self.findings = Findings(model, self.goal, shlex.join(["cifarserve", *sys.argv[1:]]), Engines())

    def run(self) -> int:
        self._report(f"{self.findings.model}: {self.goal.words()}")
        if warning := self.findings.warning():
            self._report(warning)
        try:
            asyncio.run(self._find())
        except (KeyboardInterrupt, asyncio.CancelledError):
            self._show()
            return _fail("interrupted: nothing is written", 130)
        except (EnginesFailed, TrialFailed):
            self._show()
            raise
        self._show()
        verdict, now = self.findings.verdict, self.findings.now
        assert verdict is not None
        assert now is not None
        files.write(self.page_file, page.page(self.findings))
        self._say(f"what was measured: {self.page_file}")
        if not self.findings.reached(verdict.winner):
            return _fail(f"{self.goal.objective} holds with no settings that were tried", 1)
        if verdict.winner == now:
            self._say("the present settings stay: no file of settings is written")
        else:
            self._write(verdict.winner, now)
        return 0

    async def _find(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        budget, found = Budget(self.seconds), self.findings
        bar = Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
                       console=self.console, transient=True)  # fmt: skip
        with bar, tempfile.TemporaryDirectory(prefix="cifarserve-tune-") as folder:
            shown = bar.add_task("the settings as they are", total=self.seconds)

            def show(what: str) -> None:
                bar.update(shown, completed=min(budget.spent(), self.seconds), description=what)

            def timed(curve: Curve) -> None:
                self._report(f"  {'engine alone':<13} {_curve_line(curve)}")
                show("the engine alone")

            def tried(trial: Trial) -> None:
                self._report(f"  {trial.stage:<13} {_trial_line(trial, self.goal, found.now)}")
                show("the whole server")

            found.now = await engines.present_candidate(self.present, found.engines)
            show("the engine alone")
            curves = await engines.time_engines(
                self.present, found.now, self.goal, self.wanted, budget, found.engines, timed
            )
            show("the whole server")
            trials = Trials(Path(folder), self.present, found.now, self.goal, self.traffic)
            race = Race(trials.measure, budget, self.goal, trials.levels, tried)
            found.trials, found.dropped = race.trials, race.dropped
            found.verdict = await race.run(
                found.now,
                structural(curves, found.now, cpu.usable_cores(), self.goal),
                lambda best: variants(best, _curve_of(best, found.engines.curves), found.now or best, self.goal),
            )

    def _refuse_to_overwrite(self) -> None:
        """Before minutes are spent. Of the server's file, only when it would have to change: see `_write`."""
        for path in (self.config_file, self.page_file):
            if path.exists():
                raise ConfigError(f"{path} is there already: --force replaces what tuning has to say in it")

    def _write(self, winner: Candidate, now: Candidate) -> None:
        keys = files.model_keys(winner, now, self.present.compute)
        text = self.config_file.read_text(encoding="utf-8") if self.config_file.exists() else ""
        try:
            files.write(self.config_file, files.rewritten(text, keys, files.MODEL_KEYS, self.findings.evidence()))
        except ConfigError as error:
            raise ConfigError(f"{self.config_file}: {error}") from None
        self._say(f"written: {self.config_file}")
        if self.config_file != self.present.config_file:
            self._say(f"`cifarserve serve` reads it as {self.present.config_file}")
        values = files.server_keys(winner, now)
        if values:
            self._write_server(values)
        self._warn_of_variables(keys | values)

    def _warn_of_variables(self, written: Mapping[str, object]) -> None:
        """Say which of the keys that were written do not hold, as a variable goes before them."""
        settings = self.present.settings
        for name, value in written.items():
            source = settings.overruling(name) if name in config.FIELDS else ""
            if source and getattr(settings, name) != value:
                line = f"{name} = {files.toml(value)}"
                self._say(f"{source} is set, and goes before the file: `{line}` has no effect until it is gone")

    def _write_server(self, values: dict[str, int]) -> None:
        path, line = self.settings_file, "".join(f"{name} = {value}" for name, value in values.items())
        if path.exists() and not self.force:
            self._say(f"{path} is there already and stays as it is (--force changes it): write `{line}` in it")
            return
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        evidence = [f"goal = {files.toml(self.goal.words())}", f"see = {files.toml(str(self.config_file))}"]
        files.write(path, files.rewritten(text, values, files.SERVER_KEYS, evidence))
        self._say(f"written: {path}")

    def _show(self) -> None:
        """What was measured of the whole server, and what was not, in the order of what it came to."""
        found, console = self.findings, Console()
        table = Table("settings", "result", "images/s", "p50 ms", "p99 ms", "of", title=self.goal.words())
        for candidate, results, stage in found.ranked():
            score, speed, p50, p99 = means(results)
            name = f"{candidate}{' (present)' if candidate == found.now else ''}"
            table.add_row(
                name, self.goal.show(score), f"{speed:,.0f}", f"{p50 * 1e3:.2f}", f"{p99 * 1e3:.2f}",
                f"{len(results)} in {stage}",
            )  # fmt: skip
        if table.rows:
            console.print(table)
        for what, why in found.all_dropped():
            self._say(f"dropped: {what}: {why}")
        self._say(found.sentence())

    def _report(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    def _say(self, text: str) -> None:
        print(plain_lines(text), flush=True)  # noqa: T201


def _curve_of(candidate: Candidate, curves: list[Curve]) -> Curve | None:
    arm = (candidate.provider, candidate.precision)
    own = [curve for curve in curves if (curve.provider, curve.precision) == arm]
    return min(own, key=lambda curve: abs(curve.threads - candidate.threads), default=None)


def _curve_line(curve: Curve) -> str:
    smallest, knee = min(curve.seconds), curve.knee()
    return (
        f"{curve}: a batch of {smallest} in "
        f"{curve.seconds[smallest] * 1e3:.2f} ms, {curve.images_per_second(knee):,.0f} images/s in batches of {knee}"
    )


def _trial_line(trial: Trial, goal: Goal, now: Candidate | None) -> str:
    own = trial.result
    said = f"{goal.show(own.score):>15}  p99 {own.p99 * 1e3:7.2f} ms  {trial.candidate}"
    return said + (" (present)" if trial.candidate == now else "") + (f"; {own.note}" if own.note else "")
