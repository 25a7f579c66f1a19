"""Which precision a version is computed in: the fastest that passed its gates and gives its golden answers."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import onnx
import pytest
from onnxruntime.transformers.float16 import convert_float_to_float16

from service import cpu, serving
from service.manifest import GOLDEN_FILE, MODEL_FILE, Manifest, file_entry, model_file, read_manifest
from service.model_config import Compute
from service.precisions import PrecisionError, fastest_first
from service.serving import LoadError
from tests import colour_model

COMPUTE = Compute(
    provider="cpu", precision="auto", threads=1, max_batch_size=4, max_queue_delay=0, target_latency=0,
    max_queue_bytes=1 << 30, max_queue_images=16, instances=1,
)  # fmt: skip


def publish(repository: Path, scale: float = 1.0) -> Path:
    """A version with a second file, in the place of int8: the model in fp16, its answers `scale` times as sure."""
    folder = colour_model.publish(repository)
    other = model_file("int8")
    onnx.save(convert_float_to_float16(colour_model.build(scale, 0), keep_io_types=True), folder / other)
    entries = {name: dataclasses.asdict(file_entry(folder / name)) for name in (MODEL_FILE, GOLDEN_FILE, other)}
    colour_model.edit_manifest(folder, compute_precisions=["fp32", "int8"], files=entries)
    return folder


def load(folder: Path, **changes: object) -> serving.Loaded:
    return serving.load(folder, "colours", 1, dataclasses.replace(COMPUTE, **changes))


def manifest(tmp_path: Path, *passed: str) -> Manifest:
    return dataclasses.replace(read_manifest(colour_model.publish(tmp_path)), compute_precisions=passed)


@pytest.fixture
def fast_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "computes_int8", lambda: True)
    monkeypatch.setattr(cpu, "computes_bf16", lambda: True)


@pytest.mark.usefixtures("fast_int8")
@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        ("cpu", ("int8", "fp32")),
        ("openvino", ("int8", "bf16", "fp32")),
        ("cuda", ("fp16", "fp32")),
        ("tensorrt", ("fp16", "fp32")),
    ],
)
def test_each_provider_has_its_order_and_nothing_that_has_not_passed(
    tmp_path: Path, provider: str, expected: tuple[str, ...]
) -> None:
    passed = manifest(tmp_path, "fp32", "bf16", "fp16", "int8")
    assert fastest_first(passed, provider, "auto") == expected
    only = dataclasses.replace(passed, compute_precisions=("fp32",))
    assert fastest_first(only, provider, "auto") == ("fp32",)


def test_a_processor_without_the_instructions_keeps_to_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_flags", lambda: ["sse4_2", "avx2"])
    assert fastest_first(manifest(tmp_path, "fp32", "bf16", "int8"), "openvino", "auto") == ("fp32",)


def test_a_precision_asked_for_is_taken_or_refused(tmp_path: Path) -> None:
    passed = manifest(tmp_path, "fp32", "int8")
    assert fastest_first(passed, "cpu", "int8") == ("int8",)
    with pytest.raises(PrecisionError, match=r"precision fp16 was asked for; it passed in fp32, int8 only"):
        fastest_first(passed, "cuda", "fp16")


@pytest.mark.usefixtures("fast_int8")
def test_the_fastest_is_served_and_named(tmp_path: Path) -> None:
    (engine,) = load(publish(tmp_path)).engines
    assert engine.precision == "int8"
    (engine,) = load(tmp_path / "colours" / "1", precision="fp32").engines
    assert engine.precision == "fp32"


@pytest.mark.usefixtures("fast_int8")
def test_one_that_gives_other_answers_than_the_golden_ones_is_passed_over_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = publish(tmp_path, scale=-1.0)
    with caplog.at_level(logging.WARNING):
        (engine,) = load(folder).engines
    assert engine.precision == "fp32"
    assert "computed on CPUExecutionProvider in fp32: golden outputs differ" in caplog.text
    with pytest.raises(LoadError, match="golden outputs differ"):
        load(folder, precision="int8")


def test_a_precision_that_has_not_passed_is_no_way_to_serve(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="precision fp16 was asked for"):
        load(publish(tmp_path), precision="fp16")


def test_a_precision_without_its_file_is_a_fault_of_the_manifest(tmp_path: Path) -> None:
    folder = colour_model.publish(tmp_path)
    colour_model.edit_manifest(folder, compute_precisions=["fp32", "int8"])
    with pytest.raises(LoadError, match=r"files: must list model\.int8\.onnx"):
        load(folder)


def test_auto_takes_a_provider_that_runs_and_says_which(tmp_path: Path) -> None:
    (engine,) = load(colour_model.publish(tmp_path), provider="auto").engines
    assert engine.provider in ("CUDAExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider")
