"""Random crops and flips of a whole batch at once, on the device that holds it, on uint8 pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def crop_and_flip(
    images: Tensor,
    padding: int,
    flip: bool,
    generator: torch.Generator,
    *,
    reflect: bool = False,
    mirrored: Tensor | None = None,
) -> Tensor:
    """Shift each image of uint8 [n, height, width, channels] by up to `padding` pixels and mirror every second one.

    Equal to padding on all sides, with black or, to `reflect`, with the image's own border turned over, cropping at
    random back to size, and a horizontal flip with probability one half: each image is drawn for by itself.
    `mirrored`, bool [n], decides the flips instead of chance. `generator` lives on the images' device.
    """
    count, height, width, _ = images.shape
    device = images.device
    offsets = torch.randint(2 * padding + 1, (2, count, 1), device=device, generator=generator)
    rows = offsets[0] + torch.arange(height, device=device)
    columns = offsets[1] + torch.arange(width, device=device)
    if flip:
        chance = torch.rand((count, 1), device=device, generator=generator) < 0.5
        columns = torch.where(chance if mirrored is None else mirrored[:, None], columns.flip(1), columns)
    which = torch.arange(count, device=device)
    if reflect:
        rows, columns = _reflect(rows - padding, height), _reflect(columns - padding, width)
        return images[which[:, None, None], rows[:, :, None], columns[:, None, :]]
    padded = torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
    return padded[which[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflect(places: Tensor, size: int) -> Tensor:
    """Places outside 0 to size - 1 turned back at the border, which is not repeated: -1 to 1, size to size - 2."""
    return (size - 1) - ((size - 1) - places.abs()).abs()


def reduce(images: Tensor, side: int) -> Tensor:
    """uint8 [n, height, width, channels] resized to `side` x `side`, antialiased."""
    planes = images.movedim(-1, 1)
    small = torch.nn.functional.interpolate(planes, (side, side), mode="bilinear", antialias=True)
    return small.movedim(1, -1).contiguous()


def cut_out(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Blank a square of `side` pixels, mid grey, somewhere in each image of uint8 [n, height, width, channels].

    From T. DeVries and G. Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout" (2017); as in
    airbench96, the square is always whole.
    """
    count, height, width, _ = images.shape
    device = images.device
    tops, lefts = (
        torch.randint(size - side + 1, (count, 1), device=device, generator=generator) for size in (height, width)
    )
    rows, columns = torch.arange(height, device=device) - tops, torch.arange(width, device=device) - lefts
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    return images.masked_fill(inside[..., None], 128)
