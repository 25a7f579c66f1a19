"""Batches through bound buffers, here of the host; and what the GPU providers are asked for."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from service.engine import Engine, EngineError
from service.manifest import MODEL_FILE
from service.providers import Wanted, captures_graphs, cuda_options, openvino_options, tensorrt_options
from service.runners import DeviceRunner, HostRunner
from tests import colour_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_model.publish(tmp_path_factory.mktemp("models")) / MODEL_FILE


@pytest.mark.parametrize("graphs", [False, True])
def test_bound_buffers_give_the_answers_of_each_batch_and_leave_earlier_ones_alone(model: Path, graphs: bool) -> None:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    host, bound = HostRunner(session), DeviceRunner(session, "cpu", 5, graphs=graphs)
    kept = []
    for count in (4, 1, 8, 4, 4, 1):
        images = np.ascontiguousarray(colour_model.distinct(24)[:: 24 // count][:count])
        kept.append((images, bound(images)))
    for images, (probabilities, logits) in kept:
        expected_probabilities, expected_logits = host(images)
        np.testing.assert_array_equal(probabilities, expected_probabilities)
        np.testing.assert_array_equal(logits, expected_logits)


def test_buffers_bound_in_one_thread_serve_another(model: Path) -> None:
    """The thread that loads a version warms it up; the engine's own thread then runs it."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    runner = DeviceRunner(session, "cpu", 5, graphs=False)
    images = colour_model.distinct(8)
    runner(np.zeros_like(images))
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.append(runner(images)[0]))
    thread.start()
    thread.join()
    np.testing.assert_allclose(found[0], colour_model.expected(images), atol=1e-6)


def test_graphs_are_warmed_until_they_are_recorded(model: Path) -> None:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert DeviceRunner(session, "cpu", 5, graphs=True).warm_up_runs == 3
    assert DeviceRunner(session, "cpu", 5, graphs=False).warm_up_runs == 1


def test_options_given_replace_those_of_the_product() -> None:
    assert cuda_options(Wanted("cuda"))["use_tf32"] == "0"
    assert cuda_options(Wanted("cuda", options={"use_tf32": "1", "prefer_nhwc": "1"})) == {
        **cuda_options(Wanted("cuda")), "use_tf32": "1", "prefer_nhwc": "1"
    }  # fmt: skip
    assert openvino_options(Wanted("openvino", threads=3, options={"NUM_STREAMS": "2"})) == {
        "INFERENCE_NUM_THREADS": "3", "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "2"
    }  # fmt: skip


def test_tensorrt_gets_one_profile_for_every_bucket_and_keeps_its_engines(tmp_path: Path) -> None:
    options = tensorrt_options(Wanted("tensorrt", "fp16", max_batch_size=48), "32x32x3", tmp_path)
    assert options["trt_profile_min_shapes"] == "image:1x32x32x3"
    assert options["trt_profile_max_shapes"] == "image:48x32x32x3"
    assert options["trt_fp16_enable"] == "1"
    assert options["trt_engine_cache_path"] == str(tmp_path)
    assert "trt_engine_cache_enable" not in tensorrt_options(Wanted("tensorrt"), "32x32x3", None)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, False), ({"enable_cuda_graph": "1"}, True), ({"enable_cuda_graph": "0"}, False),
     ({"trt_cuda_graph_enable": "1"}, True)],
)  # fmt: skip
def test_graphs_are_asked_for_by_the_providers_own_option(options: dict[str, str], expected: bool) -> None:
    assert captures_graphs(Wanted("cuda", options=options)) is expected


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_provider_that_is_not_here_is_refused_by_name(model: Path, provider: str) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has GPU providers")
    with pytest.raises(EngineError, match=r"install the extra \[gpu\]"):
        Engine(model, provider=provider)
