"""The wire as public tools see it: health, reflection, and stubs that are what the .proto files say."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_requests import Client as ReflectionClient

from service import health_messages
from service.health import LIVENESS, MOST_LISTED, Health
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


def test_all_states_can_be_listed_in_one_call(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary(
            "/grpc.health.v1.Health/List",
            health_messages.HealthListRequest.SerializeToString,
            health_messages.HealthListResponse.FromString,
        )
        listed = {
            name: reply.status for name, reply in call(health_messages.HealthListRequest(), timeout=30).statuses.items()
        }
        expected = ("", "colours", LIVENESS, "cifarserve.v1.Classifier", "inference.GRPCInferenceService")
        assert listed == dict.fromkeys(expected, SERVING)


def test_more_states_than_a_list_may_have_are_refused() -> None:
    health = Health()
    health.serving(f"model{number}" for number in range(MOST_LISTED))

    class Context:
        async def abort(self, code: grpc.StatusCode, _details: str) -> None:
            raise grpc.aio.AbortError(code)

    context: Any = Context()
    with pytest.raises(grpc.aio.AbortError) as caught:
        asyncio.run(health.List(None, context))
    assert caught.value.args == (grpc.StatusCode.RESOURCE_EXHAUSTED,)


def reflected(channel: grpc.Channel, version: str, **asked: Any) -> Any:
    """The answer of grpc.reflection.`version`, whose two versions have the same messages."""
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    (reply,) = call(iter([reflection_pb2.ServerReflectionRequest(**asked)]), timeout=30)
    return reply


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_describes_every_service_that_it_lists(server: ServerProcess, version: str) -> None:
    with grpc.insecure_channel(server.target) as channel:
        listed = [one.name for one in reflected(channel, version, list_services="*").list_services_response.service]
        assert listed == sorted(
            (
                "cifarserve.v1.Classifier", "inference.GRPCInferenceService", "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection",
            )
        )  # fmt: skip
        for service in listed:
            reply = reflected(channel, version, file_containing_symbol=service)
            pool: Any = DescriptorPool()  # which refuses a file whose dependencies are missing
            files = [
                descriptor_pb2.FileDescriptorProto.FromString(content)
                for content in reply.file_descriptor_response.file_descriptor_proto
            ]
            for file in reversed(files):
                pool.Add(file)
            methods = {method.name for method in pool.FindServiceByName(service).methods}
            assert methods
            if service == "grpc.health.v1.Health":
                assert methods == {"Check", "Watch", "List"}
        missing = reflected(channel, version, file_containing_symbol="no.such.Service")
        assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


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
