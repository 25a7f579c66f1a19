"""A network of these layers to ONNX, as the server takes it: uint8 pixels in, probabilities and logits out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from training.from_scratch.activations import ELU, HardTanh, Identity, LeakyReLU, Maxout, ReLU, Sigmoid, Tanh
from training.from_scratch.convolution import Convolution
from training.from_scratch.dropout import Dropout
from training.from_scratch.layer import Floats, Layer, Pair
from training.from_scratch.linear import Flatten, Linear
from training.from_scratch.network import Sequential
from training.from_scratch.normalisation import BatchNorm
from training.from_scratch.pooling import AveragePool, LpPool, MaxPool

OPSET = 18
IR_VERSION = 10


class Graph:
    """Nodes and constants as they come; every value gets a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node of one output; returns that output's name, `output` if one is given."""
        output = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """An array inside the file; returns its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name


@dataclass(frozen=True)
class Operator:
    """An ONNX operator of one input, with the float32 constants and the attributes that belong to a layer."""

    name: str
    constants: tuple[npt.ArrayLike, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)


def export(
    network: Sequential,
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    mean: Floats,
    std: Floats,
    temperature: float,
) -> Any:
    """The onnx.ModelProto, in float32: `image` uint8 [n, *image_shape] to `probabilities` and `logits` [n, classes].

    Normalisation by `mean` and `std` [channels] and the temperature are part of it, n is left open, and layers with
    modes are as they are after training. Raises TypeError for a layer that has no translation.
    """
    graph = Graph()
    pixels = graph.add("Cast", "image", to=TensorProto.FLOAT)
    normalised = graph.add("Div", graph.add("Sub", pixels, graph.constant(mean)), graph.constant(std))
    logits = translate(network, graph.add("Transpose", normalised, perm=[0, 3, 1, 2]), graph)
    graph.add("Div", logits, graph.constant(temperature), output="logits")
    graph.add("Softmax", "logits", output="probabilities", axis=1)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "numpy",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", *image_shape])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", classes])
                for name in ("probabilities", "logits")
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def translate(layer: Layer, x: str, graph: Graph) -> str:
    """Add to `graph` what `layer` does to the value named `x`; returns the name of the result."""
    if isinstance(layer, Sequential):
        for inner in layer.layers:
            x = translate(inner, x, graph)
        return x
    if isinstance(layer, Identity | Dropout):
        return x
    if isinstance(layer, Maxout):
        return _maxout(layer, x, graph)
    found = operator(layer)
    return graph.add(found.name, x, *map(graph.constant, found.constants), **found.attributes)


def _maxout(layer: Maxout, x: str, graph: Graph) -> str:
    """Piece k of all groups is every `pieces`-th channel from k on: no shape has to be known."""
    end, axis, step = (graph.constant([value], np.int64) for value in (np.iinfo(np.int64).max, 1, layer.pieces))
    firsts = [graph.constant([first], np.int64) for first in range(layer.pieces)]
    return graph.add("Max", *(graph.add("Slice", x, first, end, axis, step) for first in firsts))


@singledispatch
def operator(layer: Layer) -> Operator:
    """The one operator that computes `layer` after training."""
    raise TypeError(f"{type(layer).__name__} has no translation to ONNX")


@operator.register
def _(layer: Convolution) -> Operator:
    sliding = {"strides": layer.stride, "pads": _borders(layer.padding)}
    return Operator("Conv", (layer.weight.value, layer.bias.value), sliding)


@operator.register
def _(layer: Linear) -> Operator:
    return Operator("Gemm", (layer.weight.value, layer.bias.value), {"transB": 1})


@operator.register
def _(_: Flatten) -> Operator:
    return Operator("Flatten")


@operator.register
def _(layer: MaxPool) -> Operator:
    sliding = {"kernel_shape": layer.kernel, "strides": layer.stride, "pads": _borders(layer.padding)}
    return Operator("MaxPool", (), sliding)


@operator.register
def _(layer: AveragePool) -> Operator:
    sliding = {"kernel_shape": layer.kernel, "strides": layer.stride, "pads": _borders(layer.padding)}
    return Operator("AveragePool", (), {**sliding, "count_include_pad": 1})


@operator.register
def _(layer: LpPool) -> Operator:
    return Operator("LpPool", (), {"kernel_shape": layer.kernel, "strides": layer.stride, "p": layer.power})


@operator.register
def _(layer: BatchNorm) -> Operator:
    arrays = (layer.weight.value, layer.bias.value, layer.running_mean, layer.running_variance)
    return Operator("BatchNormalization", arrays, {"epsilon": layer.epsilon})


@operator.register
def _(_: ReLU) -> Operator:
    return Operator("Relu")


@operator.register
def _(layer: LeakyReLU) -> Operator:
    return Operator("LeakyRelu", (), {"alpha": layer.slope})


@operator.register
def _(_: Tanh) -> Operator:
    return Operator("Tanh")


@operator.register
def _(_: HardTanh) -> Operator:
    return Operator("Clip", (-1, 1))


@operator.register
def _(layer: ELU) -> Operator:
    return Operator("Elu", (), {"alpha": layer.alpha})


@operator.register
def _(_: Sigmoid) -> Operator:
    return Operator("Sigmoid")


def _borders(padding: Pair) -> tuple[int, int, int, int]:
    """Above, left, below, right."""
    return (*padding, *padding)
