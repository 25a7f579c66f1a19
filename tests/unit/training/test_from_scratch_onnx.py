"""Networks of the layers from scratch, served from ONNX with the answers they give here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from service.engine import Engine
from training.from_scratch.activations import ELU, HardTanh, Identity, LeakyReLU, Maxout, ReLU, Sigmoid, Tanh
from training.from_scratch.convolution import Convolution
from training.from_scratch.dropout import Dropout
from training.from_scratch.layer import Floats, Layer, Parameter
from training.from_scratch.linear import Flatten, Linear
from training.from_scratch.loss import softmax
from training.from_scratch.network import Sequential
from training.from_scratch.normalisation import BatchNorm
from training.from_scratch.onnx_export import export
from training.from_scratch.pooling import AveragePool, LpPool, MaxPool

SHAPE = (10, 9, 3)
MEAN, STD = np.array([100, 110, 120], np.float32), np.array([50, 60, 70], np.float32)


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def moved_batch_norm() -> BatchNorm:
    layer = BatchNorm(normal(4), normal(4, seed=1))
    layer.forward(normal(5, 4, 3, 3, seed=2) + 1)
    return layer


# Each takes [n, 4, 8, 7], as a 3x3 convolution makes it of SHAPE.
LAYERS: dict[str, Layer] = {
    "convolution": Convolution(normal(3, 4, 3, 2), normal(3), (2, 1), (1, 2)),
    "max pool": MaxPool((3, 2), (2, 1), (1, 0)),
    "average pool": AveragePool((2, 3), (1, 2), (1, 1)),
    "l1 pool": LpPool(1, (2, 2)),
    "l2 pool": LpPool(2, (3, 2), (1, 1)),
    "l3 pool": LpPool(3, (2, 3), (2, 1)),
    "batch norm": moved_batch_norm(),
    "dropout": Dropout(0.5, np.random.default_rng(0)),
    "identity": Identity(),
    "relu": ReLU(),
    "leaky relu": LeakyReLU(0.1),
    "tanh": Tanh(),
    "hard tanh": HardTanh(),
    "elu": ELU(0.8),
    "sigmoid": Sigmoid(),
    "maxout": Maxout(2),
    "network in a network": Sequential(ReLU(), MaxPool((2, 2))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_exported(name: str, tmp_path: Path) -> None:
    convolution = Convolution(normal(4, 3, 3, 3), normal(4))
    body = Sequential(convolution, LAYERS[name], Flatten())
    body.training = False
    images = np.random.default_rng(3).integers(256, size=(4, *SHAPE), dtype=np.uint8)
    pixels = ((images - MEAN) / STD).transpose(0, 3, 1, 2)
    features = body.forward(pixels).shape[1]
    network = Sequential(body, Linear(normal(3, features) / np.float32(np.sqrt(features)), normal(3)))
    path = tmp_path / "model.onnx"
    onnx.save(export(network, SHAPE, 3, mean=MEAN, std=STD, temperature=2.0), path)
    outputs = Engine(path, provider="cpu", max_batch_size=8).run(images)
    np.testing.assert_allclose(outputs.logits, network.forward(pixels) / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(softmax(outputs.logits), outputs.probabilities, rtol=1e-4, atol=1e-6)


def test_a_layer_without_translation_is_refused() -> None:
    class Negation:
        def forward(self, x: Floats) -> Floats:
            return -x

        def backward(self, gradient: Floats) -> Floats:
            return -gradient

        def parameters(self) -> tuple[Parameter, ...]:
            return ()

    with pytest.raises(TypeError, match="Negation"):
        export(Sequential(Negation()), SHAPE, 2, mean=MEAN, std=STD, temperature=1.0)
