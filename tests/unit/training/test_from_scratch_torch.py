"""The NumPy layers and PyTorch's give the same numbers: results, gradients of the input and of the parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from training.from_scratch.activations import ELU, HardTanh, Identity, LeakyReLU, Maxout, ReLU, Sigmoid, Tanh
from training.from_scratch.convolution import Convolution
from training.from_scratch.layer import Floats, Layer, Pair
from training.from_scratch.linear import Flatten, Linear
from training.from_scratch.loss import SoftmaxCrossEntropy
from training.from_scratch.network import SGD
from training.from_scratch.normalisation import BatchNorm
from training.from_scratch.pooling import AveragePool, LpPool, MaxPool

TOLERANCE = {"float32": {"rtol": 2e-4, "atol": 2e-5}, "float64": {"rtol": 1e-9, "atol": 1e-11}}

few_examples = settings(max_examples=50, deadline=None)
dtypes = st.sampled_from(("float32", "float64"))
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 9)
small = st.integers(1, 4)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))

ACTIVATIONS: dict[str, tuple[Layer, Callable[[Tensor], Tensor]]] = {
    "identity": (Identity(), torch.nn.Identity()),
    "relu": (ReLU(), functional.relu),
    "leaky relu": (LeakyReLU(0.2), lambda x: functional.leaky_relu(x, 0.2)),
    "tanh": (Tanh(), torch.tanh),
    "hard tanh": (HardTanh(), functional.hardtanh),
    "elu": (ELU(1.0), functional.elu),
    "elu, alpha 0.7": (ELU(0.7), lambda x: functional.elu(x, 0.7)),
    "sigmoid": (Sigmoid(), torch.sigmoid),
    "flatten": (Flatten(), torch.nn.Flatten()),
}


@st.composite
def sliding(draw: st.DrawFn, narrow: bool = False) -> tuple[Pair, Pair, Pair, Pair]:
    """Size of the image, kernel, stride and padding that fit each other; `narrow`: padding up to half the kernel."""
    axes = []
    for _ in range(2):
        side, reach = draw(sides), draw(small)
        least = max(0, -(-(reach - side) // 2))
        most = reach // 2 if narrow else 3
        if least > most:
            side, least = reach, 0
        axes.append((side, reach, draw(st.integers(1, 4)), draw(st.integers(least, most))))
    size, kernel, stride, padding = zip(*axes, strict=True)
    return size, kernel, stride, padding


@few_examples
@given(geometry=sliding(), count=small, inputs=small, outputs=small, dtype=dtypes, seed=seeds)
def test_convolution(
    geometry: tuple[Pair, Pair, Pair, Pair], count: int, inputs: int, outputs: int, dtype: str, seed: int
) -> None:
    size, kernel, stride, padding = geometry
    generator = np.random.default_rng(seed)
    layer = Convolution(
        normal(generator, (outputs, inputs, *kernel), dtype), normal(generator, (outputs,), dtype), stride, padding
    )
    assert_same(
        layer,
        lambda x, weight, bias: functional.conv2d(x, weight, bias, stride, padding),
        normal(generator, (count, inputs, *size), dtype),
    )


@few_examples
@given(geometry=sliding(narrow=True), count=small, channels=small, ties=st.booleans(), dtype=dtypes, seed=seeds)
def test_max_pool(
    geometry: tuple[Pair, Pair, Pair, Pair], count: int, channels: int, ties: bool, dtype: str, seed: int
) -> None:
    size, kernel, stride, padding = geometry
    x = normal(np.random.default_rng(seed), (count, channels, *size), dtype)
    assert_same(
        MaxPool(kernel, stride, padding),
        lambda x: functional.max_pool2d(x, kernel, stride, padding),
        x.round() if ties else x,
    )


@few_examples
@given(geometry=sliding(narrow=True), count=small, channels=small, dtype=dtypes, seed=seeds)
def test_average_pool(
    geometry: tuple[Pair, Pair, Pair, Pair], count: int, channels: int, dtype: str, seed: int
) -> None:
    size, kernel, stride, padding = geometry
    assert_same(
        AveragePool(kernel, stride, padding),
        lambda x: functional.avg_pool2d(x, kernel, stride, padding),
        normal(np.random.default_rng(seed), (count, channels, *size), dtype),
    )


@few_examples
@given(
    geometry=sliding().filter(lambda each: all(s >= k for s, k in zip(each[0], each[1], strict=True))),
    power=st.integers(1, 4),
    channels=small,
    dtype=dtypes,
    seed=seeds,
)
def test_lp_pool(geometry: tuple[Pair, Pair, Pair, Pair], power: int, channels: int, dtype: str, seed: int) -> None:
    size, kernel, stride, _ = geometry
    x = normal(np.random.default_rng(seed), (2, channels, *size), dtype)
    assert_same(
        LpPool(power, kernel, stride),
        lambda x: functional.lp_pool2d(x, power, kernel, stride),
        np.abs(x) if power % 2 else x,  # PyTorch takes no magnitudes: of odd powers only these agree
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (MaxPool((2, 3)), torch.nn.MaxPool2d((2, 3))),
        (AveragePool((2, 3)), torch.nn.AvgPool2d((2, 3))),
        (LpPool(2, (2, 3)), torch.nn.LPPool2d(2, (2, 3))),
    ],
    ids=("max", "average", "lp"),
)
def test_pools_are_side_by_side_unless_told_otherwise(ours: Layer, theirs: torch.nn.Module) -> None:
    assert_same(ours, theirs, normal(np.random.default_rng(0), (2, 3, 7, 7), "float64"))


@pytest.mark.parametrize("name", ACTIVATIONS)
@few_examples
@given(shape=st.lists(small, min_size=2, max_size=4), spread=st.sampled_from((1, 100)), dtype=dtypes, seed=seeds)
def test_activation(name: str, shape: list[int], spread: int, dtype: str, seed: int) -> None:
    layer, reference = ACTIVATIONS[name]
    x = normal(np.random.default_rng(seed), tuple(shape), dtype) * spread
    assert_same(layer, reference, x)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_at_its_corners(name: str) -> None:
    layer, reference = ACTIVATIONS[name]
    with np.errstate(over="raise", invalid="raise"):
        assert_same(layer, reference, np.array([[-1000.0, -1, 0, 1, 1000]], np.float32))


@few_examples
@given(count=small, channels=small, pieces=small, rest=st.lists(small, max_size=2), dtype=dtypes, seed=seeds)
def test_maxout(count: int, channels: int, pieces: int, rest: list[int], dtype: str, seed: int) -> None:
    assert_same(
        Maxout(pieces),
        lambda x: x.unflatten(1, (channels, pieces)).max(2).values,
        normal(np.random.default_rng(seed), (count, channels * pieces, *rest), dtype),
    )


@few_examples
@given(count=small, inputs=sides, outputs=sides, dtype=dtypes, seed=seeds)
def test_linear(count: int, inputs: int, outputs: int, dtype: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    layer = Linear(normal(generator, (outputs, inputs), dtype), normal(generator, (outputs,), dtype))
    assert_same(layer, functional.linear, normal(generator, (count, inputs), dtype))


@few_examples
@given(count=st.integers(2, 5), channels=small, rest=st.sampled_from(((), (1, 1), (3, 2))), batches=small, seed=seeds)
def test_batch_norm_while_training_and_afterwards(
    count: int, channels: int, rest: tuple[int, ...], batches: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    layer = BatchNorm(normal(generator, (channels,)), normal(generator, (channels,)), momentum=0.3)
    mean, variance = torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64)
    for training in [True] * batches + [False]:
        layer.training = training
        assert_same(
            layer,
            lambda x, weight, bias: functional.batch_norm(x, mean, variance, weight, bias, layer.training, 0.3, 1e-5),
            normal(generator, (count, channels, *rest)) * 3 + 1,
            # The gradient of two nearly equal values is what is left of much larger ones.
            {"rtol": 1e-6, "atol": 1e-8},
        )
        np.testing.assert_allclose(layer.running_mean, mean, **TOLERANCE["float64"])
        np.testing.assert_allclose(layer.running_variance, variance, **TOLERANCE["float64"])


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_in_float32(training: bool) -> None:
    generator = np.random.default_rng(0)
    layer = BatchNorm(normal(generator, (3,), "float32"), normal(generator, (3,), "float32"))
    layer.training = training
    assert_same(
        layer,
        lambda x, weight, bias: functional.batch_norm(x, torch.zeros(3), torch.ones(3), weight, bias, training),
        normal(generator, (8, 3, 5, 5), "float32"),
    )


@few_examples
@given(count=small, classes=sides, spread=st.sampled_from((1, 1000)), dtype=dtypes, seed=seeds)
def test_softmax_cross_entropy(count: int, classes: int, spread: int, dtype: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits, labels = normal(generator, (count, classes), dtype) * spread, generator.integers(classes, size=count)
    criterion = SoftmaxCrossEntropy()
    tensor = torch.tensor(logits, requires_grad=True)
    expected = functional.cross_entropy(tensor, torch.tensor(labels))
    expected.backward()
    np.testing.assert_allclose(criterion.forward(logits, labels), expected.item(), **TOLERANCE[dtype])
    gradient = criterion.backward()
    assert gradient.dtype == dtype
    np.testing.assert_allclose(gradient, tensor.grad, **TOLERANCE[dtype])


@few_examples
@given(rate=st.floats(1e-3, 1), momentum=st.sampled_from((0, 0.9)), decay=st.sampled_from((0, 0.005)), seed=seeds)
def test_sgd(rate: float, momentum: float, decay: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    layer = Linear(normal(generator, (2, 3)), normal(generator, (2,)))
    tensors = [torch.nn.Parameter(torch.tensor(parameter.value)) for parameter in layer.parameters()]
    ours = SGD(layer.parameters(), rate, momentum, decay)
    theirs = torch.optim.SGD(tensors, rate, momentum, weight_decay=decay)
    for _ in range(4):
        for parameter, tensor in zip(layer.parameters(), tensors, strict=True):
            parameter.gradient = normal(generator, parameter.value.shape)
            tensor.grad = torch.tensor(parameter.gradient)
        ours.step()
        theirs.step()
    for parameter, tensor in zip(layer.parameters(), tensors, strict=True):
        np.testing.assert_allclose(parameter.value, tensor.detach(), **TOLERANCE["float64"])


def normal(generator: np.random.Generator, shape: tuple[int, ...], dtype: str = "float64") -> Floats:
    return generator.normal(size=shape).astype(dtype)


def assert_same(
    layer: Layer, reference: Callable[..., Tensor], x: Floats, tolerance: dict[str, float] | None = None
) -> None:
    """`reference` takes `x` and then the layer's parameters, as tensors that ask for gradients."""
    tolerance = tolerance or TOLERANCE[str(x.dtype)]
    tensor = torch.tensor(x, requires_grad=True)
    parameters = [torch.tensor(parameter.value, requires_grad=True) for parameter in layer.parameters()]
    expected, found = reference(tensor, *parameters), layer.forward(x)
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found, expected.detach(), **tolerance)

    gradient = normal(np.random.default_rng(0), found.shape, str(x.dtype))
    expected.backward(torch.tensor(gradient))
    back = layer.backward(gradient)
    assert back.dtype == x.dtype
    np.testing.assert_allclose(back, tensor.grad, **tolerance)
    for parameter, other in zip(layer.parameters(), parameters, strict=True):
        assert parameter.gradient.dtype == x.dtype
        np.testing.assert_allclose(parameter.gradient, other.grad, **tolerance)
