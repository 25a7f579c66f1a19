"""What a caller may write into a field: it is answered in few characters, never by UNKNOWN, and it is counted."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests import colour_model
from tests.integration.server_process import ServerProcess, serving

MODEL = "colours"
LEAST_METADATA = 8 << 10  # what gRPC's clients take by default
Infer = service_pb2.ModelInferRequest
BAD, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("hostile")
    colour_model.publish(folder / "models", MODEL)
    control = ("--model-control", "explicit", "--load-model", MODEL)
    with serving(folder / "models", folder / "log", *control) as process:
        yield process


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.target, [("grpc.max_send_message_length", -1)]) as channel:
        yield channel


def inference(count: int = 1) -> Infer:
    images = colour_model.distinct(count)
    request = Infer(model_name=MODEL, raw_input_contents=[images.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    return request


def typed(**changes: Any) -> pb.ClassifyRequest:
    raw = pb.RawImage(rgb=colour_model.plain((250, 5, 5)).tobytes(), width=8, height=8)
    return pb.ClassifyRequest(**{"images": [pb.Image(raw=raw)], **changes})


def failure(call: Callable[[], Any]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def assert_short(error: Any, code: grpc.StatusCode) -> None:
    """It has the code, says little, and fits into the metadata that any client takes."""
    assert error.code() is code, error
    assert 0 < len(error.details()) <= 1100
    assert "Traceback" not in error.details()
    size = sum(len(key) + len(value) * 4 / 3 + 32 for key, value in error.trailing_metadata())
    assert size + 3 * len(error.details().encode()) + 100 < LEAST_METADATA
    status = rpc_status.from_call(error)
    assert status is not None and status.message == error.details()


def same_output(times: int) -> Callable[[Infer], None]:
    def change(request: Infer) -> None:
        for _ in range(times):
            request.outputs.add(name="probabilities").parameters["classification"].int64_param = 5

    return change


def parameter(key: str, **value: Any) -> Callable[[Infer], None]:
    def change(request: Infer) -> None:
        name, content = next(iter(value.items()))
        setattr(request.parameters[key], name, content)

    return change


def bytes_elements(elements: int, claimed: int) -> Callable[[Infer], None]:
    def change(request: Infer) -> None:
        del request.inputs[:]
        request.inputs.add(name="image_bytes", datatype="BYTES", shape=[claimed])
        request.raw_input_contents[0] = struct.pack("<I", 0) * elements

    return change


def many_inputs(request: Infer) -> None:
    for _ in range(2000):
        request.inputs.add(name="x" * 3000)


def long_shape(request: Infer) -> None:
    request.inputs[0].shape.extend([1 << 62] * 100_000)


def long_datatype(request: Infer) -> None:
    request.inputs[0].datatype = "\u00fc" * 6000


def output(name: str) -> Callable[[Infer], None]:
    return lambda request: setattr(request.outputs.add(), "name", name)


def classification(**value: Any) -> Callable[[Infer], None]:
    def change(request: Infer) -> None:
        name, content = next(iter(value.items()))
        setattr(request.outputs.add(name="logits").parameters["classification"], name, content)

    return change


BAD_INFERENCE: dict[str, tuple[Callable[[Infer], None], str]] = {
    "one output twice": (same_output(2), "outputs"),
    "one output 8000 times": (same_output(2500), "outputs"),
    "inputs with long names": (many_inputs, "inputs"),
    "a long shape": (long_shape, "image"),
    "a long datatype": (long_datatype, "image"),
    "a long output": (output("\u20ac" * 5000), "outputs"),
    "an output of control characters": (output("\n\x00\x1b" * 4000), "outputs"),
    "millions of empty elements, as claimed": (bytes_elements(1 << 20, 1 << 20), "image_bytes"),
    "millions of empty elements, one claimed": (bytes_elements(1 << 20, 1), "image_bytes"),
    "fewer elements than claimed": (bytes_elements(3, 4), "image_bytes"),
    "timeout of 5000 digits": (parameter("timeout", string_param="9" * 5000), "parameters"),
    "timeout of 5000 digits after a sign": (parameter("timeout", string_param="-" + "9" * 5000), "parameters"),
    "timeout NaN": (parameter("timeout", double_param=float("nan")), "parameters"),
    "timeout infinite": (parameter("timeout", double_param=float("inf")), "parameters"),
    "timeout in words": (parameter("timeout", string_param="1e3"), "parameters"),
    "timeout true": (parameter("timeout", bool_param=True), "parameters"),
    "priority 1e300": (parameter("priority", double_param=1e300), "parameters"),
    "priority above 64 bits, signed": (parameter("priority", uint64_param=(1 << 64) - 1), "parameters"),
    "classification of 5000 digits": (classification(string_param="1" * 5000), "logits"),
    "classification negative": (classification(int64_param=-1), "logits"),
    "classification huge": (classification(int64_param=(1 << 63) - 1), "logits"),
    "classification 1e308": (classification(double_param=1e308), "logits"),
}


@pytest.mark.parametrize(("change", "field"), BAD_INFERENCE.values(), ids=BAD_INFERENCE.keys())
def test_a_hostile_value_is_an_invalid_argument_that_names_its_field(
    server: ServerProcess, channel: grpc.Channel, change: Callable[[Infer], None], field: str
) -> None:
    request = inference()
    change(request)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    before = server.metric("cifarserve_requests_total", code="INVALID_ARGUMENT")
    error: Any = failure(lambda: stub.ModelInfer(request, timeout=60))
    assert_short(error, BAD)
    assert error.details().startswith(field)
    assert server.metric("cifarserve_requests_total", code="INVALID_ARGUMENT") == before + 1


@pytest.mark.parametrize("value", [1 << 40, (1 << 63) - 1, -(1 << 63), -1, 0])
def test_numbers_that_are_only_large_or_negative_do_no_harm(channel: grpc.Channel, value: int) -> None:
    request = inference()
    request.parameters["timeout"].int64_param = value
    request.parameters["priority"].int64_param = value
    request.parameters["sequence_id"].string_param = str(value)
    reply = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    assert np.frombuffer(reply.raw_output_contents[0], "<f4").shape == (5,)


VERSIONS = [
    "9" * 5000,
    "9" * 4300,
    "9" * 20,
    "18446744073709551616",
    "-1",
    "\u0661",
    "\u00b2",
    "1.0",
    " 1",
    "\x00" * 5000,
]


@pytest.mark.parametrize("version", VERSIONS, ids=range(len(VERSIONS)))
def test_a_version_that_cannot_be_is_not_found_by_any_method(
    server: ServerProcess, channel: grpc.Channel, version: str
) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = inference()
    request.model_version = version
    before = server.metric("cifarserve_requests_total", model="", code="NOT_FOUND")
    assert_short(failure(lambda: stub.ModelInfer(request, timeout=60)), MISSING)
    assert server.metric("cifarserve_requests_total", model="", code="NOT_FOUND") == before + 1
    (reply,) = stub.ModelStreamInfer(iter([request]), timeout=60)
    assert reply.error_message.startswith("NOT_FOUND")
    assert len(reply.error_message) < 200
    assert server.metric("cifarserve_requests_total", model="", code="NOT_FOUND") == before + 2
    for method, kind in (
        (stub.ModelMetadata, service_pb2.ModelMetadataRequest),
        (stub.ModelConfig, service_pb2.ModelConfigRequest),
        (stub.ModelStatistics, service_pb2.ModelStatisticsRequest),
    ):
        assert_short(failure(lambda: method(kind(name=MODEL, version=version), timeout=60)), MISSING)  # noqa: B023
    assert not stub.ModelReady(service_pb2.ModelReadyRequest(name=MODEL, version=version), timeout=60).ready


NAMES = ["m" * 4000, "m" * 16_000, "\u20ac" * 5000, "\n" * 4000, "\x00\x7f" * 4000, "%" * 4000, "\U0001f600" * 4000]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_model_of_any_name_is_not_found_in_few_characters(channel: grpc.Channel, name: str) -> None:
    triton = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    stub = pb_grpc.ClassifierStub(channel)
    request = inference()
    request.model_name = name
    asked = service_pb2.RepositoryModelLoadRequest(model_name=name)
    for call in (
        lambda: triton.ModelInfer(request, timeout=60),
        lambda: triton.ModelMetadata(service_pb2.ModelMetadataRequest(name=name), timeout=60),
        lambda: triton.RepositoryModelLoad(asked, timeout=60),
        lambda: triton.RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest(model_name=name), timeout=60),
        lambda: stub.Classify(typed(model=name), timeout=60),
        lambda: stub.GetModel(pb.GetModelRequest(model=name), timeout=60),
    ):
        assert_short(failure(call), MISSING)


@pytest.mark.parametrize("version", [1 << 62, (1 << 63) - 1, -(1 << 63)])
def test_versions_of_the_typed_protocol_beyond_any_are_not_found(channel: grpc.Channel, version: int) -> None:
    stub = pb_grpc.ClassifierStub(channel)
    assert_short(failure(lambda: stub.Classify(typed(version=version), timeout=60)), MISSING)
    (reply,) = stub.ClassifyStream(iter([typed(version=version, id="x")]), timeout=60)
    assert (reply.id, reply.error.code) == ("x", MISSING.value[0])


DEEP = "[" * 5000 + "]" * 5000
CONFIGS = {
    "nested deeply": DEEP,
    "nested in an object": '{"versions": ' + DEEP + "}",
    "nested below the limit of the parser": '{"versions": ' + "[" * 400 + "]" * 400 + "}",
    "a number of 5000 digits": '{"keep_versions": ' + "9" * 5000 + "}",
    "a number of 4000 digits": '{"shadow_share": ' + "9" * 4000 + "}",
    "a number beyond any float": '{"shadow_share": 1e400}',
    "NaN": '{"shadow_share": NaN}',
    "infinity": '{"max_queue_delay": -Infinity}',
    "a key twice": '{"keep_versions": 1, "keep_versions": 2}',
    "a list": "[]",
    "a number": "7",
    "nothing": "",
    "not closed": '{"keep_versions": 1',
    "a long key": json.dumps({"k" * 9000: 1}),
    "a lone surrogate": '{"\\ud800": 1}',
    "control characters": json.dumps({"\n\x00" * 2000: 1}),
    "a version of 5000 digits": json.dumps({"traffic": {"9" * 5000: 1}}),
    "a policy of 5000 digits": json.dumps({"version_policy": {"specific": {"versions": ["9" * 5000]}}}),
    "a policy of no kind": json.dumps({"version_policy": {"x" * 5000: {}}}),
    "a policy that is text": json.dumps({"version_policy": "l" * 5000}),
    "a policy with text for a number": json.dumps({"version_policy": {"latest": {"num_versions": "9" * 5000}}}),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_hostile_configuration_is_an_invalid_argument(channel: grpc.Channel, config: str) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = service_pb2.RepositoryModelLoadRequest(model_name=MODEL)
    request.parameters["config"].string_param = config
    assert_short(failure(lambda: stub.RepositoryModelLoad(request, timeout=60)), BAD)
    assert stub.ModelInfer(inference(), timeout=60).model_name == MODEL


@pytest.mark.parametrize("count", [66, 256])
def test_a_reply_ranks_no_more_classes_than_its_limit(count: int) -> None:
    """Of a model with a thousand classes, all of few images, or few of all."""
    from service import classifier
    from service.errors import InvalidInput

    with pytest.raises(InvalidInput, match="fewer images") as caught:
        classifier.check_ranking("top_k", count, 1000)
    assert caught.value.field == "top_k"
    classifier.check_ranking("top_k", count, classifier.DEFAULT_TOP_K)
    classifier.check_ranking("top_k", 65, 1000)


def send(channel: grpc.Channel, path: str, streams: bool, message: bytes) -> None:
    if streams:
        list(channel.stream_stream(path)(iter([message]), timeout=60))
    else:
        channel.unary_unary(path)(message, timeout=60)


def test_what_fails_before_its_model_is_known_counts_once(server: ServerProcess, channel: grpc.Channel) -> None:
    def counted(code: str) -> float:
        return server.metric("cifarserve_requests_total", model="", code=code)

    for path, streams in (
        ("/cifarserve.v1.Classifier/Classify", False),
        ("/cifarserve.v1.Classifier/ClassifyStream", True),
        ("/inference.GRPCInferenceService/ModelInfer", False),
        ("/inference.GRPCInferenceService/ModelStreamInfer", True),
    ):
        for message in (b"\xff", b"\x22\x00" * 20_000, b"\xff" * 20_000):
            before = counted("INVALID_ARGUMENT")
            error: Any = failure(partial(send, channel, path, streams, message))
            assert_short(error, BAD)
            assert counted("INVALID_ARGUMENT") == before + 1, path


def test_the_failures_that_the_alerts_count_begin_at_zero(server: ServerProcess) -> None:
    from service.version_metrics import FAILURES

    for code in FAILURES:
        assert ("cifarserve_requests_total", frozenset({"model": "", "version": "", "code": code}.items())) in (
            server.metrics()
        )
