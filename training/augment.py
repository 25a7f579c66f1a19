"""Random crops and flips of a whole batch at once, on the device that holds it, on uint8 pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def crop_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image of uint8 [n, height, width, channels] by up to `padding` pixels and mirror every second one.

    Equal to padding with black on all sides, cropping at random back to size, and a horizontal flip with
    probability one half: each image is drawn for by itself. `generator` lives on the images' device.
    """
    count, height, width, _ = images.shape
    device = images.device
    padded = torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
    offsets = torch.randint(2 * padding + 1, (2, count, 1), device=device, generator=generator)
    rows = offsets[0] + torch.arange(height, device=device)
    columns = offsets[1] + torch.arange(width, device=device)
    if flip:
        mirrored = torch.rand((count, 1), device=device, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(count, device=device)
    return padded[which[:, None, None], rows[:, :, None], columns[:, None, :]]
