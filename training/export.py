"""A finished model to one self-contained ONNX file: uint8 pixels in, probabilities and calibrated logits out.

The file is written beside its final name, checked, run in ONNX Runtime on real images, compared with PyTorch, and
only then given that name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from service.documents import parse_json
from service.engine import EngineError
from service.manifest import GOLDEN_FILE, MODEL_FILE, FileEntry, file_entry, model_file
from training import architectures, quantize, report
from training.calibrate import softmax
from training.datasets import Dataset, LabelledImages
from training.errors import CheckpointError, ParityError
from training.files import write_atomically, write_json
from training.finished import TENSORS_FILE, FinishedModel
from training.inference import Probabilities
from training.loop import hold_out_validation
from training.model import Classifier, predict_logits
from training.parity import Parity, close_enough, measure, measure_bf16, require_equal
from training.weights import to_int8

OPSET = 18
RECORD_FILE = "export.json"
GOLDEN_IMAGES = 16
LOWER_PRECISIONS = ("int8", "fp16", "bf16")


@dataclass(frozen=True)
class Export:
    """What an export found. `of` is the SHA-256 of the model.safetensors that it was made from."""

    of: str
    files: dict[str, FileEntry]
    opset: int
    parity: tuple[Parity, ...]
    compute_precisions: tuple[str, ...]


class _Served(nn.Module):
    """The classifier with the two outputs of the file: probabilities, and the logits that they are the softmax of."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classifier(image)
        return torch.softmax(logits, 1), logits


def export(run: Path, model: FinishedModel, dataset: Dataset, lower: Sequence[str] = LOWER_PRECISIONS) -> Export:
    """Write the model in fp32 and in each of `lower` that passes, golden.npz, predictions.npz, report.html and, about
    all of them, export.json into `run`.

    Raises ParityError, and then leaves no model.onnx.
    """
    for name in (MODEL_FILE, *map(model_file, lower), RECORD_FILE):
        (run / name).unlink(missing_ok=True)
    test, shape = dataset.test, model.spec.recipe.image_shape
    expected = softmax(predict_logits(model.classifier, test.images))
    graph = to_onnx(model.classifier, shape, model.recipe["weights"])
    with _unchecked(run, MODEL_FILE, graph) as path:
        parity = [check(path, test, expected)]
        path.replace(run / MODEL_FILE)
    files = [MODEL_FILE, GOLDEN_FILE]
    plain = to_onnx(model.classifier, shape, "fp32")
    for precision in lower:
        parity.append(_add_lower(run, precision, plain, model, dataset, expected))
        if close_enough(parity[-1]) and model_file(precision) not in files:
            files.append(model_file(precision))
    write_atomically(run / GOLDEN_FILE, golden(model.classifier, test))
    result = Export(
        of=file_entry(run / TENSORS_FILE).sha256,
        files={name: file_entry(run / name) for name in files},
        opset=OPSET,
        parity=tuple(parity),
        compute_precisions=("fp32", *(each.precision for each in parity[1:] if close_enough(each))),
    )
    result = dataclasses.replace(
        result, files=result.files | report.write(run, model, test, expected, dataclasses.asdict(result))
    )
    write_json(run / RECORD_FILE, dataclasses.asdict(result))
    return result


