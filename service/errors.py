"""Every error a caller can meet, in one tree. `service.status` turns them into gRPC status codes, in one place."""

from __future__ import annotations

import logging
import secrets
from contextlib import suppress

log = logging.getLogger(__name__)
_MOST_CHARACTERS = 60


def short(value: object) -> str:
    """`value`, which a caller has sent, for an error message: as Python writes it, cut to a few characters."""
    # Cut before and after: what comes first must not cost what the whole would, and escapes are longer than they look.
    text = repr(value[:_MOST_CHARACTERS] if isinstance(value, str | bytes | list) else value)
    whole = len(text) <= _MOST_CHARACTERS and not (isinstance(value, str | bytes) and len(value) > _MOST_CHARACTERS)
    return text if whole else f"{text[:_MOST_CHARACTERS]}..."


class ServiceError(Exception):
    """Base of all errors that are answers: the message is meant for the caller."""


class InvalidInput(ServiceError):
    """The request is wrong. `field` says where, in the words of the proto: `images[3].encoded`, `top_k`."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class ModelNotFound(ServiceError):
    """No such model, or no such version of it, is served here."""


class QueueFull(ServiceError):
    """The queue is at its bound; nothing was queued. `retry_after` is in seconds, from the measured drain rate."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(ServiceError):
    """The caller's deadline passed before compute began."""


class Unavailable(ServiceError):
    """The model is loading, or the server is draining: another replica, or a moment later, may answer."""


class StartError(RuntimeError):
    """The server cannot start: a port is taken, or a worker does not come up. No answer to a call."""


class InternalError(ServiceError):
    """A fault of ours. `error_id` is in the log, beside the stack that the caller does not get."""

    what = "internal error"

    def __init__(self, error_id: str) -> None:
        super().__init__(f"{self.what} {error_id}")
        self.error_id = error_id


class OutOfMemory(InternalError):
    """There was not enough memory for this request or its batch."""

    what = "out of memory: error"


def hidden(error: BaseException, what: str = "") -> InternalError:
    """Log a fault of ours with its stack under a new id, and return what callers get instead: that id.

    `what` tells the log what failed.
    """
    error_id = secrets.token_hex(8)
    with suppress(Exception):  # log.error: callers get their answer even if the line cannot be written
        log.error("internal error %s%s", error_id, f": {what}" if what else "", exc_info=error)
    return (OutOfMemory if isinstance(error, MemoryError) else InternalError)(error_id)
