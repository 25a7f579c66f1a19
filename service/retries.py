"""Versions that did not load: when the next try is due."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

# Seconds until a version that failed is tried again though nothing has changed: doubled at each failure. A try reads
# and hashes all files of the version.
FIRST_DELAY, LONGEST_DELAY = 10.0, 600.0

Key = tuple[str, int]  # model and version


@dataclass(frozen=True)
class _Failure:
    inputs: object
    message: str
    delay: float
    due: float  # on time.monotonic()'s clock


class Retries:
    """The last failure of each version. To be used from one event loop."""

    def __init__(self) -> None:
        self._failures: dict[Key, _Failure] = {}

    def failed(self, key: Key, inputs: object, message: str) -> bool:
        """A try with these inputs (files, key, configuration) has failed. Returns whether that is news."""
        last = self._failures.get(key)
        again = last is not None and last.inputs == inputs
        delay = min(2 * last.delay, LONGEST_DELAY) if last is not None and again else FIRST_DELAY
        self._failures[key] = _Failure(inputs, message, delay, time.monotonic() + delay)
        return last is None or not again or last.message != message

    def waits(self, key: Key, inputs: object) -> str:
        """Why the last try failed, if there is no reason for another yet: same inputs, and none is due."""
        last = self._failures.get(key)
        return last.message if last and last.inputs == inputs and time.monotonic() < last.due else ""

    def make_due(self, key: Key) -> None:
        """It is tried at the next look. The same failure is no news then."""
        if (last := self._failures.get(key)) is not None:
            self._failures[key] = replace(last, due=0.0)

    def forget(self, keys: Iterable[Key]) -> None:
        """These are tried at the next look, and the same failure is news."""
        for key in list(keys):
            self._failures.pop(key, None)

    def forget_model(self, name: str) -> None:
        self.forget([key for key in self._failures if key[0] == name])

    def forget_all(self) -> None:
        self._failures.clear()

    def keep(self, there: Iterable[Key]) -> None:
        """Forget the versions that are not there any more."""
        self.forget(self._failures.keys() - set(there))
