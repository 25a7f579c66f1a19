"""Labelled pictures in memory, from a folder or a tar archive in ImageFolder layout, or the original CIFAR-10.

ImageFolder layout: `train/<class>/<picture>` and `test/<class>/<picture>`, or `<class>/<picture>` without such a
division, which is then made here. Every picture goes through `service.images.decode`, as the server's do.
"""

from __future__ import annotations

import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np
import numpy.typing as npt

from service.images import ImageError, Pixels, decode
from training.errors import DatasetError
from training.splits import stratified_holdout

Labels = npt.NDArray[np.int64]
ImageShape = tuple[int, int, int]  # height, width, channels

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
SPLITS = {"train", "test"}
TEST_FRACTION = 0.2
# Not the recipe's seed: what is test data must stay test data from one retraining to the next.
TEST_SEED = 0


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
    """`classes[label]` is the name of a label; `source` says where it was read, for this machine only."""

    name: str
    source: str
    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages

    def fingerprint(self) -> str:
        """SHA-256 over class names and both splits."""
        parts = (*self.classes, self.train.fingerprint(), self.test.fingerprint())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_pictures(path: Path, shape: ImageShape, name: str | None = None) -> Dataset:
    """Read a folder, or a .tar, .tar.gz, .tar.bz2 or .tar.xz of one, with all pictures brought to `shape`.

    An archive is read as a stream and never unpacked: the names in it become class names, not paths. Without a
    train/test division a fifth of each class becomes the test split, always the same one. Raises DatasetError,
    with the names of the broken files if there are any.
    """
    if path.is_dir():
        files = _files_in_folder(path)
    elif path.is_file():
        files = _files_in_archive(path)
    else:
        raise DatasetError(f"{path}: no such folder or archive")
    pictures = _decode_all(files, shape, path)
    if not pictures:
        raise DatasetError(f"{path}: no pictures in it ({', '.join(SUFFIXES)})")
    classes, splits = _arrange(pictures, path)
    if splits.keys() != SPLITS:
        splits["train"], splits["test"] = _divide(splits[""], path)
    return Dataset(name or path.name.split(".")[0], str(path.resolve()), classes, splits["train"], splits["test"])


class _Member(tarfile.TarInfo):
    """One that must have a whole header: tarfile takes any other for the archive's end, and the rest is lost."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):
                raise  # zeros: this is the end
            raise tarfile.ReadError(f"cut or damaged: {error}") from None


def _files_in_folder(folder: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    for path in folder.rglob("*"):
        relative = PurePosixPath(path.relative_to(folder).as_posix())
        if _is_picture(relative) and path.is_file():
            yield relative, path.read_bytes()


def _files_in_archive(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    try:
        with tarfile.open(path, "r|*", tarinfo=_Member) as archive:
            for member in archive:
                relative = PurePosixPath(member.name)
                content = archive.extractfile(member) if member.isfile() and _is_picture(relative) else None
                if content is not None:
                    yield relative, content.read()
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise DatasetError(f"{path}: not a readable tar archive: {error}") from None


def _is_picture(path: PurePosixPath) -> bool:
    """By its suffix; hidden files (macOS's `._cat.jpg`) are none."""
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _decode_all(
    files: Iterable[tuple[PurePosixPath, bytes]], shape: ImageShape, source: Path
) -> list[tuple[PurePosixPath, Pixels]]:
    """Decoded and sorted by name, so that a folder and an archive of it give the same data set."""
    pictures, broken = [], []
    for path, data in files:
        try:
            pictures.append((path, decode(data, shape)))
        except ImageError as error:
            broken.append(f"{path} {error}")
    if broken:
        shown = "; ".join(sorted(broken)[:10]) + ("; ..." if len(broken) > 10 else "")
        raise DatasetError(f"{source}: {len(broken)} of {len(broken) + len(pictures)} pictures are broken: {shown}")
    return sorted(pictures, key=lambda picture: picture[0])


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


def _divide(pictures: LabelledImages, source: Path) -> tuple[LabelledImages, LabelledImages]:
    try:
        train, test = stratified_holdout(pictures.labels, TEST_FRACTION, TEST_SEED)
    except ValueError as error:
        raise DatasetError(f"{source}: cannot hold out a test split: {error}") from None
    return pictures.select(train), pictures.select(test)
