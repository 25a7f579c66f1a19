"""Each backward pass is the derivative of its forward pass, by central differences, and what layers refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest

from training.from_scratch.activations import ELU, HardTanh, Identity, LeakyReLU, Maxout, ReLU, Sigmoid, Tanh
from training.from_scratch.convolution import Convolution
from training.from_scratch.dropout import Dropout
from training.from_scratch.layer import Floats, Layer
from training.from_scratch.linear import Flatten, Linear
from training.from_scratch.loss import SoftmaxCrossEntropy
from training.from_scratch.network import Sequential
from training.from_scratch.normalisation import BatchNorm
from training.from_scratch.pooling import AveragePool, LpPool, MaxPool
from training.from_scratch.windows import add_windows, windows

STEP = 1e-6


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape)


def batch_norm(training: bool) -> BatchNorm:
    layer = BatchNorm(normal(4, seed=1), normal(4, seed=2))
    layer.forward(normal(8, 4, 2, 2, seed=3))  # moves the running statistics away from 0 and 1
    layer.training = training
    return layer


# Each takes [n, 4, 6, 5].
LAYERS: dict[str, Layer] = {
    "convolution": Convolution(normal(3, 4, 3, 2), normal(3), (2, 1), (1, 2)),
    "max pool": MaxPool((3, 2), (2, 1), (1, 0)),
    "average pool": AveragePool((2, 3), (1, 2), (1, 1)),
    "l1 pool": LpPool(1, (2, 2)),
    "l2 pool": LpPool(2, (3, 2), (1, 1)),
    "l3 pool": LpPool(3, (2, 3), (2, 1)),  # PyTorch's has no magnitudes: here is its only test on negative values
    "batch norm, training": batch_norm(training=True),
    "batch norm, running": batch_norm(training=False),
    "dropout": Dropout(0.4, np.random.default_rng(0)),
    "identity": Identity(),
    "relu": ReLU(),
    "leaky relu": LeakyReLU(0.1),
    "tanh": Tanh(),
    "hard tanh": HardTanh(),
    "elu": ELU(0.8),
    "sigmoid": Sigmoid(),
    "maxout": Maxout(2),
    "linear": Sequential(Flatten(), Linear(normal(3, 120), normal(3))),
    "network": Sequential(
        Convolution(normal(6, 4, 3, 3) / 3, normal(6), padding=(1, 1)),
        Maxout(2),
        BatchNorm(normal(3), normal(3)),
        AveragePool((2, 2)),
        ELU(),
        Dropout(0.2, np.random.default_rng(1)),
        Flatten(),
        Linear(normal(5, 18), normal(5)),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_backward_is_the_derivative(name: str) -> None:
    layer, x = LAYERS[name], normal(2, 4, 6, 5, seed=4)
    weights = normal(*copy.deepcopy(layer).forward(x).shape, seed=5)

    def objective() -> float:
        # A copy, as a forward pass draws random numbers and moves running statistics.
        return float((copy.deepcopy(layer).forward(x) * weights).sum())

    used = copy.deepcopy(layer)
    used.forward(x)
    assert_close(used.backward(weights), slopes(objective, x))
    for parameter, original in zip(used.parameters(), layer.parameters(), strict=True):
        assert_close(parameter.gradient, slopes(objective, original.value))


def test_backward_of_the_loss_is_the_derivative() -> None:
    logits, labels, criterion = normal(4, 3), np.array([0, 2, 1, 2]), SoftmaxCrossEntropy()
    criterion.forward(logits, labels)
    gradient = criterion.backward()
    assert_close(gradient, slopes(lambda: criterion.forward(logits, labels), logits))


def test_adding_windows_is_the_transpose_of_taking_them() -> None:
    x = normal(2, 3, 7, 6)
    seen = windows(x, (3, 2), (2, 3))
    other = normal(*seen.shape, seed=1)
    assert (seen * other).sum() == pytest.approx((x * add_windows(other, (7, 6), (2, 3))).sum())


def test_a_norm_of_nothing_has_gradient_zero() -> None:
    layer = LpPool(2, (2, 2))
    np.testing.assert_array_equal(layer.forward(np.zeros((1, 1, 2, 2))), 0)
    np.testing.assert_array_equal(layer.backward(np.ones((1, 1, 1, 1))), 0)


def test_dropout_keeps_the_expectation_and_sends_the_gradient_where_the_values_went() -> None:
    layer, x = Dropout(0.25, np.random.default_rng(0)), np.ones((100, 100), np.float32)
    result = layer.forward(x)
    np.testing.assert_allclose(np.unique(result), [0, 1 / 0.75], rtol=1e-6)
    assert (result == 0).mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(layer.backward(x), result)
    assert not np.array_equal(layer.forward(x), result)


def test_dropout_does_nothing_after_training() -> None:
    layer, x = Dropout(0.9, np.random.default_rng(0)), normal(3, 4)
    layer.training = False
    np.testing.assert_array_equal(layer.forward(x), x)
    np.testing.assert_array_equal(layer.backward(x), x)


def test_a_network_hands_its_mode_to_the_layers_within() -> None:
    dropout, norm = Dropout(0.5, np.random.default_rng(0)), BatchNorm(np.ones(3), np.zeros(3))
    network = Sequential(Sequential(dropout, ReLU()), norm)
    network.training = False
    assert not dropout.training
    assert not norm.training
    network.training = True
    assert dropout.training
    assert norm.training


def test_a_layer_learns_on_its_own_copy_of_the_weights() -> None:
    weight = np.ones((2, 3))
    layer = Linear(weight, np.zeros(2))
    layer.weight.value += 1
    np.testing.assert_array_equal(weight, 1)


def test_what_does_not_fit_is_refused() -> None:
    image = np.zeros((1, 3, 4, 4))
    with pytest.raises(ValueError, match="kernel"):
        Convolution(np.zeros((1, 3, 5, 3)), np.zeros(1)).forward(image)
    with pytest.raises(ValueError, match="2 channels"):
        Convolution(np.zeros((1, 2, 3, 3)), np.zeros(1)).forward(image)
    with pytest.raises(ValueError, match="kernel"):
        MaxPool((5, 2)).forward(image)
    with pytest.raises(ValueError, match="half"):
        MaxPool((3, 3), padding=(2, 0))
    with pytest.raises(ValueError, match="half"):
        AveragePool((3, 3), padding=(0, 2))
    with pytest.raises(ValueError, match="power"):
        LpPool(0, (2, 2))
    with pytest.raises(ValueError, match="groups of 2"):
        Maxout(2).forward(image)
    with pytest.raises(ValueError, match="variance"):
        BatchNorm(np.ones(3), np.zeros(3)).forward(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="rate"):
        Dropout(1.0, np.random.default_rng(0))


def slopes(objective: Callable[[], float], values: Floats) -> Floats:
    """The derivative of `objective` by each of `values`, which are moved one at a time, in place."""
    found = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        middle = values[index]
        values[index] = middle + STEP
        above = objective()
        values[index] = middle - STEP
        found[index] = (above - objective()) / (2 * STEP)
        values[index] = middle
    return found


def assert_close(found: Floats, expected: Floats) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
