"""JSON and TOML as they are read here: every number is finite, so that what was read can be computed with and written.

JSON itself has no NaN and no infinity, but Python's parser takes them, and 1e400 as infinity; TOML has both.
"""

from __future__ import annotations

import json
import math
import tomllib
from typing import Any


class DocumentError(ValueError):
    """The text does not parse, or a field of it is not allowed in any document. The message names the place."""


def parse_json(text: str | bytes) -> Any:
    """The document. Raises DocumentError."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise DocumentError(str(error)) from None
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    _require_finite(document)
    return document


def parse_toml(text: str) -> dict[str, Any]:
    """The document. Raises DocumentError."""
    try:
        document = tomllib.loads(text)
    except ValueError as error:
        raise DocumentError(str(error)) from None
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    _require_finite(document)
    return document


def _require_finite(document: Any) -> None:
    """Raise DocumentError for the first number that no float holds: NaN, infinity, an integer of 400 digits."""
    left = [("", document)]
    while left:
        place, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{place}.{key}" if place else key, inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            left += [(f"{place}[{index}]", inner) for index, inner in reversed(list(enumerate(value)))]
        elif isinstance(value, int | float) and not is_finite(value):
            found = _shortened(repr(value))
            raise DocumentError(f"{_shortened(place) or 'document'}: must be a finite number, is {found}")


def is_finite(number: float) -> bool:
    """Whether a float holds it, in which NaN and infinity do not count."""
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer
        return False


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}..."
