"""A folder of small generated pictures, for the tests that read one from disk or train on one through the commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (210, 50, 40)}
SIZE = 12


def write(folder: Path, count: int = 12) -> Path:
    """`count` noisy pictures of each colour as <class>/<picture>, without a train/test division; gives `folder`."""
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = (colour + generator.normal(0, 40, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")
    return folder
