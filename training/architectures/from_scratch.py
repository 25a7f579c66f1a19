"""The `numpy` network: one convolution, one max pool and a linear layer over all that is left, computed by NumPy.

To the training loop it is a torch module like the others: torch holds the weights and takes the steps, while the
layers of training/from_scratch compute forward and backward, on the CPU in float32.

The reference for it, one epoch on grey images: about 90% on MNIST and 30% on the original CIFAR-10 (as the mean of
RGB; here the server's own grey, ITU-R 601 luma), in 90 s for each 1,000 MNIST images and 15 min for each 1,000 of
CIFAR-10. 13,610 parameters for 28x28 grey images and 10 classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.from_scratch.convolution import Convolution
from training.from_scratch.layer import Floats
from training.from_scratch.linear import Flatten, Linear
from training.from_scratch.network import Sequential
from training.from_scratch.pooling import MaxPool
from training.from_scratch.windows import output_size

FILTERS = 8
KERNEL = (3, 3)
POOL = (2, 2)


def build(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Normalised float32 [n, channels, height, width] to logits [n, classes]; sides of at least 4 pixels."""
    height, width, channels = image_shape
    size = output_size((height, width), KERNEL, (1, 1), (0, 0))
    rows, columns = output_size(size, POOL, POOL, (0, 0))
    layers = Sequential(
        Convolution(_initial((FILTERS, channels, *KERNEL)), np.zeros(FILTERS, np.float32)),
        MaxPool(POOL),
        Flatten(),
        Linear(_initial((classes, FILTERS * rows * columns)), np.zeros(classes, np.float32)),
    )
    return NumpyNetwork(layers, classes)


class NumpyNetwork(nn.Module):
    """`layers`, which give logits [n, classes], as a torch module whose parameters are theirs, in their order."""

    def __init__(self, layers: Sequential, classes: int) -> None:
        super().__init__()
        self.layers = layers
        self.classes = classes
        self.weights = nn.ParameterList(torch.from_numpy(each.value) for each in layers.parameters())

    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, channels, height, width] to float32 [n, classes]."""
        self.layers.training = self.training
        logits: Tensor = _Layers.apply(self.layers, images, *self.weights)
        return logits

    def to_onnx(self, image_shape: tuple[int, int, int], mean: Floats, std: Floats, temperature: float) -> Any:
        """The graph with what surrounds the network, see `training.from_scratch.onnx_export.export`."""
        from training.from_scratch.onnx_export import export  # onnx is not needed before

        _give_weights(self.layers, tuple(self.weights))
        return export(self.layers, image_shape, self.classes, mean=mean, std=std, temperature=temperature)


def _give_weights(layers: Sequential, weights: tuple[Tensor, ...]) -> None:
    """Let the layers compute with torch's weights: the same memory on the CPU, not a copy."""
    for own, given in zip(layers.parameters(), weights, strict=True):
        own.value = _array(given)


class _Layers(torch.autograd.Function):
    """NumPy's forward and backward in torch's chain of gradients."""

    @staticmethod
    def forward(ctx: Any, layers: Sequential, images: Tensor, *weights: Tensor) -> Tensor:
        ctx.layers = layers
        _give_weights(layers, weights)
        return torch.from_numpy(layers.forward(_array(images))).to(images.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        images = ctx.layers.backward(_array(gradient))
        weights = (each.gradient for each in ctx.layers.parameters())
        return None, *(torch.from_numpy(each).to(gradient.device) for each in (images, *weights))


def _array(tensor: Tensor) -> Floats:
    values: Floats = tensor.detach().cpu().numpy()
    return values


def _initial(shape: tuple[int, ...]) -> Floats:
    """Normal float32 weights of variance 1 / inputs, which keeps the spread of what comes in; LeCun et al., 1998."""
    weights: Floats = (torch.randn(shape) / float(np.sqrt(np.prod(shape[1:])))).numpy()
    return weights
