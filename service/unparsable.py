"""Messages that are not taken: INVALID_ARGUMENT, where gRPC by itself says UNKNOWN and logs a stack."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from service import message_limits
from service.errors import InvalidInput
from service.message_limits import MalformedMessage


@dataclass(frozen=True)
class Refused:
    """Stands for a message that does not parse, or that would cost too much."""

    error: InvalidInput


_UNPARSABLE = Refused(InvalidInput("message", "is not the request of this method: it cannot be parsed"))


def tolerant(parse: Callable[[bytes], Any], most_images: int) -> Callable[[bytes], Any]:
    """`parse`, a message class's FromString, giving Refused instead of raising.

    A message with more fields than `most_images` images take is refused before it is parsed.
    """
    layout = message_limits.layout(parse.__self__.DESCRIPTOR)  # type: ignore[attr-defined]
    most_fields = message_limits.most_fields(most_images)

    def parsed(message: bytes) -> Any:
        try:
            if len(message) > message_limits.SMALL_MESSAGE:
                message_limits.check(message, layout, most_fields)
            return parse(message)
        except (DecodeError, MalformedMessage):
            return _UNPARSABLE
        except InvalidInput as error:
            return Refused(error)

    return parsed


async def accepted_only(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The same requests; raises the error of one that is Refused."""
    async for request in requests:
        if isinstance(request, Refused):
            raise request.error
        yield request
