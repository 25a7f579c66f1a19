"""Decoding: any picture to the model's shape, nothing else through."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service import images

SHAPE = (32, 32, 3)


def encode(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def test_a_picture_of_the_wanted_size_is_left_as_it_is() -> None:
    picture = noise(32, 32)
    np.testing.assert_array_equal(images.decode(encode(picture), SHAPE), np.asarray(picture))


def test_a_wide_picture_is_cropped_at_its_centre() -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = (0, 200, 0)
    pixels[:, :100] = (255, 0, 0)
    found = images.decode(encode(Image.fromarray(pixels)), SHAPE)
    assert (found == (0, 200, 0)).all()


def test_fine_patterns_are_averaged_and_do_not_alias() -> None:
    board = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)
    found = images.decode(encode(Image.fromarray(board).convert("RGB")), SHAPE).astype(int)
    assert abs(found - 127).max() <= 3


def test_a_photo_of_12_megapixels_looks_like_its_slow_exact_reduction() -> None:
    small = noise(8, 6).resize((4000, 3000), Image.Resampling.BICUBIC)
    fast = images.decode(encode(small, "JPEG", quality=90), SHAPE).astype(int)
    exact = small.resize((32, 32), Image.Resampling.LANCZOS, (500, 0, 3500, 3000))
    assert abs(fast - np.asarray(exact).astype(int)).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_the_way_it_was_taken(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = noise(8, 6).resize((640, 480), Image.Resampling.BICUBIC)
    turned = images.decode(encode(picture, "JPEG", quality=95, exif=exif), SHAPE).astype(int)
    operations = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_270],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_90],
    }
    for operation in operations.get(orientation, []):
        picture = picture.transpose(operation)
    plain = images.decode(encode(picture, "JPEG", quality=95), SHAPE).astype(int)
    assert abs(turned - plain).mean() < 3


def test_transparency_is_laid_on_white() -> None:
    picture = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert (images.decode(encode(picture), SHAPE) == 255).all()


def test_sixteen_bit_samples_are_scaled() -> None:
    picture = Image.fromarray(np.full((32, 32), 257 * 100, np.uint16))
    assert (images.decode(encode(picture), SHAPE) == 100).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_colour_mode_is_converted(mode: str, channels: int) -> None:
    form = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    found = images.decode(encode(noise(50, 40).convert(mode), form), (28, 28, channels))
    assert (found.shape, found.dtype) == ((28, 28, channels), np.uint8)


def test_more_pixels_than_allowed_are_refused_by_the_header_alone() -> None:
    data = encode(Image.new("RGB", (2000, 2000)))
    with pytest.raises(images.ImageError, match="2000 x 2000 pixels"):
        images.decode(data[:60], SHAPE, max_pixels=1_000_000)


@pytest.mark.parametrize("form", images.FORMATS)
def test_a_damaged_file_of_any_format_is_an_image_error(form: str) -> None:
    data = encode(noise(64, 64), form)
    generator = np.random.default_rng(1)
    refused = 0
    for _ in range(200):
        damaged = bytearray(data[: generator.integers(1, len(data) + 1)])
        for place in generator.integers(0, len(damaged), 8):
            damaged[place] = generator.integers(0, 256)
        try:
            assert images.decode(bytes(damaged), SHAPE, 1_000_000).shape == SHAPE
        except images.ImageError:
            refused += 1
    assert refused > 50


@given(st.binary(max_size=300))
def test_bytes_that_are_no_picture_are_an_image_error(data: bytes) -> None:
    with pytest.raises(images.ImageError):
        images.decode(data, SHAPE)


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([(32, 32, 3), (28, 28, 1), (8, 16, 3)]))
def test_raw_pixels_of_any_size_come_out_in_the_wanted_shape(
    width: int, height: int, shape: tuple[int, int, int]
) -> None:
    found = images.from_raw(bytes([7]) * (width * height * 3), width, height, shape)
    assert found.shape == shape
    assert (found == 7).all()


@given(st.binary(max_size=40), st.integers(-2, 5), st.integers(-2, 5))
def test_raw_pixels_of_the_wrong_length_are_refused(data: bytes, width: int, height: int) -> None:
    if width > 0 and height > 0 and len(data) == width * height * 3:
        return
    with pytest.raises(images.ImageError):
        images.from_raw(data, width, height, SHAPE)
