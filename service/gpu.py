"""Utilisation and memory of the GPUs, as NVIDIA's driver tells them through NVML."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any


class Gpus:
    """The GPUs that this process may see. Each method gives (UUID, value) of those that tell; from any thread.

    Tested with a stand-in for the library (tests/unit/service/test_gpu.py), not on a GPU yet.
    """

    def __init__(self, nvml: Any) -> None:
        """`nvml` is the module `pynvml`, of the package nvidia-ml-py. Raises its NVMLError."""
        self._nvml = nvml
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        self._handles = {str(nvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}

    def utilization(self) -> Iterator[tuple[str, float]]:
        """Share of the last second or less (the driver's sampling time) in which some kernel ran: 0 to 1."""
        return self._each(lambda handle: self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)

    def memory_used(self) -> Iterator[tuple[str, float]]:
        """In bytes, by all processes."""
        return self._each(lambda handle: self._nvml.nvmlDeviceGetMemoryInfo(handle).used)

    def memory_total(self) -> Iterator[tuple[str, float]]:
        """In bytes."""
        return self._each(lambda handle: self._nvml.nvmlDeviceGetMemoryInfo(handle).total)

    def _each(self, ask: Callable[[Any], float]) -> Iterator[tuple[str, float]]:
        for uuid, handle in self._handles.items():
            with suppress(self._nvml.NVMLError):  # a slice of a GPU (MIG) has no utilisation; a lost one has nothing
                yield uuid, ask(handle)


def find() -> Gpus | None:
    """The GPUs here; None without the package, which only the extra [gpu] has, or without NVIDIA's driver."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    with suppress(nvml.NVMLError):
        return Gpus(nvml)
    return None
