"""Takes the metadata out of JPEG and PNG files before they are decoded, and reads an EXIF orientation.

Pillow parses metadata when it opens a file and refuses the whole picture for a fault in it. A profile, a comment or a
thumbnail changes no pixel, so none of them reaches Pillow. Sources: ITU-T T.81 (JPEG), the PNG specification, third
edition, and EXIF 3.0.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image

JPEG_START = b"\xff\xd8"
PNG_START = b"\x89PNG\r\n\x1a\n"
# Segments or chunks beyond those that a file of this size can need: cameras and editors write fewer than a thousand.
_MOST_PARTS = 10_000
_BYTES_A_CHUNK = 64  # IDAT chunks of encoders hold thousands of bytes

_START_OF_SCAN, _APP0, _APP1, _APP14, _APP15, _COMMENT = 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD8)))
_EXIF = b"Exif\0\0"
_KEPT_CHUNKS = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND"))
_GREY, _RGB = 0, 2  # colour types of PNG with one transparent value
_ORIENTATION = 0x0112


class TooManyParts(ValueError):
    """The file has more segments or chunks than a picture of its size can need."""


@dataclass(frozen=True)
class Bare:
    """A file without its metadata.

    `key` is the transparent value of a PNG, one sample (grey) or three (RGB) of `depth` bits; empty: none.
    """

    data: bytes
    orientation: int = 1
    key: tuple[int, ...] = ()
    depth: int = 8


def strip(data: bytes) -> Bare:
    """The same picture without metadata, for JPEG and PNG; other data as it is. Raises TooManyParts.

    What is damaged beyond the metadata stays as it is, for the decoder to refuse.
    """
    if data.startswith(JPEG_START):
        return _strip_jpeg(data)
    if data.startswith(PNG_START):
        return _strip_png(data)
    return Bare(data)


def orientation(exif: bytes) -> int:
    """The EXIF orientation, 1 to 8, in a block with or without its `Exif` header; 1 if any of the block is damaged."""
    if not exif:
        return 1
    # Pillow raises many kinds of errors for damaged blocks, some of them only when it writes the block again.
    with suppress(Exception):
        block = Image.Exif()
        block.load(exif)
        found = block.get(_ORIENTATION)
        if isinstance(found, int) and 2 <= found <= 8:
            block.tobytes()
            return found
    return 1


def _strip_jpeg(data: bytes) -> Bare:
    kept, turned, parts, at = [JPEG_START], b"", 0, 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            end = at + 1
        elif marker in _STANDALONE:
            end = at + 2
        elif marker == _START_OF_SCAN:
            break
        else:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        parts += 1
        if parts > _MOST_PARTS:
            raise TooManyParts(f"is a JPEG of more than {_MOST_PARTS} segments before its first scan")
        if end > len(data):
            break
        if marker == _APP1 and not turned and data.startswith(_EXIF, at + 4):
            turned = data[at + 4 : end]
        if not _is_jpeg_metadata(marker, data[at + 4 : at + 9], end - at):
            kept.append(data[at:end])
        at = end
    kept.append(data[at:])
    return Bare(b"".join(kept), orientation(turned))


def _is_jpeg_metadata(marker: int, begin: bytes, size: int) -> bool:
    """All application segments and comments, but for the two that say how colours are stored."""
    if marker == _APP0:
        return begin != b"JFIF\0" or size < 16
    if marker == _APP14:
        return begin != b"Adobe" or size < 16
    return _APP0 < marker <= _APP15 or marker == _COMMENT


def _strip_png(data: bytes) -> Bare:
    most = _MOST_PARTS + len(data) // _BYTES_A_CHUNK
    kept, turned, transparent, at = [PNG_START], b"", b"", len(PNG_START)
    for number, (kind, end) in enumerate(_chunks(data)):
        if number >= most:
            raise TooManyParts(f"is a PNG of more than {most} chunks")
        if kind in _KEPT_CHUNKS:
            kept.append(data[at:end])
        elif kind in (b"eXIf", b"tRNS") and zlib.crc32(data[at + 4 : end - 4]).to_bytes(4) == data[end - 4 : end]:
            if kind == b"eXIf":
                turned = data[at + 8 : end - 4]
            elif data[25] in (_GREY, _RGB):
                transparent = data[at + 8 : end - 4]
            else:
                kept.append(data[at:end])  # of a palette
        at = end
    kept.append(data[at:])
    depth = data[24] if len(data) > 25 else 8
    samples = struct.unpack(f">{len(transparent) // 2}H", transparent) if len(transparent) in (2, 6) else ()
    # Of fewer than 16 bits, the lowest count, says the specification.
    key = tuple(sample & ((1 << depth) - 1) for sample in samples)
    return Bare(b"".join(kept), orientation(turned), key, depth)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Kind and end of each whole chunk, up to IEND."""
    at = len(PNG_START)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if end > len(data):
            return
        kind = data[at + 4 : at + 8]
        yield kind, end
        if kind == b"IEND":
            return
        at = end
