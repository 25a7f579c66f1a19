"""The tutorial CNN: six convolutions in three blocks, then three fully connected layers.

Published with it, on the original CIFAR-10, 20 epochs of Adam at 1e-4 in batches of 128: test accuracy 57.5% after
epoch 1, 86.05% at best and 84.95% at the end. 5,852,170 parameters for 32x32x3 images and 10 classes.
"""

from __future__ import annotations

from torch import nn


def build(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Normalised float32 [n, channels, height, width] to logits [n, classes]; sides of at least 8 pixels."""
    height, width, channels = image_shape
    features = 256 * (height // 8) * (width // 8)
    return nn.Sequential(
        *_block(channels, 32, 64),
        *_block(64, 128, 128),
        nn.Dropout2d(0.05),
        *_block(128, 256, 256),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(features, 1024),
        nn.ReLU(inplace=True),
        nn.Linear(1024, 512),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Linear(512, classes),
    )


def _block(channels: int, middle: int, out: int) -> tuple[nn.Module, ...]:
    """Two 3x3 convolutions, the first one batch-normalised, and a 2x2 max pool: halves the sides."""
    return (
        nn.Conv2d(channels, middle, 3, padding=1),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, out, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )
