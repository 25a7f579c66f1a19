"""Lower precisions of an exported graph: int8 with quantise and dequantise nodes (QDQ), and fp16.

int8 is static: activations uint8 by the ranges of all but the last ten-thousandth of their values on training images,
weights int8 with a scale for each output channel, which loses nothing on weights that `training.weights` has rounded.
Layers that cost too many answers stay in float: a greedy search takes out the most harmful one until the rest agrees
with fp32 on the validation images.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from service import cpu
from service.engine import Engine
from service.images import Pixels
from training.datasets import LabelledImages

CALIBRATION_IMAGES = 256
PERCENTILE = 99.99
BATCH = 64
# The export's gate, which asks the same of the test split. More costs speed: the shipped network passes with every
# layer in int8, and has half the pace where 99.2% on validation are asked for, which leaves one in float.
ENOUGH_AGREEMENT = 0.99
LAYERS = ("Conv", "Gemm", "MatMul")
# Pooling keeps its input's scale, so that a chain of layers stays in int8 throughout.
QUANTISED = (*LAYERS, "MaxPool")


def to_fp16(graph: Any) -> Any:
    """A copy of `graph` (onnx.ModelProto) that computes in fp16; inputs, outputs and the softmax stay what they are."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    converted = convert_float_to_float16(copy, keep_io_types=True, op_block_list=["Softmax", "Cast", "Sub", "Div"])
    # Blocked nodes that share an input get the same cast each: once is enough, and twice is no valid graph.
    nodes = {node.output[0]: node for node in converted.graph.node}
    del converted.graph.node[:]
    converted.graph.node.extend(nodes.values())
    half = OnnxModel(converted)
    half.topological_sort()  # the converter appends its casts at the end
    del half.model.graph.value_info[:]  # and leaves the types that were
    return half.model


def to_int8(graph: Any, train: LabelledImages, validation: LabelledImages) -> Any:
    """`graph` (onnx.ModelProto, weights in float) as QDQ.

    The test split is not looked at: ranges come from CALIBRATION_IMAGES of `train`, drawn by a fixed seed, and the
    search compares with fp32 on `validation`, which is held out from training.
    """
    order = np.random.default_rng(0).permutation(len(train))
    ranges, others = train.images[order[:CALIBRATION_IMAGES]], validation.images
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "plain.onnx")
        onnx.save(graph, plain)
        expected = _top_classes(plain, others)
        layers = [node.name for node in graph.graph.node if node.op_type in LAYERS]
        left_out: tuple[str, ...] = ()
        found, agreement = _attempt(plain, ranges, others, expected, left_out)
        while agreement < ENOUGH_AGREEMENT and len(left_out) < len(layers):
            attempts = {
                name: _attempt(plain, ranges, others, expected, (*left_out, name))
                for name in layers
                if name not in left_out
            }
            best = max(attempts, key=lambda name: attempts[name][1])
            if attempts[best][1] <= agreement:
                break  # what is wrong lies in no single layer: the gate decides
            left_out, (found, agreement) = (*left_out, best), attempts[best]
        return found


def _attempt(
    plain: Path, ranges: Pixels, others: Pixels, expected: np.ndarray[Any, Any], left_out: tuple[str, ...]
) -> tuple[Any, float]:
    """The quantised graph without the layers `left_out`, and the share of `others` with fp32's top class."""
    target = plain.with_name("int8.onnx")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises, through the root logger, on what is done here anyway
    try:
        with redirect_stdout(io.StringIO()):  # and prints what it is at
            quantize_static(
                str(plain),
                str(target),
                _Batches(ranges),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(left_out),
                calibrate_method=CalibrationMethod.Percentile,
                extra_options={"CalibPercentile": PERCENTILE},
            )
    finally:
        root.setLevel(level)
    agreement = float((_top_classes(target, others) == expected).mean())
    return onnx.load(target), agreement


def _top_classes(model: Path, images: Pixels) -> np.ndarray[Any, Any]:
    engine = Engine(model, provider="cpu", threads=cpu.usable_cores(), max_batch_size=BATCH)
    starts = range(0, len(images), BATCH)
    return np.concatenate([engine.run(images[start : start + BATCH]).logits.argmax(1) for start in starts])


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Hands images, uint8 [n, h, w, c], to the calibration, in batches of one size, as it needs them."""

    def __init__(self, images: Pixels) -> None:
        size = min(BATCH, len(images))
        starts = range(0, len(images) - size + 1, size)
        self._batches: Iterator[Pixels] = iter([images[start : start + size] for start in starts])

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}
