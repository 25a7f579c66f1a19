"""What refusing a request costs: the server's processor time, beside that of gRPC servers which do nothing else.

    python benchmarks/refusal.py

Calls of `--images` raw images come at a constant `--rate` to a cifarserve whose queue is full: its one place is held by
a request that waits for its batch to fill, so that the engine has nothing to do. The others are Python's asyncio server
of gRPC with our event loop and nothing else: `read` ends every call with the same status and details once it has the
message, which it does not parse; `unread` at the headers. In turns, `--rounds` of `--seconds` each; server and client
on a half of the cores each. Prints JSON, also to --out: microseconds of processor a call, and the medians' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "protos")]

import grpc  # noqa: E402
from cifarserve.v1 import classifier_pb2 as pb  # noqa: E402
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc  # noqa: E402

from benchmarks.overload import cores, overload, raw_images  # noqa: E402
from service import status  # noqa: E402
from service.errors import QueueFull  # noqa: E402
from service.event_loop import new_loop  # noqa: E402
from tests.integration.server_process import ENVIRONMENT, serving  # noqa: E402

METHOD = pb.DESCRIPTOR.services_by_name["Classifier"].methods_by_name["Classify"]
PATIENCE = 2.0  # seconds; the request that holds the place is given up after so long, and the next takes it
TICKS = os.sysconf("SC_CLK_TCK")


BARE = ("read", "unread")


async def bare(kind: str) -> None:
    """The server that does nothing else; prints its port."""
    refusal = status.from_error(QueueFull("1024 images wait, the limit is 1024", 0.2))

    async def refuse(_request: object, context: grpc.aio.ServicerContext) -> None:  # type: ignore[type-arg]
        await status.abort(context, refusal)

    # A handler of streams is called before anything is read.
    make = grpc.unary_unary_rpc_method_handler if kind == "read" else grpc.stream_stream_rpc_method_handler
    service = METHOD.containing_service.full_name
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {METHOD.name: make(refuse)}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


@contextmanager
def bare_process(kind: str) -> Iterator[tuple[int, str]]:
    """Its process id, and where it listens."""
    command = [sys.executable, __file__, "--bare", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        try:
            yield process.pid, f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def measure(servers: dict[str, tuple[int, str]], options: argparse.Namespace) -> dict[str, object]:
    request = pb.ClassifyRequest(model=options.model, images=raw_images(options.images, options.side), top_k=1)
    took: dict[str, list[float]] = {name: [] for name in servers}
    ended: dict[str, Counter[str]] = {name: Counter() for name in servers}
    channels = {name: grpc.aio.insecure_channel(target) for name, (_, target) in servers.items()}
    stubs = {name: pb_grpc.ClassifierStub(channel) for name, channel in channels.items()}
    for stub in stubs.values():  # connects, and lets the first calls be slow
        await overload(stub, request, options.rate, 1.0, PATIENCE)
    for _ in range(options.rounds):
        for name, (process, _) in servers.items():
            before = processor_seconds(process)
            outcomes, _ = await overload(stubs[name], request, options.rate, options.seconds, PATIENCE)
            took[name].append((processor_seconds(process) - before) / outcomes.total() * 1e6)
            ended[name] += outcomes
    for channel in channels.values():
        await channel.close()
    middle = {name: statistics.median(each) for name, each in took.items()}
    return {
        "microseconds": {name: [round(one) for one in each] for name, each in took.items()},
        "medians": {name: round(one) for name, one in middle.items()},
        **{f"cifarserve_to_{kind}": round(middle["cifarserve"] / middle[kind], 3) for kind in BARE},
        "outcomes": {name: dict(each) for name, each in ended.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--model", default="", help="name of the model")
    parser.add_argument("--side", type=int, default=32, help="of the pictures, in pixels")
    parser.add_argument("--images", type=int, default=32, help="in one request")
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each server in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("--bare", choices=BARE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(bare(options.bare))
    servers, ours = cores(together=False)
    os.sched_setaffinity(0, servers)
    full = ("--provider", "cpu", "--max-batch-size", options.images + 1, "--max-queue-images", options.images,
            "--max-images-per-request", options.images, "--max-queue-delay", 10)  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(options.models.resolve(), Path(folder) / "log", *full) as server,
        bare_process("read") as read,
        bare_process("unread") as unread,
    ):
        os.sched_setaffinity(0, ours)
        targets = {"cifarserve": (server.process.pid, server.target), "read": read, "unread": unread}
        result = asyncio.run(measure(targets, options))
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
