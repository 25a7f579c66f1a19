"""Versions whose engine has stopped computing: out of service at once, and loaded again until that works.

A device that was lost fails every batch that comes after. In the same process it may stay lost: what does not load
again for that reason is told to the liveness probe, or ends the worker, so that a new process gets a try.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from service.serving import LoadError, ServedModel

log = logging.getLogger(__name__)

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds between two tries: doubled at each


class Recovery:
    """To be used from one event loop."""

    def __init__(
        self,
        withdraw: Callable[[ServedModel, str], bool],
        load: Callable[[str, int], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        """`withdraw` takes a version out of service, for a reason, and says whether it still was in service; `load`
        puts one back there, or raises LoadError; `changed` is called whenever `lost` or `names` may have changed.
        """
        self._withdraw, self._load, self._changed = withdraw, load, changed
        self._under_way: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._closing: dict[asyncio.Task[None], tuple[str, int]] = {}
        self._lost: set[tuple[str, int]] = set()

    @property
    def names(self) -> set[str]:
        """The models of which a version is out of service."""
        return {name for name, _ in self._under_way}

    @property
    def lost(self) -> bool:
        """Whether an engine could not be opened again: another process may be able to."""
        return bool(self._lost)

    def is_closing(self, name: str, version: int) -> bool:
        """Whether a broken engine of this version is not closed yet."""
        return (name, version) in self._closing.values()

    def broken(self, served: ServedModel, reason: str) -> None:
        """An engine of it no longer computes."""
        key = served.manifest.name, served.manifest.version
        if self._withdraw(served, f"{reason}; it is being loaded again"):
            closing = asyncio.create_task(served.close(replaced=False), name="close a broken engine")
            self._closing[closing] = key
            closing.add_done_callback(self._closed)
            self._under_way[key] = asyncio.create_task(self._recover(closing, *key), name="recovery")

    def look_at(self, put_into_service: Iterable[ServedModel]) -> None:
        """Recover those of them that broke before they were in service."""
        for served in put_into_service:
            if served.batcher.broken_for:
                self.broken(served, served.batcher.broken_for)

    def forget(self, name: str) -> list[int]:
        """Try no more to bring this model back; returns the versions that were tried. They are closed all the same."""
        keys = [key for key in self._under_way if key[0] == name]
        for key in keys:
            self._under_way.pop(key).cancel()
            self._lost.discard(key)
        return [version for _, version in keys]

    def close(self) -> None:
        for name in self.names:
            self.forget(name)

    def _closed(self, closing: asyncio.Task[None]) -> None:
        name, version = self._closing.pop(closing)
        if not closing.cancelled() and (error := closing.exception()) is not None:
            log.error("the broken engine of %s version %d was not closed properly", name, version, exc_info=error)

    async def _recover(self, closing: asyncio.Task[None], name: str, version: int) -> None:
        # It can only be opened again when the memory of the broken one is free.
        await asyncio.wait({closing})
        delay, unexpected = _FIRST_DELAY, ""
        while self._under_way.get((name, version)) is asyncio.current_task():  # else it broke again: the next one's
            try:
                await self._load(name, version)
                break
            except LoadError as error:
                if error.reason == "engine":
                    self._lost.add((name, version))
                    self._changed()
            except Exception as error:  # tried again like any other failure
                if repr(error) != unexpected:
                    log.exception("%s version %d cannot be loaded again", name, version)
                unexpected = repr(error)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)
        else:
            return
        if self._under_way.get((name, version)) is asyncio.current_task():
            del self._under_way[name, version]
            self._lost.discard((name, version))
        self._changed()
