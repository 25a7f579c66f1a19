"""Archives that are none, or no longer whole: refused, never half of the pictures without a word."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.unit.training import small_folder
from training.datasets import read_pictures
from training.errors import DatasetError

SHAPE = (12, 12, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder.write(tmp_path_factory.mktemp("data") / "colours", count=4)


def pack(folder: Path, path: Path, compression: str) -> bytes:
    """The bytes of a tar archive of `folder` as <folder>/<class>/<picture>, made at `path`."""
    with tarfile.open(path, f"w:{compression}") as archive:
        archive.add(folder, folder.name)
    return path.read_bytes()


def test_a_file_that_is_no_archive_is_refused(folder: Path, tmp_path: Path) -> None:
    picture = folder / "red" / "000.png"
    text = tmp_path / "notes.txt"
    text.write_text("no pictures here\n" * 100)
    with zipfile.ZipFile(tmp_path / "colours.zip", "w") as archive:
        archive.write(picture, "red/000.png")
    (tmp_path / "empty.tar").touch()
    for path in (picture, text, tmp_path / "colours.zip", tmp_path / "empty.tar"):
        with pytest.raises(DatasetError, match=f"{path.name}: not a readable tar archive"):
            read_pictures(path, SHAPE)


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_an_archive_that_was_cut_is_refused_unless_all_its_pictures_are_there(
    folder: Path, tmp_path: Path, compression: str
) -> None:
    path = tmp_path / "colours.tar"
    data = pack(folder, path, compression)
    whole = read_pictures(path, SHAPE).fingerprint()
    # Every place where a copy that ran out of disk may have stopped, the ends of blocks among them.
    step = 512 if not compression else 101
    refused = 0
    for length in range(0, len(data), step):
        path.write_bytes(data[:length])
        try:
            assert read_pictures(path, SHAPE).fingerprint() == whole, f"read {length} of {len(data)} bytes as all"
        except DatasetError as error:
            assert "not a readable tar archive" in str(error)
            refused += 1
    assert refused > 5


def test_an_archive_whose_compressed_data_is_overwritten_is_refused(folder: Path, tmp_path: Path) -> None:
    for compression in ("gz", "bz2", "xz"):
        path = tmp_path / f"colours.tar.{compression}"
        data = bytearray(pack(folder, path, compression))
        middle = len(data) // 2
        data[middle : middle + 200] = bytes(200)
        path.write_bytes(data)
        with pytest.raises(DatasetError):
            read_pictures(path, SHAPE)


def test_an_archive_with_a_damaged_header_in_the_middle_does_not_end_there(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "colours.tar"
    data = bytearray(pack(folder, path, ""))
    with tarfile.open(path) as archive:
        headers = [member.offset for member in archive]
    for header in headers[1:]:
        damaged = bytearray(data)
        damaged[header + 3] ^= 1  # in the name; the header's checksum tells
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match="not a readable tar archive"):
            read_pictures(path, SHAPE)


def test_broken_pictures_in_an_archive_are_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "colours.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(folder, "colours")
        broken = tarfile.TarInfo("colours/red/broken.png")
        archive.addfile(broken)
    with pytest.raises(DatasetError, match=r"1 of 13 pictures are broken: colours/red/broken\.png is empty"):
        read_pictures(path, SHAPE)
