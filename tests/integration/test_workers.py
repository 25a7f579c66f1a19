"""Several workers on one port: they act as one server, also when one of them is killed."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc as oip_grpc

from service.client import Client, ClientError, Options
from tests import colour_model
from tests.integration.server_process import ServerProcess, cli, serving

WORKERS = ("--workers", 2, "--provider", "cpu", "--threads", 1)
IMAGES = list(colour_model.distinct(1))


def until(condition: Callable[[], bool], patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def worker_processes(server: ServerProcess) -> list[int]:
    return [
        int(text) for text in Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    ]


class Load:
    """Threads that classify over and over, each call on a connection of its own, so that all workers get some."""

    def __init__(self, target: str, attempts: int) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._target, self._attempts = target, attempts
        self._threads = [threading.Thread(target=self._run) for _ in range(3)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with Client(self._target, Options(timeout=60, attempts=self._attempts)) as client:
                    client.classify(IMAGES)
                self.answered += 1
            except ClientError as error:
                self.failures.append(str(error))

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_killed_worker_is_replaced_and_no_counter_goes_back(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", *WORKERS) as server:
        assert server.metric("cifarserve_workers") == 2
        before = worker_processes(server)
        load = Load(server.target, attempts=50)
        until(lambda: server.metric("cifarserve_requests_total", code="OK") >= 40)
        readings = [server.metrics()]
        os.kill(before[0], signal.SIGKILL)
        while not (restarts := readings[-1].get(("cifarserve_worker_restarts_total", frozenset()), 0)):
            readings.append(server.metrics())
        until(lambda: server.metric("cifarserve_workers") == 2)
        after_restart = load.answered
        until(lambda: load.answered >= after_restart + 40)
        load.stop()
        readings.append(server.metrics())
        assert not load.failures, "a client that tries again notices nothing"
        assert restarts == 1
        assert len(set(worker_processes(server)) - set(before)) == 1
        for earlier, later in itertools.pairwise(readings):
            back = [
                (name, value, later.get((name, labels)))
                for (name, labels), value in earlier.items()
                if name.endswith(("_total", "_count", "_bucket", "_sum")) and later.get((name, labels), -1) < value
            ]
            assert not back
        # The other worker answered the rest: what is counted is at least what was read before, and what came after.
        assert (
            server.metric("cifarserve_requests_total", code="OK")
            >= readings[0][
                "cifarserve_requests_total", frozenset({"model": "colours", "version": "1", "code": "OK"}.items())
            ]
        )
        assert server.metric("cifarserve_queue_images") == 0


def test_metrics_of_all_workers_add_up(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", *WORKERS) as server:
        for _ in range(30):
            with Client(server.target, Options(timeout=30)) as client:
                client.classify(IMAGES * 2)
        assert server.metric("cifarserve_requests_total", code="OK") == 30
        assert server.metric("cifarserve_images_total") == 60
        assert server.metric("cifarserve_request_seconds_count") == 30
        assert server.metric("cifarserve_model_info") == 1


def test_sigterm_drains_all_workers_and_loses_nothing(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models, work=20)
    answered: list[int] = []
    with serving(models, tmp_path / "log", *WORKERS) as server:
        workers = worker_processes(server)
        clients = [Client(server.target, Options(timeout=60, attempts=1)) for _ in range(8)]
        threads = [
            threading.Thread(target=lambda client=client: answered.append(client.classify(IMAGES)[0].version))
            for client in clients
        ]
        for thread in threads:
            thread.start()
        until(lambda: server.metric("cifarserve_queue_seconds_count") + server.metric("cifarserve_queue_images") == 8)
        server.terminate()
        for thread in threads:
            thread.join()
        assert server.wait() == 0
        assert answered == [1] * 8
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_sighup_reaches_every_worker(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", *WORKERS) as server:
        colour_model.publish(models, version=2)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.log.read_text().count("retired colours version 1") == 2)
        for _ in range(10):
            with Client(server.target, Options(timeout=30)) as client:
                assert client.classify(IMAGES)[0].version == 2


def test_sighup_does_not_kill_a_worker_that_is_starting(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", *WORKERS) as server:
        os.kill(worker_processes(server)[0], signal.SIGKILL)
        until(lambda: server.metric("cifarserve_worker_restarts_total") == 1)
        colour_model.publish(models, version=2)
        for _ in range(20):
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.02)
        until(lambda: server.metric("cifarserve_workers") == 2)
        until(lambda: server.metric("cifarserve_model_info", version="2") == 1)
        assert server.metric("cifarserve_worker_restarts_total") == 1
        for _ in range(10):
            with Client(server.target, Options(timeout=30)) as client:
                assert client.classify(IMAGES)[0].version == 2


def test_a_second_signal_stops_all_workers_at_once(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", *WORKERS, "--lame-duck-seconds", 600) as server:
        workers = worker_processes(server)
        server.terminate()
        until(lambda: server.log.read_text().count("draining") == 2)
        server.terminate()
        assert server.wait(30) == 1
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_workers_stop_when_their_supervisor_is_killed(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", *WORKERS) as server:
        workers = worker_processes(server)
        server.process.kill()
        until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def test_a_call_that_would_change_one_worker_only_is_refused(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", *WORKERS) as server, grpc.insecure_channel(server.target) as channel:
        stub = oip_grpc.GRPCInferenceServiceStub(channel)
        calls = (
            lambda: stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="colours")),
            lambda: stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="colours")),
        )
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "several workers" in caught.value.details()


def test_a_model_that_does_not_load_stops_the_start_of_all(models: Path) -> None:
    (colour_model.publish(models) / "model.onnx").write_bytes(b"garbage")
    flags = ("--model-repository", models, "--port", 0, "--metrics-port", 0, *WORKERS)
    result = cli("serve", *flags)
    assert result.returncode == 1
    assert "model.onnx" in result.stderr
    assert "worker" in result.stderr


def test_a_taken_port_stops_the_start(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", *WORKERS) as server:
        port = server.target.rpartition(":")[2]
        result = cli("serve", "--model-repository", models, "--port", port, "--metrics-port", 0, *WORKERS)
    assert result.returncode == 1
    assert "port: cannot listen" in result.stderr
