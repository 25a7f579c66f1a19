"""What random crops and flips may do to a batch, and what they may not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.augment import crop_and_flip, cut_out, reduce


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distinct(count: int, height: int = 6, width: int = 5) -> torch.Tensor:
    """Images without two equal pixels, none of them black: every crop of them can be told from every other."""
    values = torch.arange(1, height * width + 1, dtype=torch.uint8).reshape(1, height, width, 1)
    return values.expand(count, height, width, 3).clone()


def windows(image: np.ndarray, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop, and its mirror image, that may come out: its bytes to its offsets and whether it is mirrored."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width]
            found[crop.tobytes()] = (top, left, False)
            found[np.ascontiguousarray(crop[:, ::-1]).tobytes()] = (top, left, True)
    return found


def test_pixels_of_one_image_never_reach_another() -> None:
    images = torch.arange(1, 201, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(200, 8, 8, 3)
    result = crop_and_flip(images, 4, True, generator())
    for index in range(200):
        assert set(result[index].unique().tolist()) <= {0, index + 1}


def test_each_result_is_a_window_of_its_padded_image_and_all_windows_occur() -> None:
    images = distinct(2000)
    allowed = windows(images[0].numpy(), padding=2)
    result = crop_and_flip(images, 2, True, generator()).numpy()
    seen = [allowed[image.tobytes()] for image in result]  # a KeyError is a result that is no window
    assert {place[:2] for place in seen} == {place[:2] for place in allowed.values()}
    assert 900 < sum(mirrored for *_, mirrored in seen) < 1100


def test_without_padding_and_flip_nothing_changes() -> None:
    images = distinct(3)
    assert torch.equal(crop_and_flip(images, 0, False, generator()), images)


def test_without_flip_no_image_is_mirrored() -> None:
    images = distinct(200)
    allowed = windows(images[0].numpy(), padding=1)
    result = crop_and_flip(images, 1, False, generator()).numpy()
    assert not any(allowed[image.tobytes()][2] for image in result)


def test_images_are_drawn_for_one_by_one() -> None:
    result = crop_and_flip(distinct(50), 2, True, generator()).numpy()
    assert len({image.tobytes() for image in result}) > 10


def test_shape_dtype_and_input_stay() -> None:
    images = distinct(4)
    before = images.clone()
    result = crop_and_flip(images, 3, True, generator())
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    assert torch.equal(images, before)


def test_the_same_seed_draws_the_same() -> None:
    images = distinct(20)
    first, second, other = (crop_and_flip(images, 2, True, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_cut_out_square_is_whole_grey_and_anywhere() -> None:
    images = torch.full((400, 8, 10, 3), 200, dtype=torch.uint8)
    result = cut_out(images, 3, generator())
    blanked = (result == 128).all(3)
    assert (blanked.sum((1, 2)) == 9).all()
    assert ((result == 200) | (result == 128)).all()
    assert blanked.any(0).all()  # every place is hit by some square


def test_reduced_images_keep_their_mean_and_layout() -> None:
    images = torch.zeros((2, 32, 32, 3), dtype=torch.uint8)
    images[0, :, :16, 1] = 240
    result = reduce(images, 24)
    assert result.shape == (2, 24, 24, 3)
    assert result.dtype == torch.uint8
    assert result[0, 5, 3].tolist() == [0, 240, 0]
    assert result[0, :, :, 1].float().mean().item() == pytest.approx(120, abs=3)
    assert not result[1].any()
