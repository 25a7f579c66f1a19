"""The drift window and the response cache by themselves."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from service.cache import ResponseCache
from service.drift import MIN_IMAGES, DriftWindow, stability_index
from service.engine import Outputs
from service.manifest import Manifest, read_manifest
from tests import colour_model


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    baseline = {
        "class_distribution": dict.fromkeys(colour_model.LABELS, 0.2),
        "confidence_counts": [10] * 10,
        "confidence_edges": np.linspace(0, 1, 11).tolist(),
    }
    return dataclasses.replace(read_manifest(colour_model.publish(tmp_path)), baseline=baseline)


def rows(classes: np.ndarray) -> np.ndarray:
    """Probabilities whose best class is as given, with a confidence of 0.6."""
    return (np.full((len(classes), 5), 0.1) + 0.5 * np.eye(5)[classes]).astype(np.float32)


def test_the_index_of_equal_distributions_is_0_and_of_others_is_known() -> None:
    assert stability_index([1, 1], [5, 5]) == pytest.approx(0)
    # (0.75 - 0.5) ln(0.75 / 0.5) + (0.25 - 0.5) ln(0.25 / 0.5), with the floor's small change.
    assert stability_index([1, 1], [3, 1]) == pytest.approx(0.27465, abs=1e-3)
    assert math.isfinite(stability_index([1, 0], [0, 1]))


def test_too_few_images_give_no_number(manifest: Manifest) -> None:
    window = DriftWindow(manifest, 1000)
    window.add(rows(np.zeros(MIN_IMAGES - 1, int)))
    assert math.isnan(window.class_index())
    window.add(rows(np.zeros(1, int)))
    assert window.class_index() > 1


def test_the_window_forgets_what_is_older_than_its_size(manifest: Manifest) -> None:
    window = DriftWindow(manifest, 500)
    window.add(rows(np.zeros(700, int)))
    assert window.class_index() > 1
    for start in range(0, 500, 50):
        window.add(rows(np.arange(start, start + 50) % 5))
    assert window.class_index() == pytest.approx(0, abs=1e-6)
    assert window.confidence_index() > 1


def outputs(count: int) -> Outputs:
    values = np.arange(count * 5, dtype=np.float32).reshape(count, 5)
    return Outputs(values, -values)


def test_the_cache_gives_back_what_was_put_in_and_drops_the_least_recently_used() -> None:
    images = colour_model.distinct(10)
    cache = ResponseCache(1)
    (key,) = cache.keys(images[:1])
    cache.put(key, outputs(1), 0)
    assert cache.get(key) is None, "an entry larger than the bound is not kept"
    cache = ResponseCache(3 * 540)
    keys = cache.keys(images)
    for number in range(3):
        cache.put(keys[number], outputs(10), number)
    assert cache.get(keys[0]) is not None
    cache.put(keys[3], outputs(10), 3)
    assert cache.get(keys[1]) is None
    found = cache.get(keys[0])
    assert found is not None
    np.testing.assert_array_equal(found[0], outputs(10).probabilities[0])
    np.testing.assert_array_equal(found[1], outputs(10).logits[0])
    assert cache.bytes <= cache.limit


def test_images_that_differ_in_one_pixel_have_different_keys() -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[1, 7, 7, 2] = 1
    first, second = ResponseCache(1).keys(images)
    assert first != second
