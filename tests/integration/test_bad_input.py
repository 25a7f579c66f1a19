"""Everything a caller can get wrong: its status code, the field that it names, and that the server goes on."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc
from PIL import Image

from service.client import Client, ClientError, to_client_error
from tests import colour_model
from tests.integration.server_process import ServerProcess, serving

RED = pb.Image(raw=pb.RawImage(rgb=colour_model.plain((250, 5, 5)).tobytes(), width=8, height=8))


def jpeg() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def png(width: int, height: int, body: bytes) -> bytes:
    """A PNG whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def encoded(data: bytes) -> pb.Image:
    return pb.Image(encoded=data)


def raw(data: bytes, width: int, height: int) -> pb.Image:
    return pb.Image(raw=pb.RawImage(rgb=data, width=width, height=height))


BAD = {
    "truncated JPEG": ([RED, encoded(jpeg()[:2000])], "images[1].encoded"),
    "JPEG cut inside its header": ([encoded(jpeg()[:20])], "images[0].encoded"),
    "not an image": ([RED, RED, encoded(b"GET / HTTP/1.1\r\n" * 20)], "images[2].encoded"),
    "empty": ([encoded(b"")], "images[0].encoded"),
    "bomb by its header": ([encoded(png(50_000, 50_000, b""))], "images[0].encoded"),
    "bomb that is really there": ([encoded(png(4000, 4000, bytes(4000 * 12001)))], "images[0].encoded"),
    "neither encoded nor raw": ([pb.Image()], "images[0]"),
    "no images": ([], "images"),
    "too many images": ([RED] * 201, "images"),
    "raw too short": ([raw(bytes(191), 8, 8)], "images[0].raw"),
    "raw too long": ([RED, raw(bytes(193), 8, 8)], "images[1].raw"),
    "raw without size": ([raw(bytes(192), 0, 0)], "images[0].raw"),
    "raw of huge claimed size": ([raw(b"", 4_000_000_000, 4_000_000_000)], "images[0].raw"),
}


@pytest.fixture
def stub(server: ServerProcess) -> Iterator[pb_grpc.ClassifierStub]:
    with grpc.insecure_channel(server.target, options=[("grpc.max_send_message_length", -1)]) as channel:
        stub = pb_grpc.ClassifierStub(channel)
        yield stub
        reply = stub.Classify(pb.ClassifyRequest(images=[RED]), timeout=30)
        assert reply.predictions[0].classes[0].label == "red", "the server must answer after a bad request"


def refused(stub: pb_grpc.ClassifierStub, request: pb.ClassifyRequest) -> ClientError:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(request, timeout=30)
    return to_client_error(caught.value)


@pytest.mark.parametrize(("images", "field"), BAD.values(), ids=BAD.keys())
def test_a_bad_image_is_an_invalid_argument_that_names_its_field(
    stub: pb_grpc.ClassifierStub, images: list[pb.Image], field: str
) -> None:
    error = refused(stub, pb.ClassifyRequest(images=images))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(error.fields) == [field]
    assert error.message.startswith(field)
    assert "Traceback" not in error.message


@pytest.mark.parametrize("top_k", [0, 6, 4_000_000_000])
def test_top_k_out_of_range_is_an_invalid_argument(stub: pb_grpc.ClassifierStub, top_k: int) -> None:
    error = refused(stub, pb.ClassifyRequest(images=[RED], top_k=top_k))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(error.fields) == ["top_k"]


@pytest.mark.parametrize(("model", "version"), [("nosuch", 0), ("colours", 2), ("colours", -1), ("../colours", 1)])
def test_an_unknown_model_or_version_is_not_found(stub: pb_grpc.ClassifierStub, model: str, version: int) -> None:
    assert refused(stub, pb.ClassifyRequest(images=[RED], model=model, version=version)).code is (
        grpc.StatusCode.NOT_FOUND
    )
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetModel(pb.GetModelRequest(model=model, version=version))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_message_over_the_limit_is_refused(stub: pb_grpc.ClassifierStub) -> None:
    error = refused(stub, pb.ClassifyRequest(images=[encoded(bytes(2_100_000))]))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.retry_after is None


def test_a_client_does_not_try_a_bad_request_again(server: ServerProcess, client: Client) -> None:
    before = server.metric("cifarserve_requests_total", code="INVALID_ARGUMENT")
    with pytest.raises(ClientError):
        client.classify([b"no picture"])
    assert server.metric("cifarserve_requests_total", code="INVALID_ARGUMENT") == before + 1


def test_bytes_that_are_no_message_do_not_disturb_the_server(
    server: ServerProcess, stub: pb_grpc.ClassifierStub
) -> None:
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary("/cifarserve.v1.Classifier/Classify")
        with pytest.raises(grpc.RpcError):
            call(b"\xff" * 100, timeout=10)


def test_bytes_that_are_no_message_are_an_invalid_argument_and_no_stack(models: Path, tmp_path: Path) -> None:
    unary = (
        "/cifarserve.v1.Classifier/Classify", "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelMetadata", "/grpc.health.v1.Health/Check",
    )  # fmt: skip
    streams = (
        "/cifarserve.v1.Classifier/ClassifyStream", "/inference.GRPCInferenceService/ModelStreamInfer",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    )  # fmt: skip
    colour_model.publish(models)
    good = pb.ClassifyRequest(images=[raw(colour_model.plain((255, 0, 0)).tobytes(), 8, 8)]).SerializeToString()
    with serving(models, tmp_path / "log") as server, grpc.insecure_channel(server.target) as channel:
        ways = [(channel.unary_unary, method, b"\xff") for method in unary]
        ways += [(channel.stream_stream, method, iter([b"\xff"])) for method in streams]
        for way, method, request in ways:
            with pytest.raises(grpc.RpcError) as caught:
                ended = way(method)(request, timeout=30)
                list(ended)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method
            assert caught.value.details() == "message: is not the request of this method: it cannot be parsed"
        for method in (*unary, *streams):
            handled = {"grpc_method": method.rsplit("/", 1)[1], "grpc_code": "INVALID_ARGUMENT"}
            assert server.metric("grpc_server_handled_total", **handled) == 1
        # What came before it on a stream is answered.
        replies = channel.stream_stream(streams[0])(iter([good, good, b"\xff", good]), timeout=30)
        assert next(replies)
        assert next(replies)
        with pytest.raises(grpc.RpcError) as caught:
            next(replies)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "Traceback" not in server.log.read_text()


def test_what_a_client_invents_never_becomes_a_label(server: ServerProcess, stub: pb_grpc.ClassifierStub) -> None:
    refused(stub, pb.ClassifyRequest(images=[RED], model="invented-name"))
    assert not any("invented-name" in dict(labels).values() for _, labels in server.metrics())
    assert server.metric("cifarserve_requests_total", model="", code="NOT_FOUND") >= 1
