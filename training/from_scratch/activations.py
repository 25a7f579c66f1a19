"""Activation functions: element by element, for arrays of any shape, and maxout over groups of channels."""

from __future__ import annotations

import numpy as np

from training.from_scratch.layer import Floats, Parameter


class Identity:
    """y = x. The same as torch.nn.Identity."""

    def forward(self, x: Floats) -> Floats:
        return x

    def backward(self, gradient: Floats) -> Floats:
        return gradient

    def parameters(self) -> tuple[Parameter, ...]:
        return ()


class ReLU:
    """y = max(x, 0), with slope 0 at 0. The same as torch.nn.ReLU."""

    def forward(self, x: Floats) -> Floats:
        self._positive = x > 0
        return np.maximum(x, 0)

    def backward(self, gradient: Floats) -> Floats:
        return gradient * self._positive

    def parameters(self) -> tuple[Parameter, ...]:
        return ()


class LeakyReLU:
    """y = x where x > 0, else `slope` x. The same as torch.nn.LeakyReLU."""

    def __init__(self, slope: float = 0.01) -> None:
        self.slope = slope

    def forward(self, x: Floats) -> Floats:
        self._positive = x > 0
        return np.where(self._positive, x, self.slope * x)

    def backward(self, gradient: Floats) -> Floats:
        return np.where(self._positive, gradient, self.slope * gradient)

    def parameters(self) -> tuple[Parameter, ...]:
        return ()


class Tanh:
    """y = tanh(x), dy/dx = 1 - y^2. The same as torch.nn.Tanh."""

    def forward(self, x: Floats) -> Floats:
        self._y = np.tanh(x)
        return self._y

    def backward(self, gradient: Floats) -> Floats:
        slope: Floats = 1 - self._y**2
        return gradient * slope

    def parameters(self) -> tuple[Parameter, ...]:
        return ()


class HardTanh:
    """y = x cut off at -1 and 1, flat from there on. The same as torch.nn.Hardtanh."""

    def forward(self, x: Floats) -> Floats:
        self._inside = np.abs(x) < 1
        return x.clip(-1, 1)

    def backward(self, gradient: Floats) -> Floats:
        return gradient * self._inside

    def parameters(self) -> tuple[Parameter, ...]:
        return ()


class ELU:
    """y = x where x > 0, else alpha (e^x - 1). The same as torch.nn.ELU; Clevert et al., 2015."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def forward(self, x: Floats) -> Floats:
        self._positive = x > 0
        # The branch that is not taken must not overflow either.
        self._below = self.alpha * np.expm1(np.minimum(x, 0))
        return np.where(self._positive, x, self._below)

    def backward(self, gradient: Floats) -> Floats:
        return np.where(self._positive, gradient, gradient * (self._below + self.alpha))

    def parameters(self) -> tuple[Parameter, ...]:
        return ()


class Sigmoid:
    """y = 1 / (1 + e^-x), dy/dx = y (1 - y). The same as torch.nn.Sigmoid."""

    def forward(self, x: Floats) -> Floats:
        small: Floats = np.exp(-np.abs(x))  # at most 1: e^-x itself overflows float32 below -88
        self._y: Floats = np.where(x >= 0, small.dtype.type(1), small) / (1 + small)
        return self._y

    def backward(self, gradient: Floats) -> Floats:
        slope: Floats = self._y * (1 - self._y)
        return gradient * slope

    def parameters(self) -> tuple[Parameter, ...]:
        return ()


class Maxout:
    """The largest of each `pieces` neighbouring channels: [n, c * pieces, ...] to [n, c, ...].

    Goodfellow et al., "Maxout networks", 2013: behind a convolution or a linear layer, a learnt convex function.
    The gradient goes to the first of the largest.
    """

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces

    def forward(self, x: Floats) -> Floats:
        """Raises ValueError when the channels cannot be divided into groups of `pieces`."""
        if x.shape[1] % self.pieces:
            raise ValueError(f"{x.shape[1]} channels cannot be divided into groups of {self.pieces}")
        groups = x.reshape(len(x), -1, self.pieces, *x.shape[2:])
        self._winner = groups.argmax(axis=2, keepdims=True)
        return np.take_along_axis(groups, self._winner, axis=2).squeeze(2)

    def backward(self, gradient: Floats) -> Floats:
        count, channels, *rest = gradient.shape
        groups = np.zeros((count, channels, self.pieces, *rest), gradient.dtype)
        np.put_along_axis(groups, self._winner, np.expand_dims(gradient, 2), axis=2)
        return groups.reshape(count, channels * self.pieces, *rest)

    def parameters(self) -> tuple[Parameter, ...]:
        return ()
