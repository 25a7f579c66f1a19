"""The drift window and the response cache by themselves."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest

from service.cache import ResponseCache
from service.drift import ALERT, DriftWindow, images_needed, stability_index
from service.engine import Outputs
from service.manifest import Manifest, read_manifest
from tests import colour_model


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    baseline = {
        "class_distribution": dict.fromkeys(colour_model.LABELS, 0.2),
        "confidence_counts": [1000] * 10,
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
    needed = images_needed(5, 10_000)
    assert needed is not None
    window.add(rows(np.zeros(needed - 1, int)))
    assert math.isnan(window.class_index())
    window.add(rows(np.zeros(1, int)))
    assert window.class_index() > 1
    assert math.isnan(window.confidence_index()), "its ten bins need more images than five classes"


def with_classes(manifest: Manifest, classes: int, images: int) -> tuple[Manifest, np.ndarray, np.ndarray]:
    """A manifest with a test split of so many images; the true shares of its classes, and of 20 bins of confidence,
    most of which is high, as a trained network's.
    """
    random = np.random.default_rng(classes)
    shares = random.dirichlet(np.full(classes, 20.0))
    confidence = np.array([*[0.0] * 4, *np.linspace(0.001, 0.035, 15), 0.0])
    confidence[-1] = 1 - confidence.sum()
    labels = tuple(f"class {number}" for number in range(classes))
    counted = random.multinomial(images, shares) / images
    baseline = {
        "class_distribution": dict(zip(labels, counted.tolist(), strict=True)),
        "confidence_counts": random.multinomial(images, confidence).tolist(),
        "confidence_edges": np.linspace(0, 1, 21).tolist(),
    }
    return dataclasses.replace(manifest, labels=labels, baseline=baseline), shares, confidence


def stream(random: np.random.Generator, count: int, shares: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Probabilities of `count` images whose classes and confidences are spread so."""
    best = (random.choice(20, count, p=confidence) + random.random(count)) / 20
    classes = random.choice(len(shares), count, p=shares)
    probabilities = np.full((count, len(shares)), -1.0, np.float32)  # the rest plays no part
    probabilities[np.arange(count), classes] = best
    return probabilities


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_stream_like_the_test_split_is_far_from_the_alert_from_the_first_value_on(
    manifest: Manifest, classes: int
) -> None:
    described, *truth = with_classes(manifest, classes, 10_000)
    random, highest, firsts = np.random.default_rng(0), [], []
    for _ in range(40):
        window = DriftWindow(described, 4096)
        assert not window.problems()
        for index in (window.class_index, window.confidence_index):
            assert math.isnan(index())
        spoken: list[float] = []
        for step in range(1, 121):
            window.add(stream(random, 50, *truth))
            values = [value for value in (window.class_index(), window.confidence_index()) if not math.isnan(value)]
            if values and not spoken:
                firsts.append(step * 50)
            spoken += values
        assert spoken
        highest.append(max(spoken))
    assert max(highest) < 0.7 * ALERT
    assert np.median(highest) < 0.5 * ALERT
    assert max(firsts) < 2000, "it speaks well before the window is full"


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_stream_that_has_shifted_raises_the_index_above_the_alert(manifest: Manifest, classes: int) -> None:
    described, shares, confidence = with_classes(manifest, classes, 10_000)
    random = np.random.default_rng(1)
    shifted = 0.3 * shares  # a camera that shows mostly one thing, and less clearly
    shifted[0] += 0.7
    unsure = np.roll(confidence, -3)
    for _ in range(10):
        window = DriftWindow(described, 4096)
        window.add(stream(random, 4096, shares, confidence))
        assert window.class_index() < 0.1
        assert window.confidence_index() < 0.1
        window.add(stream(random, 4096, shifted, unsure))
        assert window.class_index() > ALERT
        assert window.confidence_index() > ALERT


def test_the_number_of_images_follows_from_the_bins_and_the_test_split() -> None:
    by_bins = [images_needed(bins, 10_000) for bins in (2, 10, 20, 100, 200)]
    assert None not in by_bins
    assert by_bins == sorted(by_bins, key=lambda count: count or 0)
    assert [images_needed(20, images) for images in (100, 300)] == [None, None], "no window makes up for the baseline"
    assert (images_needed(20, 1000) or 0) > (images_needed(20, 10_000) or 0)
    assert images_needed(1, 10) == 1


@pytest.mark.parametrize(
    ("images", "size", "said"),
    [(10_000, 1000, "100 bins need a window of .*, drift_images is 1000; raise it"), (500, 4096, "500 images is too")],
)
def test_a_window_that_is_too_small_says_so_and_gives_no_number(
    manifest: Manifest, images: int, size: int, said: str
) -> None:
    described, *truth = with_classes(manifest, 100, images)
    window = DriftWindow(described, size)
    window.add(stream(np.random.default_rng(0), 2 * size, *truth))
    assert math.isnan(window.class_index())
    assert re.search(f"drift of classes is not measured: .*{said}", window.problems()[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"confidence_counts": [-1, 2] * 5},
        {"confidence_counts": [0] * 10},
        {"confidence_counts": [math.nan] * 10},
        {"confidence_counts": [[1]] * 10},
        {"confidence_edges": [0, 1]},
        {"confidence_counts": "many"},
        {"class_distribution": dict.fromkeys(colour_model.LABELS, 0)},
        {"class_distribution": dict.fromkeys(colour_model.LABELS, math.inf)},
    ],
)
def test_a_baseline_that_is_none_is_refused(manifest: Manifest, wrong: dict[str, object]) -> None:
    described = dataclasses.replace(manifest, baseline=manifest.baseline | wrong)
    with pytest.raises(ValueError, match=r"fit|from 0|could not convert"):
        DriftWindow(described, 1000)


def test_rows_of_another_width_spoil_no_window_for_ever(manifest: Manifest) -> None:
    window = DriftWindow(manifest, 1000)
    window.add(np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="dimension"):
        window.add(rows(np.zeros(200, int)))
    window.add(rows(np.arange(500) % 5))
    assert window.class_index() == pytest.approx(0, abs=1e-6)


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
