"""The MNIST network: convolution and pool twice, then two fully connected layers, for grey digits of 28x28.

What is asked of it, and usual for its kind since LeCun et al., "Gradient-based learning applied to document
recognition" (1998), is a test accuracy above 99%.
"""

from __future__ import annotations

from torch import nn

WIDTHS = (32, 64)
HIDDEN = 128


def build(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Normalised float32 [n, channels, height, width] to logits [n, classes]; sides of at least 4 pixels."""
    height, width, channels = image_shape
    return nn.Sequential(
        *_block(channels, WIDTHS[0]),
        *_block(WIDTHS[0], WIDTHS[1]),
        nn.Flatten(),
        nn.Linear(WIDTHS[1] * (height // 4) * (width // 4), HIDDEN),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(HIDDEN, classes),
    )


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A 5x5 convolution and a 2x2 max pool: halves the sides."""
    return nn.Conv2d(inputs, outputs, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)
