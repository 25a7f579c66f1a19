"""The response cache: answers of one version by the pixels they were computed from, bounded in bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np

from service.engine import Outputs
from service.images import Pixels
from service.runners import Floats

# What Python needs for an entry beside its rows: key, tuple, two array objects, place in the dictionary.
_OVERHEAD = 500  # bytes, rounded up


class ResponseCache:
    """The least recently used entries go first. Belongs to one version, so a new version starts empty."""

    def __init__(self, limit: int) -> None:
        """`limit` in bytes."""
        self.limit = limit
        self._entries: OrderedDict[bytes, tuple[Floats, Floats]] = OrderedDict()
        self.bytes = 0

    def keys(self, images: Pixels) -> list[bytes]:
        """One key for each image: a 128-bit BLAKE2b of its pixels."""
        return [hashlib.blake2b(image, digest_size=16).digest() for image in np.ascontiguousarray(images)]

    def get(self, key: bytes) -> tuple[Floats, Floats] | None:
        """The rows of probabilities and logits stored under `key`."""
        rows = self._entries.get(key)
        if rows is not None:
            self._entries.move_to_end(key)
        return rows

    def put(self, key: bytes, outputs: Outputs, row: int) -> None:
        if key in self._entries:
            return
        # Copied: a view would keep the whole batch's outputs alive.
        rows = outputs.probabilities[row].copy(), outputs.logits[row].copy()
        self._entries[key] = rows
        self.bytes += _size(rows)
        while self.bytes > self.limit:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= _size(oldest)


def _size(rows: tuple[Floats, Floats]) -> int:
    return rows[0].nbytes + rows[1].nbytes + _OVERHEAD
