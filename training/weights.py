"""Weights in a quarter of the space: int8 with one scale for each output channel.

The weights are rounded in the PyTorch model, before it is calibrated and evaluated, so that the model measured is
the model shipped. The file then stores the small integers, and the graph multiplies them out (`training.export`).
Arithmetic stays fp32 throughout: this saves bytes, not time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

FORMATS = ("fp32", "int8")
LARGEST = 127  # symmetric: -128 is not used


def round_weights(network: nn.Module, weights: str) -> None:
    """Bring every weight of two or more dimensions onto the grid of `weights`; biases and norms stay as they are."""
    if weights == "fp32":
        return
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim >= 2:
                integers, scale = to_int8(parameter.detach().cpu().numpy())
                parameter.copy_(torch.from_numpy(integers.astype(np.float32) * scale))


def to_int8(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Integers [out, ...] in [-127, 127] and scales [out, 1, ...], whose product is nearest to `values` [out, ...].

    The scale takes each output channel's largest weight to 127. A channel of zeros has the scale 1.
    """
    inner = tuple(range(1, values.ndim))
    scale = np.abs(values).max(axis=inner, keepdims=True) / np.float32(LARGEST)
    scale = np.where(scale > 0, scale, np.float32(1))
    return np.rint(values / scale).astype(np.int8), scale
