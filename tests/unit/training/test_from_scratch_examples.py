"""Worked examples with published numbers, and that convolutions and fully connected layers can stand for each other."""

from __future__ import annotations

import numpy as np
import pytest

from training.from_scratch.activations import ReLU
from training.from_scratch.convolution import Convolution
from training.from_scratch.linear import Linear
from training.from_scratch.loss import SoftmaxCrossEntropy
from training.from_scratch.network import Sequential
from training.from_scratch.windows import output_size


def test_cross_correlation_of_a_3x3_image_with_a_2x2_kernel() -> None:
    image = np.array([[12, 3, 19], [25, 10, 1], [9, 7, 17]], np.float64)
    kernel = np.array([[1, 2], [3, 4]], np.float64)
    result = Convolution(kernel[None, None], np.zeros(1)).forward(image[None, None])
    np.testing.assert_array_equal(result, [[[[133, 75], [100, 101]]]])


@pytest.mark.parametrize(("padding", "stride", "expected"), [(0, 1, 3), (0, 2, 2), (1, 2, 3)])
def test_positions_of_a_4x4_kernel_on_a_6x6_image(padding: int, stride: int, expected: int) -> None:
    sliding = ((stride, stride), (padding, padding))
    assert output_size((6, 6), (4, 4), *sliding) == (expected, expected)
    layer = Convolution(np.ones((1, 1, 4, 4)), np.zeros(1), *sliding)
    assert layer.forward(np.ones((1, 1, 6, 6))).shape == (1, 1, expected, expected)


def test_two_fully_connected_layers_and_the_cross_entropy_of_the_third_class() -> None:
    first = Linear(
        np.array([[0.5, 0.8, 0.1, 0.1], [0.2, 0.5, 0.1, 0.6], [0.1, 0.2, 0.1, 0.2]]), np.array([0.2, 0.1, 0.3])
    )
    second = Linear(np.array([[0.2, 0.2, 0.3], [0.3, 0.2, 0.2], [0.2, 0.4, 0.2]]), np.array([0.2, 0.1, 0.2]))
    x = np.array([[15.0, 8, 20, 5]])
    hidden = Sequential(first, ReLU()).forward(x)
    np.testing.assert_allclose(hidden, [[16.6, 12.1, 6.4]], rtol=1e-12)
    logits = second.forward(hidden)
    np.testing.assert_allclose(logits, [[7.86, 8.78, 9.64]], rtol=1e-12)
    loss = SoftmaxCrossEntropy().forward(logits, np.array([2]))
    assert loss == pytest.approx(0.464866, abs=5e-7)


@pytest.mark.parametrize(("stride", "padding"), [((1, 1), (0, 0)), ((2, 1), (1, 2)), ((3, 2), (0, 1))])
def test_a_convolution_is_a_fully_connected_layer_with_a_sparse_matrix(
    stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(4, 2, 6, 5))
    convolution = Convolution(generator.normal(size=(3, 2, 3, 2)), generator.normal(size=3), stride, padding)
    expected = convolution.forward(x)
    matrix = sparse_matrix(convolution.weight.value, x.shape[2:], expected.shape[2:], stride, padding)
    positions = expected.shape[2] * expected.shape[3]
    assert (matrix != 0).sum(axis=1).max() <= 2 * 3 * 2  # a row has at most as many entries as a kernel

    linear = Linear(matrix, np.repeat(convolution.bias.value, positions))
    np.testing.assert_allclose(linear.forward(x.reshape(4, -1)), expected.reshape(4, -1), rtol=1e-12, atol=1e-12)
    gradient = generator.normal(size=expected.shape)
    back = linear.backward(gradient.reshape(4, -1)).reshape(x.shape)
    np.testing.assert_allclose(convolution.backward(gradient), back, rtol=1e-12, atol=1e-12)


def test_a_fully_connected_layer_is_a_convolution_as_large_as_its_input() -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=(4, 2, 5, 3))
    linear = Linear(generator.normal(size=(6, 2 * 5 * 3)), generator.normal(size=6))
    convolution = Convolution(linear.weight.value.reshape(6, 2, 5, 3), linear.bias.value)
    result = convolution.forward(x)
    assert result.shape == (4, 6, 1, 1)
    np.testing.assert_allclose(result[:, :, 0, 0], linear.forward(x.reshape(4, -1)), rtol=1e-12)

    gradient = generator.normal(size=(4, 6))
    back = linear.backward(gradient).reshape(x.shape)
    np.testing.assert_allclose(convolution.backward(gradient[:, :, None, None]), back, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        convolution.weight.gradient.reshape(6, -1), linear.weight.gradient, rtol=1e-12, atol=1e-12
    )


def sparse_matrix(
    weight: np.ndarray,
    size: tuple[int, ...],
    positions: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> np.ndarray:
    """[out * positions, in * pixels]: one row for each result, entry by entry from the definition."""
    matrix = np.zeros((len(weight), *positions, weight.shape[1], *size))
    for out, channel, u, v in np.ndindex(weight.shape):
        for i, j in np.ndindex(positions):
            row, column = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
            if 0 <= row < size[0] and 0 <= column < size[1]:
                matrix[out, i, j, channel, row, column] = weight[out, channel, u, v]
    return matrix.reshape(len(weight) * positions[0] * positions[1], -1)
