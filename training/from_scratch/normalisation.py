"""Batch normalisation: each channel brought to a learnt mean and spread, whatever the layers before it do."""

from __future__ import annotations

import numpy as np

from training.from_scratch.layer import Floats, Parameter


class BatchNorm:
    """y = weight (x - mean) / sqrt(variance + epsilon) + bias, for each channel of [n, c] or [n, c, h, w].

    While training, mean and variance are the batch's own, and the running ones follow them by `momentum`; the
    running variance takes the unbiased estimate. Afterwards they are the running ones. The same as
    torch.nn.BatchNorm1d and BatchNorm2d; Ioffe and Szegedy, 2015.
    """

    def __init__(self, weight: Floats, bias: Floats, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        """`weight` and `bias` [c]."""
        self.weight = Parameter(weight)
        self.bias = Parameter(bias)
        self.momentum = momentum
        self.epsilon = epsilon
        self.running_mean = np.zeros_like(weight)
        self.running_variance = np.ones_like(weight)
        self.training = True

    def forward(self, x: Floats) -> Floats:
        """Raises ValueError while training, for a batch with a single value in a channel: it has no variance."""
        self._from_batch = self.training
        mean, variance = self._statistics(x) if self.training else (self.running_mean, self.running_variance)
        self._scale = 1 / np.sqrt(_spread(variance, x) + self.epsilon)
        self._normalised = (x - _spread(mean, x)) * self._scale
        y: Floats = _spread(self.weight.value, x) * self._normalised + _spread(self.bias.value, x)
        return y

    def backward(self, gradient: Floats) -> Floats:
        axes = _all_but_channels(gradient)
        self.weight.gradient = (gradient * self._normalised).sum(axis=axes)
        self.bias.gradient = gradient.sum(axis=axes)
        inner = gradient
        if self._from_batch:
            # The batch's mean and variance move with x, which takes two directions out of the gradient.
            count = gradient.size // gradient.shape[1]
            along = _spread(self.weight.gradient, gradient) * self._normalised
            inner = gradient - (_spread(self.bias.gradient, gradient) + along) / count
        result: Floats = _spread(self.weight.value, gradient) * self._scale * inner
        return result

    def parameters(self) -> tuple[Parameter, ...]:
        return self.weight, self.bias

    def _statistics(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and variance [c] of the batch; the running ones move towards them."""
        axes = _all_but_channels(x)
        count = x.size // x.shape[1]
        if count < 2:
            raise ValueError(f"a batch of shape {x.shape} has one value in each channel, which has no variance")
        mean, variance = x.mean(axis=axes), x.var(axis=axes)
        self.running_mean = self.running_mean + self.momentum * (mean - self.running_mean)
        unbiased = variance * (count / (count - 1))
        self.running_variance = self.running_variance + self.momentum * (unbiased - self.running_variance)
        return mean, variance


def _all_but_channels(x: Floats) -> tuple[int, ...]:
    return tuple(axis for axis in range(x.ndim) if axis != 1)


def _spread(values: Floats, x: Floats) -> Floats:
    """`values` [c] in a shape that is broadcast over the channels of `x`."""
    return values.reshape(-1, *(1 for _ in x.shape[2:]))
