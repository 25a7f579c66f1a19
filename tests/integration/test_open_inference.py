"""The Open Inference Protocol, driven by Triton's own client, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import io
import json
import queue
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_tools import protoc
from PIL import Image
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests import colour_model
from tests.integration.server_process import ENVIRONMENT, ROOT, ServerProcess, serving

MODEL = "colours"


@pytest.fixture
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.target) as client:
        yield client


def pixels(images: np.ndarray) -> list[triton.InferInput]:
    tensor = triton.InferInput("image", images.shape, "UINT8")
    tensor.set_data_from_numpy(images)
    return [tensor]


def pictures(images: np.ndarray, shape: tuple[int, ...]) -> list[triton.InferInput]:
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append(file.getvalue())
    tensor = triton.InferInput("image_bytes", shape, "BYTES")
    tensor.set_data_from_numpy(np.array(files, np.object_).reshape(shape))
    return [tensor]


def assert_right(result: triton.InferResult, images: np.ndarray) -> None:
    np.testing.assert_allclose(result.as_numpy("probabilities"), colour_model.expected(images), atol=1e-5)


def test_the_server_is_live_and_ready_and_says_what_it_can(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata.name == "cifarserve"
    assert {"statistics", "model_repository", "classification"} <= set(metadata.extensions)


def test_readiness_of_what_is_not_there_is_false_and_no_error(client: triton.InferenceServerClient) -> None:
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "2")
    assert not client.is_model_ready(MODEL, "latest")
    assert not client.is_model_ready("other")


def test_metadata_and_configuration_describe_the_tensors(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata(MODEL)
    assert (metadata.name, list(metadata.versions), metadata.platform) == (MODEL, ["1"], "onnx_onnxv1")
    (image,) = metadata.inputs
    assert (image.name, image.datatype, list(image.shape)) == ("image", "UINT8", [-1, 8, 8, 3])
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.outputs] == [
        ("probabilities", "FP32", [-1, 5]),
        ("logits", "FP32", [-1, 5]),
    ]
    config = client.get_model_config(MODEL).config
    assert (config.name, config.max_batch_size) == (MODEL, 64)
    assert list(config.input[0].dims) == [8, 8, 3]
    assert config.HasField("dynamic_batching")


@pytest.mark.parametrize("count", [1, 7, 150])
def test_pixels_are_classified(client: triton.InferenceServerClient, count: int) -> None:
    images = colour_model.distinct(count)
    result = client.infer(MODEL, pixels(images), request_id="seven")
    assert_right(result, images)
    assert result.as_numpy("logits").shape == (count, 5)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (MODEL, "1", "seven")


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_encoded_pictures_are_decoded_and_classified(
    client: triton.InferenceServerClient, shape: tuple[int, ...]
) -> None:
    images = colour_model.distinct(3)
    assert_right(client.infer(MODEL, pictures(images, shape)), images)


def test_typed_contents_are_answered_by_typed_contents(server: ServerProcess) -> None:
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    images = colour_model.distinct(2)
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    tensor.contents.uint_contents.extend(images.ravel().tolist())
    with grpc.insecure_channel(server.target) as channel:
        reply = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert not reply.raw_output_contents
    assert [output.name for output in reply.outputs] == ["probabilities", "logits"]
    found = np.array(reply.outputs[0].contents.fp32_contents).reshape(2, 5)
    np.testing.assert_allclose(found, colour_model.expected(images), atol=1e-5)


def test_only_the_outputs_asked_for_are_sent(client: triton.InferenceServerClient) -> None:
    result = client.infer(MODEL, pixels(colour_model.distinct(1)), outputs=[triton.InferRequestedOutput("logits")])
    assert [output.name for output in result.get_response().outputs] == ["logits"]


def test_classification_gives_value_index_and_label(client: triton.InferenceServerClient) -> None:
    images = np.stack([colour_model.plain((250, 5, 5)), colour_model.plain((5, 5, 250))])
    wanted = [triton.InferRequestedOutput("probabilities", class_count=2)]
    rows = client.infer(MODEL, pixels(images), outputs=wanted).as_numpy("probabilities")
    assert rows.shape == (2, 2)
    for row, image, label in zip(rows, images, ("red", "blue"), strict=True):
        value, index, name = row[0].decode().split(":")
        assert name == label == colour_model.LABELS[int(index)]
        assert float(value) == pytest.approx(colour_model.expected(image[None]).max(), abs=1e-5)


def refused(client: triton.InferenceServerClient, *arguments: object, **options: object) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(*arguments, **options)
    return caught.value


def named(name: str, array: np.ndarray, datatype: str) -> list[triton.InferInput]:
    tensor = triton.InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return [tensor]


BAD: dict[str, tuple[Callable[[], list[triton.InferInput]], str]] = {
    "unknown input": (lambda: named("picture", colour_model.distinct(1), "UINT8"), "inputs"),
    "no input": (list, "inputs"),
    "two inputs": (lambda: pixels(colour_model.distinct(1)) * 2, "inputs"),
    "wrong datatype": (lambda: named("image", colour_model.distinct(1).astype(np.float32), "FP32"), "UINT8"),
    "wrong shape": (lambda: named("image", np.zeros((1, 9, 8, 3), np.uint8), "UINT8"), "shape"),
    "no batch dimension": (lambda: named("image", np.zeros((8, 8, 3), np.uint8), "UINT8"), "shape"),
    "no images": (lambda: named("image", np.zeros((0, 8, 8, 3), np.uint8), "UINT8"), "shape"),
    "too many images": (lambda: pixels(colour_model.distinct(201)), "from 1 to 200"),
    "pictures of the wrong shape": (lambda: pictures(colour_model.distinct(4), (2, 2)), "shape"),
    "no picture": (lambda: named("image_bytes", np.array([b"nothing"], np.object_), "BYTES"), "image_bytes[0]"),
}


@pytest.mark.parametrize(("make", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_an_invalid_argument_that_says_what(
    client: triton.InferenceServerClient, make: Callable[[], list[triton.InferInput]], said: str
) -> None:
    error = refused(client, MODEL, make())
    assert error.status() == "StatusCode.INVALID_ARGUMENT"
    assert said in error.message()
    assert_right(client.infer(MODEL, pixels(colour_model.distinct(1))), colour_model.distinct(1))


def change_raw_length(request: service_pb2.ModelInferRequest) -> None:
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]


def add_raw(request: service_pb2.ModelInferRequest) -> None:
    request.raw_input_contents.append(b"")


def mix_contents(request: service_pb2.ModelInferRequest) -> None:
    request.inputs[0].contents.uint_contents.append(1)


def use_shared_memory(request: service_pb2.ModelInferRequest) -> None:
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"


def ask_for_another_output(request: service_pb2.ModelInferRequest) -> None:
    request.outputs.add(name="other")


def ask_for_too_many_classes(request: service_pb2.ModelInferRequest) -> None:
    request.outputs.add(name="logits").parameters["classification"].int64_param = 6


def misspell_timeout(request: service_pb2.ModelInferRequest) -> None:
    request.parameters["timeout"].string_param = "soon"


@pytest.mark.parametrize(
    "spoil",
    [
        change_raw_length,
        add_raw,
        mix_contents,
        use_shared_memory,
        ask_for_another_output,
        ask_for_too_many_classes,
        misspell_timeout,
    ],
)
def test_a_spoilt_message_is_an_invalid_argument(
    server: ServerProcess, spoil: Callable[[service_pb2.ModelInferRequest], None]
) -> None:
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    images = colour_model.distinct(1)
    request = service_pb2.ModelInferRequest(model_name=MODEL, raw_input_contents=[images.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    with grpc.insecure_channel(server.target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(request)
        spoil(request)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(("name", "version"), [("other", ""), (MODEL, "2"), (MODEL, "one"), (MODEL, "0")])
def test_an_unknown_model_or_version_is_not_found(
    client: triton.InferenceServerClient, name: str, version: str
) -> None:
    error = refused(client, name, pixels(colour_model.distinct(1)), version)
    assert error.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.get_model_metadata(name, version)


def test_unknown_parameters_are_ignored_and_known_ones_taken(client: triton.InferenceServerClient) -> None:
    images = colour_model.distinct(2)
    result = client.infer(MODEL, pixels(images), priority=1, timeout=20_000_000, parameters={"colour": "green"})
    assert_right(result, images)


def test_a_stream_answers_in_order_and_survives_a_bad_request(client: triton.InferenceServerClient) -> None:
    images = colour_model.distinct(60)
    replies: queue.Queue[tuple[triton.InferResult | None, InferenceServerException | None]] = queue.Queue()
    client.start_stream(lambda result, error: replies.put((result, error)))
    for number in range(60):
        name = MODEL if number != 30 else "other"
        client.async_stream_infer(name, pixels(images[number : number + 1]), request_id=str(number))
    for number in range(60):
        result, error = replies.get(timeout=30)
        if number == 30:
            assert error is not None
            assert "NOT_FOUND" in str(error)
        else:
            assert error is None
            assert result is not None
            assert result.get_response().id == str(number)
            assert_right(result, images[number : number + 1])
    client.stop_stream()


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "not asked for"])
def test_every_response_of_a_stream_is_the_final_one_of_its_request(
    client: triton.InferenceServerClient, asked: bool
) -> None:
    images = colour_model.distinct(3)
    replies: queue.Queue[tuple[triton.InferResult | None, InferenceServerException | None]] = queue.Queue()
    client.start_stream(lambda result, error: replies.put((result, error)))
    for number in range(3):
        client.async_stream_infer(
            MODEL, pixels(images[number : number + 1]), request_id=str(number), enable_empty_final_response=asked
        )
        while True:  # as Triton's examples do
            result, error = replies.get(timeout=30)
            assert error is None
            assert result is not None
            assert_right(result, images[number : number + 1])
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
    client.stop_stream()
    assert "triton_final_response" not in client.infer(MODEL, pixels(images)).get_response().parameters


def test_a_failed_request_of_a_stream_is_final_too(server: ServerProcess) -> None:
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    with grpc.insecure_channel(server.target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        (reply,) = stub.ModelStreamInfer(iter([service_pb2.ModelInferRequest(model_name="other", id="x")]), timeout=30)
    assert reply.error_message
    assert reply.infer_response.id == "x"
    assert reply.infer_response.parameters["triton_final_response"].bool_param


def test_the_asynchronous_client_works_too(server: ServerProcess) -> None:
    images = colour_model.distinct(300)

    async def scenario() -> None:
        async with triton_aio.InferenceServerClient(server.target) as client:
            assert await client.is_model_ready(MODEL)
            calls = [client.infer(MODEL, pixels(images[number : number + 1])) for number in range(300)]
            for number, result in enumerate(await asyncio.gather(*calls)):
                assert_right(result, images[number : number + 1])

            async def requests() -> AsyncIterator[dict[str, object]]:
                for number in range(20):
                    yield {"model_name": MODEL, "inputs": pixels(images[number : number + 1])}

            number = 0
            async for result, error in client.stream_infer(requests()):
                assert error is None
                assert_right(result, images[number : number + 1])
                number += 1
            assert number == 20

    asyncio.run(scenario())


def test_a_client_can_cancel_and_time_out(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models, work=100)
    image = colour_model.distinct(1)
    done: queue.Queue[InferenceServerException | None] = queue.Queue()
    with (
        serving(models, tmp_path / "log") as server,
        triton.InferenceServerClient(server.target) as client,
    ):
        call = client.async_infer(MODEL, pixels(image), lambda result, error: done.put(error))
        call.cancel()
        cancelled = done.get(timeout=30)
        assert cancelled is not None
        assert "CANCELLED" in str(cancelled.status())
        assert "Deadline" in refused(client, MODEL, pixels(image), client_timeout=0.01).message()
        assert "timeout" not in client.infer(MODEL, pixels(image)).get_response().parameters
        # The server's own bound, in microseconds: the engine is busy with the first one, so the second's runs out.
        started = server.metric("cifarserve_queue_seconds_count")
        client.async_infer(MODEL, pixels(image), lambda result, error: done.put(error))
        while server.metric("cifarserve_queue_seconds_count") == started:
            pass
        assert refused(client, MODEL, pixels(image), timeout=1000).status() == "StatusCode.DEADLINE_EXCEEDED"
        assert done.get(timeout=30) is None


def test_statistics_count_what_was_inferred(client: triton.InferenceServerClient) -> None:
    def statistics() -> service_pb2.ModelStatistics:
        (found,) = client.get_inference_statistics(MODEL).model_stats
        return found

    before = statistics()
    for _ in range(3):
        client.infer(MODEL, pixels(colour_model.distinct(5)))
    refused(client, MODEL, [])
    after = statistics()
    assert after.inference_count - before.inference_count == 15
    assert after.execution_count - before.execution_count == 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    stages = after.inference_stats
    # perf_analyzer insists on it.
    assert stages.compute_input.count == stages.compute_infer.count == stages.compute_output.count
    assert after.inference_stats.success.ns > after.inference_stats.compute_infer.ns > 0
    assert after.last_inference > 1.7e12
    assert {batch.batch_size for batch in after.batch_stats} >= {5}
    assert [one.name for one in client.get_inference_statistics().model_stats] == [MODEL]


def our_descriptors() -> DescriptorPool:
    """Our .proto in a pool of its own: tritonclient's messages of the same names are in the default one."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "descriptors"
        arguments = [f"--proto_path={ROOT / 'protos'}", f"--descriptor_set_out={output}"]
        assert protoc.main(["protoc", *arguments, "inference/grpc_predict_v2.proto"]) == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())
    pool = DescriptorPool()
    for file in files.file:
        pool.Add(file)  # type: ignore[attr-defined]
    return pool


