"""The flags of `cifarserve tune`. Imports nothing heavy: every command of the program defines all flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from service.flag_types import count, positive

# As service.tune.goal.KINDS and the keys of service.providers.NAMES, which would bring more along.
_GOALS = ("throughput", "latency")
_PROVIDERS = ("cpu", "openvino", "cuda", "tensorrt")


def add_tune(commands: Any) -> None:
    """Define `tune`. It sets `func`, which takes the parsed flags and returns the exit status."""
    parser = commands.add_parser(
        "tune", help="find the settings with which this machine serves a model best",
        description="Measure what this machine does with other settings, and write those that are certainly better.",
        epilog="Exit status: 0 done: the files are written, or stay as they are if nothing is certainly better; "
        "1 it could not be done, or no setting holds the objective; 2 asked for wrongly, or a file is there already; "
        "130 interrupted: what was measured is printed, and nothing written.",
    )  # fmt: skip
    add = parser.add_argument
    goals = parser.add_mutually_exclusive_group()
    goals.add_argument(
        "--goal", choices=_GOALS, default="throughput",
        help="most images/s, or the lowest median time of a request (default: %(default)s)",
    )  # fmt: skip
    goals.add_argument("--slo", default="", help='the highest rate that holds it, as "p99<10ms"')
    add("--minutes", type=positive, default=5.0, help="time that it may take (default: %(default)s)")
    add("--model", default="", help="NAME, or NAME:VERSION (default: the only one, and the version that is served)")
    add("--model-repository", type=Path, metavar="FOLDER", help="as of `serve` (default: that of the settings)")
    add("--config", type=Path, metavar="FILE", help="the server's settings, as of `serve`; `workers` is written there")
    add("--providers", type=_providers, default=(), help="only these, as cpu,cuda (default: all but tensorrt)")
    add("--images-per-request", type=count, default=1, dest="images", help="(default: %(default)s)")
    add("--concurrency", type=count, default=0, help="requests in flight (default: 64; for --goal latency: 1)")
    add("--connections", type=count, default=16, help="they come over; workers share them (default: %(default)s)")
    add("--pictures", type=Path, metavar="FOLDER", help="real pictures to send (default: noise in the model's size)")
    add("--encoded", action="store_true", help="send the pictures' files as they are, to be decoded by the server")
    add("--processes", type=count, default=0, help="client processes (default: half of the cores)")
    add("--out", type=Path, metavar="FOLDER",
        help="write config.toml, and cifarserve.toml, there (default: where `serve` reads them)")  # fmt: skip
    add("--page", type=Path, default=Path("tune.html"), metavar="FILE", help="what was measured (default: %(default)s)")
    add("--force", action="store_true", help="replace what is in these files already; other keys in them stay")
    parser.set_defaults(func=_run)


def _run(options: argparse.Namespace) -> int:
    from service.tune.command import run

    return run(options)


def _providers(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in _PROVIDERS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(_PROVIDERS)}")
    return names


_providers.__name__ = "list of providers"
