"""Whether an event loop still runs: the loop notes the time, and other threads read how old the note is."""

from __future__ import annotations

import asyncio
import time

_SECONDS = 0.5  # between two beats
# A loop that has not beaten for longer hangs. Long enough that a busy loop or a busy machine is not taken for that.
MOST_SECONDS = 10.0


class Heartbeat:
    """Written by the event loop alone; read from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins to beat; to be made on the loop's thread, or before it runs."""
        self._loop = loop
        self._beat()

    def beats(self) -> bool:
        """Whether the loop has beaten within MOST_SECONDS.

        If not, waits for one more beat first: after a pause of the whole process, the loop needs a moment as well.
        """
        if self._age() <= MOST_SECONDS:
            return True
        time.sleep(2 * _SECONDS)
        return self._age() <= MOST_SECONDS

    def _age(self) -> float:
        return time.monotonic() - self._last

    def _beat(self) -> None:
        self._last = time.monotonic()
        self._loop.call_later(_SECONDS, self._beat)
