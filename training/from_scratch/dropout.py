"""Dropout: values left out at random while training, so that none is relied on alone."""

from __future__ import annotations

import numpy as np

from training.from_scratch.layer import Floats, Parameter


class Dropout:
    """While training each value is zeroed with probability `rate` and the others are divided by 1 - rate, which
    keeps the expectation; afterwards y = x. The same as torch.nn.Dropout; Srivastava et al., 2014.
    """

    def __init__(self, rate: float, generator: np.random.Generator) -> None:
        """Raises ValueError unless 0 <= rate < 1."""
        if not 0 <= rate < 1:
            raise ValueError(f"the rate must be at least 0 and below 1, is {rate}")
        self.rate = rate
        self.generator = generator
        self.training = True

    def forward(self, x: Floats) -> Floats:
        if not self.training:
            self._factor = np.ones((), x.dtype)
            return x
        kept = self.generator.random(x.shape) >= self.rate
        self._factor = kept.astype(x.dtype) / (1 - self.rate)
        return x * self._factor

    def backward(self, gradient: Floats) -> Floats:
        return gradient * self._factor

    def parameters(self) -> tuple[Parameter, ...]:
        return ()
