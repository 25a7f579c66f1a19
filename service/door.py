"""Turns calls away before their messages are read: nothing is spent on what would be thrown away."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, NoReturn

import grpc
from cifarserve.v1 import classifier_pb2
from inference import grpc_predict_v2_pb2

from service import status
from service.errors import ServiceError
from service.frontend import Frontend, Timing, deadline_of
from service.serving import ServedModel
from service.unparsable import Refused

_CLASSIFY = classifier_pb2.DESCRIPTOR.services_by_name["Classifier"].methods_by_name["Classify"]
_INFER = grpc_predict_v2_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name["ModelInfer"]


class Door:
    """Asks the batcher, before a call's message is read, whether it would admit a single image.

    The message says which model a call is for, so there is no door while more than one version is served.
    """

    # Those that ask for room in a queue, as in a call's headers.
    methods = frozenset(f"/{method.containing_service.full_name}/{method.name}" for method in (_CLASSIFY, _INFER))

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    @property
    def crowded(self) -> bool:
        """Whether calls should come through the door: it costs some microseconds, and refuses nobody before."""
        served = self._frontend.repository.only()
        return served is not None and served.batcher.crowded

    def before(self, handler: Any) -> Any:
        """The handler of one of `methods`, with the door before it.

        It is of the kind that takes a stream, which gRPC calls when nothing has been read yet. To callers, that is the
        same.
        """
        function = handler.unary_unary

        async def call(_requests: Any, context: Any) -> Any:
            if (refusal := self._refusal(context)) is not None:
                await status.abort(context, await self._frontend.answer(context, "", 0, partial(_refuse, refusal)))
            request = await context.read()
            if request is grpc.aio.EOF:  # the call is over, or its message too large: what there is to say, gRPC says
                self._frontend.uncounted(grpc.StatusCode.CANCELLED.name)
                raise asyncio.CancelledError
            if isinstance(request, Refused):
                raise request.error
            return await function(request, context)

        return grpc.stream_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    def _refusal(self, context: Any) -> ServiceError | None:
        served = self._frontend.repository.only()
        return None if served is None else served.batcher.refusal(1, deadline_of(context))


async def _refuse(refusal: ServiceError, _model: ServedModel, _timing: Timing) -> NoReturn:
    raise refusal
