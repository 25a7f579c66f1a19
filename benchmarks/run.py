"""The whole benchmark of docs/benchmarks.md on this machine: `make bench`.

    python benchmarks/run.py                    # some ten minutes; rewrites results.json, and with it the document
    python benchmarks/run.py --quick --out x    # a minute: that everything works; no figure of it means anything
    python benchmarks/run.py --peers triton     # some of the servers in peers/versions.toml only; none: --peers

Everything is measured by `cifarserve loadtest`, a process of its own on the same machine. What is compared stands in
one run, in rounds one after the other; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "protos")]

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks import peer_process  # noqa: E402
from benchmarks.serve import ENGINE  # noqa: E402
from service.loadtest.report import processor  # noqa: E402
from tests.integration.server_process import ENVIRONMENT, ServerProcess, serving  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results.json"
RAW = ("--protocol", "infer")
# Name, flags of the load test, images a request.
SHAPES: list[tuple[str, tuple[object, ...]]] = [
    ("1 image, 1 in flight", (*RAW, "--concurrency", 1)),
    ("1 image, 16 in flight", (*RAW, "--concurrency", 16)),
    ("1 image, 64 in flight", (*RAW, "--concurrency", 64)),
    ("32 images, 4 in flight", (*RAW, "--images", 32, "--concurrency", 4)),
    ("a stream, 64 unanswered", (*RAW, "--stream", "--concurrency", 64, "--processes", 1)),
    ("JPEG of 32x32, 16 in flight", ("--pictures", "32x32", "--encoded", "--concurrency", 16)),
    ("JPEG of 4000x3000, 4 in flight", ("--pictures", "4000x3000", "--encoded", "--concurrency", 4)),
]
PEER_SHAPES = ((1, 1), (1, 16), (1, 64), (32, 4))  # images a request, in flight
KEPT = ("concurrency", "rate", "images_per_request", "images_per_second", "latency_seconds", "errors", "client_cores",
        "client_was_the_limit", "server")  # fmt: skip


class LoadFailed(Exception):
    """A load test that could not be made, with what it said."""


class Benchmark:
    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.seconds, self.rounds = (1, 1) if options.quick else (options.seconds, options.rounds)
        self.version = max((options.models / options.model).glob("[0-9]*"), key=lambda path: int(path.name))
        manifest = json.loads((self.version / "manifest.json").read_text())
        self.shape = tuple(manifest["inputs"][0]["shape"][1:])
        self.precisions = [one for one in ("fp32", "int8") if one in manifest["compute_precisions"]]
        if options.quick:
            self.precisions = self.precisions[-1:]
        for width, height in ((32, 32), (4000, 3000)):
            self._picture(width, height)

    def _picture(self, width: int, height: int) -> None:
        """A folder with one JPEG: a few coarse shapes, which a JPEG of noise would not be."""
        folder = self.folder / f"{width}x{height}"
        folder.mkdir()
        coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / "picture.jpg", quality=90)

    def load(self, *flags: object) -> list[dict[str, Any]]:
        """The levels of a load test."""
        out = self.folder / "load.json"
        common = ("--seconds", self.seconds, "--stable", 0, "--out", out)
        command = [sys.executable, "-m", "service.cli", "loadtest", *map(str, (*common, *flags))]
        done = subprocess.run(command, env=ENVIRONMENT, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise LoadFailed(f"{' '.join(command)}\n{done.stderr}")
        return [{name: one[name] for name in KEPT} for one in json.loads(out.read_text())["levels"]]

    @contextmanager
    def server(self, *flags: object) -> Iterator[tuple[ServerProcess, tuple[object, ...], float]]:
        """Ours, the flags of the load test for it, and the seconds until it was ready."""
        began = time.monotonic()
        threads = ("--provider", "cpu", "--threads", self.options.threads)
        with serving(self.options.models, self.folder / "log", *threads, *flags) as server:
            ready = time.monotonic() - began
            target = ("--target", server.target, "--model", self.options.model)
            yield server, (*target, "--metrics", server.metrics_url, "--server-pid", server.process.pid), ready

    def run(self) -> dict[str, Any]:
        parts = {"server": self.against_the_engine, "curve": self.curve, "overload": self.overload,
                 "start": self.start, "peers": self.peers}  # fmt: skip
        result: dict[str, Any] = {"machine": self.machine()}
        for name, part in parts.items():
            print(f"{name} ...", file=sys.stderr, flush=True)
            result[name] = part()
        result["machine"]["seconds"] = round(time.monotonic() - self.began)
        return result

    began = time.monotonic()

    def machine(self) -> dict[str, Any]:
        return {
            "processor": processor(), "cores": len(os.sched_getaffinity(0)), "threads": self.options.threads,
            "model": f"{self.options.model} {self.version.name}", "onnxruntime": onnxruntime.__version__,
            "when": time.strftime("%Y-%m-%d"), "load_before": round(os.getloadavg()[0], 1), "rounds": self.rounds,
            "seconds_each": self.seconds,
        }  # fmt: skip

    def file(self, precision: str) -> Path:
        return self.version / ("model.onnx" if precision == "fp32" else f"model.{precision}.onnx")

    def engine(self, precision: str, batch: int) -> float:
        """Images/s of a bare loop."""
        arguments = json.dumps([str(self.file(precision)), "cpu", self.options.threads, batch, self.seconds])
        done = subprocess.run(
            [sys.executable, "-c", ENGINE, arguments], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        return float(json.loads(done.stdout)["images_per_second"])

    def against_the_engine(self) -> list[dict[str, Any]]:
        """Each shape, with the engine alone before and after them, for each precision."""
        rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for _ in range(self.rounds):
            for precision in self.precisions:
                shapes = SHAPES if precision == self.precisions[-1] else SHAPES[:4]
                self._engine(precision, rows)
                with self.server("--precision", precision) as (_, flags, _):
                    for name, shape in shapes:
                        (level,) = self.load(*flags, *shape)
                        rows.setdefault((precision, name), []).append(level)
                    (level,) = self.load(*flags, *RAW, "--rate", 20, "--arrivals", "constant")
                    rows.setdefault((precision, "1 image, 20 requests/s"), []).append(level)
                self._engine(precision, rows)
        return [{"precision": precision, "shape": name, **median(found)} for (precision, name), found in rows.items()]

    def _engine(self, precision: str, rows: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
        for batch in (1, 64):
            found = {"images_per_second": self.engine(precision, batch)}
            rows.setdefault((precision, f"the engine alone, batches of {batch}"), []).append(found)

    def curve(self) -> list[dict[str, Any]]:
        """Of ours as it comes, over the requests in flight."""
        with self.server() as (_, flags, _):
            wanted = "1,8" if self.options.quick else "1,2,4,8,16,32,64"
            return self.load(*flags, *RAW, "--concurrency", wanted)

    def overload(self) -> dict[str, Any]:
        """Five times its capacity (overload.py)."""
        out = self.folder / "overload.json"
        flags = ["--models", self.options.models, "--model", self.options.model, "--side", self.shape[0]]
        flags += ["--seconds", self.seconds, "--rounds", self.rounds, "--out", out]
        command = [sys.executable, ROOT / "benchmarks/overload.py", *flags, "--", "--provider", "cpu"]
        subprocess.run([*map(str, command)], env=ENVIRONMENT, cwd=ROOT, capture_output=True, check=True)
        result: dict[str, Any] = json.loads(out.read_text())
        return result

    def start(self) -> dict[str, Any]:
        """Seconds from the command to readiness, and MiB then."""
        seconds, memory = [], []
        for _ in range(1 if self.options.quick else 3):
            with self.server() as (server, _, ready):
                seconds.append(ready)
                memory.append(server.metric("process_resident_memory_bytes") / (1 << 20))
        return {"seconds": [round(one, 2) for one in seconds], "mib": round(statistics.median(memory))}

    def peers(self) -> list[dict[str, Any]]:
        """The same model file in each, ours first, for each precision that a peer is to be measured in."""
        named = [peer for peer in peer_process.read() if self.options.peers is None or peer.name in self.options.peers]
        wanted = [(peer, one) for peer in named for one in peer.precisions if one in self.precisions]
        if self.options.quick or not wanted:
            return []
        ours = {one: _row("cifarserve", one) for one in self.precisions if one in {one for _, one in wanted}}
        rows = {(peer, one): _row(peer.title, one) | {"packages": peer.packages} for peer, one in wanted}
        for _ in range(self.rounds):
            for precision in ours:
                with self.server("--precision", precision) as (_, flags, ready):
                    levels = self._peer_levels(lambda _, flags=flags: (*flags, *RAW))
                    ours[precision]["rounds"].append((ready, levels))
                for (peer, one), row in rows.items():
                    if one == precision and "skipped" not in row:
                        print(f"  {peer.name} in {one}", file=sys.stderr, flush=True)
                        try:
                            row["rounds"].append(self._peer(peer, one))
                        except (peer_process.Missing, LoadFailed) as reason:
                            row["skipped"] = str(reason)
        return [summary(row) for row in (*ours.values(), *rows.values())]

    def _peer(self, peer: peer_process.Peer, precision: str) -> tuple[float, list[dict[str, Any]]]:
        """Seconds until it was ready, and its levels. Raises Missing."""
        images = np.random.default_rng(1).integers(0, 256, (32, *self.shape), np.uint8)
        model, port, threads = self.file(precision), self.options.port, self.options.threads
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"], enable_fallback=False)
        expected = session.run(["probabilities"], {"image": images[:1]})[0]
        log = self.folder / f"{peer.name}.log"
        with peer_process.running(peer, model, images[:1], expected, threads, port, log) as (pid, ready):

            def flags(size: int) -> tuple[object, ...]:
                return (*peer.arguments(port, peer.body(images[:size], self.folder)), "--server-pid", pid)

            return ready, self._peer_levels(flags)

    def _peer_levels(self, flags: Callable[[int], tuple[object, ...]]) -> list[dict[str, Any]]:
        return [
            self.load(*flags(images), "--images", images, "--concurrency", in_flight)[0]
            for images, in_flight in PEER_SHAPES
        ]


def _row(title: str, precision: str) -> dict[str, Any]:
    return {"title": title, "precision": precision, "rounds": []}


def median(levels: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the rounds' figures; what is not a figure is of the last round."""
    return {
        name: statistics.median(one[name] for one in levels)
        if isinstance(value, float)
        else median([one[name] for one in levels if one[name]])
        if isinstance(value, dict) and name != "errors"
        else value
        for name, value in levels[-1].items()
    }


def summary(row: dict[str, Any]) -> dict[str, Any]:
    rounds = row.pop("rounds")
    if "skipped" in row or not rounds:
        return row
    return {
        **row, "ready_seconds": statistics.median(ready for ready, _ in rounds),
        "mib": max(one["server"]["resident_bytes"] for _, levels in rounds for one in levels) / (1 << 20),
        "levels": [median(list(same)) for same in zip(*(levels for _, levels in rounds), strict=True)],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every engine")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--port", type=int, default=19800, help="of the peers; the one after it is used too")
    parser.add_argument("--peers", nargs="*", help="names of those to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="a second of each, once, without peers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the JSON")
    options = parser.parse_args()
    options.models = options.models.resolve()
    with tempfile.TemporaryDirectory() as folder:
        result = Benchmark(options, Path(folder)).run()
    options.out.write_text(json.dumps(rounded(result), indent=1) + "\n")
    if options.out == RESULTS:
        subprocess.run([sys.executable, ROOT / "docs/generate.py"], env=ENVIRONMENT, check=True)
    return 0


def rounded(value: Any) -> Any:
    """Five digits of every figure are more than are known."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    sys.exit(main())
