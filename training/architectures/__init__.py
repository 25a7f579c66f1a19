"""Networks by name. Each takes normalised float32 [n, channels, height, width] and gives logits [n, classes]."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from training.architectures import record, tutorial
from training.errors import TrainingError

ImageShape = tuple[int, int, int]  # height, width, channels

ARCHITECTURES: dict[str, Callable[[ImageShape, int], nn.Module]] = {
    "record": record.build,
    "tutorial": tutorial.build,
}
# What a network takes from the training images before the first step.
PREPARATIONS: dict[str, Callable[[nn.Module, Tensor], None]] = {
    "record": record.prepare,
}


def build(name: str, image_shape: ImageShape, classes: int) -> nn.Module:
    """A fresh network, initialised from torch's default generator. Raises TrainingError for an unknown name."""
    if name not in ARCHITECTURES:
        raise TrainingError(f"no architecture {name!r}; known: {', '.join(sorted(ARCHITECTURES))}")
    return ARCHITECTURES[name](image_shape, classes)


def prepare(name: str, network: nn.Module, pixels: Tensor) -> None:
    """Let a fresh network look at normalised training images, float32 [n, channels, height, width], if it wants to."""
    if name in PREPARATIONS:
        PREPARATIONS[name](network, pixels)
