"""What glibc's allocator does with freed memory: by itself, it keeps much of it. Elsewhere, nothing is done."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys

log = logging.getLogger(__name__)

# Of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Above what most messages and batches need, so that they reuse what the ones before them have freed.
_LARGE_BLOCK = 4 << 20
_MOST_KEPT = 8 << 20


def bound() -> None:
    """Give large blocks back to the system once they are freed, and of small ones all but some MiB a heap.

    By itself, glibc raises both limits to 32 and 64 MiB when large blocks have been freed, and it has heaps for eight
    threads a core: a model that was unloaded left up to its own size in each (docs/reliability.md, "Soak").
    """
    library = _glibc()
    if library is not None:
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        library.mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)


def release() -> None:
    """Give back now what has been freed."""
    gc.collect()
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if library.mallopt and library.malloc_trim else None
    except (OSError, AttributeError):
        log.debug("not glibc: its memory is not given back early")
        return None
