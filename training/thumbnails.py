"""Small pictures of images, filters and feature maps, as PNG data addresses to stand inside a page."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

from service.images import Pixels

LARGEST = 96  # pixels a side; what is larger is scaled down
COLOUR_MAP = "viridis"  # evenly brighter, and readable to the colour-blind


def picture(pixels: Pixels) -> str:
    """Of uint8 [height, width, 1 or 3]."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def filters(weights: npt.NDArray[np.floating]) -> list[str]:
    """Of [n, 1 or 3 channels, height, width]: each scaled by its own largest weight, with 0 as middle grey."""
    largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    shades = 127.5 + 127.5 * weights / np.where(largest > 0, largest, 1)
    return [picture(each) for each in shades.round().astype(np.uint8).transpose(0, 2, 3, 1)]


def feature_maps(output: npt.NDArray[np.floating], count: int) -> list[str]:
    """Of [channels, height, width]: the `count` channels that vary most over the image, dark to bright."""
    chosen = np.argsort(-output.std(axis=(1, 2)), kind="stable")[:count]
    colours = matplotlib.colormaps[COLOUR_MAP]
    maps = []
    for channel in output[chosen]:
        low, high = channel.min(), channel.max()
        shades = (channel - low) / (high - low if high > low else 1)
        maps.append(picture(np.ascontiguousarray(colours(shades, bytes=True)[..., :3])))
    return maps
