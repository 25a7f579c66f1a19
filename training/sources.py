"""Where data sets come from, by what is typed after --data: "cifar10", or a path. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from training.cifar10 import in_shape, read_original
from training.datasets import Dataset, ImageShape, read_pictures
from training.picture_files import BrokenLimit

CIFAR10 = "cifar10"
# For data used before: how many pictures are broken was settled then, and the fingerprint tells a change.
KNOWN_DATA = 1.0


def read_data(
    source: str, name: str | None, shape: ImageShape, download_folder: Path, max_broken: BrokenLimit
) -> Dataset:
    """Read "cifar10" or a path. Raises TrainingError."""
    if source != CIFAR10:
        return read_pictures(Path(source), shape, name, max_broken)
    return in_shape(read_original(download_folder), shape)
