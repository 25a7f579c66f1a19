"""Encoded pictures and raw pixels to what a model takes: uint8 [height, width, channels].

The server decodes requests with these functions and training reads folders of pictures with the same ones,
so a picture looks the same to both. Nothing here trusts its input: the header is checked before a pixel is decoded,
and a picture whose decoding takes too long is given up (see Effort).
"""

from __future__ import annotations

import importlib
import io
import threading
import time
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError, features

from service import picture_metadata
from service.picture_metadata import Bare

Pixels = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", *(("AVIF",) if features.check("avif") else ()))
# `max_pixels` is the limit here; Pillow's own would lie below some of those that can be asked for.
Image.MAX_IMAGE_PIXELS = None
# What Pillow says of a damaged file goes to its sender as an error, and must not fill the log.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
DEFAULT_MAX_PIXELS = 64_000_000  # above the largest common phone sensors' output, 50 megapixels

# Each scan of a progressive JPEG goes over the whole picture, in as little as 31 bytes of the file, and libjpeg reads
# all that it is given before it can be stopped. Encoders write about ten.
MOST_SCANS = 100
_START_OF_SCAN = b"\xff\xda"
# Bytes from which on the time is looked at while a picture is read. Less holds no work that is not bounded otherwise.
_LARGE = 1 << 16