@contextmanager
def _unchecked(run: Path, name: str, graph: Any) -> Iterator[Path]:
    """`graph` in a hidden file, which is gone afterwards unless it was given its name."""
    path = run / f".unchecked-{name}"
    path.write_bytes(graph.SerializeToString())
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def check(path: Path, test: LabelledImages, expected: Probabilities) -> Parity:
    """Parity in fp32 on the CPU provider, the one that is everywhere. Raises ParityError when it does not hold."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        parity = measure(path, "cpu", "fp32", test, expected)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, EngineError) as error:
        raise ParityError(f"the exported file is no valid model: {error}") from error
    require_equal(parity)
    return parity


def _add_lower(
    run: Path, precision: str, plain: Any, model: FinishedModel, dataset: Dataset, expected: Probabilities
) -> Parity:
    """Make `plain`, the fp32 graph, compute in `precision` and measure it; its file stays only if it passes."""
    if precision == "bf16":
        return measure_bf16(run / MODEL_FILE, model.classifier, dataset.test, expected)
    graph = _int8(plain, model, dataset) if precision == "int8" else quantize.to_fp16(plain)
    with _unchecked(run, model_file(precision), graph) as path:
        parity = measure(path, "cpu", precision, dataset.test, expected)
        if close_enough(parity):
            path.replace(run / path.name.removeprefix(".unchecked-"))
    return parity


def _int8(plain: Any, model: FinishedModel, dataset: Dataset) -> Any:
    return quantize.to_int8(plain, *hold_out_validation(dataset, model.spec))


def to_onnx(classifier: Classifier, image_shape: tuple[int, int, int], weights: str) -> Any:
    """The graph as an onnx.ModelProto: uint8 `image` [n, h, w, c] to `probabilities` and `logits`, n left open."""
    network = classifier.network
    if isinstance(network, architectures.DrawsItself):
        mean, std = classifier.mean.numpy(), classifier.std.numpy()
        model = network.to_onnx(image_shape, mean, std, float(classifier.temperature))
    else:
        model = _traced(classifier, image_shape)
    _drop_metadata(model)
    if weights == "int8":
        _store_int8(model.graph)
    return model


def _traced(classifier: Classifier, image_shape: tuple[int, int, int]) -> Any:
    """The graph as torch's exporter draws it, an onnx.ModelProto."""
    example = torch.zeros((2, *image_shape), dtype=torch.uint8)
    # The exporter reports its progress in prints, warnings and log lines; whether it succeeded is checked afterwards.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Served(classifier).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["probabilities", "logits"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )
    assert program is not None  # only when a file name is given
    return program.model_proto


def _drop_metadata(model: Any) -> None:
    """The exporter notes stack traces, with this machine's paths, on every node."""
    graph = model.graph
    for record in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        del record.metadata_props[:]


def _store_int8(graph: Any) -> None:
    """Replace each weight of two or more dimensions by int8 values, a cast and a multiplication by their scales.

    ONNX Runtime multiplies them out once, when the session is made. The weights are on the int8 grid already
    (`training.weights`), and the exporter at most scales whole output channels when it folds batch norms into
    convolutions, so nothing is lost. Raises ParityError if something is.
    """
    weights = [tensor for tensor in graph.initializer if len(tensor.dims) >= 2]
    nodes = []
    for tensor in weights:
        values, name = numpy_helper.to_array(tensor), tensor.name
        integers, scale = to_int8(values)
        if (np.abs(integers * scale - values) > 1e-3 * scale).any():
            raise ParityError(f"{name} is not on an int8 grid: it cannot be stored as int8 without loss")
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            [numpy_helper.from_array(integers, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")]
        )
        nodes += [
            helper.make_node("Cast", [f"{name}.int8"], [f"{name}.float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name]),
        ]
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *body])  # a graph lists a node before those that use its output


def golden(classifier: Classifier, test: LabelledImages) -> bytes:
    """An .npz of a few test images, evenly taken, with the probabilities and logits that PyTorch gives for them."""
    chosen = np.unique(np.linspace(0, len(test) - 1, GOLDEN_IMAGES).round().astype(np.int64))
    images = test.images[chosen]
    logits = predict_logits(classifier, images)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, image=images, probabilities=softmax(logits), logits=logits)
    return file.getvalue()


def load(run: Path) -> Export:
    """The record of the export in `run`. Raises CheckpointError: none there, or its files are not those it made."""
    try:
        record = parse_json((run / RECORD_FILE).read_bytes())
        files = {name: FileEntry(**entry) for name, entry in record["files"].items()}
        current = {name: file_entry(run / name) for name in files}
        tensors = hashlib.sha256((run / TENSORS_FILE).read_bytes()).hexdigest()
        parity = tuple(Parity(**each) for each in record["parity"])
        found = Export(record["of"], files, record["opset"], parity, tuple(record["compute_precisions"]))
    except FileNotFoundError:
        raise CheckpointError(f"{run}: not exported yet; first: cifarserve export --run {run}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run / RECORD_FILE}: damaged: {error!r}") from None
    if current != files or tensors != found.of:
        raise CheckpointError(f"{run}: its files changed since the export; again: cifarserve export --run {run}")
    return found
