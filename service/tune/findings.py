"""All that one run of tuning has found out: for the terminal, the page, and the files."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from service import cpu
from service.tune import files
from service.tune.candidates import Candidate, counted
from service.tune.engines import Engines
from service.tune.goal import Goal
from service.tune.race import FINAL, Result, Trial
from service.tune.verdict import Verdict


def _load() -> float:
    """Processes that ran or wanted to, over the last minute; 0 where nobody knows."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


@dataclass
class Findings:
    """`trials` and `dropped` are lists that others fill; `verdict` is None until the end."""

    model: str
    goal: Goal
    command: str
    engines: Engines
    now: Candidate | None = None
    trials: list[Trial] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    verdict: Verdict | None = None
    load: float = field(default_factory=_load)
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def all_dropped(self) -> list[tuple[str, str]]:
        return [*self.engines.dropped, *self.dropped]

    def ranked(self) -> list[tuple[Candidate, list[Result], str]]:
        """Each candidate with what decides of it, the best first: its finals, or else its longest look."""
        rows = []
        for candidate in dict.fromkeys(trial.candidate for trial in self.trials):
            own = [trial for trial in self.trials if trial.candidate == candidate]
            last = [trial for trial in own if trial.stage == own[-1].stage]
            rows.append((candidate, [trial.result for trial in last], last[0].stage))
        return sorted(
            rows, key=lambda row: (row[2] == FINAL, sum(one.score for one in row[1]) / len(row[1])), reverse=True
        )

    def reached(self, candidate: Candidate) -> bool:
        """Whether it ever came to anything: an objective may hold at no rate."""
        return any(trial.result.score for trial in self.trials if trial.candidate == candidate)

    def sentence(self) -> str:
        """What came of it."""
        if self.verdict is None:
            return "It was stopped before the end: nothing is decided."
        if self.verdict.winner == self.now:
            return f"Keep the present settings ({self.now}): {self.verdict.reason}."
        return f"Take {self.verdict.winner}: {self.verdict.reason}."

    def warning(self) -> str:
        """Said when the machine had other work to do at the beginning; otherwise empty."""
        if self.load <= 0.5 * cpu.usable_cores():
            return ""
        return (
            f"The machine is busy (load {self.load:.1f} on {counted(cpu.usable_cores(), 'core')}): figures are low and "
            "noisy, and settings with more processes may only take a larger share of it from others."
        )

    def software(self) -> str:
        try:
            own = importlib.metadata.version("cifarserve")
        except importlib.metadata.PackageNotFoundError:
            own = "not installed"
        return f"cifarserve {own}, onnxruntime {self.engines.onnxruntime}, Python {platform.python_version()}"

    def evidence(self) -> list[str]:
        """Lines of TOML for the table [tuned]."""
        values = {
            "goal": self.goal.words(), "result": self.sentence(), "model": self.model, "when": self.when,
            "machine": machine(), "load": round(self.load, 2), "software": self.software(), "command": self.command,
        }  # fmt: skip
        lines = [f"{name} = {files.toml(value)}" for name, value in values.items()]
        rows = [
            files.toml({
                "stage": trial.stage, "settings": str(trial.candidate), "present": trial.candidate == self.now,
                "seconds": trial.seconds, "images_per_second": round(trial.result.images_per_second, 1),
                "p50_ms": round(trial.result.p50 * 1e3, 3), "p99_ms": round(trial.result.p99 * 1e3, 3),
            }) for trial in self.trials
        ]  # fmt: skip
        lines += ["measured = [", *(f"  {row}," for row in rows), "]"]
        dropped = [files.toml({"what": what, "why": why}) for what, why in self.all_dropped()]
        return [*lines, "dropped = [", *(f"  {row}," for row in dropped), "]"]


def means(results: Sequence[Result]) -> tuple[float, float, float, float]:
    """Of score, images/s, p50 and p99."""
    score, speed, p50, p99 = (
        statistics.fmean(getattr(one, name) for one in results) for name in ("score", "images_per_second", "p50", "p99")
    )
    return score, speed, p50, p99


def machine() -> str:
    """Processor, cores, memory and system, as far as they can be known."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    said = [name, f"{counted(cpu.usable_cores(), 'core')}"]
    if "SC_PHYS_PAGES" in os.sysconf_names:
        said.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / (1 << 30):.0f} GiB")
    return ", ".join([*said, f"{platform.system()} {platform.release()}"])
