"""The log: text for a person at a terminal, one JSON object a line for machines; and the access lines in it."""

from __future__ import annotations

import json
import logging
import os
import random
import traceback
from datetime import UTC, datetime
from typing import Any

from service.line_writer import LineWriter, standard

access = logging.getLogger("service.access")

# What every record has; anything beyond was given as `extra` and is a field of the line.
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """time (RFC 3339, UTC), level, logger, message, whatever was given as `extra`, and the stack of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """The same on one line for a person; `extra` follows as key=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s%(fields)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.fields = "".join(f" {name}={value}" for name, value in _extra(record).items() if name != "fields")
        return super().formatMessage(record)


class LogHandler(logging.Handler):
    """Formats a line where it is logged, and leaves the writing to a thread: a log that nobody reads stops nothing."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.writer = LineWriter(descriptor, self._notice)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # a line of ours that does not fit its own arguments
            line = traceback.format_exc()
        self.writer.put(line)

    def flush(self) -> None:
        """Wait for the reader, for a second at most. `logging` calls this when the process ends."""
        self.writer.flush()

    def _notice(self, dropped: int) -> str:
        fields = {"name": __name__, "levelname": "WARNING", "levelno": logging.WARNING, "dropped": dropped}
        message = "lines of the log were dropped: they came faster than they were read, or could not be written"
        return self.format(logging.makeLogRecord({**fields, "msg": message}))


def configure(level: str, style: str) -> None:
    """Log to standard error. `style` is text, json, or auto: text where that is a terminal."""
    descriptor = standard(2)
    handler = LogHandler(descriptor)
    handler.addFilter(_is_no_farewell)
    as_text = style == "text" or (style == "auto" and os.isatty(descriptor))
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


def say(line: str) -> None:
    """Put a line among those of the log as it is; for the reason why a server does not start."""
    for handler in _handlers():
        handler.writer.put(line)


def dropped() -> int:
    """Lines that were not written, since the process began."""
    return sum(handler.writer.dropped for handler in _handlers())


def _handlers() -> list[LogHandler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, LogHandler)]


def _is_no_farewell(record: logging.LogRecord) -> bool:
    """False for what gRPC logs as an error, with a stack, when a caller leaves in the moment its answer is sent.

    Nothing is wrong then, and who sees such stacks every day overlooks the one that matters.
    """
    kind = record.exc_info[0] if record.exc_info else None
    return not (record.name == "grpc._cython.cygrpc" and kind is not None and kind.__name__ == "ExecuteBatchError")


class AccessLog:
    """One line for each request with log level debug, otherwise for a share of them."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._level = logging.DEBUG if access.isEnabledFor(logging.DEBUG) else logging.INFO

    def wants(self) -> bool:
        """Whether the request at hand gets a line. Costs nothing worth saving when there are none."""
        return self._level == logging.DEBUG or (self._share > 0 and random.random() < self._share)

    def write(self, **fields: Any) -> None:
        access.log(self._level, "request", extra=fields)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _PLAIN}
