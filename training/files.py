"""Files that survive a crash, and folders that belong to one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_json(path: Path, record: Any) -> None:
    """Replace `path` by `record` as JSON in one step: a reader, or a crash, sees the old file or the new one."""
    write_atomically(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write, fsync and rename into place, then fsync the folder, so that the name survives a power cut too."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> int:
    """A descriptor that holds an exclusive lock on a folder until it is closed, or the process dies.

    Raises OSError: BlockingIOError when another process holds it, FileNotFoundError when there is no such folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `lock_folder`'s lock within the block."""
    descriptor = lock_folder(folder)
    try:
        yield
    finally:
        os.close(descriptor)
