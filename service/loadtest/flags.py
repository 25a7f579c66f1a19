"""The flags of `cifarserve loadtest`. Imports nothing heavy: every command of the program defines all flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from service import connection_flags
from service.flag_types import count, not_negative, positive, positives

PROTOCOLS = ("classify", "infer", "http")


def add_loadtest(commands: Any) -> None:
    """Define `loadtest`. It sets `func`, which takes the parsed flags and returns the exit status."""
    parser = commands.add_parser(
        "loadtest", help="how many images a second a server answers, and how long each waits",
        description="Measure a server: ours, any of the Open Inference Protocol over gRPC, or any HTTP address.",
    )  # fmt: skip
    add = parser.add_argument
    add("--target", default="localhost:8001", help="address, or several as a,b,c, in turns (default: %(default)s)")
    add(
        "--protocol",
        choices=PROTOCOLS,
        default="classify",
        help="ours, Open Inference, or POSTs to a URL (%(default)s)",
    )
    add("--stream", action="store_true", help="one stream a client process and target, instead of single calls")
    add("--model", default="", help="name of the model (default: the only one)")
    add("--images", type=count, default=1, help="in one request (default: %(default)s)")
    add("--pictures", type=Path, metavar="FOLDER", help="real pictures to send (default: noise in the model's shape)")
    add("--encoded", action="store_true", help="send the pictures' files as they are, to be decoded by the server")
    add("--body", type=Path, nargs="+", metavar="FILE", help="with --protocol http: what to send, as it is, in turns")
    add("--concurrency", type=positives, default=None, help="requests in flight, as 1,4,16: a closed loop of each")
    add("--rate", type=positives, default=None, help="requests/s, as 100,200: an open loop of each")
    add("--arrivals", choices=("poisson", "constant"), default="poisson", help="of an open loop (%(default)s)")
    add("--seconds", type=positive, default=10.0, help="longest time for each load (default: %(default)s)")
    add("--stable", type=not_negative, default=0.05, help="end a load early when its last five seconds differ by "
        "less than this share; 0: never (default: %(default)s)")  # fmt: skip
    add("--warm-up", type=not_negative, default=1.0, help="seconds before it that do not count (default: %(default)s)")
    add("--deadline", type=positive, default=10.0, help="seconds, of each call (default: %(default)s)")
    add("--processes", type=count, default=0, help="client processes (default: half of the cores)")
    add("--metrics", default="", metavar="URL", help="the server's metrics, for batches, queue, cores and memory; "
        "several as a,b,c")  # fmt: skip
    add("--server-pid", type=count, default=0, help="the server's process id on this machine, for cores and memory "
        "of one that has no such metrics")  # fmt: skip
    add("--slo", default="", help='find the highest rate that holds it, as "p99<10ms"')
    add("--min-rps", type=not_negative, default=0.0, help="with --slo: exit with status 1 below this many requests/s")
    add("--out", type=Path, metavar="FILE", help="JSON here, and the page beside it as .html")
    add("--compare", type=Path, metavar="OLD.json", help="an older result: both are drawn, and the ratio is stated")
    add("--round-robin", action="store_true", help="spread calls over all addresses that a target's name stands for")
    connection_flags.add(parser)
    parser.set_defaults(func=_run)


def _run(options: argparse.Namespace) -> int:
    from service.loadtest.command import run

    return run(options)