# Samples of 16 bits to 8, rounded.
_TO_8_BITS = [(sample + 128) // 257 for sample in range(1 << 16)]

# What each EXIF orientation asks for; 5 to 8 swap width and height.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = (5, 6, 7, 8)

# Brands in the first box of a file (ISO/IEC 23008-12) that mean HEIC.
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class ImageError(ValueError):
    """These bytes are not a picture that can be used. The message is fit for the caller."""


class Effort:
    """The processor time that may go into decoding the pictures of one request, on however many threads.

    Nothing can stop Pillow inside one of its calls, but it reads a file in blocks of at most 64 KiB, and asks for the
    next here. What it does between two of them is bounded by `max_pixels` and MOST_SCANS: docs/reliability.md has how
    long that takes. Processor time, not the clock's: a busy machine makes no picture wrong.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = self._left = seconds
        self._lock = threading.Lock()

    def spend(self, since: float) -> float:
        """Take off what the calling thread has used since `since`, on time.thread_time()'s clock; returns its now."""
        now = time.thread_time()
        with self._lock:
            self._left -= now - since
        return now

    def check(self) -> None:
        """Raise ImageError when nothing is left."""
        if self._left <= 0:
            raise ImageError(f"takes too long to decode: the limit for a request is {self._seconds:g} s")


class _Watched(io.BytesIO):
    """A file that looks at the time whenever it is read."""

    def __init__(self, data: bytes, effort: Effort) -> None:
        super().__init__(data)
        self._effort = effort
        self.since = time.thread_time()

    def read(self, size: int | None = -1, /) -> bytes:
        self.since = self._effort.spend(self.since)
        self._effort.check()
        return super().read(size)


def decode(
    data: bytes, shape: tuple[int, int, int], max_pixels: int = DEFAULT_MAX_PIXELS, effort: Effort | None = None
) -> Pixels:
    """Decode a picture of any size to uint8 [height, width, channels] = `shape`.

    EXIF orientation is applied; other metadata is not read, and damaged metadata counts as none. Transparency is laid
    on white, the largest centred crop of the wanted aspect is taken, then scaled with an antialiasing filter. A
    picture that already has the size is left as it is. Large JPEGs are scaled while decoding (DCT scaling), to no
    less than twice the wanted size, which keeps a 12-megapixel photo in the tens of milliseconds.

    Raises ImageError: empty, not a picture, more than `max_pixels` pixels by its header, more work than `effort` has
    left, truncated or damaged.
    """
    if not data:
        raise ImageError("is empty")
    if data.startswith(picture_metadata.JPEG_START) and data.count(_START_OF_SCAN) > MOST_SCANS:
        raise ImageError(f"is a JPEG of more than {MOST_SCANS} scans")
    if effort is None:
        bare = _strip(data)
        return _decode(io.BytesIO(bare.data), bare, shape, max_pixels)
    effort.check()
    since = time.thread_time()
    bare = _strip(data)
    watched = _Watched(bare.data, effort) if len(data) >= _LARGE else None
    try:
        return _decode(watched or io.BytesIO(bare.data), bare, shape, max_pixels)
    finally:
        effort.spend(watched.since if watched else since)


def _decode(file: io.BytesIO, bare: Bare, shape: tuple[int, int, int], max_pixels: int) -> Pixels:
    try:
        picture = Image.open(file, formats=_formats(bare.data))
        return _read(picture, bare, shape, max_pixels)
    except UnidentifiedImageError:
        raise ImageError(f"is not a picture in a known format ({', '.join(FORMATS)})") from None
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # A damaged file may make Pillow raise anything, depending on the format and the place of the damage.
        raise ImageError(f"cannot be decoded: {error}") from None


def _formats(data: bytes) -> tuple[str, ...]:
    """What to try: with HEIC where the optional package pillow-heif is installed. Raises ImageError where it is not."""
    if data[4:8] != b"ftyp" or data[8:12] not in _HEIC_BRANDS:
        return FORMATS
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise ImageError("is HEIC, which is not read here: send it as JPEG or PNG, or install pillow-heif") from None
    return ("HEIF",)


def from_raw(data: bytes, width: int, height: int, shape: tuple[int, int, int]) -> Pixels:
    """RGB pixels, row by row, three bytes each, to uint8 [height, width, channels] = `shape`.

    Of the wanted size they are used as they are (no copy); of another they are cropped and scaled like a picture.
    Raises ImageError when the length is not width x height x 3.
    """
    if width < 1 or height < 1:
        raise ImageError(f"width and height must be at least 1, are {width} and {height}")
    if len(data) != width * height * 3:
        raise ImageError(f"{width} x {height} RGB needs {width * height * 3} bytes, got {len(data)}")
    pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
    return pixels if pixels.shape == shape else fit(Image.fromarray(pixels), shape)


def fit(picture: Image.Image, shape: tuple[int, int, int]) -> Pixels:
    """Centre crop to the aspect of `shape`, scale, and convert to its channels: uint8 [height, width, channels]."""
    height, width, channels = shape
    picture = _convert(picture, "L" if channels == 1 else "RGB")
    # Cropped before, not while scaling: a resize with a box lets pixels from outside the box shine in.
    if (box := _centre(picture.size, width / height)) != (0, 0, *picture.size):
        picture = picture.crop(box)
    if picture.size != (width, height):
        # Pillow's filters widen when they reduce, so this is antialiased; `reducing_gap` makes large pictures fast.
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(picture).reshape(shape)


def _strip(data: bytes) -> Bare:
    try:
        return picture_metadata.strip(data)
    except picture_metadata.TooManyParts as error:
        raise ImageError(str(error)) from None


def _read(picture: Image.Image, bare: Bare, shape: tuple[int, int, int], max_pixels: int) -> Pixels:
    width, height = picture.size
    if width * height > max_pixels:
        raise ImageError(f"is too large: {width} x {height} pixels, the limit is {max_pixels}")
    orientation = bare.orientation
    if picture.format in ("WEBP", "AVIF"):
        orientation = picture_metadata.orientation(picture.info.get("exif") or b"")
    wanted_height, wanted_width = (shape[1], shape[0]) if orientation in _QUARTER_TURNS else shape[:2]
    picture.draft("L" if shape[2] == 1 else "RGB", (2 * wanted_width, 2 * wanted_height))
    picture.load()
    if bare.key:
        picture = _without_key(picture, bare)
    elif picture.format == "BMP" and picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (0, 0):
        picture = picture.convert("RGB")  # an alpha mask that nobody filled in
    if orientation in _TURNS:
        picture = picture.transpose(_TURNS[orientation])
    return fit(picture, shape)


def _without_key(picture: Image.Image, bare: Bare) -> Image.Image:
    """A PNG's picture with white where its samples, in the file's own depth, are those of its transparent value."""
    samples = np.asarray(picture)
    if bare.depth < 8:  # Pillow spreads them over 0 to 255
        samples = samples // (255 // ((1 << bare.depth) - 1)) if samples.dtype != np.bool_ else samples
    elif bare.depth == 16 and picture.mode == "RGB":  # Pillow gives the high bytes only
        samples = samples.astype(np.uint16) << 8 | _low_bytes(bare.data)
    hidden = (samples.reshape(picture.height, picture.width, -1) == bare.key).all(axis=2)
    opaque = _convert(picture, "RGB" if picture.mode == "RGB" else "L")
    opaque.paste("white", mask=Image.fromarray(hidden))
    return opaque


def _low_bytes(data: bytes) -> Pixels:
    """Of a PNG of 16-bit RGB: read as little-endian, Pillow takes the second byte of each sample for the high one."""
    picture = Image.open(io.BytesIO(data), formats=("PNG",))
    picture.tile = [tile._replace(args="RGB;16L") for tile in picture.tile]
    return np.asarray(picture)


def _centre(size: tuple[int, int], aspect: float) -> tuple[int, int, int, int]:
    """The largest centred box (left, top, right, bottom) of `aspect`, width / height, in a picture of `size`."""
    width, height = size
    box_width = max(1, min(width, round(height * aspect)))
    box_height = max(1, min(height, round(width / aspect)))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def _convert(picture: Image.Image, mode: str) -> Image.Image:
    """To "L" or "RGB", with transparency on white and 16-bit samples scaled, not clipped, to 8."""
    if picture.mode == "I;16":
        picture = picture.convert("I").point(_TO_8_BITS, "L")
    elif picture.mode.startswith("I"):  # the other byte orders, and 32 bits
        samples = np.asarray(picture).astype(np.float64)
        picture = Image.fromarray((samples / 257.0).round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == mode else picture.convert(mode)
