"""The original, lossless CIFAR-10 (Krizhevsky, 2009), downloaded and verified by torchvision.

torchvision.datasets.CIFAR10 reads the Python version of the data, which is a pickle: loading one runs whatever code
it names. The same pixels are published in a plain binary layout, so torchvision's download and checksum functions
fetch that one, and its records are parsed here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from service.images import from_raw
from training.datasets import Dataset, ImageShape, LabelledImages
from training.errors import DatasetError

MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as published beside the archive
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PLANES = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # the label, then the red, green and blue planes, row by row


def read_original(folder: Path) -> Dataset:
    """CIFAR-10 from `folder`, fetched into it first if need be (170 MB). Raises DatasetError."""
    batches = folder / FOLDER
    if not all((batches / name).is_file() for name in TRAIN_FILES + TEST_FILES):
        _download(folder)
    return Dataset(
        "CIFAR-10", "cifar10", CLASSES, read_batches(batches, TRAIN_FILES), read_batches(batches, TEST_FILES)
    )


def in_shape(dataset: Dataset, shape: ImageShape) -> Dataset:
    """The same images in another size, or in grey, as the server would bring them there."""

    def fitted(part: LabelledImages) -> LabelledImages:
        height, width, _ = part.images.shape[1:]
        images = [from_raw(image.tobytes(), width, height, shape) for image in part.images]
        return LabelledImages(np.stack(images), part.labels)

    if dataset.train.images.shape[1:] == shape:
        return dataset
    return dataclasses.replace(dataset, train=fitted(dataset.train), test=fitted(dataset.test))


def read_batches(folder: Path, names: tuple[str, ...]) -> LabelledImages:
    """The records of some batch files, in order: uint8 [n, 32, 32, 3] and labels. Raises DatasetError."""
    parts = [_parse(folder / name) for name in names]
    return LabelledImages(
        np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts])
    )


def _parse(path: Path) -> LabelledImages:
    try:
        records = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from None
    if not len(records) or len(records) % _RECORD:
        raise DatasetError(f"{path}: {len(records)} bytes are no whole number of {_RECORD}-byte records")
    records = records.reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(CLASSES):
        raise DatasetError(f"{path}: label {labels.max()} in it, there are {len(CLASSES)} classes")
    planes = records[:, 1:].reshape(-1, *_PLANES)
    return LabelledImages(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)


def archive_url() -> str:
    """Where the binary version is published: beside the Python version, whose address torchvision knows."""
    from torchvision.datasets import CIFAR10  # slow to import, and needed once

    return str(CIFAR10.url).replace("python", "binary")


def _download(folder: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    url = archive_url()
    try:
        download_and_extract_archive(url, str(folder), md5=MD5)
    except (OSError, RuntimeError) as error:
        raise DatasetError(f"CIFAR-10 could not be fetched from {url}: {error}") from None
