"""What each layer of a network gives and costs, seen by letting images through it with forward hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.images import Pixels
from training.model import Classifier


@dataclass(frozen=True)
class Layer:
    """One call of one module on one image. `output` is without the batch: [channels, height, width] or [features].

    `multiply_adds` is None where the module's kind does not tell.
    """

    name: str
    module: nn.Module
    output: Tensor
    parameters: int
    multiply_adds: int | None

    @property
    def kind(self) -> str:
        return type(self.module).__name__.lstrip("_")

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(self.output.shape)


def trace(classifier: Classifier, image: Pixels) -> list[Layer]:
    """The layers of the network in the order in which they compute uint8 `image` [height, width, channels].

    A layer is a module without parts, or one with parameters of its own beside its parts. What a network computes
    between its modules (a sum of two branches) is not seen, nor a module that gives something else than one tensor.
    """
    found: list[Layer] = []

    def note(name: str, module: nn.Module, output: object) -> None:
        if not isinstance(output, Tensor):
            return
        # A copy: the next layer may work in place.
        found.append(Layer(name, module, output[0].clone(), _parameters(module), _multiply_adds(module, output[0])))

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        return lambda module, _, output: note(name, module, output)

    handles = [module.register_forward_hook(hook(name)) for name, module in _layers(classifier.network)]
    try:
        with torch.inference_mode():
            classifier(torch.from_numpy(image[None]))
    finally:
        for handle in handles:
            handle.remove()
    return found


def first_convolution(layers: list[Layer], channels: int) -> Tensor | None:
    """Filters [n, channels, height, width] of the convolution that looks at the image itself; None if none does."""
    first = next((layer.module for layer in layers if _parameters(layer.module)), None)
    if isinstance(first, nn.Conv2d) and first.in_channels == channels and first.groups == 1:
        return first.weight.detach()
    return None


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in network.named_modules():
        if next(module.children(), None) is None or _parameters(module):
            yield name, module


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _multiply_adds(module: nn.Module, output: Tensor) -> int | None:
    """For one image; `output` without the batch. Normalisation, activation and pooling count as none, as is usual."""
    if isinstance(module, nn.Conv2d):
        return output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    return None if _parameters(module) and not isinstance(module, nn.BatchNorm2d) else 0
