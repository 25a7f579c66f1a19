"""The choice of device, arithmetic and memory layout."""

from __future__ import annotations

import pytest
import torch

from service import cpu
from training.errors import TrainingError
from training.hardware import Compute, choose


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_cpu_either_precision_has_the_faster_layout(precision: str) -> None:
    compute = choose("cpu", precision)
    assert compute == Compute("cpu", precision, "channels_last")
    assert compute.memory_format is torch.channels_last
    assert Compute("cpu", precision, "contiguous").memory_format is torch.contiguous_format


def test_bf16_is_chosen_only_where_the_processor_computes_it() -> None:
    assert choose("cpu", "auto").precision == ("bf16" if cpu.computes_bf16() else "fp32")


def test_the_choice_is_the_same_every_time() -> None:
    assert choose("auto", "auto") == choose("auto", "auto")


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    assert choose("auto", "fp32").device == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_an_error_not_a_slow_run() -> None:
    with pytest.raises(TrainingError, match="device cuda was asked for"):
        choose("cuda", "auto")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_are_computed_in_the_chosen_precision(precision: str, dtype: torch.dtype) -> None:
    matrix = torch.rand(4, 4)
    with choose("cpu", precision).autocast():
        assert (matrix @ matrix).dtype == dtype
