"""Pooling: each channel of an image reduced, window by window, to the largest value, the mean or the p-norm."""

from __future__ import annotations

import numpy as np

from training.from_scratch.layer import Floats, Pair, Parameter
from training.from_scratch.windows import add_windows, crop, pad, windows


class MaxPool:
    """The largest value of each window: [n, c, h, w] to [n, c, rows, columns]. The same as torch.nn.MaxPool2d.

    The gradient goes to the first of the largest values, row by row. What is padded never wins.
    """

    def __init__(self, kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0)) -> None:
        """`stride` is the kernel's size unless given. Raises ValueError for padding of more than half the kernel."""
        _require_narrow(padding, kernel)
        self.kernel = kernel
        self.stride = stride or kernel
        self.padding = padding

    def forward(self, x: Floats) -> Floats:
        padded = pad(x, self.padding, -np.inf)
        seen = windows(padded, self.kernel, self.stride)
        count, channels, *_, rows, columns = seen.shape
        cells = seen.reshape(count, channels, -1, rows, columns)
        self._winner = cells.argmax(axis=2, keepdims=True)
        self._padded_size = (padded.shape[2], padded.shape[3])
        return np.take_along_axis(cells, self._winner, axis=2).squeeze(2)

    def backward(self, gradient: Floats) -> Floats:
        count, channels, rows, columns = gradient.shape
        cells = np.arange(self.kernel[0] * self.kernel[1])[:, None, None]
        seen = np.where(cells == self._winner, gradient[:, :, None], gradient.dtype.type(0))
        seen = seen.reshape(count, channels, *self.kernel, rows, columns)
        return crop(add_windows(seen, self._padded_size, self.stride), self.padding)

    def parameters(self) -> tuple[Parameter, ...]:
        return ()


class AveragePool:
    """The mean of each window, padded zeros included. The same as torch.nn.AvgPool2d."""

    def __init__(self, kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0)) -> None:
        """`stride` is the kernel's size unless given. Raises ValueError for padding of more than half the kernel."""
        _require_narrow(padding, kernel)
        self.kernel = kernel
        self.stride = stride or kernel
        self.padding = padding

    def forward(self, x: Floats) -> Floats:
        padded = pad(x, self.padding)
        self._padded_size = (padded.shape[2], padded.shape[3])
        mean: Floats = windows(padded, self.kernel, self.stride).mean(axis=(2, 3))
        return mean

    def backward(self, gradient: Floats) -> Floats:
        count, channels, rows, columns = gradient.shape
        share = (gradient / (self.kernel[0] * self.kernel[1]))[:, :, None, None]
        seen = np.broadcast_to(share, (count, channels, *self.kernel, rows, columns))
        return crop(add_windows(seen, self._padded_size, self.stride), self.padding)

    def parameters(self) -> tuple[Parameter, ...]:
        return ()


class LpPool:
    """(sum of |x|^p)^(1/p) over each window: 1 sums magnitudes, 2 is the Euclidean norm, large p nears the maximum.

    The formula is ONNX's LpPool. torch.nn.LPPool2d leaves the bars out, so it agrees where x >= 0 or p is even.
    """

    def __init__(self, power: int, kernel: Pair, stride: Pair | None = None) -> None:
        """`power` is p, at least 1; `stride` is the kernel's size unless given."""
        if power < 1:
            raise ValueError(f"the power must be at least 1, is {power}")
        self.power = power
        self.kernel = kernel
        self.stride = stride or kernel

    def forward(self, x: Floats) -> Floats:
        self._size = (x.shape[2], x.shape[3])
        self._seen = windows(x, self.kernel, self.stride)
        total: Floats = (np.abs(self._seen) ** self.power).sum(axis=(2, 3))
        self._norm: Floats = total ** (1 / self.power)
        return self._norm

    def backward(self, gradient: Floats) -> Floats:
        # dy/dx = sign(x) (|x| / y)^(p - 1). A window of zeros has a corner there and gets 0, as in PyTorch.
        norm = np.where(self._norm == 0, self._norm.dtype.type(1), self._norm)[:, :, None, None]
        share = np.abs(self._seen) / norm
        seen = gradient[:, :, None, None] * np.sign(self._seen) * share ** (self.power - 1)
        return add_windows(seen, self._size, self.stride)

    def parameters(self) -> tuple[Parameter, ...]:
        return ()


def _require_narrow(padding: Pair, kernel: Pair) -> None:
    """Wider padding would make windows without a single pixel, which have no maximum."""
    if any(2 * border > reach for border, reach in zip(padding, kernel, strict=True)):
        raise ValueError(f"padding {padding} is more than half of the kernel {kernel}")
