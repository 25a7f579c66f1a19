"""The picture files of a folder or a tar archive, one after the other, and those that cannot be used with the reason.

An archive is read as a stream and never unpacked: the names in it are never paths on disk. One whose names would
leave its folder is refused all the same: it was not made by packing a folder of pictures.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from training.errors import DatasetError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
# How many pictures may be broken: a count, or, as a float, a share of all.
BrokenLimit = int | float
DEFAULT_MAX_BROKEN = 0.01


@dataclass(frozen=True, order=True)
class Broken:
    """A picture that cannot be used: its path in the folder or archive, and the reason, fit to follow it."""

    path: PurePosixPath
    reason: str


PictureFile = tuple[PurePosixPath, bytes]


def picture_files(source: Path) -> Iterator[PictureFile | Broken]:
    """All pictures of a folder or of a .tar, .tar.gz, .tar.bz2 or .tar.xz of one, in no particular order.

    Raises DatasetError: no such place, an archive that is damaged or has names outside of it, links to folders.
    """
    if source.is_dir():
        return _in_folder(source)
    if source.is_file():
        return _in_archive(source)
    raise DatasetError(f"{source}: no such folder or archive")


def _in_folder(folder: Path) -> Iterator[PictureFile | Broken]:
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        for name in folders:
            if (Path(parent) / name).is_symlink() and not name.startswith("."):
                raise DatasetError(f"{Path(parent) / name} is a link to a folder: these are not followed, copy it here")
        for name in names:
            path = Path(parent) / name
            relative = PurePosixPath(path.relative_to(folder).as_posix())
            if not _is_picture(relative):
                continue
            try:
                yield relative, path.read_bytes()
            except OSError as error:
                yield Broken(relative, f"cannot be read: {error.strerror}")


def _refuse(error: OSError) -> None:
    raise DatasetError(f"{error.filename}: cannot be read: {error.strerror}")


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


def _in_archive(path: Path) -> Iterator[PictureFile | Broken]:
    try:
        with tarfile.open(path, "r|*", tarinfo=_Member) as archive:
            for member in archive:
                relative = PurePosixPath(member.name)
                _require_inside(relative, path)
                if _is_picture(relative) and member.isfile():
                    content = archive.extractfile(member)
                    assert content is not None  # of a file it never is
                    yield relative, content.read()
                elif _is_picture(relative) and not member.isdir():
                    yield Broken(relative, "is a link" if member.islnk() or member.issym() else "is no plain file")
                elif member.issym() and not relative.suffix and not relative.name.startswith("."):
                    # It may stand for a folder of pictures, all of which would be missing without a word.
                    raise DatasetError(f"{path}: {relative} is a link: pack what it points to (tar --dereference)")
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise DatasetError(f"{path}: not a readable tar archive: {error}") from None


def _require_inside(name: PurePosixPath, archive: Path) -> None:
    if name.is_absolute() or ".." in name.parts:
        raise DatasetError(f"{archive}: {name} leads out of the archive's folder")


def _is_picture(path: PurePosixPath) -> bool:
    """By its suffix; hidden files (macOS's `._cat.jpg`) are none."""
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)
