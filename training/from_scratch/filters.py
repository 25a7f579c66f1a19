"""The well-known 3x3 image filters, applied by the convolution layer; run as a command, it draws what they do.

python -m training.from_scratch.filters docs/images/filters.png
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from service.images import Pixels
from training.from_scratch.convolution import Convolution
from training.from_scratch.layer import Floats

Rows = tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]


@dataclass(frozen=True)
class Filter:
    """A kernel of `rows` / `divisor`."""

    rows: Rows
    divisor: int = 1

    @property
    def kernel(self) -> Floats:
        """float32 [3, 3]."""
        return np.array(self.rows, np.float32) / self.divisor


FILTERS = {
    "identity": Filter(((0, 0, 0), (0, 1, 0), (0, 0, 0))),
    "edges, diagonal": Filter(((1, 0, -1), (0, 0, 0), (-1, 0, 1))),
    "edges, 4 neighbours": Filter(((0, 1, 0), (1, -4, 1), (0, 1, 0))),
    "edges, 8 neighbours": Filter(((-1, -1, -1), (-1, 8, -1), (-1, -1, -1))),
    "sharpen": Filter(((0, -1, 0), (-1, 5, -1), (0, -1, 0))),
    "box blur": Filter(((1, 1, 1), (1, 1, 1), (1, 1, 1)), 9),
    "Gaussian blur": Filter(((1, 2, 1), (2, 4, 2), (1, 2, 1)), 16),
}

SIZE = 72  # pixels of the sample's side: few enough that a 3x3 kernel can be seen at work
ZOOM = 3
COLUMNS = 4
GAP = 24
CAPTION = 66
INK, PALE, GROUND, LINE = (31, 35, 40), (89, 99, 110), (255, 255, 255), (209, 217, 224)


def apply(kernel: Floats, picture: Pixels) -> Pixels:
    """Cross-correlate each channel of uint8 [height, width, channels] with `kernel` [3, 3]: the same shape and type.

    The border is repeated outwards, as black around the picture would be an edge; what leaves 0 to 255 is cut off.
    """
    # The channels are a batch of grey images to a kernel that treats them all alike.
    channels = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge").astype(np.float32).transpose(2, 0, 1)[:, None]
    filtered = Convolution(kernel[None, None], np.zeros(1, np.float32)).forward(channels)
    return filtered[:, 0].transpose(1, 2, 0).round().clip(0, 255).astype(np.uint8)


def sample_picture(size: int = SIZE) -> Pixels:
    """A boat on a lake before mountains, uint8 [size, size, 3]: flat areas, slopes, thin lines and a little noise."""
    scale = 8  # drawn larger and reduced, for smooth outlines
    side = size * scale
    down = np.linspace(0, 1 / 0.62, side).clip(0, 1)[:, None, None]  # down to the horizon
    sky = np.array((70, 130, 200)) * (1 - down) + np.array((255, 228, 190)) * down
    picture = Image.fromarray(np.broadcast_to(sky, (side, side, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)

    def polygon(colour: tuple[int, int, int], *corners: tuple[float, float]) -> None:
        draw.polygon([(x * side, y * side) for x, y in corners], colour)

    draw.ellipse([side * part for part in (0.68, 0.10, 0.86, 0.28)], (255, 236, 150))
    polygon((98, 104, 136), (0, 0.62), (0, 0.45), (0.14, 0.30), (0.27, 0.43), (0.46, 0.20), (0.80, 0.62))
    polygon((244, 246, 250), (0.46, 0.20), (0.37, 0.31), (0.42, 0.34), (0.46, 0.30), (0.51, 0.35), (0.56, 0.32))
    polygon((62, 88, 84), (0.45, 0.62), (0.78, 0.36), (1, 0.52), (1, 0.62))
    polygon((36, 84, 122), (0, 0.62), (1, 0.62), (1, 1), (0, 1))
    for line in range(9):
        y, left = 0.66 + 0.04 * line, 0.05 + 0.37 * line % 0.55
        polygon((106, 156, 188), (left, y), (left + 0.38, y), (left + 0.38, y + 0.009), (left, y + 0.009))
    polygon((120, 44, 36), (0.22, 0.77), (0.64, 0.77), (0.57, 0.86), (0.29, 0.86))
    polygon((50, 36, 30), (0.415, 0.36), (0.43, 0.36), (0.43, 0.77), (0.415, 0.77))
    polygon((250, 250, 244), (0.445, 0.38), (0.445, 0.73), (0.66, 0.73))
    polygon((214, 62, 48), (0.40, 0.42), (0.40, 0.73), (0.25, 0.73))
    reduced = np.asarray(picture.reduce(scale)).astype(np.float64)
    noise = np.random.default_rng(0).normal(0, 2.5, reduced.shape)
    return (reduced + noise).round().clip(0, 255).astype(np.uint8)


def draw(picture: Pixels) -> Image.Image:
    """`picture` and what each of FILTERS makes of it, in rows of four, with names and kernels below."""
    height, width = picture.shape[0] * ZOOM, picture.shape[1] * ZOOM
    tiles: list[tuple[str, Filter | None, Pixels]] = [("the picture", None, picture)]
    tiles += [(name, each, apply(each.kernel, picture)) for name, each in FILTERS.items()]
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (GAP + COLUMNS * (width + GAP), GAP + rows * (height + CAPTION + GAP)), GROUND)
    for place, (name, shown, pixels) in enumerate(tiles):
        left = GAP + place % COLUMNS * (width + GAP)
        top = GAP + place // COLUMNS * (height + CAPTION + GAP)
        enlarged = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (left, top))
        canvas = ImageDraw.Draw(sheet)
        canvas.text((left, top + height + 10), name, INK, ImageFont.load_default(16))
        if shown:
            _draw_kernel(canvas, shown, left + width, top + height + 10)
    return sheet


def _draw_kernel(canvas: ImageDraw.ImageDraw, shown: Filter, right: int, top: int) -> None:
    """The numbers of a kernel in a grid whose upper right corner is given, its divisor to the left of it."""
    across, down = 20, 18
    left = right - 3 * across
    for row, column in np.ndindex(3, 3):
        x, y = left + column * across, top + row * down
        canvas.rectangle((x, y, x + across, y + down), outline=LINE)
        number = str(shown.rows[row][column])
        canvas.text((x + across / 2, y + down / 2), number, INK, ImageFont.load_default(12), anchor="mm")
    if shown.divisor != 1:
        middle = (left - 8, top + 1.5 * down)
        canvas.text(middle, f"1/{shown.divisor}", PALE, ImageFont.load_default(12), anchor="rm")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw what the named image filters do, as a PNG file.")
    parser.add_argument("path", type=Path, metavar="OUT.png")
    path: Path = parser.parse_args().path
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(sample_picture()).save(path, "PNG", optimize=True)


if __name__ == "__main__":
    main()
