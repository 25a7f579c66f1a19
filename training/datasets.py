"""Labelled pictures in memory, from a folder or a tar archive in ImageFolder layout, or the original CIFAR-10.

ImageFolder layout: `train/<class>/<picture>` and `test/<class>/<picture>`, or `<class>/<picture>` without such a
division, which is then made here. Every picture goes through `service.images.decode`, as the server's do.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from service.images import ImageError, Pixels, decode
from training.errors import DatasetError
from training.picture_files import DEFAULT_MAX_BROKEN, SUFFIXES, Broken, BrokenLimit, PictureFile, picture_files
from training.splits import stratified_holdout

Labels = npt.NDArray[np.int64]
ImageShape = tuple[int, int, int]  # height, width, channels

SPLITS = {"train", "test"}
TEST_FRACTION = 0.2
# Not the recipe's seed: what is test data must stay test data from one retraining to the next.
TEST_SEED = 0
SHOWN = 10  # broken pictures in a message


@dataclass(frozen=True)
class LabelledImages:
    """`images` uint8 [n, height, width, channels], `labels` int64 [n]."""

    images: Pixels
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: npt.NDArray[np.int64]) -> LabelledImages:
        return LabelledImages(self.images[indices], self.labels[indices])

    def fingerprint(self) -> str:
        """SHA-256 over shape, pixels and labels, in order."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(self.images.tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """`classes[label]` is the name of a label; `source` says where it was read, for this machine only.

    `skipped` are the broken pictures that were left out.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    skipped: tuple[Broken, ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 over class names and both splits."""
        parts = (*self.classes, self.train.fingerprint(), self.test.fingerprint())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_pictures(
    path: Path, shape: ImageShape, name: str | None = None, max_broken: BrokenLimit = DEFAULT_MAX_BROKEN
) -> Dataset:
    """Read a folder, or a tar archive of one, with all pictures brought to `shape`.

    Without a train/test division a fifth of each class becomes the test split, always the same one. Broken pictures
    are left out, up to `max_broken`. Raises DatasetError: nothing to read there, more broken pictures than that
    (naming them), a class without enough pictures to divide.
    """
    pictures, broken = _decode_all(picture_files(path), shape)
    _require_few(broken, len(pictures) + len(broken), max_broken, path)
    if not pictures:
        raise DatasetError(f"{path}: no pictures in it ({', '.join(SUFFIXES)})")
    if lost := {each.path.parent for each in broken} - {each.parent for each, _ in pictures}:
        raise DatasetError(f"{path}: all pictures are broken in: {', '.join(sorted(map(str, lost)))}")
    classes, splits = _arrange(pictures, path)
    _require_enough(classes, splits, path)
    if splits.keys() != SPLITS:
        whole = splits[""]
        train, test = stratified_holdout(whole.labels, TEST_FRACTION, TEST_SEED)
        splits = {"train": whole.select(train), "test": whole.select(test)}
    name = name or path.name.split(".")[0]
    return Dataset(name, str(path.resolve()), classes, splits["train"], splits["test"], tuple(broken))


def _decode_all(
    files: Iterable[PictureFile | Broken], shape: ImageShape
) -> tuple[list[tuple[PurePosixPath, Pixels]], list[Broken]]:
    """What decodes and what does not, each sorted by name: a folder and an archive of it give the same data set."""
    pictures: list[tuple[PurePosixPath, Pixels]] = []
    broken: list[Broken] = []
    for file in files:
        if isinstance(file, Broken):
            broken.append(file)
            continue
        path, data = file
        try:
            pictures.append((path, decode(data, shape)))
        except ImageError as error:
            broken.append(Broken(path, str(error)))
    return sorted(pictures, key=lambda picture: picture[0]), sorted(broken)


def _require_few(broken: list[Broken], total: int, limit: BrokenLimit, source: Path) -> None:
    allowed = limit * total if isinstance(limit, float) else limit
    if len(broken) > allowed:
        shown = f"{limit:.3g} of them" if isinstance(limit, float) else str(limit)
        raise DatasetError(
            f"{source}: {len(broken)} of {total} pictures are broken: {listed(broken)} (--max-broken allows {shown})"
        )


def listed(broken: Iterable[Broken]) -> str:
    """The first of them with their reasons, in a line."""
    texts = [f"{each.path} {each.reason}" for each in broken]
    return "; ".join(texts[:SHOWN]) + ("; ..." if len(texts) > SHOWN else "")


def _arrange(
    pictures: list[tuple[PurePosixPath, Pixels]], source: Path
) -> tuple[tuple[str, ...], dict[str, LabelledImages]]:
    """Class names, and the pictures by split: "train" and "test", or "" when there is no such division."""
    outer = _common_depth([path for path, _ in pictures])
    divided = {path.parts[outer] for path, _ in pictures} == SPLITS
    depth = outer + (3 if divided else 2)
    by_split: dict[str, list[tuple[str, Pixels]]] = {}
    for path, pixels in pictures:
        if len(path.parts) != depth:
            raise DatasetError(f"{source}: {path}: expected <class>/<picture>, or train|test/<class>/<picture>")
        by_split.setdefault(path.parts[outer] if divided else "", []).append((path.parts[-2], pixels))
    classes = tuple(sorted({name for rows in by_split.values() for name, _ in rows}))
    if len(classes) < 2:
        raise DatasetError(f"{source}: found one class only ({classes[0]}), a classifier needs two")
    for split, rows in by_split.items():
        if missing := set(classes) - {name for name, _ in rows}:
            raise DatasetError(f"{source}: {split} has no pictures of: {', '.join(sorted(missing))}")
    index = {name: label for label, name in enumerate(classes)}
    splits = {
        split: LabelledImages(
            np.stack([pixels for _, pixels in rows]), np.array([index[name] for name, _ in rows], np.int64)
        )
        for split, rows in by_split.items()
    }
    return classes, splits


def _common_depth(paths: list[PurePosixPath]) -> int:
    """How many outer folders all paths share above <class>/<picture>: archives often hold one folder with it all."""
    depth = 0
    while all(len(path.parts) > depth + 2 for path in paths) and len({path.parts[depth] for path in paths}) == 1:
        depth += 1
    return depth


def _require_enough(classes: tuple[str, ...], splits: dict[str, LabelledImages], source: Path) -> None:
    """Each class must have a picture to train on and one to validate with, and one to test with if that is to come."""
    (least, purpose), split = (
        ((2, "train and validate"), "train") if "train" in splits else ((3, "train, validate and test"), "")
    )
    counts = Counter(splits[split].labels.tolist())
    if few := [f"{name} has {counts[label]}" for label, name in enumerate(classes) if counts[label] < least]:
        raise DatasetError(
            f"{source}: too few pictures of a class to {purpose} with, at least {least} are needed: {', '.join(few)}"
        )
