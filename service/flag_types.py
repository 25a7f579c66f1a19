"""Types of flags, for argparse: numbers within bounds. Anything else is refused with what is allowed."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def whole_number(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"must be {least} or above")
        if number > most:
            raise argparse.ArgumentTypeError(f"must be {most} or below")
        return number

    parse.__name__ = "whole number"  # argparse names it when `text` is none
    return parse


count = whole_number(1)


def positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("must be 0 or above")
    return number


def positives(text: str) -> list[float]:
    """As 1,4,16."""
    return [positive(part) for part in text.split(",")]


positive.__name__ = not_negative.__name__ = "number"
positives.__name__ = "list of numbers"
