"""The lower precisions of an export: int8, fp16 and bf16 give fp32's answers, or are not offered."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from service.engine import Engine
from service.manifest import GOLDEN_FILE, MODEL_FILE, model_file
from tests.unit.training.conftest import FinishedRun
from training import export, loop, parity, quantize
from training.calibrate import softmax
from training.datasets import LabelledImages
from training.model import predict_logits
from training.parity import Parity, close_enough, measure


@pytest.fixture(scope="module")
def plain(finished_run: FinishedRun) -> onnx.ModelProto:
    return export.to_onnx(finished_run.model.classifier, (8, 8, 3), "fp32")


def splits(run: FinishedRun) -> tuple[LabelledImages, LabelledImages]:
    return loop.hold_out_validation(run.dataset, run.model.spec)


def test_int8_computes_every_layer_between_quantised_tensors(finished_run: FinishedRun, plain: onnx.ModelProto) -> None:
    graph = quantize.to_int8(plain, *splits(finished_run)).graph
    producers = {output: node.op_type for node in graph.node for output in node.output}
    layers = [node for node in graph.node if node.op_type in quantize.LAYERS]
    assert layers
    for layer in layers:
        assert [producers.get(name) for name in layer.input[:2]] == ["DequantizeLinear"] * 2, layer.name
    kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) >= 2}
    assert onnx.TensorProto.INT8 in kinds, "weights are stored in a byte each"


def test_int8_weights_lose_nothing_that_rounding_had_not_taken(
    finished_run: FinishedRun, plain: onnx.ModelProto
) -> None:
    before = {name: values for name, values in _weights(plain) if values.ndim == 4}
    graph = quantize.to_int8(plain, *splits(finished_run)).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name, values in before.items():
        integers, scale = stored[f"{name}_quantized"], stored[f"{name}_scale"]
        assert integers * scale[:, None, None, None] == pytest.approx(values, abs=1e-3 * float(scale.max()))


def _weights(model: onnx.ModelProto) -> list[tuple[str, np.ndarray]]:
    return [(tensor.name, onnx.numpy_helper.to_array(tensor)) for tensor in model.graph.initializer]


def test_calibration_sees_training_images_only(
    finished_run: FinishedRun, plain: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    original = quantize._Batches.__init__

    def remember(self: quantize._Batches, images: np.ndarray) -> None:
        seen.append(images)
        original(self, images)

    monkeypatch.setattr(quantize._Batches, "__init__", remember)
    quantize.to_int8(plain, *splits(finished_run))
    train = {image.tobytes() for image in splits(finished_run)[0].images}
    assert seen
    assert {image.tobytes() for images in seen for image in images} <= train


def test_a_layer_that_costs_too_many_answers_stays_in_float(
    finished_run: FinishedRun, plain: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [node.name for node in plain.graph.node if node.op_type in quantize.LAYERS]
    guilty = layers[1]
    real = quantize._attempt

    def spoilt(path: Path, ranges: object, others: object, expected: object, left_out: tuple[str, ...]) -> object:
        found, agreement = real(path, ranges, others, expected, left_out)  # type: ignore[arg-type]
        return found, agreement if guilty in left_out else 0.5

    monkeypatch.setattr(quantize, "_attempt", spoilt)
    graph = quantize.to_int8(plain, *splits(finished_run)).graph
    producers = {output: node.op_type for node in graph.node for output in node.output}
    node = next(node for node in graph.node if node.name == guilty)
    assert producers.get(node.input[1]) != "DequantizeLinear"


def test_fp16_computes_in_half_and_speaks_float(plain: onnx.ModelProto) -> None:
    model = quantize.to_fp16(plain)
    onnx.checker.check_model(model, full_check=True)
    assert {value.type.tensor_type.elem_type for value in model.graph.output} == {onnx.TensorProto.FLOAT}
    assert {t.data_type for t in model.graph.initializer if len(t.dims) >= 2} == {onnx.TensorProto.FLOAT16}
    assert plain.graph.initializer[0].data_type == onnx.TensorProto.FLOAT, "the graph given is left as it is"


def test_what_passes_is_offered_with_its_file_and_replays_the_golden_inputs(finished_run: FinishedRun) -> None:
    record = finished_run.export
    assert [each.precision for each in record.parity] == ["fp32", "int8", "fp16", "bf16"]
    passed = ["fp32", *(each.precision for each in record.parity[1:] if close_enough(each))]
    assert list(record.compute_precisions) == passed
    assert "fp16" in passed
    for precision in passed:
        assert model_file(precision) in record.files
        if precision != "bf16":  # which the CPU provider does not compute
            engine = Engine(finished_run.folder / model_file(precision), precision=precision)
            engine.check_golden(finished_run.folder / GOLDEN_FILE)


def test_what_fails_its_gate_is_reported_and_leaves_no_file(
    finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "close_enough", lambda each: each.precision != "int8" and close_enough(each))
    (tmp_path / "model.safetensors").write_bytes((finished_run.folder / "model.safetensors").read_bytes())
    (tmp_path / model_file("int8")).write_bytes(b"of an earlier export")
    record = export.export(tmp_path, finished_run.model, finished_run.dataset, ("int8", "fp16"))
    assert [each.precision for each in record.parity] == ["fp32", "int8", "fp16"]
    assert "int8" not in record.compute_precisions
    assert model_file("int8") not in record.files
    assert not [path.name for path in tmp_path.iterdir() if "int8" in path.name or path.name.startswith(".")]


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, True),
        ({"agreement": 0.9899}, False),
        ({"accuracy_drop": 0.0031}, False),
        ({"class_drop": 0.0151}, False),
        ({"accuracy_drop": -0.01}, True),
        ({"agreement": float("nan")}, False),
    ],
)
def test_the_gate_of_a_lower_precision(changes: dict[str, float], passes: bool) -> None:
    good = Parity("cpu", "int8", 1000, 0.99, 0.1, 0.9, 0.003, 0.015)
    assert close_enough(dataclasses.replace(good, **changes)) is passes


def test_bf16_is_measured_even_where_no_provider_computes_it(finished_run: FinishedRun) -> None:
    test, classifier = finished_run.dataset.test, finished_run.model.classifier
    expected = softmax(predict_logits(classifier, test.images))
    found = parity.measure_bf16(finished_run.folder / MODEL_FILE, classifier, test, expected)
    assert found.precision == "bf16"
    assert found.n == len(test)
    exact = measure(finished_run.folder / MODEL_FILE, "cpu", "fp32", test, expected)
    assert found.max_abs_difference > exact.max_abs_difference, "it is not fp32 under another name"
