"""An engine that stops computing while it serves, as after a GPU was lost: not ready, told to probes, loaded again.

The server is the real one; only what ONNX Runtime is asked for raises, from the moment on that a file is there.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc

from service import health
from service.client import to_client_error
from tests import colour_model
from tests.integration.server_process import ENVIRONMENT, ServerProcess, serving
from tests.integration.test_faults import RED, until

RAISING = """
import os
from service import runners

compute = runners.HostRunner.__call__


def lost(self, images):
    if os.path.exists({flag!r}):
        raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected; secret detail")
    return compute(self, images)


runners.HostRunner.__call__ = lost
"""


class Device:
    """Where the server's engines compute, until it is lost."""

    def __init__(self, folder: Path) -> None:
        self._flag = folder / "lost"
        code = folder / "code"
        code.mkdir()
        (code / "sitecustomize.py").write_text(RAISING.format(flag=str(self._flag)))
        self.environment = {"PYTHONPATH": f"{code}:{ENVIRONMENT['PYTHONPATH']}"}

    def lose(self) -> None:
        self._flag.touch()

    def come_back(self) -> None:
        self._flag.unlink()


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def probe(server: ServerProcess, path: str) -> int:
    try:
        with urllib.request.urlopen(server.metrics_url.removesuffix("/metrics") + path, timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def ask(server: ServerProcess, model: str = "colours", version: int = 0) -> str:
    """OK, or the status code and the message."""
    image = pb.Image(raw=pb.RawImage(rgb=RED[0].tobytes(), width=8, height=8))
    with grpc.insecure_channel(server.target) as channel:
        try:
            request = pb.ClassifyRequest(images=[image], model=model, version=version)
            reply = pb_grpc.ClassifierStub(channel).Classify(request, timeout=20)
        except grpc.RpcError as error:
            failure = to_client_error(error)
            return f"{failure.code.name} {failure.message}"
    assert reply.predictions[0].classes[0].label == "red"
    return "OK"


def state(server: ServerProcess, service: str) -> str:
    return health.check(server.target, service, 10)


def test_a_lost_engine_is_not_ready_is_told_to_probes_and_comes_back_by_itself(
    models: Path, tmp_path: Path, device: Device
) -> None:
    colour_model.publish(models)
    colour_model.publish(models, name="other")
    with serving(models, tmp_path / "log", environment=device.environment) as server:
        assert ask(server) == "OK"
        assert (probe(server, "/ready"), probe(server, "/live")) == (200, 200)
        device.lose()
        for _ in range(3):
            said = ask(server)
            assert said.startswith("INTERNAL internal error ")
            assert "secret" not in said
        until(lambda: state(server, "colours") == "NOT_SERVING", 20)
        until(
            lambda: ask(server).startswith("UNAVAILABLE colours version 1 is not ready: UNAVAILABLE; the log says why"),
            20,
        )
        assert state(server, "") == "NOT_SERVING"
        assert probe(server, "/ready") == 503
        # In this process it cannot be opened again: the liveness probe is told, so that a new one gets a try.
        until(lambda: state(server, health.LIVENESS) == "NOT_SERVING", 20)
        assert probe(server, "/live") == 503
        assert server.metric("cifarserve_engine_failures_total", model="colours") == 3
        assert server.metric("cifarserve_load_failures_total", model="colours", reason="engine") >= 1
        assert server.metric("cifarserve_model_state", model="colours", state="UNAVAILABLE") == 1
        assert "secret detail" in server.log.read_text()
        device.come_back()
        until(lambda: ask(server) == "OK", 30)
        until(lambda: state(server, health.LIVENESS) == "SERVING", 20)
        assert (probe(server, "/ready"), probe(server, "/live")) == (200, 200)
        assert server.metric("cifarserve_model_state", model="colours", state="READY") == 1
        assert server.metric("cifarserve_model_info", model="colours") == 1
        assert ask(server, "other") == "OK"


def test_two_failures_and_a_success_change_nothing(models: Path, tmp_path: Path, device: Device) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", environment=device.environment) as server:
        for _ in range(3):
            device.lose()
            for _ in range(2):
                assert ask(server).startswith("INTERNAL")
            device.come_back()
            assert ask(server) == "OK"
        assert state(server, "colours") == "SERVING"
        assert server.metric("cifarserve_engine_failures_total") == 6


def test_a_worker_that_lost_its_engine_ends_and_a_new_one_takes_its_place(
    models: Path, tmp_path: Path, device: Device
) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", "--workers", 2, environment=device.environment) as server:
        assert ask(server) == "OK"
        device.lose()
        deadline = time.monotonic() + 60
        while server.metric("cifarserve_worker_restarts_total") < 1:
            assert time.monotonic() < deadline
            ask(server)
        device.come_back()
        until(lambda: server.metric("cifarserve_workers") == 2, 60)
        until(lambda: all(ask(server) == "OK" for _ in range(10)), 60)
