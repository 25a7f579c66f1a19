"""Where data sets come from, by what is typed after --data: "cifar10", or a path. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from training.cifar10 import read_original
from training.datasets import Dataset, ImageShape, read_pictures
from training.errors import TrainingError

CIFAR10 = "cifar10"


def read_data(source: str, name: str | None, shape: ImageShape, download_folder: Path) -> Dataset:
    """Read "cifar10" or a path. Raises TrainingError."""
    if source != CIFAR10:
        return read_pictures(Path(source), shape, name)
    dataset = read_original(download_folder)
    if shape != dataset.train.images.shape[1:]:
        raise TrainingError(f"cifar10 is 32x32x3, the recipe's image_shape is {'x'.join(map(str, shape))}")
    return dataset
