"""The wire as public tools see it: health, reflection, and stubs that are what the .proto files say."""

from __future__ import annotations

import base64
import importlib.util
import re
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_requests import Client as ReflectionClient

from tests import colour_model
from tests.integration.server_process import ROOT, ServerProcess

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("service", ["", "colours", "cifarserve.v1.Classifier"])
def test_health_is_known_for_the_server_the_service_and_each_model(server: ServerProcess, service: str) -> None:
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING


def test_health_of_an_unknown_name_is_not_found_and_its_watch_waits(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="other"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


def test_a_client_that_knows_only_reflection_can_call_the_service(server: ServerProcess) -> None:
    client = ReflectionClient.get_by_endpoint(server.target)
    assert {"cifarserve.v1.Classifier", "grpc.health.v1.Health"} <= set(client.service_names)
    image = base64.b64encode(colour_model.plain((250, 5, 5)).tobytes())  # as JSON has it
    reply = client.request(
        "cifarserve.v1.Classifier",
        "Classify",
        {"images": [{"raw": {"rgb": image, "width": colour_model.SIZE, "height": colour_model.SIZE}}]},
    )
    assert reply["predictions"][0]["classes"][0]["label"] == "red"


def test_the_stubs_are_what_the_proto_files_say(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "protos" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate(tmp_path)
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2*")}
    assert made
    for path, content in made.items():
        assert (ROOT / "protos" / path).read_text() == content, f"{path} is stale: run `make protos`"


def test_the_stubs_are_no_newer_than_the_oldest_protobuf_that_pyproject_admits() -> None:
    admitted = re.search(r'"protobuf>=(\d+)\.(\d+)\.(\d+)', (ROOT / "pyproject.toml").read_text())
    assert admitted is not None
    for path in (ROOT / "protos").rglob("*_pb2.py"):
        generated = re.search(r"Protobuf Python Version: (\d+)\.(\d+)\.(\d+)", path.read_text())
        assert generated is not None
        assert tuple(map(int, generated.groups())) <= tuple(map(int, admitted.groups()))


def test_importing_the_service_needs_no_torch() -> None:
    import subprocess

    code = "import sys; sys.modules['torch'] = None; import service.server, service.client, service.cli"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
