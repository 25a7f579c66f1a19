"""The engine: right answers at every batch size, on the provider that was asked for."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine import Engine, EngineError, powers_of_two
from service.manifest import GOLDEN_FILE, MODEL_FILE
from service.tune.engine_process import halfway_too
from tests import colour_model


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_model.publish(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def engine(version: Path) -> Engine:
    return Engine(version / MODEL_FILE, provider="cpu", max_batch_size=24)


def test_sizes_end_with_the_largest_batch() -> None:
    assert powers_of_two(1) == (1,)
    assert powers_of_two(2) == (1, 2)
    assert powers_of_two(48) == (1, 2, 4, 8, 16, 32, 48)
    assert powers_of_two(64) == (1, 2, 4, 8, 16, 32, 64)
    assert halfway_too(powers_of_two(64)) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    assert halfway_too((1,)) == (1,)
    with pytest.raises(EngineError, match="at least 1"):
        powers_of_two(0)


def test_every_batch_size_gives_each_image_its_own_answer(engine: Engine) -> None:
    images = colour_model.distinct(24)
    expected = colour_model.expected(images)
    for count in (*range(24, 0, -1), *range(1, 25)):
        outputs = engine.run(images[:count])
        np.testing.assert_allclose(outputs.probabilities, expected[:count], atol=1e-6)
        assert outputs.logits.shape == (count, 5)


def test_the_cpu_provider_computes_every_size_as_it_is(engine: Engine) -> None:
    assert [engine.bucket(count) for count in (1, 3, 17, 24)] == [1, 3, 17, 24]
    assert engine.landmarks == (1, 2, 4, 8, 16, 24)


def test_a_batch_is_padded_to_the_next_bucket(version: Path) -> None:
    engine = Engine(version / MODEL_FILE, max_batch_size=24, buckets=(4, 16))
    assert [engine.bucket(count) for count in (1, 4, 5, 16, 17, 24)] == [4, 4, 16, 16, 24, 24]
    assert engine.landmarks == engine.buckets == (4, 16, 24)
    images = colour_model.distinct(24)
    for count in (24, 3, 17, 1):
        outputs = engine.run(images[:count])
        np.testing.assert_allclose(outputs.probabilities, colour_model.expected(images[:count]), atol=1e-6)


@pytest.mark.parametrize("buckets", [(0, 4), (4, 32)])
def test_buckets_outside_the_batch_are_refused(version: Path, buckets: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="buckets must be from 1 to max_batch_size, 24"):
        Engine(version / MODEL_FILE, max_batch_size=24, buckets=buckets)


@given(st.lists(st.integers(1, 24), min_size=1, max_size=24).filter(lambda sizes: sum(sizes) <= 24))
@hypothesis.settings(max_examples=30, deadline=None)
def test_parts_of_any_sizes_give_the_rows_of_their_images_in_order(engine: Engine, sizes: list[int]) -> None:
    images = colour_model.distinct(sum(sizes))
    outputs = engine.compute(np.split(images, np.cumsum(sizes)[:-1]))
    np.testing.assert_allclose(outputs.probabilities, colour_model.expected(images), atol=1e-6)


def test_every_landmark_is_timed(engine: Engine) -> None:
    engine.time_buckets()
    assert tuple(engine.bucket_seconds) == engine.landmarks
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
    assert engine.bucket(5) == 5
    engine.warm_up()
    engine.check_golden(version / GOLDEN_FILE)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes(b"garbage")
    with pytest.raises(EngineError, match=MODEL_FILE):
        Engine(tmp_path / MODEL_FILE, provider="cpu")
