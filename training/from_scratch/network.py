"""Layers in a row, and the stochastic gradient descent that trains them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.from_scratch.layer import Floats, HasModes, Layer, Parameter


class Sequential:
    """Layers, each fed with what the one before it returns. A layer itself."""

    def __init__(self, *layers: Layer) -> None:
        self.layers = layers

    def forward(self, x: Floats) -> Floats:
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, gradient: Floats) -> Floats:
        for layer in reversed(self.layers):
            gradient = layer.backward(gradient)
        return gradient

    def parameters(self) -> tuple[Parameter, ...]:
        return tuple(parameter for layer in self.layers for parameter in layer.parameters())

    @property
    def training(self) -> bool:
        """Whether dropout drops and batch normalisation uses the batch. False without such layers."""
        return any(layer.training for layer in self.layers if isinstance(layer, HasModes))

    @training.setter
    def training(self, training: bool) -> None:
        for layer in self.layers:
            if isinstance(layer, HasModes):
                layer.training = training


class SGD:
    """Stochastic gradient descent with momentum and weight decay, in the form of torch.optim.SGD.

    gradient + weight_decay * value is added to momentum * velocity, and rate * velocity is taken from the value.
    """

    def __init__(
        self, parameters: Sequence[Parameter], rate: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        self.rate = rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self._parameters = tuple(parameters)
        self._velocities = [np.zeros_like(parameter.value) for parameter in parameters]

    def step(self) -> None:
        """Change all parameters, in place, by their gradients."""
        for parameter, velocity in zip(self._parameters, self._velocities, strict=True):
            velocity *= self.momentum
            velocity += parameter.gradient + self.weight_decay * parameter.value
            parameter.value -= self.rate * velocity
