"""Networks by name. Each takes normalised float32 [n, channels, height, width] and gives logits [n, classes]."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from training.architectures import tutorial
from training.errors import TrainingError

ImageShape = tuple[int, int, int]  # height, width, channels

ARCHITECTURES: dict[str, Callable[[ImageShape, int], nn.Module]] = {
    "tutorial": tutorial.build,
}


def build(name: str, image_shape: ImageShape, classes: int) -> nn.Module:
    """A fresh network, initialised from torch's default generator. Raises TrainingError for an unknown name."""
    if name not in ARCHITECTURES:
        raise TrainingError(f"no architecture {name!r}; known: {', '.join(sorted(ARCHITECTURES))}")
    return ARCHITECTURES[name](image_shape, classes)
