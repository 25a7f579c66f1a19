"""Mixed traffic for as long as you like: every answer checked, and what the server holds watched for growth.

    python benchmarks/soak.py --seconds 3600

A server of a model whose right answers are known (tests/colour_model.py) gets, from several callers at once: single
images and many, pictures as PNG and JPEG, streams, pictures that are none, deadlines that cannot be met, calls that are
cancelled, and every few seconds a new version. Its resident memory, file descriptors, threads and the tasks on its
event loop are read every second. Prints JSON, also to --out; the exit status is 1 if an answer was wrong, a call ended
otherwise than it may, or one of the four grew from the second quarter of the run to the last.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "protos")]

import grpc  # noqa: E402
import numpy as np  # noqa: E402
from cifarserve.v1 import classifier_pb2 as pb  # noqa: E402
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc  # noqa: E402
from PIL import Image  # noqa: E402

from tests import colour_model  # noqa: E402
from tests.integration.server_process import ServerProcess, serving  # noqa: E402

CALLERS = 8
KINDS = ("one", "many", "encoded", "stream", "bad", "late", "cancelled")  # of calls: methods of Traffic
RELOAD_SECONDS = 5.0
MAY_GROW = {"resident_mib": 1.05, "descriptors": 1.1, "threads": 1.1, "tasks": 1.1}  # times; and by this much at least:
MAY_ADD = {"resident_mib": 8.0, "descriptors": 8.0, "threads": 4.0, "tasks": 8.0}
# One of several million floats may fall on the other side of a rounding.
TOLERANCE = 1e-4


class Traffic:
    """What the callers send; `ended` counts by kind and outcome."""

    def __init__(self, stub: pb_grpc.ClassifierStub, seed: int, kinds: Sequence[str] = KINDS) -> None:
        self.stub = stub
        self.random = random.Random(seed)
        self.images = colour_model.distinct(200)
        self.expected = colour_model.expected(self.images).max(axis=1)
        self.ended: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.kinds: list[Callable[[], Awaitable[str]]] = [getattr(self, kind) for kind in kinds]

    async def go_on_until(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            kind = self.random.choice(self.kinds)
            try:
                outcome = await kind()
            except grpc.aio.AioRpcError as error:
                outcome = error.code().name
            self.ended[f"{kind.__name__} {outcome}"] += 1

    async def one(self) -> str:
        return await self._checked(self.random.randrange(200), 1)

    async def many(self) -> str:
        count = self.random.randrange(2, 100)
        return await self._checked(self.random.randrange(200 - count), count)

    async def encoded(self) -> str:
        number, kind = self.random.randrange(200), self.random.choice(("PNG", "JPEG"))
        file = io.BytesIO()
        Image.fromarray(self.images[number]).resize((self.random.randrange(1, 500), 80)).save(file, kind)
        await self.stub.Classify(pb.ClassifyRequest(images=[pb.Image(encoded=file.getvalue())]), timeout=60)
        return "OK"

    async def stream(self) -> str:
        numbers = [self.random.randrange(200) for _ in range(self.random.randrange(1, 50))]

        async def requests() -> AsyncIterator[pb.ClassifyRequest]:
            for number in numbers:
                yield self._request(number, 1)

        replies = [reply async for reply in self.stub.ClassifyStream(requests(), timeout=60)]
        right = len(replies) == len(numbers) and all(
            self._right(reply, number, 1) for reply, number in zip(replies, numbers, strict=True)
        )
        if not right:
            errors = [str(reply.error) for reply in replies if reply.HasField("error")]
            self.wrong.append(f"a stream of {len(numbers)} had {len(replies)} replies, with these errors: {errors}")
        return "OK" if right else "WRONG"

    async def bad(self) -> str:
        content = self.random.choice((b"", b"no picture", b"\x89PNG\r\n\x1a\n" + self.random.randbytes(100)))
        await self.stub.Classify(pb.ClassifyRequest(images=[pb.Image(encoded=content)]), timeout=60)
        return "WRONG"

    async def late(self) -> str:
        await self.stub.Classify(self._request(0, 100), timeout=0.0005)
        return "OK"

    async def cancelled(self) -> str:
        call = self.stub.Classify(self._request(0, self.random.randrange(1, 100)), timeout=60)
        await asyncio.sleep(self.random.random() / 100)
        call.cancel()
        return "gone"

    async def _checked(self, first: int, count: int) -> str:
        reply = await self.stub.Classify(self._request(first, count), timeout=60)
        return "OK" if self._right(reply, first, count) else "WRONG"

    def _request(self, first: int, count: int) -> pb.ClassifyRequest:
        height, width = self.images.shape[1:3]
        raw = (pb.RawImage(rgb=image.tobytes(), width=width, height=height) for image in self.images[first:][:count])
        return pb.ClassifyRequest(images=[pb.Image(raw=one) for one in raw], top_k=1)

    def _right(self, reply: pb.ClassifyResponse, first: int, count: int) -> bool:
        found = [prediction.classes[0].probability for prediction in reply.predictions]
        return len(found) == count and bool(np.allclose(found, self.expected[first:][:count], atol=TOLERANCE))


# How a call of each kind may end, besides well.
ALLOWED = {"bad": {"INVALID_ARGUMENT"}, "late": {"OK", "DEADLINE_EXCEEDED"}, "cancelled": {"gone"}}


def holdings(server: ServerProcess) -> dict[str, float]:
    """What the server holds now."""
    process = server.process.pid
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return {
        "resident_mib": int(status["VmRSS"].split()[0]) / 1024,
        "descriptors": sum(1 for _ in Path(f"/proc/{process}/fd").iterdir()),
        "threads": int(status["Threads"]),
        "tasks": server.metric("cifarserve_event_loop_tasks"),
    }


async def watch(server: ServerProcess, deadline: float) -> list[dict[str, float]]:
    samples = []
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # no answer in time, on a busy machine: the next sample may come
            samples.append(await asyncio.to_thread(holdings, server))
        await asyncio.sleep(1)
    return samples


async def publish(models: Path, deadline: float) -> int:
    """Put version after version there, and take the old ones away; returns the last number."""
    version = 1
    while time.monotonic() + RELOAD_SECONDS < deadline:
        await asyncio.sleep(RELOAD_SECONDS)
        version += 1
        with tempfile.TemporaryDirectory() as building:
            made = colour_model.publish(Path(building), version=version)
            shutil.copytree(made, models / "colours" / f".{version}")
        (models / "colours" / f".{version}").rename(models / "colours" / str(version))
        if version > 3:
            shutil.rmtree(models / "colours" / str(version - 3))
    return version


async def soak(server: ServerProcess, models: Path, seconds: float, kinds: Sequence[str]) -> dict[str, object]:
    deadline = time.monotonic() + seconds
    async with grpc.aio.insecure_channel(server.target) as channel:
        callers = [Traffic(pb_grpc.ClassifierStub(channel), seed, kinds) for seed in range(CALLERS)]
        samples, versions, *_ = await asyncio.gather(
            watch(server, deadline),
            publish(models, deadline),
            *(caller.go_on_until(deadline) for caller in callers),
        )
    ended = sum((caller.ended for caller in callers), Counter())
    problems = [
        f"{count} calls: {name}" for name, count in sorted(ended.items())
        if name.split()[1] not in ALLOWED.get(name.split()[0], {"OK"})
    ]  # fmt: skip
    growth = {}
    for name, times in MAY_GROW.items():
        series = [sample[name] for sample in samples]
        quarter = max(1, len(series) // 4)
        early, late = statistics.median(series[quarter : 2 * quarter]), statistics.median(series[-quarter:])
        growth[name] = [round(early, 1), round(late, 1)]
        if late > early * times and late > early + MAY_ADD[name]:
            problems.append(f"{name} grew from {early:.1f} to {late:.1f}")
    tenth = max(1, len(samples) // 10)  # a level that is reached and kept is no growth
    resident = [sample["resident_mib"] for sample in samples]
    tenths = [round(statistics.median(resident[begin : begin + tenth]), 1) for begin in range(0, len(resident), tenth)]
    return {
        "seconds": seconds, "calls": ended.total(), "versions": versions, "ended": dict(sorted(ended.items())),
        "second_and_last_quarter": growth, "resident_mib_by_tenths": tenths, "problems": problems,
        "wrong": [each for one in callers for each in one.wrong],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of calls; all by default")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        colour_model.publish(models)
        flags = ("--model-control", "poll", "--poll-seconds", 0.5)
        with serving(models, Path(folder) / "log", *flags) as server:
            result = asyncio.run(soak(server, models, options.seconds, options.kinds))
        log = (Path(folder) / "log").read_text()
    if "Traceback" in log:
        print(log[log.index("Traceback") - 300 :][:3000], file=sys.stderr)
        result["problems"] = [*result["problems"], "the server's log has a traceback"]  # type: ignore[misc]
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
