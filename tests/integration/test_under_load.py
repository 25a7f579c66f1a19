"""Batching and the server's life under traffic: cancellation, full queues, deadlines, drain, new versions."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc

from service.client import Client, ClientError, Options, to_client_error
from service.folders import model_versions
from tests import colour_model
from tests.integration.server_process import ServerProcess, serving

SLOW = 20  # matrix products that make a batch of the colour model cost some 0.1 to 1 s on any machine


def request(images: np.ndarray) -> pb.ClassifyRequest:
    height, width = images.shape[1:3]
    raw = [pb.RawImage(rgb=image.tobytes(), width=width, height=height) for image in images]
    return pb.ClassifyRequest(images=[pb.Image(raw=one) for one in raw], top_k=1)


async def until(condition: Callable[[], bool], patience: float = 30) -> None:
    """Wait for something that a server shows only in its metrics."""
    async with asyncio.timeout(patience):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.01)


def assert_own_answer(reply: pb.ClassifyResponse, images: np.ndarray) -> None:
    found = [prediction.classes[0].probability for prediction in reply.predictions]
    np.testing.assert_allclose(found, colour_model.expected(images).max(axis=1), atol=1e-5)


def test_a_cancelled_caller_does_not_disturb_the_others_in_its_batch(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models, work=5 * SLOW)
    images = colour_model.distinct(120)[:, None]

    async def scenario(server: ServerProcess) -> None:
        async with grpc.aio.insecure_channel(server.target) as channel:
            stub = pb_grpc.ClassifierStub(channel)
            blocker = stub.Classify(request(images[0]))
            await until(lambda: server.metric("cifarserve_queue_seconds_count") == 1)
            calls = [stub.Classify(request(one)) for one in images]
            await until(lambda: server.metric("cifarserve_queue_images") == len(images))
            for call in calls[::3]:
                call.cancel()
            for number, call in enumerate(calls):
                if number % 3:
                    assert_own_answer(await call, images[number])
            assert_own_answer(await blocker, images[0])
            await until(lambda: server.metric("cifarserve_dropped_images_total", reason="cancelled") >= 1)
            assert server.metric("cifarserve_queue_images") == 0

    with serving(models, tmp_path / "log") as server:
        asyncio.run(scenario(server))
        computed = server.metric("cifarserve_images_total")
        assert computed < 121, "what was cancelled in the queue must not be computed"


def test_a_full_queue_sheds_at_once_and_says_when_to_come_back(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models, work=SLOW)
    image = colour_model.distinct(1)

    async def scenario(server: ServerProcess) -> list[BaseException | pb.ClassifyResponse]:
        async with grpc.aio.insecure_channel(server.target) as channel:
            stub = pb_grpc.ClassifierStub(channel)
            return await asyncio.gather(*(stub.Classify(request(image)) for _ in range(60)), return_exceptions=True)

    limits = ("--max-queue-images", 8, "--max-images-per-request", 8, "--max-batch-size", 4)
    with serving(models, tmp_path / "log", *limits) as server:
        outcomes = asyncio.run(scenario(server))
        shed = [to_client_error(one) for one in outcomes if isinstance(one, grpc.RpcError)]
        answered = [one for one in outcomes if isinstance(one, pb.ClassifyResponse)]
        assert len(shed) + len(answered) == 60
        assert len(answered) >= 8
        assert shed, "60 requests cannot fit a queue of 8"
        assert {error.code for error in shed} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all(error.retry_after is not None and error.retry_after > 0 for error in shed)
        assert server.metric("cifarserve_requests_total", code="RESOURCE_EXHAUSTED") == len(shed)
        # A client that honours RetryInfo gets its answer all the same.
        with Client(server.target, Options(timeout=60, attempts=20)) as client:
            threads = [threading.Thread(target=client.classify, args=([image[0]],)) for _ in range(20)]
            before = server.metric("cifarserve_requests_total", code="OK")
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert server.metric("cifarserve_requests_total", code="OK") == before + 20


def test_a_deadline_that_passes_in_the_queue_costs_no_compute(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models, work=5 * SLOW)
    image = colour_model.distinct(1)

    async def scenario(server: ServerProcess) -> None:
        async with grpc.aio.insecure_channel(server.target) as channel:
            stub = pb_grpc.ClassifierStub(channel)
            blocker = stub.Classify(request(image))
            await until(lambda: server.metric("cifarserve_queue_seconds_count") == 1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Classify(request(image), timeout=0.05)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await blocker
            await until(lambda: server.metric("cifarserve_queue_images") == 0)

    with serving(models, tmp_path / "log") as server:
        asyncio.run(scenario(server))
        assert server.metric("cifarserve_images_total") == 1


def test_sigterm_under_load_answers_everything_accepted_and_exits_0(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models, work=5 * SLOW)
    images = colour_model.distinct(100)[:, None]

    async def scenario(server: ServerProcess) -> None:
        async with grpc.aio.insecure_channel(server.target) as channel:
            stub = pb_grpc.ClassifierStub(channel)
            blocker = stub.Classify(request(images[0]))
            await until(lambda: server.metric("cifarserve_queue_seconds_count") == 1)
            stream = stub.ClassifyStream(timeout=60)
            for one in images[:10]:
                await stream.write(request(one))
            calls = [stub.Classify(request(one), timeout=60) for one in images]
            await until(lambda: server.metric("cifarserve_queue_images") == 110)
            server.terminate()
            assert_own_answer(await blocker, images[0])
            for call, one in zip(calls, images, strict=True):
                assert_own_answer(await call, one)
            for one in images[:10]:
                assert_own_answer(await stream.read(), one)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Classify(request(images[0]), timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    with serving(models, tmp_path / "log", "--stream-window", 10) as server:
        asyncio.run(scenario(server))
        assert server.wait() == 0


def test_callers_that_try_again_notice_nothing_of_a_restart(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    images = list(colour_model.distinct(1))
    stop = threading.Event()
    outcomes: list[str] = []

    def load(target: str) -> None:
        with Client(target, Options(timeout=60, attempts=200)) as client:
            while not stop.is_set():
                try:
                    client.classify(images)
                    outcomes.append("OK")
                except ClientError as error:
                    outcomes.append(str(error))

    with serving(models, tmp_path / "log") as server:
        threads = [threading.Thread(target=load, args=(server.target,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        while len(outcomes) < 200:
            time.sleep(0.01)
        server.terminate()
        assert server.wait() == 0
    before = len(outcomes)
    with serving(models, tmp_path / "log", "--port", server.target.rpartition(":")[2]):
        while len(outcomes) < before + 200:
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join()
    assert set(outcomes) == {"OK"}


def test_an_open_health_watch_and_an_idle_stream_do_not_hold_up_the_drain(models: Path, tmp_path: Path) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    colour_model.publish(models)

    async def scenario(server: ServerProcess) -> float:
        async with grpc.aio.insecure_channel(server.target) as channel:
            watches = [
                health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=name))
                for name in ("", "colours")
            ]
            for watch in watches:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            stream = pb_grpc.ClassifierStub(channel).ClassifyStream()
            await stream.write(request(colour_model.distinct(1)))
            await stream.read()
            server.terminate()
            started = time.monotonic()
            for watch in watches:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await asyncio.to_thread(server.wait) == 0
            return time.monotonic() - started

    with serving(models, tmp_path / "log", "--drain-seconds", 60) as server:
        assert asyncio.run(scenario(server)) < 30


def test_during_the_lame_duck_time_health_says_no_and_calls_are_still_answered(models: Path, tmp_path: Path) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    colour_model.publish(models)
    with (
        serving(models, tmp_path / "log", "--lame-duck-seconds", 2) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        images = colour_model.distinct(1)
        assert_own_answer(pb_grpc.ClassifierStub(channel).Classify(request(images)), images)
        assert server.wait() == 0


def test_a_second_signal_stops_at_once(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", "--lame-duck-seconds", 600) as server:
        server.terminate()
        while "draining" not in server.log.read_text():
            time.sleep(0.01)
        server.terminate()
        assert server.wait(20) != 0


def test_sighup_swaps_a_new_version_in_under_load_without_a_failed_request(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    images = colour_model.distinct(1)
    scales = {1: 1.0, 2: 0.5}
    stop = threading.Event()
    seen: list[int] = []
    failures: list[BaseException] = []

    def load(target: str) -> None:
        with Client(target, Options(attempts=1)) as client:
            while not stop.is_set():
                try:
                    (answer,) = client.classify(list(images))
                    best = colour_model.expected(images, scales[answer.version]).max()
                    assert answer.best.probability == pytest.approx(best, abs=1e-5), "answered by another version"
                    seen.append(answer.version)
                except BaseException as error:
                    failures.append(error)

    with serving(models, tmp_path / "log") as server:
        threads = [threading.Thread(target=load, args=(server.target,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        patience = time.monotonic() + 30
        while 1 not in seen and time.monotonic() < patience:
            time.sleep(0.01)
        colour_model.publish(models, version=2, scale=scales[2])
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while seen[-1:] != [2] and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert set(seen) == {1, 2}
        assert server.metric("cifarserve_model_info", version="1") == 0
        assert server.metric("cifarserve_model_info", version="2") == 1


def test_a_new_version_that_does_not_load_leaves_the_old_one_serving(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log") as server, Client(server.target) as client:
        (colour_model.publish(models, version=2) / "model.onnx").write_bytes(b"garbage")
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while "colours version 2 is not served" not in server.log.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "model.onnx" in server.log.read_text(), server.log.read_text()
        assert client.classify(list(colour_model.distinct(1)))[0].version == 1
        assert model_versions(models / "colours") == [1, 2]


def test_the_client_waits_for_a_server_that_is_still_starting(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log") as server:
        target = server.target
    with Client(target, Options(timeout=0.5)) as client, pytest.raises(ClientError) as caught:
        client.classify(list(colour_model.distinct(1)))
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    outcome: list[int] = []

    def ask() -> None:
        with Client(target, Options(timeout=30, attempts=50)) as client:
            outcome.append(client.classify(list(colour_model.distinct(1)))[0].version)

    waiting = threading.Thread(target=ask)
    waiting.start()
    with serving(models, tmp_path / "log", "--port", target.rpartition(":")[2]):
        waiting.join(30)
    assert outcome == [1]
