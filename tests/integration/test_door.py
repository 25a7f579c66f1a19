"""What comes while the queue is full is refused at its headers: its message is not looked at."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc

from service.client import to_client_error
from tests import colour_model
from tests.integration.server_process import ServerProcess, serving
from tests.integration.test_under_load import request

CLASSIFY, INFER = "/cifarserve.v1.Classifier/Classify", "/inference.GRPCInferenceService/ModelInfer"
# One image may wait, and waits until its batch is full, which it never is.
ONE_PLACE = ("--max-queue-images", 1, "--max-images-per-request", 1, "--max-batch-size", 2, "--max-queue-delay", 10)
MEGABYTES = 64  # more than a message may have
TOKEN = "a-token-of-the-tests"


@contextmanager
def full(server: ServerProcess, metadata: Sequence[tuple[str, str]] = ()) -> Iterator[grpc.Channel]:
    """A channel to the server, whose queue is full meanwhile."""
    with grpc.insecure_channel(server.target) as channel:
        stub = pb_grpc.ClassifierStub(channel)
        call = stub.Classify.future(request(colour_model.distinct(1)), timeout=60, metadata=metadata)
        while server.metric("cifarserve_queue_images") != 1:
            assert not call.done()
        try:
            yield channel
        finally:
            call.cancel()


def send_nonsense(channel: grpc.Channel, method: str, timeout: float = 600) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method)(b"\xff", timeout=timeout)
    return caught.value


def test_while_the_queue_is_full_no_message_is_read(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", *ONE_PLACE) as server:
        with full(server) as channel:
            for method in (CLASSIFY, INFER):
                refused = to_client_error(send_nonsense(channel, method))
                assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "1 images wait, the limit is 1" in str(refused)
                assert refused.retry_after is not None and refused.retry_after > 0
            # Nor is one that its sender has only begun to send.
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(CLASSIFY)(bytes(MEGABYTES << 20), timeout=60)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert to_client_error(caught.value).retry_after is not None, "over the limit of a message there is none"
            # What asks for no room is answered.
            assert pb_grpc.ClassifierStub(channel).GetModel(pb.GetModelRequest()).version == 1
        of_it = {"model": "colours", "version": "1", "code": "RESOURCE_EXHAUSTED"}
        assert server.metric("cifarserve_requests_total", **of_it) == 3
        for path, count in ((CLASSIFY, 2), (INFER, 1)):
            service, method = path[1:].split("/")
            labels = {"grpc_type": "unary", "grpc_service": service, "grpc_method": method}
            assert server.metric("grpc_server_handled_total", **labels, grpc_code="RESOURCE_EXHAUSTED") == count
        assert server.metric("cifarserve_dropped_images_total", reason="shed") == 0, "they were not counted"
        while server.metric("cifarserve_queue_images"):
            pass
        with grpc.insecure_channel(server.target) as channel:
            assert send_nonsense(channel, CLASSIFY).code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_would_come_too_late_is_refused_unread(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models, work=3)
    image = request(colour_model.distinct(1))
    with (
        serving(models, tmp_path / "log", "--max-batch-size", 1) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = pb_grpc.ClassifierStub(channel)
        began = time.monotonic()
        for _ in range(12):
            stub.Classify(image, timeout=60)
        seconds = (time.monotonic() - began) / 12  # of one image
        calls = [stub.Classify.future(image, timeout=600) for _ in range(200)]
        while server.metric("cifarserve_queue_images") < 150:
            assert not calls[-1].done()
        refused = send_nonsense(channel, CLASSIFY, 50 * seconds)
        assert refused.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "would hardly be done before the deadline" in refused.details()
        assert send_nonsense(channel, CLASSIFY).code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(CLASSIFY)(bytes(MEGABYTES << 20), timeout=600)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert to_client_error(caught.value).retry_after is None, "it would be too large later, too"
        assert server.metric("grpc_server_handled_total", grpc_method="Classify", grpc_code="CANCELLED") == 1
        for call in calls:
            call.cancel()


def test_while_it_is_not_known_which_queue_a_call_is_for_its_message_is_read(models: Path, tmp_path: Path) -> None:
    for version in (1, 2):
        colour_model.publish(models, version=version)
    (models / "colours" / "config.toml").write_text('versions = "all"\n')
    image = request(colour_model.distinct(1))
    with serving(models, tmp_path / "log", *ONE_PLACE) as server, full(server) as channel:
        assert send_nonsense(channel, CLASSIFY).code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            pb_grpc.ClassifierStub(channel).Classify(image, timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert server.metric("cifarserve_dropped_images_total", version="2", reason="shed") == 1


def test_who_may_not_come_in_is_not_told_that_it_is_full(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    (tmp_path / "tokens").write_text(TOKEN)
    bearer = [("authorization", f"Bearer {TOKEN}")]
    flags = (*ONE_PLACE, "--token-file", tmp_path / "tokens")
    with serving(models, tmp_path / "log", *flags) as server, full(server, bearer) as channel:
        assert send_nonsense(channel, CLASSIFY).code() is grpc.StatusCode.UNAUTHENTICATED
