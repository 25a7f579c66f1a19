"""The named image filters do what their names say, and are drawn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.from_scratch.filters import FILTERS, ZOOM, apply, draw, sample_picture

EDGES = [name for name in FILTERS if name.startswith("edges")]
OTHERS = [name for name in FILTERS if name not in EDGES]


def test_there_are_seven() -> None:
    assert len(EDGES) == 3
    assert OTHERS == ["identity", "sharpen", "box blur", "Gaussian blur"]


@pytest.mark.parametrize("name", FILTERS)
def test_each_is_a_correlation_of_every_channel_with_the_border_repeated(name: str) -> None:
    picture, kernel = sample_picture(), FILTERS[name].kernel
    channels = torch.tensor(picture, dtype=torch.float32).permute(2, 0, 1)[:, None]
    padded = torch.nn.functional.pad(channels, (1, 1, 1, 1), mode="replicate")
    expected = torch.nn.functional.conv2d(padded, torch.tensor(kernel)[None, None])[:, 0].permute(1, 2, 0)
    np.testing.assert_allclose(apply(kernel, picture), expected.clamp(0, 255), atol=0.5 + 1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_a_plain_picture_stays_as_it_is(name: str) -> None:
    plain = np.full((5, 6, 3), (250, 100, 3), np.uint8)
    np.testing.assert_array_equal(apply(FILTERS[name].kernel, plain), plain)


@pytest.mark.parametrize("name", EDGES)
def test_a_plain_picture_has_no_edges_not_even_at_its_border(name: str) -> None:
    np.testing.assert_array_equal(apply(FILTERS[name].kernel, np.full((5, 6, 3), 200, np.uint8)), 0)


def test_the_identity_changes_nothing() -> None:
    np.testing.assert_array_equal(apply(FILTERS["identity"].kernel, sample_picture()), sample_picture())


def test_blurs_lessen_and_sharpening_adds_contrast() -> None:
    def contrast(name: str) -> float:
        return float(np.abs(np.diff(apply(FILTERS[name].kernel, sample_picture()).astype(int), axis=0)).mean())

    assert contrast("box blur") < contrast("Gaussian blur") < contrast("identity") < contrast("sharpen")


def test_the_command_draws_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "images" / "filters.png"
    command = [sys.executable, "-m", "training.from_scratch.filters", str(path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])
    assert path.stat().st_size < 150_000
    with Image.open(path) as drawn:
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(draw(sample_picture())))
        shown = np.asarray(drawn)
    for name, each in FILTERS.items():
        filtered = apply(each.kernel, sample_picture()).repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
        assert holds(shown, filtered), name


def holds(sheet: np.ndarray, tile: np.ndarray) -> bool:
    """Whether `tile` is somewhere on `sheet`; its first pixel says where to look."""
    height, width, _ = tile.shape
    corners = np.argwhere((sheet[:-height, :-width] == tile[0, 0]).all(axis=2))
    return any(np.array_equal(sheet[y : y + height, x : x + width], tile) for y, x in corners)
