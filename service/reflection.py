"""Reflection, in both of its versions: what services and messages there are.

grpcio-reflection has only v1alpha. v1 has the same messages under another name.
"""

from __future__ import annotations

from typing import Any

import grpc
from cifarserve.v1 import classifier_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from inference import grpc_predict_v2_pb2

from service import health_messages

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
SERVED = (
    classifier_pb2.DESCRIPTOR.services_by_name["Classifier"].full_name,
    grpc_predict_v2_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)
REFLECTION = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)


def register(methods: Any) -> None:
    """Add reflection to the server's methods."""
    servicer = reflection.aio.ReflectionServicer((*SERVED, HEALTH, *REFLECTION), pool=_pool())
    asked, answered = reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo, asked.FromString, answered.SerializeToString
    )
    for service in REFLECTION:
        methods.add_registered_method_handlers(service, {"ServerReflectionInfo": handler})


def _pool() -> DescriptorPool:
    """Everything that is served, and what it needs."""
    pool: Any = DescriptorPool()
    added: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for needed in file.dependencies:
            add(needed)
        pool.Add(health_messages.FILE if file.name == health_messages.FILE.name else _copy(file))

    for module in (classifier_pb2, grpc_predict_v2_pb2, health_pb2, reflection_pb2):
        add(module.DESCRIPTOR)
    pool.Add(_v1())
    return pool  # type: ignore[no-any-return]


def _v1() -> descriptor_pb2.FileDescriptorProto:
    """grpc/reflection/v1/reflection.proto: v1alpha's under the name with which it became stable."""
    file = _copy(reflection_pb2.DESCRIPTOR)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", "grpc.reflection.v1"
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
        method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    return file


def _copy(file: Any) -> descriptor_pb2.FileDescriptorProto:
    copy = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(copy)
    return copy
