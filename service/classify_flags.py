"""The flags of `cifarserve classify`. Imports nothing heavy: every command of the program defines all flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from service import connection_flags
from service.flag_types import positive, whole_number

SHOWN = 3  # classes of each picture, unless --top-k says otherwise


def add_classify(commands: Any) -> None:
    """Define `classify`. It sets `func`, which takes the parsed flags and returns the exit status."""
    parser = commands.add_parser(
        "classify", help="ask a server what pictures show",
        description="Ask a server what pictures show. They are sent in requests that the server takes, several at a "
        "time, and reported in the order given. A file that cannot be read or classified is named on standard error, "
        "and the others are answered all the same.",
        epilog="Exit status: 0 every file was classified; 1 at least one was not; 2 asked for wrongly.",
    )  # fmt: skip
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="JPEG, PNG, WebP, BMP or GIF file")
    add("--target", default="localhost:8001", help="address of the server (default: %(default)s)")
    add("--model", default="", help="name of the model (default: the only one)")
    add("--version", type=whole_number(0), default=0, help="version of the model (default: the highest)")
    add("--top-k", type=whole_number(1, 2**32 - 1), help="classes to show for each picture; the server refuses more "
        f"than the model has (default: {SHOWN}, or all if there are fewer)")  # fmt: skip
    add("--timeout", type=positive, default=10.0, help="seconds to wait for each request (default: %(default)s)")
    add("--json", action="store_true", help="print JSON, one record for each file: image, model, version, classes, "
        "and error, which is null when the file was classified")  # fmt: skip
    connection_flags.add(parser)
    parser.set_defaults(func=_run)


def _run(options: argparse.Namespace) -> int:
    from service.classify import run

    return run(options)
