"""Pictures that cost much, at a server: their request is refused, and nobody else waits for them."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import grpc
import pytest
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc
from PIL import Image
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc as oip_grpc

from service.client import to_client_error
from tests import colour_model
from tests.integration.server_process import ServerProcess, serving
from tests.unit.service.test_hostile_pictures import HOSTILE

RED = pb.Image(raw=pb.RawImage(rgb=colour_model.plain((250, 5, 5)).tobytes(), width=8, height=8))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("hostile")
    colour_model.publish(folder / "models")
    with serving(folder / "models", folder / "log", "--decode-seconds", 0.2, "--decode-threads", 1) as process:
        yield process


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_picture_that_takes_too_long_is_an_invalid_argument_and_others_are_answered(
    server: ServerProcess, kind: str
) -> None:
    hostile = pb.ClassifyRequest(images=[RED, pb.Image(encoded=HOSTILE[kind](4 << 20))])
    with grpc.insecure_channel(server.target) as channel:
        stub = pb_grpc.ClassifierStub(channel)
        calls = [stub.Classify.future(hostile, timeout=60) for _ in range(3)]
        while not all(call.done() for call in calls):
            reply = stub.Classify(pb.ClassifyRequest(images=[RED]), timeout=30)
            assert reply.predictions[0].classes[0].label == "red"
        for call in calls:
            error = to_client_error(call.exception())
            assert error.code is grpc.StatusCode.INVALID_ARGUMENT
            assert list(error.fields) == ["images[1].encoded"]
            assert "takes too long" in error.message


def test_a_deadline_that_comes_while_pictures_wait_for_a_thread_ends_the_wait(server: ServerProcess) -> None:
    file = io.BytesIO()
    Image.new("RGB", (1500, 1500)).save(file, "PNG")
    pictures = oip.ModelInferRequest.InferInputTensor(name="image_bytes", datatype="BYTES", shape=[200])
    pictures.contents.bytes_contents.extend([file.getvalue()] * 200)
    request = oip.ModelInferRequest(model_name="colours", inputs=[pictures])
    request.parameters["timeout"].int64_param = 50_000  # microseconds
    with grpc.insecure_channel(server.target) as channel:
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            oip_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "waited to be decoded" in caught.value.details()
        assert time.monotonic() - began < 10
