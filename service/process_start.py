"""What a process of the program does first: streams that can be written to, and signals that are not lost.

Imports nothing heavy. A signal that comes while Python imports the rest would find no handler: it would kill the
process, or, if that is process 1 of a container, be lost.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_ENDING = (signal.SIGTERM, signal.SIGINT)
_SIGHUP = getattr(signal, "SIGHUP", None)  # there is none on Windows
# With this variable, prometheus_client keeps values in files of that folder, and not in the process. Our workers'
# metrics are merged without it.
_MULTIPROCESS = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")


def begin(serving: bool) -> None:
    """For a process that runs a command, before it imports anything heavy. `serving`: it is a server, or a part of it.

    A server goes on when nobody reads what it prints. Any other command ends with exit status 1 then. Until it has
    handlers of its own, a server ends at once, with status 0, on SIGTERM and SIGINT, as there is nothing to drain yet;
    SIGHUP does nothing, as everything is still to be read.
    """
    for variable in _MULTIPROCESS:
        os.environ.pop(variable, None)
    _open_streams(serving)
    if serving:
        for number in _ENDING:
            signal.signal(number, lambda *_: os._exit(0))
        if _SIGHUP:
            signal.signal(_SIGHUP, lambda *_: None)
    elif os.getpid() == 1:
        # The kernel ignores what process 1 has no handler for.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    _release()


def output_alone() -> TextIO:
    """Standard output, to be held alone: what libraries print from now on, in C too, goes to standard error."""
    sys.stdout.flush()
    alone = os.dup(1)
    os.dup2(2, 1)
    return io.TextIOWrapper(_stream(alone, needed=False), "utf-8", "replace", write_through=True)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Processes started meanwhile get SIGTERM, SIGINT and SIGHUP only when they have called `begin`. So does this one,
    when it leaves. Not to be entered twice at a time.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _held())
    try:
        yield
    finally:
        _release()


def _release() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _held())


def _held() -> set[signal.Signals]:
    return {*_ENDING, *([_SIGHUP] if _SIGHUP else [])}


def _open_streams(serving: bool) -> None:
    """A standard stream that is closed leads to /dev/null: a socket would get its number, and what is printed there."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(number, True)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = _text(1, sys.stdout, needed=not serving)
    sys.stderr = _text(2, sys.stderr, needed=False)


def _text(number: int, before: TextIO | None, needed: bool) -> TextIO:
    """The stream `before`, or a new one, with what `_Stream` adds."""
    raw = _stream(number, needed)
    if not isinstance(before, io.TextIOWrapper):
        return io.TextIOWrapper(raw, write_through=True)
    before.flush()
    # Without buffering (PYTHONUNBUFFERED), as it was.
    buffer = raw if before.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer, before.encoding, before.errors, line_buffering=before.line_buffering, write_through=before.write_through
    )


def _stream(number: int, needed: bool) -> Any:  # for TextIOWrapper, whose types want more than it uses
    return _Stream(number, needed)


class _Stream(io.RawIOBase):
    """A standard stream. What cannot be written, as the disk is full or nobody reads, is dropped; if it is `needed`,
    the process ends with status 1.
    """

    def __init__(self, number: int, needed: bool) -> None:
        self._number, self._needed = number, needed

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:  # type: ignore[override]  # of any buffer
        rest = memoryview(content)
        size = len(rest)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._number, rest) :]
                except BlockingIOError:  # whoever has the other end has it so
                    if not self._needed:
                        break
                    select.select([], [self._number], [])
        except OSError as error:
            if self._needed:
                self._give_up(error)
        return size

    def _give_up(self, error: OSError) -> None:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123  # for what is written while the process ends
            os.dup2(nothing.fileno(), self._number)
        if not isinstance(error, BrokenPipeError):  # `| head` has read enough
            print(f"cifarserve: cannot write the output: {error.strerror}", file=sys.stderr)  # noqa: T201
        raise SystemExit(1)
