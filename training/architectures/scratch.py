"""The scratch network: four unpadded 3x3 convolutions in two blocks, then two fully connected layers.

Published for it, on the original CIFAR-10, 20 epochs of SGD: 83.356% on the 50,000 training images themselves, the
test images not being mentioned. 271,786 parameters and 15 million multiply-adds for 32x32x3 images and 10 classes.
"""

from __future__ import annotations

from torch import nn

HIDDEN = 128


def build(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Normalised float32 [n, channels, height, width] to logits [n, classes]; sides of at least 16 pixels."""
    height, width, channels = image_shape
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    network = nn.Sequential(
        *_block(channels, 32),
        *_block(32, 64),
        nn.Flatten(),
        nn.Linear(64 * rows * columns, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, classes),
    )
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            # He et al., "Delving deep into rectifiers" (2015): torch's own weights are smaller, and at this small rate
            # the first epochs would go by before the signal through them had grown.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return network


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Two convolutions, each of which takes a pixel off every side, and a 2x2 max pool."""
    return (
        nn.Conv2d(inputs, outputs, 3),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
