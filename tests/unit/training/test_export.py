"""The ONNX file: PyTorch's answers, or no file."""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from service.engine import Engine
from service.manifest import GOLDEN_FILE, MODEL_FILE
from tests.unit.training.conftest import FinishedRun
from training import export, finished
from training.calibrate import softmax
from training.errors import CheckpointError, ParityError
from training.inference import Probabilities
from training.model import Classifier, predict_logits
from training.parity import Parity, close_enough, compare, measure, require_equal


def test_the_files_answers_are_pytorchs_for_every_batch_size(finished_run: FinishedRun) -> None:
    session = ort.InferenceSession(finished_run.folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    images = finished_run.dataset.test.images
    logits = predict_logits(finished_run.model.classifier, images)
    for count in (1, 2, 7, len(images)):
        probabilities, found = session.run(("probabilities", "logits"), {"image": images[:count]})
        assert found == pytest.approx(logits[:count], abs=1e-4)
        assert probabilities == pytest.approx(softmax(logits[:count]), abs=1e-5)
        assert probabilities.sum(1) == pytest.approx(np.ones(count), abs=1e-6)


def test_the_signature_is_the_designs(finished_run: FinishedRun) -> None:
    model = onnx.load(finished_run.folder / MODEL_FILE)
    onnx.checker.check_model(model, full_check=True)
    (image,) = model.graph.input
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    batch, *rest = image.type.tensor_type.shape.dim
    assert batch.dim_param
    assert [size.dim_value for size in rest] == [8, 8, 3]
    assert [output.name for output in model.graph.output] == ["probabilities", "logits"]


def test_parity_is_measured_on_all_images_and_recorded(finished_run: FinishedRun) -> None:
    record = export.load(finished_run.folder)
    assert record == finished_run.export
    first = record.parity[0]
    assert (first.provider, first.precision, first.n, first.agreement) == ("cpu", "fp32", 30, 1.0)
    assert 0 <= first.max_abs_difference < 1e-4
    assert first.accuracy == finished_run.model.evaluation["accuracy"]
    assert first.images_per_second is not None
    assert first.images_per_second > 0
    assert record.compute_precisions[0] == "fp32"


def test_the_weights_are_stored_in_a_byte_each_and_multiplied_out_when_a_session_starts(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    path = finished_run.folder / MODEL_FILE
    parameters = sum(parameter.numel() for parameter in finished_run.model.classifier.parameters())
    assert path.stat().st_size < 1.1 * parameters
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    assert "Mul" not in {node.op_type for node in graph.node}
    assert all(tensor.data_type != onnx.TensorProto.INT8 for tensor in graph.initializer)


def test_fp32_weights_give_pytorchs_answers_too(finished_run: FinishedRun, tmp_path: Path) -> None:
    model = export.to_onnx(finished_run.model.classifier, (8, 8, 3), "fp32")
    assert not any(tensor.data_type == onnx.TensorProto.INT8 for tensor in model.graph.initializer)
    onnx.save(model, tmp_path / "model.onnx")
    test = finished_run.dataset.test
    assert measure(tmp_path / "model.onnx", "cpu", "fp32", test, _expected(finished_run)).agreement == 1.0


def _expected(run: FinishedRun) -> Probabilities:
    return softmax(predict_logits(run.model.classifier, run.dataset.test.images))


def test_weights_off_the_int8_grid_are_not_stored_as_int8(finished_run: FinishedRun, tmp_path: Path) -> None:
    shutil.copytree(finished_run.folder, tmp_path / "run")
    classifier = finished.load(tmp_path / "run").classifier
    with torch.no_grad():
        classifier.network[3].weight += torch.rand_like(classifier.network[3].weight)
    with pytest.raises(ParityError, match="not on an int8 grid"):
        export.to_onnx(classifier, (8, 8, 3), "int8")


def test_golden_inputs_are_real_images_with_pytorchs_outputs(finished_run: FinishedRun) -> None:
    with np.load(finished_run.folder / GOLDEN_FILE, allow_pickle=False) as golden:
        assert set(golden) == {"image", "probabilities", "logits"}
        assert golden["image"].shape == (16, 8, 8, 3)
        logits = predict_logits(finished_run.model.classifier, golden["image"])
        assert golden["logits"] == pytest.approx(logits, abs=1e-5)
        assert golden["probabilities"] == pytest.approx(softmax(logits), abs=1e-6)
    Engine(finished_run.folder / MODEL_FILE, provider="cpu").check_golden(finished_run.folder / GOLDEN_FILE)


def test_no_path_of_this_machine_is_in_the_file(finished_run: FinishedRun) -> None:
    data = (finished_run.folder / MODEL_FILE).read_bytes()
    for text in (str(Path(export.__file__).parent), str(Path(torch.__file__).parent), "stack_trace"):
        assert text.encode() not in data


class _OtherWhenExported(nn.Module):
    """A network whose exported graph computes something else than it does itself: what parity is there to catch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network(pixels.flip(1) if torch.compiler.is_exporting() else pixels)


def test_an_export_that_computes_something_else_stops_and_leaves_no_model(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run.folder, run)
    model = finished.load(run)
    inner = model.classifier
    wrong = Classifier(_OtherWhenExported(inner.network), inner.mean, inner.std, inner.memory_format).eval()
    with pytest.raises(
        ParityError, match=r"differs from PyTorch on cpu: largest difference .* same top class for [\d.]+%"
    ):
        export.export(run, dataclasses.replace(model, classifier=wrong), finished_run.dataset)
    assert not list(run.glob("*.onnx")) + list(run.glob(".*.onnx"))
    with pytest.raises(CheckpointError, match="not exported yet"):
        export.load(run)


def test_a_file_with_one_changed_weight_fails_the_check(finished_run: FinishedRun, tmp_path: Path) -> None:
    model = onnx.load(finished_run.folder / MODEL_FILE)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("mean"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 5, tensor.name))
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(ParityError, match="differs from PyTorch"):
        export.check(tmp_path / "changed.onnx", finished_run.dataset.test, _expected(finished_run))


def test_a_file_that_is_no_model_fails_the_check(finished_run: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ParityError, match="no valid model"):
        export.check(tmp_path / "broken.onnx", finished_run.dataset.test, _expected(finished_run))


def test_files_changed_since_the_export_are_noticed(finished_run: FinishedRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run.folder, run)
    with (run / MODEL_FILE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match="changed since the export"):
        export.load(run)


def parity(**changes: float) -> Parity:
    same = Parity("cpu", "fp32", 100, 1.0, 0.0, 0.9, 0.0, 0.0)
    return dataclasses.replace(same, **changes)


@pytest.mark.parametrize(
    "changes", [{"max_abs_difference": 2e-4}, {"agreement": 0.99}, {"max_abs_difference": float("nan")}]
)
def test_the_fp32_gate_refuses_other_answers(changes: dict[str, float]) -> None:
    require_equal(parity())
    with pytest.raises(ParityError):
        require_equal(parity(**changes))


@pytest.mark.parametrize("changes", [{"agreement": 0.985}, {"accuracy_drop": 0.004}, {"class_drop": 0.02}])
def test_the_gate_of_lower_precisions_has_a_limit_for_each_figure(changes: dict[str, float]) -> None:
    assert close_enough(parity(agreement=0.99, accuracy_drop=0.003, class_drop=0.015, max_abs_difference=0.05))
    assert not close_enough(parity(**changes))


def test_parity_figures_by_hand() -> None:
    expected = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    found = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.6, 0.4]])
    result = compare("openvino", "bf16", found, expected, np.array([0, 0, 1, 1]))
    assert result == Parity("openvino", "bf16", 4, 0.75, pytest.approx(0.4), 0.5, 0.25, 0.5)


def test_archives_of_golden_arrays_hold_no_objects(finished_run: FinishedRun) -> None:
    data = export.golden(finished_run.model.classifier, finished_run.dataset.test)
    with np.load(io.BytesIO(data), allow_pickle=False) as golden:
        assert [golden[name].dtype for name in ("image", "probabilities", "logits")] == [
            np.uint8,
            np.float32,
            np.float32,
        ]
