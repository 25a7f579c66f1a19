"""Reading folders and archives of pictures."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.training import pictures
from training.datasets import LabelledImages, read_pictures
from training.errors import DatasetError

SHAPE = (8, 8, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures.write_folder(tmp_path / "colours", train=4, test=2)


def test_a_folder_gives_its_pixels_labels_and_class_names(folder: Path) -> None:
    expected = pictures.dataset(train=4, test=2)
    found = read_pictures(folder, SHAPE)
    assert found.classes == ("blue", "green", "red")
    assert np.array_equal(found.train.images, expected.train.images)
    assert found.train.labels.tolist() == expected.train.labels.tolist()
    assert np.array_equal(found.test.images, expected.test.images)
    assert found.name == "colours"


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".bz2"])
@pytest.mark.parametrize("prefix", ["", "./", "data/colours/"])
def test_an_archive_equals_its_folder(folder: Path, tmp_path: Path, suffix: str, prefix: str) -> None:
    archive = tmp_path / f"colours.tar{suffix}"
    pictures.write_archive(folder, archive, f"w:{suffix[1:]}", prefix)
    found = read_pictures(archive, SHAPE)
    assert found.fingerprint() == read_pictures(folder, SHAPE).fingerprint()
    assert found.name == "colours"


@pytest.mark.parametrize("name", ["../train/escaped/0004.png", "train/../../red/0004.png", "/train/red/0004.png"])
def test_an_archive_with_names_outside_of_its_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    archive = pictures.write_archive(folder, tmp_path / "colours.tar", "w:")
    outside = tarfile.TarInfo(name)
    with tarfile.open(archive, "a") as file:
        file.addfile(outside)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DatasetError, match=f"{re.escape(name)} leads out of the archive's folder"):
        read_pictures(archive, SHAPE)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_fingerprint_changes_with_a_pixel_a_label_and_a_class_name(folder: Path) -> None:
    before = read_pictures(folder, SHAPE).fingerprint()
    picture = folder / "train" / "red" / "0008.png"
    original = picture.read_bytes()
    pixels = np.asarray(Image.open(picture)).copy()
    pixels[0, 0, 0] ^= 1
    picture.write_bytes(pictures.png(pixels))
    changed_pixel = read_pictures(folder, SHAPE).fingerprint()
    picture.write_bytes(original)
    assert read_pictures(folder, SHAPE).fingerprint() == before
    picture.rename(folder / "train" / "blue" / "0008.png")
    moved = read_pictures(folder, SHAPE).fingerprint()
    (folder / "train" / "blue" / "0008.png").rename(picture)
    for split in ("train", "test"):
        (folder / split / "red").rename(folder / split / "rouge")
    renamed = read_pictures(folder, SHAPE).fingerprint()
    assert len({before, changed_pixel, moved, renamed}) == 4


def test_without_a_division_a_fifth_of_each_class_is_always_the_same_test_split(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(10):
            pixels = np.full((8, 8, 3), 10 * index + (name == "dog"), np.uint8)
            (tmp_path / name / f"{index}.png").write_bytes(pictures.png(pixels))
    first, second = read_pictures(tmp_path, SHAPE), read_pictures(tmp_path, SHAPE)
    assert np.bincount(first.test.labels).tolist() == [2, 2]
    assert np.bincount(first.train.labels).tolist() == [8, 8]
    assert first.test.fingerprint() == second.test.fingerprint()
    values = {int(image[0, 0, 0]) for part in (first.train, first.test) for image in part.images}
    assert len(values) == 20  # no picture in both, none lost


def test_hidden_and_other_files_are_passed_over(folder: Path) -> None:
    before = read_pictures(folder, SHAPE).fingerprint()
    (folder / "train" / "red" / "._0008.png").write_bytes(b"resource fork")
    (folder / "train" / "red" / "Thumbs.db").write_bytes(b"thumbnails")
    (folder / "README.md").write_text("about these pictures")
    assert read_pictures(folder, SHAPE).fingerprint() == before


def test_a_class_missing_from_a_split_is_named(folder: Path) -> None:
    for picture in (folder / "test" / "green").iterdir():
        picture.unlink()
    with pytest.raises(DatasetError, match="test has no pictures of: green"):
        read_pictures(folder, SHAPE)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(pictures.png(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(DatasetError, match="one class only"):
        read_pictures(tmp_path, SHAPE)


def test_pictures_outside_of_classes_are_an_error(folder: Path) -> None:
    (folder / "train" / "stray.png").write_bytes(pictures.png(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(DatasetError, match=r"stray\.png: expected <class>/<picture>"):
        read_pictures(folder, SHAPE)


def test_a_place_without_pictures_says_so(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no pictures"):
        read_pictures(tmp_path, SHAPE)
    with pytest.raises(DatasetError, match="no such folder or archive"):
        read_pictures(tmp_path / "nowhere", SHAPE)


def test_a_truncated_archive_is_an_error(folder: Path, tmp_path: Path) -> None:
    whole = pictures.write_archive(folder, tmp_path / "colours.tar.xz", "w:xz").read_bytes()
    cut = tmp_path / "cut.tar.xz"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match="not a readable tar archive"):
        read_pictures(cut, SHAPE)


def test_a_selection_keeps_pixels_and_labels_together() -> None:
    part = LabelledImages(np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1), np.arange(4))
    chosen = part.select(np.array([3, 1]))
    assert chosen.images.ravel().tolist() == chosen.labels.tolist() == [3, 1]
