"""Folders as people have them: broken files, links, uneven classes, every kind of picture."""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from service.cli import main
from tests.unit.training import small_folder
from training.datasets import read_pictures
from training.errors import DatasetError

SHAPE = (12, 12, 3)
COLOUR = (200, 40, 90)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_folder.write(tmp_path / "colours", count=10)


def spoil(folder: Path) -> None:
    """Two of its 30 pictures: one cut, one no picture at all."""
    cut = folder / "red" / "003.png"
    cut.write_bytes(cut.read_bytes()[:200])
    (folder / "blue" / "001.png").write_text("<html>not found</html>")


@pytest.mark.parametrize("limit", [1, 0, 0.05, 0.0])
def test_more_broken_pictures_than_allowed_are_refused_by_name(folder: Path, limit: float) -> None:
    spoil(folder)
    message = r"2 of 30 pictures are broken: blue/001\.png is not a picture .*; red/003\.png .*--max-broken allows"
    with pytest.raises(DatasetError, match=message):
        read_pictures(folder, SHAPE, max_broken=limit)


@pytest.mark.parametrize("limit", [2, 0.07, 1.0])
def test_broken_pictures_within_the_limit_are_left_out_and_listed(folder: Path, limit: float) -> None:
    spoil(folder)
    found = read_pictures(folder, SHAPE, max_broken=limit)
    assert len(found.train) + len(found.test) == 28
    assert [str(each.path) for each in found.skipped] == ["blue/001.png", "red/003.png"]
    assert "truncated" in found.skipped[1].reason


def test_an_archive_lists_the_same_broken_pictures_as_its_folder(folder: Path, tmp_path: Path) -> None:
    spoil(folder)
    archive = tmp_path / "colours.tar"
    with tarfile.open(archive, "w") as file:
        file.add(folder, "")
    from_folder, from_archive = (read_pictures(each, SHAPE, max_broken=2) for each in (folder, archive))
    assert from_archive.skipped == from_folder.skipped
    assert from_archive.fingerprint() == from_folder.fingerprint()


def test_a_long_list_of_broken_pictures_is_cut_and_still_counted(folder: Path) -> None:
    for picture in [*(folder / "red").iterdir(), *(folder / "blue").iterdir()][:12]:
        picture.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"12 of 30 pictures are broken: .*; \.\.\. ") as caught:
        read_pictures(folder, SHAPE)
    assert str(caught.value).count("is empty") == 10


def test_a_class_of_nothing_but_broken_pictures_does_not_vanish(folder: Path) -> None:
    for picture in (folder / "red").iterdir():
        picture.write_bytes(b"")
    with pytest.raises(DatasetError, match="all pictures are broken in: red"):
        read_pictures(folder, SHAPE, max_broken=0.5)


def test_a_link_to_nowhere_is_broken_and_one_to_a_picture_is_that_picture(folder: Path) -> None:
    whole = read_pictures(folder, SHAPE).fingerprint()
    picture = folder / "red" / "003.png"
    moved = picture.rename(folder.parent / "elsewhere.png")
    picture.symlink_to(moved)
    assert read_pictures(folder, SHAPE).fingerprint() == whole
    moved.unlink()
    (found,) = read_pictures(folder, SHAPE, max_broken=1).skipped
    assert (str(found.path), found.reason) == ("red/003.png", "cannot be read: No such file or directory")


def test_a_linked_class_folder_is_refused_not_passed_over(folder: Path) -> None:
    moved = (folder / "red").rename(folder.parent / "elsewhere")
    (folder / "red").symlink_to(moved)
    with pytest.raises(DatasetError, match="colours/red is a link to a folder"):
        read_pictures(folder, SHAPE)


@pytest.mark.parametrize(("kind", "reason"), [(tarfile.SYMTYPE, "is a link"), (tarfile.LNKTYPE, "is a link"),
                                              (tarfile.FIFOTYPE, "is no plain file")])  # fmt: skip
def test_what_is_no_plain_file_in_an_archive_is_broken(folder: Path, tmp_path: Path, kind: bytes, reason: str) -> None:
    archive = tmp_path / "colours.tar"
    with tarfile.open(archive, "w") as file:
        file.add(folder, "")
        link = tarfile.TarInfo("red/link.png")
        link.type, link.linkname = kind, "red/003.png"
        file.addfile(link)
    (found,) = read_pictures(archive, SHAPE, max_broken=1).skipped
    assert (found.path, found.reason) == (PurePosixPath("red/link.png"), reason)
    with pytest.raises(DatasetError, match=rf"1 of 31 pictures are broken: red/link\.png {reason}"):
        read_pictures(archive, SHAPE)


