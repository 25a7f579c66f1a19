"""Pictures that are made to cost much: small files that are allowed by their header and take long all the same."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

from service import images

SHAPE = (32, 32, 3)
SECONDS = 0.2
MOST_PIXELS = 4_000_000
SIZE = 2 << 20  # bytes of each file: unlimited, it takes a second of the processor, or many


def saved(picture: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def chunks_of_nothing(size: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(bytes(32 * 97))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"abCd", b"") * (size // 12) + end


def comments(size: int) -> bytes:
    frame = saved(Image.new("P", (8, 8)), "GIF")
    header = b"GIF89a" + struct.pack("<HH", 8, 8) + b"\0\0\0"
    return header + b"\x21\xfe\x01a\0" * (size // 5) + frame[frame.index(b",") :]


def markers(size: int) -> bytes:
    whole = saved(Image.new("RGB", (32, 32)), "JPEG")
    return whole[:2] + b"\xff\xe1\x00\x02" * (size // 4) + whole[2:]


def runs_of_one_pixel(size: int) -> bytes:
    width, height = 2000, size // 2 // 2000
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    start = 14 + len(header) + 1024
    body = b"\x01\x05" * (size // 2) + b"\0\1"
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + bytes(1024) + body


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "GIF of comments": comments,
    "BMP of runs of one pixel": runs_of_one_pixel,
}


@pytest.mark.parametrize(("make", "parts"), [(chunks_of_nothing, "chunks"), (markers, "segments")])
def test_a_file_of_countless_empty_parts_is_refused_before_it_is_decoded(
    make: Callable[[int], bytes], parts: str
) -> None:
    with pytest.raises(images.ImageError, match=f"of more than .* {parts}"):
        images.decode(make(SIZE), SHAPE, MOST_PIXELS)


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_that_takes_too_long_is_given_up_on_the_way(make: Callable[[int], bytes]) -> None:
    began = time.thread_time()
    with pytest.raises(images.ImageError, match=r"takes too long to decode: the limit for a request is 0\.2 s"):
        images.decode(make(SIZE), SHAPE, MOST_PIXELS, images.Effort(SECONDS))
    # What it does between two looks is part of it; whole, each of these is beyond four times the limit.
    assert time.thread_time() - began < 4 * SECONDS


def scans(data: bytes) -> list[bytes]:
    """A progressive JPEG in pieces: all before the first scan, and each scan with the tables before it."""
    found = []
    at = data.index(b"\xff\xda")
    while at >= 0:
        found.append(at)
        at = data.find(b"\xff\xda", at + 1)
    ends = []
    for at in found:
        end = at + 2
        while data[end] != 0xFF or data[end + 1] == 0 or data[end - 1] == 0xFF:
            end += 1
        ends.append(end)
    pieces = [data[: found[0]]]
    for number, end in enumerate(ends):
        pieces.append(data[(ends[number - 1] if number else found[0]) : end])
    return pieces


def test_a_jpeg_of_thousands_of_scans_is_refused_before_the_first() -> None:
    header, *parts = scans(saved(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True))
    assert len(parts) == 10, "what encoders write"
    whole = header + b"".join(parts)
    repeated = parts[5]
    enough = images.MOST_SCANS - len(parts)
    assert (images.decode(whole + repeated * enough + b"\xff\xd9", SHAPE) == 0).all()
    began = time.thread_time()
    with pytest.raises(images.ImageError, match="more than 100 scans"):
        images.decode(whole + repeated * 10_000 + b"\xff\xd9", SHAPE)
    assert time.thread_time() - began < 0.1


def test_the_pictures_of_a_request_share_its_time() -> None:
    effort = images.Effort(10.0)
    picture = saved(Image.new("RGB", (1000, 1000)), "PNG")
    images.decode(picture, SHAPE, MOST_PIXELS, effort)
    effort.spend(time.thread_time() - 10)
    with pytest.raises(images.ImageError, match="takes too long"):
        images.decode(picture, SHAPE, MOST_PIXELS, effort)


def test_small_files_are_counted_too() -> None:
    effort = images.Effort(0.01)
    picture = saved(Image.new("RGB", (1000, 1000)), "PNG")
    assert len(picture) < images._LARGE
    with pytest.raises(images.ImageError, match="takes too long"):
        for _ in range(1000):
            images.decode(picture, SHAPE, MOST_PIXELS, effort)


def test_large_pictures_that_are_well_are_decoded_within_the_default_time() -> None:
    noisy = Image.effect_noise((3000, 2000), 80).convert("RGB")
    for form in ("JPEG", "PNG"):
        data = saved(noisy, form)
        assert len(data) > images._LARGE
        assert images.decode(data, SHAPE, effort=images.Effort(10.0)).shape == SHAPE
