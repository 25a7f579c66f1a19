"""What commands print: strings exactly as they are, whatever they hold and whatever the terminal can show.

Labels, file names and messages come from elsewhere. None of them may be read as markup, or steer the terminal.
"""

from __future__ import annotations

import io
import sys
import unicodedata
from typing import Any

from rich import console
from rich.text import Text

# Controls (which begin escape sequences), halves of surrogate pairs, and separators of lines and paragraphs.
_ESCAPED = {"Cc", "Cs", "Zl", "Zp"}
# These reorder the text around them.
_BIDIRECTIONAL = {*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def replace_unencodable() -> None:
    """From now on, standard output shows `?` for what its encoding lacks, instead of raising UnicodeEncodeError.

    Standard error writes a backslash escape by itself.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # not when it is closed, or replaced by a test
        sys.stdout.reconfigure(errors="replace")


def plain(text: str) -> str:
    r"""`text` on one line, with backslash escapes for what a terminal would act on.

    A byte of a file name that is not UTF-8 becomes `\xff`.
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_plain, text))


def plain_lines(text: str) -> str:
    """As `plain`; ends of lines stay."""
    return "\n".join(map(plain, text.split("\n")))


def _plain(character: str) -> str:
    if unicodedata.category(character) not in _ESCAPED and character not in _BIDIRECTIONAL:
        return character
    if "\udc80" <= character <= "\udcff":  # a byte, by PEP 383
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


class Console(console.Console):
    """Prints strings, also those in tables, as `plain_lines` of them: without markup, emoji codes and highlighting."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain_lines(text), **{**options, "markup": False, "emoji": False})


def fail(message: str, status: int = 1) -> int:
    """Print why a command failed; returns its exit status."""
    print(f"cifarserve: {plain_lines(message)}", file=sys.stderr)  # noqa: T201
    return status
