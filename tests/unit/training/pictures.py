"""Small generated pictures that a network can tell apart in a few steps: each class has its own colour, with noise."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from training.datasets import Dataset, LabelledImages

COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (210, 50, 40)}
CLASSES = tuple(sorted(COLOURS))


def labelled(count: int, size: int, seed: int) -> LabelledImages:
    """`count` noisy pictures of each class, uint8 [n, size, size, 3], class by class."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(CLASSES), dtype=np.int64), count)
    colours = np.array([COLOURS[name] for name in CLASSES])[labels][:, None, None, :]
    noisy = colours + generator.normal(0, 40, (len(labels), size, size, 3))
    return LabelledImages(noisy.clip(0, 255).astype(np.uint8), labels)


def dataset(train: int = 20, test: int = 10, size: int = 8) -> Dataset:
    """In memory, with `train` and `test` pictures of each class."""
    return Dataset("colours", "memory", CLASSES, labelled(train, size, 1), labelled(test, size, 2))


def write_folder(folder: Path, train: int = 20, test: int = 10, size: int = 8) -> Path:
    """The pictures of `dataset` as PNG files in ImageFolder layout."""
    data = dataset(train, test, size)
    for split, part in (("train", data.train), ("test", data.test)):
        for index, (pixels, label) in enumerate(zip(part.images, part.labels, strict=True)):
            path = folder / split / CLASSES[label] / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(pixels))
    return folder


def write_archive(folder: Path, path: Path, mode: str, prefix: str = "") -> Path:
    """A tar archive of all files in a folder, in no particular order, below `prefix`."""
    with tarfile.open(path, mode) as archive:
        for file in sorted(folder.rglob("*.*"), reverse=True):
            archive.add(file, prefix + file.relative_to(folder).as_posix())
    return path


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
