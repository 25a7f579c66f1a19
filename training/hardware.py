"""Which device, arithmetic and memory layout to train with: what was measured to be fastest on such hardware."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

import torch

from service import cpu
from training.errors import TrainingError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@dataclass(frozen=True)
class Compute:
    """`device` cpu or cuda; `precision` fp32 or bf16 (autocast); `layout` contiguous or channels_last."""

    device: str
    precision: str
    layout: str

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


def choose(device: str, precision: str) -> Compute:
    """Settle "auto" for either. Decided by what the hardware is, not by a timing, so that runs can be repeated.

    channels_last, in either precision: on two Zen 5 cores bf16 and channels_last are 2.5 times as fast together as
    plain fp32, and fp32 gains by channels_last too (docs/benchmarks.md). Raises TrainingError when cuda is asked
    for and not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device cuda was asked for, and torch finds no usable GPU")
    if precision == "auto":
        precision = "bf16" if _computes_bf16(device) else "fp32"
    return Compute(device, precision, "channels_last")


def _computes_bf16(device: str) -> bool:
    """Whether bf16 runs in hardware: elsewhere it is emulated, and slower than fp32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu.computes_bf16()


def keep_memory() -> None:
    """Let glibc keep what a step frees for the next one.

    By default it gives large blocks back to the kernel, which then clears every page again: with batches of 2,000,
    1.7 times as long a step on two Zen 5 cores (docs/benchmarks.md). The parameters are those of mallopt(3).
    """
    if sys.platform != "linux":
        return
    try:
        library = ctypes.CDLL(None)
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 << 20)):
            library.mallopt(parameter, value)
    except (OSError, AttributeError):
        return  # another C library: training works all the same
