"""The log: text for a person at a terminal, one JSON object a line for machines; and the access lines in it."""

from __future__ import annotations

import json
import logging
import random
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

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


def configure(level: str, style: str, stream: TextIO = sys.stderr) -> None:
    """Log to `stream`. `style` is text, json, or auto: text when `stream` is a terminal."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(_is_no_farewell)
    as_text = style == "text" or (style == "auto" and stream.isatty())
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


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
