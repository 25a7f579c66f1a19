"""What glibc's allocator does with freed memory: by itself, it keeps much of it. Elsewhere, nothing is done."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys

log = logging.getLogger(__name__)

# Of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The first is glibc's own most. The second lets the buffers of a picture of two megapixels be used again for the next:
# with 16 MiB, decoding a PNG of that size took about a quarter longer, for memory that came and went each time.
_LARGE_BLOCK = 32 << 20
_MOST_KEPT = 24 << 20


def bound() -> None:
    """Let glibc keep no more than that of freed memory at the end of each of its heaps, and nothing of large blocks.

    By itself it comes to keep up to 64 MiB, in heaps for eight threads a core: a model that was unloaded left up to its
    own size in each.
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
