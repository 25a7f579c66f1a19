"""How many CPU cores this process may really use, and what they can do."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores by CPU affinity and by the container's CPU quota (cgroup v2 or v1), rounded up; at least 1.

    ONNX Runtime and Python's own pools count the host's cores, which in a container of two cores on a host of
    sixty-four means sixty-two threads that only get in each other's way.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(_CGROUP)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def computes_bf16() -> bool:
    """Whether the processor has bfloat16 arithmetic (x86 `avx512_bf16` or `amx_bf16`, Arm `bf16`)."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_flags())


def computes_int8() -> bool:
    """Whether the processor sums products of bytes (x86 `avx512_vnni`, `avx_vnni` or `amx_int8`, Arm `asimddp`)."""
    return not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}.isdisjoint(_flags())


def _flags() -> list[str]:
    """What the kernel says the processor can do; nothing where it does not say."""
    try:
        information = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    return next((line for line in information.splitlines() if line.startswith(("flags", "Features"))), "").split()


def _quota(cgroup: Path) -> float | None:
    """Cores allowed by the quota, or None when there is none. Source: the kernel's cgroup documents."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit_us = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu" / "cpu.cfs_period_us").read_text())
        return limit_us / period_us if limit_us > 0 and period_us > 0 else None
    except (OSError, ValueError):
        return None
