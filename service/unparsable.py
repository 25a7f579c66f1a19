"""Messages that are none: INVALID_ARGUMENT for their caller, where gRPC by itself says UNKNOWN and logs a stack."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.message import DecodeError

from service import status
from service.errors import InvalidInput

UNPARSABLE: Any = object()  # stands for the message
_REFUSAL = status.from_error(InvalidInput("message", "is not the request of this method: it cannot be parsed"))


def tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`parse`, giving UNPARSABLE instead of raising."""

    def parsed(message: bytes) -> Any:
        try:
            return parse(message)
        except DecodeError:
            return UNPARSABLE

    return parsed


async def refuse(context: Any) -> None:
    """End the call. Always raises."""
    await status.abort(context, _REFUSAL)


async def parsed_only(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
    """The same requests; ends the call at one that is UNPARSABLE."""
    async for request in requests:
        if request is UNPARSABLE:
            await refuse(context)
        yield request