def test_a_link_in_an_archive_that_may_stand_for_a_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "red").rename(tmp_path / "elsewhere")
    (folder / "red").symlink_to(tmp_path / "elsewhere")
    archive = tmp_path / "colours.tar"
    with tarfile.open(archive, "w") as file:
        file.add(folder, "colours")
    with pytest.raises(DatasetError, match=r"colours/red is a link: pack what it points to"):
        read_pictures(archive, SHAPE)


def test_a_class_too_small_to_divide_is_named(folder: Path) -> None:
    for name, left in (("red", 2), ("blue", 1)):
        for picture in sorted((folder / name).iterdir())[left:]:
            picture.unlink()
    with pytest.raises(DatasetError, match=r"too few .* at least 3 are needed: blue has 1, red has 2$"):
        read_pictures(folder, SHAPE)


def test_a_divided_folder_needs_two_training_pictures_of_each_class(folder: Path, tmp_path: Path) -> None:
    for name in ("red", "blue"):
        for index, picture in enumerate(sorted((folder / name).iterdir())):
            target = tmp_path / "divided" / ("train" if index < (1 if name == "red" else 5) else "test") / name
            target.mkdir(parents=True, exist_ok=True)
            picture.rename(target / picture.name)
    with pytest.raises(DatasetError, match=r"too few .* to train and validate with, at least 2 .*: red has 1$"):
        read_pictures(tmp_path / "divided", SHAPE)


def test_uneven_classes_are_divided_class_by_class(folder: Path) -> None:
    for name, left in (("red", 3), ("blue", 5)):
        for picture in sorted((folder / name).iterdir())[left:]:
            picture.unlink()
    found = read_pictures(folder, SHAPE)
    assert np.bincount(found.test.labels).tolist() == [1, 2, 1]
    assert np.bincount(found.train.labels).tolist() == [4, 8, 2]


def in_mode(mode: str, size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size, COLOUR)
    if mode == "I;16":
        grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(grey)
    if mode == "RGBA":
        picture.putalpha(255)
        return picture
    return picture.quantize(8) if mode == "P" else picture.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix", "grey"),
    [
        ("L", "png", True),
        ("LA", "png", True),
        ("1", "png", None),
        ("I;16", "png", True),
        ("P", "png", False),
        ("P", "gif", False),
        ("RGBA", "png", False),
        ("RGBA", "webp", False),
        ("CMYK", "jpg", False),
        ("L", "jpeg", True),
        ("RGB", "bmp", False),
        ("RGB", "JPG", False),
    ],
)
def test_every_kind_and_size_of_picture_becomes_pixels(
    tmp_path: Path, mode: str, suffix: str, grey: bool | None
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for index, size in enumerate([(12, 12), (1, 40), (31, 5), (200, 133)]):
            in_mode(mode, size).save(tmp_path / name / f"{index}.{suffix}")
    found = read_pictures(tmp_path, SHAPE)
    pixels = np.concatenate([found.train.images, found.test.images])
    assert pixels.shape == (8, *SHAPE)
    assert found.skipped == ()
    if grey is not None:
        luma = round(np.dot((0.299, 0.587, 0.114), COLOUR))
        expected = (luma,) * 3 if grey else COLOUR
        assert np.abs(pixels.astype(int) - expected).max() <= 6  # lossy formats
    assert read_pictures(tmp_path, (12, 12, 1)).train.images.shape[1:] == (12, 12, 1)


def test_train_lists_what_it_skips_and_needs_no_limit_again_to_go_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder)
    flags = ["--run", str(tmp_path / "run"), "--image-shape", "12x12x3", "--epochs", "1", "--device", "cpu"]
    assert main(["train", "--data", str(folder), *flags]) == 2
    assert "2 of 30 pictures are broken" in capsys.readouterr().err
    assert main(["train", "--data", str(folder), *flags, "--max-broken", "2"]) == 0
    assert "skipped 2 broken pictures: blue/001.png is not a picture" in capsys.readouterr().out
    assert main(["train", *flags[:2], "--resume"]) == 0


@pytest.mark.parametrize("limit", ["-1", "1.5", "nan", "many", "1%"])
def test_a_limit_that_is_none_is_refused(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", f"--max-broken={limit}"])
    assert "argument --max-broken: " in capsys.readouterr().err
