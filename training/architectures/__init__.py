"""Networks by name. Each takes normalised float32 [n, channels, height, width] and gives logits [n, classes]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from training.architectures import from_scratch, mnist, record, scratch, simple, tutorial
from training.errors import TrainingError

ImageShape = tuple[int, int, int]  # height, width, channels

ARCHITECTURES: dict[str, Callable[[ImageShape, int], nn.Module]] = {
    "mnist": mnist.build,
    "numpy": from_scratch.build,
    "record": record.build,
    "record_gelu": record.build_gelu,
    "scratch": scratch.build,
    "simple": simple.build,
    "tutorial": tutorial.build,
}
# What a network takes from the training images before the first step.
PREPARATIONS: dict[str, Callable[[nn.Module, Tensor], None]] = {
    "record": record.prepare,
    "record_gelu": record.prepare,
}


@runtime_checkable
class DrawsItself(Protocol):
    """A network that torch's exporter cannot look into, and that gives the ONNX graph itself.

    `mean` and `std` (float32 [channels]) normalise uint8 images of `image_shape` before it, `temperature` divides the
    logits behind it: an onnx.ModelProto as `training.export.to_onnx` makes it of all other networks.
    """

    def to_onnx(
        self, image_shape: ImageShape, mean: npt.NDArray[np.float32], std: npt.NDArray[np.float32], temperature: float
    ) -> Any: ...


def build(name: str, image_shape: ImageShape, classes: int) -> nn.Module:
    """A fresh network, initialised from torch's default generator. Raises TrainingError for an unknown name."""
    if name not in ARCHITECTURES:
        raise TrainingError(f"no architecture {name!r}; known: {', '.join(sorted(ARCHITECTURES))}")
    return ARCHITECTURES[name](image_shape, classes)


def prepare(name: str, network: nn.Module, pixels: Tensor) -> None:
    """Let a fresh network look at normalised training images, float32 [n, channels, height, width], if it wants to."""
    if name in PREPARATIONS:
        PREPARATIONS[name](network, pixels)
