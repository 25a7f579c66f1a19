"""What the server says of itself, or the operating system of it, over the time of a measurement.

Batches and queue come from our metrics or Triton's; processor time and memory from any process's own
(`process_cpu_seconds_total`, `process_resident_memory_bytes`), or, for a server on this machine that has none, from
/proc by its process id.
"""

from __future__ import annotations

import math
import os
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from service.loadtest.plan import LoadTestError

# What is found, the counter of its total, that of how often, and what a unit of the first is.
_MEANS = (
    ("images_in_a_batch", "cifarserve_batch_images_sum", "cifarserve_batch_images_count", 1.0),
    ("queue_seconds", "cifarserve_queue_seconds_sum", "cifarserve_queue_seconds_count", 1.0),
    ("compute_seconds", "cifarserve_compute_seconds_sum", "cifarserve_compute_seconds_count", 1.0),
    ("images_in_a_batch", "nv_inference_count", "nv_inference_exec_count", 1.0),
    ("queue_seconds", "nv_inference_queue_duration_us", "nv_inference_request_success", 1e-6),
    ("compute_seconds", "nv_inference_compute_infer_duration_us", "nv_inference_request_success", 1e-6),
)


@dataclass(frozen=True)
class Usage:
    """Of a server's processes: seconds of processor time since they began, and bytes of memory now."""

    cpu_seconds: float
    resident_bytes: float


@dataclass(frozen=True)
class Look:
    """One look at the server. `sums` are of all samples of a metric's name, of all addresses."""

    at: float  # time.monotonic()
    sums: dict[str, float]
    usage: Usage | None = None


class Watch:
    """Where to look: addresses of metrics, and the id of a process on this machine. Either may be missing."""

    def __init__(self, urls: Sequence[str] = (), pid: int = 0) -> None:
        self.urls, self.pid = urls, pid

    def __bool__(self) -> bool:
        return bool(self.urls or self.pid)

    def look(self) -> Look:
        """Raises LoadTestError when there is nothing to see."""
        sums: Counter[str] = Counter()
        for url in self.urls:
            sums.update(scrape(url))
        return Look(time.monotonic(), dict(sums), usage(self.pid) if self.pid else None)


def scrape(url: str) -> dict[str, float]:
    """Sums of the samples by name. Raises LoadTestError."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310 - given by whoever runs the test
            families = list(text_string_to_metric_families(reply.read().decode()))
    except (OSError, ValueError) as error:
        raise LoadTestError(f"{url}: {error}") from None
    sums: Counter[str] = Counter()
    for family in families:
        for sample in family.samples:
            if "le" not in sample.labels and not math.isnan(sample.value):
                sums[sample.name] += sample.value  # type: ignore[assignment]
    return dict(sums)


def usage(pid: int) -> Usage:
    """Of the process and all that descend from it; memory that they share counts once for each. Linux only.

    Raises LoadTestError.
    """
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (OSError, ValueError) as error:
        raise LoadTestError(f"--server-pid {pid}: {error}") from None
    # utime, stime, and those of children that have ended; pages in memory.
    cpu = sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")
    memory = int(words[21]) * os.sysconf("SC_PAGE_SIZE")
    for child in children:
        try:
            one = usage(child)
        except LoadTestError:  # it has ended meanwhile
            continue
        cpu, memory = cpu + one.cpu_seconds, memory + int(one.resident_bytes)
    return Usage(cpu, memory)


def between(before: Look, after: Look) -> dict[str, float]:
    """What the server did meanwhile, as far as it can be seen."""
    seconds = after.at - before.at

    def grown(name: str) -> float:
        return after.sums.get(name, 0.0) - before.sums.get(name, 0.0)

    found: dict[str, float] = {}
    for name, total, count, unit in _MEANS:
        if grown(count) > 0:
            found[name] = grown(total) * unit / grown(count)
    if before.usage and after.usage:
        found["cores"] = (after.usage.cpu_seconds - before.usage.cpu_seconds) / seconds
        found["resident_bytes"] = after.usage.resident_bytes
    else:
        if "process_cpu_seconds_total" in after.sums:
            found["cores"] = grown("process_cpu_seconds_total") / seconds
        if "process_resident_memory_bytes" in after.sums:
            found["resident_bytes"] = after.sums["process_resident_memory_bytes"]
    return {name: round(value, 7) for name, value in found.items()}
