"""What a layer is: a function of a batch that also knows the way back, and the parameters it learns."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]  # float32 or float64; a layer answers in the type that it is given
Labels = npt.NDArray[np.int64]
Pair = tuple[int, int]  # of rows, of columns


class Parameter:
    """A learnt array and, once `backward` has run, the gradient of the loss with respect to it (same shape)."""

    def __init__(self, value: Floats) -> None:
        self.value = value.copy()  # training changes it in place, which is nothing to the caller's array
        self.gradient = np.zeros_like(value)


class Layer(Protocol):
    """`backward` goes with the last `forward`: it takes the gradient of the loss with respect to what that returned,
    returns the gradient with respect to what that was given, and sets (does not add to) the parameters' gradients.
    """

    def forward(self, x: Floats) -> Floats: ...

    def backward(self, gradient: Floats) -> Floats: ...

    def parameters(self) -> tuple[Parameter, ...]: ...


@runtime_checkable
class HasModes(Protocol):
    """A layer that computes something else while training than it does afterwards."""

    training: bool
