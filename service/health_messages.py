"""grpc.health.v1 with the method List, which the stubs of grpcio-health-checking lack.

What is missing is added to a copy of their descriptors, in a pool of its own: a program that also loads newer stubs
would have two definitions of one name.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2

_FieldProto = descriptor_pb2.FieldDescriptorProto


def _with_list() -> descriptor_pb2.FileDescriptorProto:
    """grpc/health/v1/health.proto with List."""
    file = descriptor_pb2.FileDescriptorProto()
    health_pb2.DESCRIPTOR.CopyToProto(file)
    if any(message.name == "HealthListRequest" for message in file.message_type):
        return file
    file.message_type.add(name="HealthListRequest")
    response = file.message_type.add(name="HealthListResponse")
    response.field.add(
        name="statuses", number=1, label=_FieldProto.LABEL_REPEATED, type=_FieldProto.TYPE_MESSAGE,
        type_name=".grpc.health.v1.HealthListResponse.StatusesEntry", json_name="statuses",
    )  # fmt: skip
    entry = response.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_FieldProto.LABEL_OPTIONAL, type=_FieldProto.TYPE_STRING)
    entry.field.add(
        name="value", number=2, label=_FieldProto.LABEL_OPTIONAL, type=_FieldProto.TYPE_MESSAGE,
        type_name=".grpc.health.v1.HealthCheckResponse",
    )  # fmt: skip
    file.service[0].method.add(
        name="List", input_type=".grpc.health.v1.HealthListRequest", output_type=".grpc.health.v1.HealthListResponse"
    )
    return file


FILE = _with_list()
_pool: Any = DescriptorPool()
_pool.Add(FILE)


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{FILE.package}.{name}"))


HealthListRequest = _message("HealthListRequest")
HealthListResponse = _message("HealthListResponse")
HealthCheckResponse = _message("HealthCheckResponse")
