"""The engine: right answers at every batch size, on the provider that was asked for."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine import Engine, EngineError, batch_buckets
from service.manifest import GOLDEN_FILE, MODEL_FILE
from tests import colour_model


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_model.publish(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def engine(version: Path) -> Engine:
    return Engine(version / MODEL_FILE, provider="cpu", max_batch_size=24)


def test_buckets_are_powers_of_two_up_to_the_largest_batch() -> None:
    assert batch_buckets(1) == (1,)
    assert batch_buckets(2) == (1, 2)
    assert batch_buckets(48) == (1, 2, 4, 8, 16, 32, 48)
    assert batch_buckets(64) == (1, 2, 4, 8, 16, 32, 64)
    with pytest.raises(ValueError, match="at least 1"):
        batch_buckets(0)


def test_every_batch_size_gives_each_image_its_own_answer(engine: Engine) -> None:
    images = colour_model.distinct(24)
    expected = colour_model.expected(images)
    for count in (*range(24, 0, -1), *range(1, 25)):
        outputs = engine.run(images[:count])
        np.testing.assert_allclose(outputs.probabilities, expected[:count], atol=1e-6)
        assert outputs.logits.shape == (count, 5)


def test_a_batch_is_padded_to_the_next_bucket(engine: Engine) -> None:
    assert [engine.bucket(count) for count in (1, 2, 3, 16, 17, 24)] == [1, 2, 4, 16, 24, 24]


@given(st.lists(st.integers(1, 24), min_size=1, max_size=24).filter(lambda sizes: sum(sizes) <= 24))
@hypothesis.settings(max_examples=30, deadline=None)
def test_parts_of_any_sizes_give_the_rows_of_their_images_in_order(engine: Engine, sizes: list[int]) -> None:
    images = colour_model.distinct(sum(sizes))
    outputs = engine.compute(np.split(images, np.cumsum(sizes)[:-1]))
    np.testing.assert_allclose(outputs.probabilities, colour_model.expected(images), atol=1e-6)


def test_every_bucket_is_timed(engine: Engine) -> None:
    engine.time_buckets()
    assert tuple(engine.bucket_seconds) == engine.buckets
    assert all(seconds > 0 for seconds in engine.bucket_seconds.values())


def test_the_golden_check_passes_right_answers_and_names_the_difference_of_wrong_ones(
    engine: Engine, version: Path, tmp_path: Path
) -> None:
    engine.warm_up()
    engine.check_golden(version / GOLDEN_FILE)
    images = colour_model.distinct(50)
    wrong = colour_model.expected(images, scale=1.2).astype(np.float32)
    np.savez(tmp_path / GOLDEN_FILE, image=images, probabilities=wrong)
    with pytest.raises(EngineError, match=r"differ by 0\.\d+ on CPUExecutionProvider in fp32"):
        engine.check_golden(tmp_path / GOLDEN_FILE)


def test_golden_outputs_that_are_no_numbers_fail(engine: Engine, tmp_path: Path) -> None:
    images = colour_model.distinct(2)
    np.savez(tmp_path / GOLDEN_FILE, image=images, probabilities=np.full((2, 5), np.nan, np.float32))
    with pytest.raises(EngineError, match="differ"):
        engine.check_golden(tmp_path / GOLDEN_FILE)


def test_a_golden_file_with_pickled_objects_is_not_opened(engine: Engine, tmp_path: Path) -> None:
    np.savez(tmp_path / GOLDEN_FILE, image=np.array([object()]), probabilities=np.zeros((1, 5)))
    with pytest.raises(EngineError, match="not readable"):
        engine.check_golden(tmp_path / GOLDEN_FILE)


def test_openvino_runs_the_model_or_says_why_it_cannot(version: Path) -> None:
    try:
        engine = Engine(version / MODEL_FILE, provider="openvino")
    except EngineError as error:
        assert "OpenVINO" in str(error) or "onnxruntime-ep-openvino" in str(error)
        pytest.skip(f"no OpenVINO here: {error}")
    assert (engine.provider, engine.precision) == ("OpenVINOExecutionProvider", "fp32")
    engine.warm_up()
    engine.check_golden(version / GOLDEN_FILE)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes(b"garbage")
    with pytest.raises(EngineError, match=MODEL_FILE):
        Engine(tmp_path / MODEL_FILE, provider="cpu")
