"""Metadata of pictures: only a whole EXIF orientation counts; nothing else in it can refuse or change a picture."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service import images

SHAPE = (24, 32, 3)
PICTURES = Path(__file__).parents[2] / "pictures"
_PNG = b"\x89PNG\r\n\x1a\n"
_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND")


def noise(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(picture: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *others: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return _PNG + header + b"".join(others) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def without_metadata(path: Path) -> bytes:
    """The file as a second implementation strips it: by the pixels that Pillow gives for what must stay."""
    data = path.read_bytes()
    if data.startswith(_PNG):
        kept, at = [_PNG], 8
        while at < len(data):
            end = at + 12 + int.from_bytes(data[at : at + 4])
            if data[at + 4 : at + 8] in _KEPT:
                kept.append(data[at:end])
            at = end
        return b"".join(kept)
    plain = io.BytesIO()
    start = data.index(b"\xff\xdb")  # quantisation tables come after all application segments
    plain.write(b"\xff\xd8" + data[start:])
    return plain.getvalue()


@pytest.mark.parametrize("path", sorted(PICTURES.glob("*.[jp]*")), ids=lambda path: path.name)
def test_a_good_picture_with_damaged_metadata_is_read_as_if_it_had_none(path: Path) -> None:
    np.testing.assert_array_equal(images.decode(path.read_bytes(), SHAPE), images.decode(without_metadata(path), SHAPE))


def test_an_alpha_mask_of_a_bmp_that_is_zero_everywhere_is_ignored() -> None:
    found = images.decode((PICTURES / "bmp-v5-alpha-all-zero.bmp").read_bytes(), (64, 64, 3))
    expected = Image.open(PICTURES / "bmp-v5-alpha-all-zero.bmp").convert("RGB")
    np.testing.assert_array_equal(found, np.asarray(expected))
    assert found.std() > 0


EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010F] = "maker"
EXIF[0x011A] = 72.0
EXIF.get_ifd(0x8769)[0x9003] = "2024:01:01 10:00:00"
BLOCKS = {"exif": EXIF.tobytes(), "icc_profile": bytes(range(256)) * 3, "xmp": b"<x:xmpmeta/>" * 20}


def with_metadata(form: str, blocks: dict[str, bytes]) -> bytes:
    plain = saved(noise(), form, lossless=True) if form == "WEBP" else saved(noise(), form)
    if form == "WEBP":
        return saved(noise(), form, lossless=True, **blocks)
    if form == "PNG":
        parts = [
            chunk(b"eXIf", blocks["exif"]),
            chunk(b"iCCP", b"name\0\0" + zlib.compress(blocks["icc_profile"])),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + blocks["xmp"]),
            chunk(b"zTXt", b"Comment\0\0" + blocks["xmp"]),
        ]
        return plain[:33] + b"".join(parts) + plain[33:]
    heads = {"exif": b"\xff\xe1", "icc_profile": b"\xff\xe2", "xmp": b"\xff\xe1"}
    parts = [heads[name] + struct.pack(">H", len(block) + 2) + block for name, block in blocks.items()]
    return plain[:2] + b"".join(parts) + plain[2:]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@given(st.data())
def test_no_change_of_the_metadata_refuses_a_picture_or_changes_more_than_its_orientation(
    form: str, data: st.DataObject
) -> None:
    blocks = {}
    for name, block in BLOCKS.items():
        changed = bytearray(block)
        for _ in range(data.draw(st.integers(0, 4))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        blocks[name] = bytes(changed[: data.draw(st.integers(0 if form != "WEBP" else 1, len(changed)))])
    found = images.decode(with_metadata(form, blocks), (48, 64, 3))
    plain = images.decode(saved(noise(), form, **({"lossless": True} if form == "WEBP" else {})), (48, 64, 3))
    if not np.array_equal(found, plain):
        turned = [np.asarray(images.decode(with_orientation(form, number), (48, 64, 3))) for number in range(2, 9)]
        assert any(np.array_equal(found, one) for one in turned)


def with_orientation(form: str, number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return saved(noise(), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_whole_orientation_is_applied_in_every_format(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth = noise(8, 6).resize((64, 48), Image.Resampling.BICUBIC)
    found = images.decode(saved(smooth, form, exif=exif, quality=95), (64, 48, 3)).astype(int)
    assert abs(found - np.asarray(smooth.transpose(Image.Transpose.ROTATE_270)).astype(int)).mean() < 6


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_transparent_grey_of_a_png_counts_in_the_depth_of_the_file(depth: int) -> None:
    values = np.arange(8) % (1 << depth)
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8)
    key = (1 << depth) - 2 if depth > 1 else 0
    data = png(8, 8, depth, 0, row * 8, chunk(b"tRNS", struct.pack(">H", key)))
    expected = np.where(values == key, 255, values * (255 // ((1 << depth) - 1)))
    np.testing.assert_array_equal(images.decode(data, (8, 8, 1))[0, :, 0], expected)


def test_a_transparent_value_of_16_bits_counts_with_both_its_bytes() -> None:
    greys = np.array([0x1234, 0x1235, 0x0034, 0x3412], ">u2")
    row = b"\0" + greys.tobytes()
    data = png(4, 4, 16, 0, row * 4, chunk(b"tRNS", struct.pack(">H", 0x1234)))
    rounded = [255, *((greys[1:].astype(int) + 128) // 257)]
    np.testing.assert_array_equal(images.decode(data, (4, 4, 1))[0, :, 0], rounded)
    colours = np.array([[0x1234, 0x5678, 0x9ABC], [0x1234, 0x5678, 0x9ABD], [0, 0, 0], [0x1200, 0x5600, 0x9A00]], ">u2")
    data = png(4, 4, 16, 2, (b"\0" + colours.tobytes()) * 4, chunk(b"tRNS", colours[0].tobytes()))
    white = (images.decode(data, (4, 4, 3))[0] == 255).all(axis=1)
    assert white.tolist() == [True, False, False, False]


def test_a_limit_above_pillows_own_is_the_one_that_counts() -> None:
    large = png(20_000, 10_000, 1, 0, (b"\0" + bytes(2_500)) * 10_000)
    assert images.decode(large, SHAPE, max_pixels=200_000_000).shape == SHAPE
    with pytest.raises(images.ImageError, match="20000 x 10000 pixels, the limit is 199999999"):
        images.decode(large, SHAPE, max_pixels=199_999_999)


def test_heic_is_refused_with_what_to_do() -> None:
    heic = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(100)
    with pytest.raises(images.ImageError, match=r"HEIC.*JPEG or PNG.*pillow-heif"):
        images.decode(heic, SHAPE)
