"""The metrics of GPUs, with a stand-in for NVIDIA's library that has the real one's names: not run on a GPU yet."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pynvml
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service import gpu
from service.metrics import Metrics


def library(count: int = 2) -> Any:
    """Two GPUs: the first is busy for half of the time; the second, as a slice of one does, tells no utilisation."""
    nvml = create_autospec(pynvml)
    nvml.NVMLError = pynvml.NVMLError
    nvml.nvmlDeviceGetCount.return_value = count
    nvml.nvmlDeviceGetHandleByIndex.side_effect = lambda index: f"handle {index}"
    nvml.nvmlDeviceGetUUID.side_effect = lambda handle: f"GPU-{handle[-1]}"

    def utilization(handle: str) -> SimpleNamespace:
        if handle == "handle 1":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=50, memory=10)

    nvml.nvmlDeviceGetUtilizationRates.side_effect = utilization
    nvml.nvmlDeviceGetMemoryInfo.side_effect = lambda handle: SimpleNamespace(
        used=3 << 30, total=80 << 30, free=77 << 30
    )
    return nvml


def scraped(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name.removeprefix("cifarserve_gpu_"), sample.labels["uuid"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("cifarserve_gpu_")
    }


def test_each_gpu_is_on_the_page_with_what_it_tells() -> None:
    metrics = Metrics()
    metrics.watch_gpus(gpu.Gpus(library()))
    assert scraped(metrics.registry) == {
        ("utilization_ratio", "GPU-0"): 0.5,
        ("memory_used_bytes", "GPU-0"): 3 << 30,
        ("memory_used_bytes", "GPU-1"): 3 << 30,
        ("memory_total_bytes", "GPU-0"): 80 << 30,
        ("memory_total_bytes", "GPU-1"): 80 << 30,
    }


def test_a_gpu_that_is_lost_leaves_the_page_and_the_scrape_goes_on() -> None:
    nvml = library(count=1)
    metrics = Metrics()
    metrics.watch_gpus(gpu.Gpus(nvml))
    for ask in (nvml.nvmlDeviceGetUtilizationRates, nvml.nvmlDeviceGetMemoryInfo):
        ask.side_effect = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    assert scraped(metrics.registry) == {}


def test_without_a_driver_there_are_no_gpus_and_no_samples() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert gpu.find() is None
    else:
        pytest.skip("this machine has NVIDIA's driver")
    metrics = Metrics()
    metrics.watch_gpus(None)
    assert scraped(metrics.registry) == {}


def test_without_the_package_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu.find() is None
