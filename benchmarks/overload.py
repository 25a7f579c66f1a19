"""Five times what the server can do, at a constant rate: what is left of its capacity, how long the answered wait.

    python benchmarks/overload.py --models models --model cifar10 -- --provider cpu

First the capacity: a closed loop with a few large requests in flight. Then, in turns with it, an open loop that sends
requests of the same size at `--times` that rate, each at its own time whether the ones before are answered or not.
Goodput is what is answered OK within the deadline. Prints JSON, also to --out. Ratios are of medians over the rounds.

A client that sends five times as much works five times as hard. So that this does not count against the server, each
has half of the cores to itself, in both loads; --together leaves all of them to both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "protos")]

import grpc  # noqa: E402
import numpy as np  # noqa: E402
from cifarserve.v1 import classifier_pb2 as pb  # noqa: E402
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc  # noqa: E402

from tests.integration.server_process import serving  # noqa: E402

IN_FLIGHT = 4


def raw_images(count: int, side: int) -> list[pb.Image]:
    """Squares of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return [pb.Image(raw=pb.RawImage(rgb=one.tobytes(), width=side, height=side)) for one in pixels]


async def capacity(stub: pb_grpc.ClassifierStub, request: pb.ClassifyRequest, seconds: float) -> float:
    """Requests per second of a closed loop."""
    deadline, done = time.monotonic() + seconds, 0

    async def caller() -> None:
        nonlocal done
        while time.monotonic() < deadline:
            await stub.Classify(request, timeout=60)
            done += 1

    began = time.monotonic()
    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return done / (time.monotonic() - began)


async def overload(
    stub: pb_grpc.ClassifierStub, request: pb.ClassifyRequest, rate: float, seconds: float, patience: float
) -> tuple[Counter[str], list[float]]:
    """Outcomes by code, and the seconds of those that ended well, from the time at which each was to be sent."""
    outcomes: Counter[str] = Counter()
    took: list[float] = []
    began = time.monotonic()

    async def one(due: float) -> None:
        try:
            await stub.Classify(request, timeout=patience)
        except grpc.aio.AioRpcError as error:
            outcomes[error.code().name] += 1
        else:
            now = time.monotonic()
            # What is answered when nothing more is sent is no goodput under overload.
            outcomes["OK" if now < began + seconds else "OK afterwards"] += 1
            took.append(now - due)

    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            due = began + number / rate
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            tasks.create_task(one(due))
    return outcomes, took


async def measure(target: str, options: argparse.Namespace) -> dict[str, object]:
    request = pb.ClassifyRequest(model=options.model, images=raw_images(options.images, options.side), top_k=1)
    rounds: list[dict[str, Any]] = []
    async with grpc.aio.insecure_channel(target) as channel:
        stub = pb_grpc.ClassifierStub(channel)
        await capacity(stub, request, 1.0)
        for _ in range(options.rounds):
            most = await capacity(stub, request, options.seconds)
            rate = options.times * most
            outcomes, took = await overload(stub, request, rate, options.seconds, options.patience)
            rounds.append({
                "capacity_images_per_second": most * options.images,
                "sent_images_per_second": rate * options.images,
                "goodput_images_per_second": outcomes["OK"] / options.seconds * options.images,
                "p99_ms_of_answered": statistics.quantiles(took, n=100)[98] * 1e3 if len(took) > 1 else None,
                "outcomes": dict(outcomes),
            })  # fmt: skip
    left = [one["goodput_images_per_second"] / one["capacity_images_per_second"] for one in rounds]
    return {
        "times": options.times,
        "patience_seconds": options.patience,
        "cores": "together" if options.together else "apart",
        "goodput_of_capacity": statistics.median(left),
        "rounds": rounds,
    }


def cores(together: bool) -> tuple[set[int], set[int]]:
    """Of the server, which inherits them, and of the client."""
    every = sorted(os.sched_getaffinity(0))
    half = len(every) // 2
    return (set(every), set(every)) if together or not half else (set(every[:half]), set(every[half:]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--model", default="", help="name of the model")
    parser.add_argument("--side", type=int, default=32, help="of the pictures, in pixels")
    parser.add_argument("--images", type=int, default=32, help="in one request")
    parser.add_argument("--times", type=float, default=5.0, help="the load, as a multiple of the capacity")
    parser.add_argument("--patience", type=float, default=1.0, help="deadline of a request, in seconds")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each half of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--together", action="store_true", help="server and client on the same cores")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("flags", nargs="*", help="after --: of the server")
    options = parser.parse_args()
    servers, ours = cores(options.together)
    os.sched_setaffinity(0, servers)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(options.models.resolve(), Path(folder) / "log", *options.flags) as server,
    ):
        os.sched_setaffinity(0, ours)
        result = asyncio.run(measure(server.target, options))
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
