"""How a call ends that fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service import status
from service.errors import InvalidInput


class Call:
    """A call's context, with what is left of its deadline in seconds; `sent` is what it was ended with."""

    def __init__(self, left: float | None) -> None:
        self._left = left
        self.sent: list[tuple[object, ...]] = []

    def time_remaining(self) -> float | None:
        return self._left

    async def abort(self, *ended_with: object) -> None:
        self.sent.append(ended_with)
        raise RuntimeError("as gRPC's own does")


@pytest.mark.parametrize(("left", "ends"), [(None, RuntimeError), (0.1, RuntimeError), (0, asyncio.CancelledError)])
def test_a_call_whose_deadline_has_passed_is_sent_nothing(left: float | None, ends: type[BaseException]) -> None:
    call: Any = Call(left)
    with pytest.raises(ends):
        asyncio.run(status.abort(call, status.from_error(InvalidInput("images", "are none"))))
    assert len(call.sent) == (left != 0)