def shape_of(field: FieldDescriptor) -> tuple[object, ...]:
    kind = field.message_type.full_name if field.message_type else field.enum_type and field.enum_type.full_name
    oneof = field.containing_oneof.name if field.containing_oneof else None
    return field.number, field.type, field.is_repeated, kind, oneof


def test_every_message_we_define_has_the_fields_of_tritonclients() -> None:
    file = our_descriptors().FindFileByName("inference/grpc_predict_v2.proto")
    theirs = service_pb2.DESCRIPTOR.pool
    compared = 0

    def compare(message: Descriptor) -> None:
        nonlocal compared
        other = theirs.FindMessageTypeByName(message.full_name)
        for field in message.fields:
            assert shape_of(field) == shape_of(other.fields_by_name[field.name]), field.full_name
            compared += 1
        for nested in message.nested_types:
            compare(nested)

    for message in file.message_types_by_name.values():
        compare(message)
    assert compared > 120
    for enum in file.enum_types_by_name.values():
        other = theirs.FindEnumTypeByName(enum.full_name)
        assert {value.name: value.number for value in enum.values} == {v.name: v.number for v in other.values}
    (service,) = file.services_by_name.values()
    methods = theirs.FindServiceByName(service.full_name).methods_by_name
    for method in service.methods:
        other = methods[method.name]
        assert method.input_type.full_name == other.input_type.full_name
        assert method.output_type.full_name == other.output_type.full_name
        assert (method.client_streaming, method.server_streaming) == (other.client_streaming, other.server_streaming)


def test_kserves_client_works_too(server: ServerProcess) -> None:
    program = [sys.executable, "-m", "tests.integration.kserve_client", server.target, MODEL]
    result = subprocess.run(program, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "live": True, "ready": True, "model_ready": True, "right": True, "version": "1", "id": "seven",
    }  # fmt: skip


def test_what_comes_while_the_queue_is_full_is_refused(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    limits = ("--max-queue-images", 1, "--max-images-per-request", 1, "--max-batch-size", 2, "--max-queue-delay", 10)
    image = colour_model.distinct(1)
    with (
        serving(models, tmp_path / "log", *limits) as server,
        triton.InferenceServerClient(server.target) as client,
    ):
        waiting = client.async_infer(MODEL, pixels(image), lambda **_: None)
        while server.metric("cifarserve_queue_images") != 1:
            pass
        with pytest.raises(InferenceServerException, match="1 images wait, the limit is 1") as caught:
            client.infer(MODEL, pixels(image))
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        waiting.cancel()
