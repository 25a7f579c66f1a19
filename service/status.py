"""The one place where errors become gRPC status codes, with `google.rpc` details that a program can read."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from service import errors

# Where grpc-status puts a google.rpc.Status; fixed by the gRPC richer error model.
DETAILS_KEY = "grpc-status-details-bin"
_DOMAIN = "cifarserve"

_CODES: dict[type[errors.ServiceError], grpc.StatusCode] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.InternalError: grpc.StatusCode.INTERNAL,
    errors.OutOfMemory: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
# Bytes. gRPC sends a message percent-encoded, so up to three times as long, and again in the details, in base64. All of
# it must be within the 8 KiB of metadata that callers take; they would see RESOURCE_EXHAUSTED instead.
_MOST_MESSAGE, _MOST_FIELD = 1024, 128


def from_error(error: Exception) -> status_pb2.Status:
    """The status of any exception. One that is not a ServiceError is a fault of ours: logged under an id, hidden."""
    if not isinstance(error, errors.ServiceError):
        error = errors.hidden(error)
    number: int = _CODES[type(error)].value[0]
    status = status_pb2.Status(code=number, message=_cut(str(error), _MOST_MESSAGE))
    if (detail := _detail(error)) is not None:
        status.details.add().Pack(detail)
    return status


def code_of(status: status_pb2.Status) -> grpc.StatusCode:
    return _BY_NUMBER[status.code]


async def abort(context: grpc.aio.ServicerContext[Any, Any], status: status_pb2.Status) -> None:
    """End the call with `status`. Does not return."""
    end_if_late(context)
    await context.abort(code_of(status), status.message, ((DETAILS_KEY, status.SerializeToString()),))


def end_if_late(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Raise CancelledError, which ends a call without a word, when its deadline has passed.

    gRPC has ended it then, and its caller has too. What is sent to such a call leaks, up to the whole reply
    (grpc/grpc issue 43360, open in 1.83).
    """
    if context.time_remaining() == 0:
        raise asyncio.CancelledError


def _cut(text: str, most: int) -> str:
    """`text`, or as much of it as takes `most` bytes."""
    encoded = text[:most].encode(errors="replace")  # a lone surrogate, as in the name of a file, cannot be encoded
    fits = len(text) <= most and len(encoded) <= most
    return encoded.decode() if fits else encoded[: most - 3].decode(errors="ignore") + "..."


def _detail(error: errors.ServiceError) -> Any:
    """A message of google.rpc.error_details that says more than the code, or None."""
    if isinstance(error, errors.InvalidInput):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(error.field, _MOST_FIELD), description=_cut(error.problem, _MOST_MESSAGE)
        )
        return error_details_pb2.BadRequest(field_violations=[violation])
    if isinstance(error, errors.QueueFull):
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        return info
    if isinstance(error, errors.InternalError):
        reason = "OUT_OF_MEMORY" if isinstance(error, errors.OutOfMemory) else "INTERNAL"
        return error_details_pb2.ErrorInfo(reason=reason, domain=_DOMAIN, metadata={"error_id": error.error_id})
    return None
