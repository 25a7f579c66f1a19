"""The fully connected layer, and the flattening of images that leads to one."""

from __future__ import annotations

from training.from_scratch.layer import Floats, Parameter


class Linear:
    """y = x weight^T + bias: [n, in] to [n, out]. The same as torch.nn.Linear."""

    def __init__(self, weight: Floats, bias: Floats) -> None:
        """`weight` [out, in], `bias` [out]."""
        self.weight = Parameter(weight)
        self.bias = Parameter(bias)

    def forward(self, x: Floats) -> Floats:
        self._x = x
        return x @ self.weight.value.T + self.bias.value

    def backward(self, gradient: Floats) -> Floats:
        self.weight.gradient = gradient.T @ self._x
        self.bias.gradient = gradient.sum(axis=0)
        return gradient @ self.weight.value

    def parameters(self) -> tuple[Parameter, ...]:
        return self.weight, self.bias


class Flatten:
    """[n, ...] to [n, everything else], the last axis fastest. The same as torch.nn.Flatten."""

    def forward(self, x: Floats) -> Floats:
        self._shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, gradient: Floats) -> Floats:
        return gradient.reshape(self._shape)

    def parameters(self) -> tuple[Parameter, ...]:
        return ()
