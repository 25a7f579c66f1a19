"""Writes lines to a file descriptor from a thread of its own, so that a reader who stops reading stops nobody else."""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue

_MOST_WAITING = 4 << 20  # bytes of lines that are not written yet; more are dropped
_AT_ONCE = select.PIPE_BUF  # several processes write to one pipe: so many bytes arrive in one piece
_FLUSH_SECONDS = 1.0  # how long an exit waits for a reader


class LineWriter:
    """Takes lines from any thread and never waits. A lock guards what `put` counts; its own thread owns the rest."""

    def __init__(self, descriptor: int, notice: Callable[[int], str] | None = None) -> None:
        """`notice` gives the line that tells how many were dropped, once the reader has read what was left."""
        self._descriptor, self._notice = descriptor, notice
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._lock = threading.Lock()
        self._taken = self._refused = 0  # bytes, lines
        self._written = self._failed = 0  # bytes that wait no more, lines that could not be written
        self._left: bytes | None = None  # taken from the queue, and too long for the batch before it
        _do_not_wait(descriptor)
        threading.Thread(target=self._run, name="lines", daemon=True).start()

    @property
    def dropped(self) -> int:
        """Lines that nobody will read."""
        return self._refused + self._failed

    def put(self, line: str) -> None:
        content = f"{line}\n".encode(errors="backslashreplace")
        with self._lock:
            if self._taken - self._written + len(content) > _MOST_WAITING:
                self._refused += 1
                return
            self._taken += len(content)
            self._queue.put(content)

    def flush(self) -> None:
        """Wait until all that was put is written, or for _FLUSH_SECONDS."""
        written = threading.Event()
        self._queue.put(written)
        written.wait(_FLUSH_SECONDS)

    def _run(self) -> None:
        told = 0
        while True:
            lines, flushing = self._next()
            size = sum(map(len, lines))
            if not self._write(b"".join(lines)):
                self._failed += len(lines)
            self._written += size
            dropped = self.dropped
            if self._notice is not None and dropped > told and self._queue.empty() and self._left is None:
                told = dropped if self._write(f"{self._notice(dropped - told)}\n".encode()) else told
            if flushing is not None:
                flushing.set()

    def _next(self) -> tuple[list[bytes], threading.Event | None]:
        """The next lines, as many as can be written at once, and who waits until they are written."""
        lines: list[bytes] = []
        size = 0
        while not lines or not self._queue.empty():
            item = self._queue.get() if self._left is None else self._left
            self._left = None
            if isinstance(item, threading.Event):
                return lines, item
            size += len(item)
            if lines and size > _AT_ONCE:
                self._left = item
                break
            lines.append(item)
        return lines, None

    def _write(self, content: bytes) -> bool:
        """Whether it was written. Waits until the reader reads."""
        rest = memoryview(content)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:
                    room = select.poll()
                    room.register(self._descriptor, select.POLLOUT)
                    room.poll()
        except OSError:  # the reader is gone, the disk is full, nothing is open there
            return False
        return True


def standard(descriptor: int) -> int:
    """Standard output (1) or error (2). Nowhere when it is closed: another file may have its number then."""
    stream = sys.stdout if descriptor == 1 else sys.stderr
    return os.open(os.devnull, os.O_WRONLY) if stream is None else descriptor


def _do_not_wait(descriptor: int) -> None:
    """Where `descriptor` is a pipe, let writes to it fail when it is full: libraries in C, as gRPC, write there too.

    The pipe is opened a second time, since other processes share what was opened first.
    """
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # closed, without a reader, or not this user's to open
        return
    os.dup2(own, descriptor)
    os.close(own)
