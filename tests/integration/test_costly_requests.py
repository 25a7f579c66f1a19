"""No message costs much more than a useful one of the same size, whichever field it is filled with.

The fields are those of every method that the server's own reflection names: a new one is tried, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests import colour_model
from tests.integration.server_process import ServerProcess, serving

MESSAGE = 8 << 20
# Above what a useful message of the size costs; what costs objects for each element is at 20 and more.
FACTOR = 4
TICK = 1 / os.sysconf("SC_CLK_TCK")
LENGTHS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE)
FIXED = {
    FieldDescriptor.TYPE_FLOAT: 4, FieldDescriptor.TYPE_FIXED32: 4, FieldDescriptor.TYPE_SFIXED32: 4,
    FieldDescriptor.TYPE_DOUBLE: 8, FieldDescriptor.TYPE_FIXED64: 8, FieldDescriptor.TYPE_SFIXED64: 8,
}  # fmt: skip
TAKEN = {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE}
REFUSED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def with_length(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def element(field: FieldDescriptor) -> bytes:
    """The least that one element of `field` takes."""
    if field.type in LENGTHS:
        return with_length(field.number, b"")
    size = FIXED.get(field.type, 0)
    return varint(field.number << 3 | {0: 0, 4: 5, 8: 1}[size]) + bytes(size or 1)


@dataclass(frozen=True)
class Filled:
    """A message of the largest size that consists of one field. `many`: of as many of it as there is room for."""

    field: str
    content: bytes
    many: bool


def fill(message: Descriptor, wrap: Callable[[bytes], bytes], path: str, depth: int = 0) -> Iterator[Filled]:
    """Every field of `message`, at all depths, as often as fits, and once as long as fits."""
    room = MESSAGE - 64
    for field in message.fields:
        name = f"{path}{field.name}"
        one = element(field)
        yield Filled(f"{name} * n", wrap(one * (room // len(one))), many=True)
        if field.is_repeated and field.type not in LENGTHS:
            yield Filled(f"{name} packed", wrap(with_length(field.number, bytes(room))), many=True)
        if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            yield Filled(f"{name} long", wrap(with_length(field.number, b"a" * room)), many=False)
        if field.message_type is not None and depth < 4:
            if field.message_type.GetOptions().map_entry:  # whose keys are all different
                entries = b"".join(
                    with_length(field.number, with_length(1, b"%06x" % key)) for key in range(room // 10)
                )
                yield Filled(f"{name} keys", wrap(entries), many=True)

            def inside(content: bytes, number: int = field.number) -> bytes:
                return wrap(with_length(number, content))

            yield from fill(field.message_type, inside, f"{name}.", depth + 1)
    if not depth:
        unknown = b"\xa2\x06\0"
        yield Filled("unknown * n", unknown * (room // len(unknown)), many=True)
        yield Filled("unknown numbers * n", b"\xa0\x06\0" * (room // 3), many=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("costly")
    colour_model.publish(folder / "models")
    with serving(folder / "models", folder / "log", "--max-message-bytes", MESSAGE, "--provider", "cpu") as process:
        yield process


def loop_seconds(pid: int) -> float:
    """What the event loop's thread has used of the processor."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def memory(pid: int, name: str) -> int:
    """Bytes, now (VmRSS) or at the most since the last `forget_peak` (VmHWM)."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@dataclass(frozen=True)
class Cost:
    code: grpc.StatusCode
    seconds: float
    memory: int
    details: str = ""


def call(channel: grpc.Channel, path: str, streams: bool, message: bytes) -> tuple[grpc.StatusCode, str]:
    try:
        if streams:
            list(channel.stream_stream(path)(iter([message]), timeout=120))
        else:
            channel.unary_unary(path)(message, timeout=120)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def cost(server: ServerProcess, channel: grpc.Channel, path: str, streams: bool, message: bytes) -> Cost:
    pid = server.process.pid
    forget_peak(pid)
    before, used = memory(pid, "VmRSS"), loop_seconds(pid)
    code, details = call(channel, path, streams, message)
    return Cost(code, loop_seconds(pid) - used, memory(pid, "VmHWM") - before, details)


def useful(server: ServerProcess, channel: grpc.Channel) -> Cost:
    """What the largest useful message costs: a picture of raw pixels."""
    height, width = 2000, (MESSAGE - 100) // 6000
    image = pb.Image(raw=pb.RawImage(rgb=bytes(height * width * 3), width=width, height=height))
    message = pb.ClassifyRequest(images=[image]).SerializeToString()
    costs = [cost(server, channel, "/cifarserve.v1.Classifier/Classify", False, message) for _ in range(5)]
    assert {one.code for one in costs} == {grpc.StatusCode.OK}
    return Cost(grpc.StatusCode.OK, max(one.seconds for one in costs), max(one.memory for one in costs))


def methods(channel: grpc.Channel) -> Iterator[tuple[str, Descriptor, bool, bool]]:
    """Of every method its path, its request, and whether requests and responses are streams."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    for service in database.get_services():
        for method in pool.FindServiceByName(service).methods:
            path = f"/{service}/{method.name}"
            yield path, method.input_type, method.client_streaming, method.server_streaming


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of a process")
def test_no_field_of_any_method_makes_a_message_costly(server: ServerProcess) -> None:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    tried: dict[str, Cost] = {}
    with grpc.insecure_channel(server.target, options) as channel:
        plain = useful(server, channel)
        for path, request, many_in, many_out in methods(channel):
            if many_out and not many_in:
                continue  # Watch never ends by itself; its request is Check's
            for filled in fill(request, lambda content: content, ""):
                name = f"{path} {filled.field}"
                found = tried[name] = cost(server, channel, path, many_in, filled.content)
                codes = REFUSED if filled.many else REFUSED | TAKEN
                assert found.code in codes, f"{name}: {found}"
                assert found.seconds <= FACTOR * plain.seconds + 3 * TICK, f"{name}: {found}, a useful one {plain}"
                assert found.memory <= FACTOR * max(plain.memory, MESSAGE), f"{name}: {found}, a useful one {plain}"
        assert len(tried) > 100
        assert {"inputs * n", "inputs.contents.uint_contents packed", "parameters keys"} <= {
            name.split(" ", 1)[1] for name in tried if "ModelInfer" in name
        }
        request = pb.ClassifyRequest(
            images=[pb.Image(raw=pb.RawImage(rgb=colour_model.plain((250, 5, 5)).tobytes(), width=8, height=8))]
        )
        assert pb_grpc.ClassifierStub(channel).Classify(request).predictions
