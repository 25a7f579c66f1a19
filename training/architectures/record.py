"""The record network: made to learn CIFAR-10 in few passes, and small enough to serve.

A frozen 2x2 convolution that whitens 3-channel patches (with the negatives of its filters, so that the activation
loses nothing), then three groups of convolution, pooling and convolution at widths 64, 256, 256, each convolution
followed by batch normalisation and ReLU, then a global maximum and one linear layer. 1,972,792 parameters and 118
million multiply-adds for a 32x32x3 image, against 5,852,170 and 138 million of the tutorial network.

After K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024): its `airbench94` reaches 94.0% on the
original test set with six views and 93.2% with one, in 8 to 10 passes. Here ReLU stands for GELU, since an int8
convolution takes a ReLU along for nothing; `build_gelu` has it as published.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KERNEL = 2
WIDTHS = (64, 256, 256)
# Of the moving statistics: small batches of few passes need quick ones.
_BATCH_NORM_MOMENTUM = 0.4


def build(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Normalised float32 [n, channels, height, width] to logits [n, classes]; sides of at least 17 pixels."""
    return _network(image_shape[2], classes, nn.ReLU)


def build_gelu(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """As `build`, with GELU."""
    return _network(image_shape[2], classes, nn.GELU)


def _network(channels: int, classes: int, activation: type[nn.Module]) -> nn.Module:
    whitened = 2 * channels * KERNEL**2
    whitening = nn.Conv2d(channels, whitened, KERNEL)
    whitening.weight.requires_grad = False
    sizes = (whitened, *WIDTHS)
    groups = [_Group(sizes[index], sizes[index + 1], activation) for index in range(len(WIDTHS))]
    head = nn.Linear(WIDTHS[-1], classes, bias=False)
    with torch.no_grad():
        head.weight.div_(head.weight.std())
    return nn.Sequential(whitening, activation(), *groups, nn.AdaptiveMaxPool2d(1), nn.Flatten(), head, _Scale())


def prepare(network: nn.Module, pixels: Tensor) -> None:
    """Set the frozen first convolution from normalised training images, float32 [n, channels, height, width].

    Its filters are the eigenvectors of the patches' covariance, each divided by the root of its eigenvalue.
    """
    assert isinstance(network, nn.Sequential)
    whitening = network[0]
    assert isinstance(whitening, nn.Conv2d)
    patches = pixels.unfold(2, KERNEL, 1).unfold(3, KERNEL, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)
    covariance = patches.double().T @ patches.double() / len(patches)
    values, vectors = torch.linalg.eigh(covariance)
    # The floor keeps directions that hardly occur, and would be mostly noise, from being blown up.
    filters = (vectors / torch.sqrt(values + 5e-4)).T.flip(0).reshape(-1, pixels.shape[1], KERNEL, KERNEL)
    with torch.no_grad():
        whitening.weight.copy_(torch.cat([filters, -filters]))
        assert whitening.bias is not None
        whitening.bias.zero_()


class _Scale(nn.Module):
    """Keeps the first logits small, so that the first steps are."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits / WIDTHS[-1]


class _Group(nn.Sequential):
    """Convolution, pooling, norm, activation; convolution, norm, activation."""

    def __init__(self, inputs: int, outputs: int, activation: type[nn.Module]) -> None:
        super().__init__(
            _convolution(inputs, outputs), nn.MaxPool2d(2), _batch_norm(outputs), activation(),
            _convolution(outputs, outputs), _batch_norm(outputs), activation(),
        )  # fmt: skip
        # ReLU never falls, so that it may change places with the maximum; GELU falls below -0.75.
        self.rises = activation is nn.ReLU

    def forward(self, images: Tensor) -> Tensor:
        first, pool, first_norm, activation, second, second_norm, _ = self
        images = first(images)
        # A rising function of each channel may go before or after the maximum. Training takes the cheaper order; the
        # other lets an exported graph fold the norm, and fuse the ReLU, into the convolution.
        if self.rises and not self.training:
            images = pool(activation(first_norm(images)))
        else:
            images = activation(first_norm(pool(images)))
        result: Tensor = activation(second_norm(second(images)))
        return result


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3, and at first the identity on as many channels as it has inputs, so that the first passes see far down."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    count = min(inputs, outputs)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[:count])
    return layer


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    """Without a scale to learn: the convolution after it has one."""
    layer = nn.BatchNorm2d(channels, momentum=_BATCH_NORM_MOMENTUM)
    layer.weight.requires_grad = False
    return layer
