"""Convolution of images, as networks mean it: a cross-correlation, one matrix product for each image."""

from __future__ import annotations

import numpy as np

from training.from_scratch.layer import Floats, Pair, Parameter
from training.from_scratch.windows import add_windows, crop, output_size, pad, windows


class Convolution:
    """y[n, o, i, j] = bias[o] + sum over c, u, v of weight[o, c, u, v] * x[n, c, i * stride + u, j * stride + v].

    `x` [n, in, h, w] is padded with zeros first; `y` is [n, out, rows, columns], see `output_size`. The same as
    torch.nn.Conv2d. Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, draws it.
    """

    def __init__(self, weight: Floats, bias: Floats, stride: Pair = (1, 1), padding: Pair = (0, 0)) -> None:
        """`weight` [out, in, kernel rows, kernel columns], `bias` [out]."""
        self.weight = Parameter(weight)
        self.bias = Parameter(bias)
        self.stride = stride
        self.padding = padding

    @property
    def kernel(self) -> Pair:
        _, _, rows, columns = self.weight.value.shape
        return rows, columns

    def forward(self, x: Floats) -> Floats:
        weight = self.weight.value
        count, channels, height, width = x.shape
        if channels != weight.shape[1]:
            raise ValueError(f"weights for {weight.shape[1]} channels do not fit images with {channels}")
        rows, columns = output_size((height, width), self.kernel, self.stride, self.padding)
        padded = pad(x, self.padding)
        # [n, one row for each weight of a kernel, one column for each of its positions]
        self._seen = windows(padded, self.kernel, self.stride).reshape(count, -1, rows * columns)
        self._padded_size = (padded.shape[2], padded.shape[3])
        y = weight.reshape(len(weight), -1) @ self._seen + self.bias.value[:, None]
        return y.reshape(count, -1, rows, columns)

    def backward(self, gradient: Floats) -> Floats:
        weight = self.weight.value
        count, outputs, rows, columns = gradient.shape
        flat = gradient.reshape(count, outputs, rows * columns)
        self.weight.gradient = np.tensordot(flat, self._seen, axes=((0, 2), (0, 2))).reshape(weight.shape)
        self.bias.gradient = flat.sum(axis=(0, 2))
        seen = weight.reshape(outputs, -1).T @ flat
        seen = seen.reshape(count, weight.shape[1], *self.kernel, rows, columns)
        return crop(add_windows(seen, self._padded_size, self.stride), self.padding)

    def parameters(self) -> tuple[Parameter, ...]:
        return self.weight, self.bias
