"""`cifarserve loadtest` and perf_analyzer in turns on one server, with the same shape: do they see the same?

    python benchmarks/agreement.py --perf-analyzer perf_analyzer -- --provider cpu

Both in a closed loop over the Open Inference Protocol. Prints a table; figures are medians over the rounds, and the
range of the ratio over them.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "protos")]

from tests.integration.server_process import ENVIRONMENT, serving  # noqa: E402

SHAPES = ((1, 1), (1, 16), (32, 4))  # images a request, in flight
Figures = tuple[float, float, float]  # images/s, p50 and p99 in ms


def ours(target: str, model: str, images: int, in_flight: int, seconds: int, folder: Path) -> Figures:
    out = folder / "ours.json"
    flags = ["--target", target, "--protocol", "infer", "--model", model, "--images", images, "--out", out]
    flags += ["--concurrency", in_flight, "--seconds", seconds, "--stable", 0]
    command = [sys.executable, "-m", "service.cli", "loadtest", *map(str, flags)]
    subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=True)
    (level,) = json.loads(out.read_text())["levels"]
    times = level["latency_seconds"]
    return level["images_per_second"], times["p50"] * 1e3, times["p99"] * 1e3


def theirs(program: str, target: str, model: str, images: int, in_flight: int, seconds: int, folder: Path) -> Figures:
    """By perf_analyzer: three windows after a second or so of warm-up."""
    out = folder / "theirs.csv"
    flags = ["-m", model, "-u", target, "-i", "grpc", "-b", images, "--concurrency-range", f"{in_flight}:{in_flight}"]
    flags += ["--measurement-interval", seconds * 1000 // 3, "--stability-percentage", 999, "--max-trials", 3]
    flags += ["--input-data", "random", "--shape", "image:32,32,3", "--warmup-request-count", 50, "-f", out]
    done = subprocess.run([program, *map(str, flags)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.args}\n{done.stdout}{done.stderr}")
    row = next(csv.DictReader(out.open()))
    return float(row["Inferences/Second"]), float(row["p50 latency"]) / 1e3, float(row["p99 latency"]) / 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--perf-analyzer", default="perf_analyzer", help="the program (default: %(default)s)")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--seconds", type=int, default=6, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("flags", nargs="*", help="after --: of the server")
    options = parser.parse_args()
    seen: dict[tuple[int, int], list[tuple[Figures, Figures]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(options.models.resolve(), folder / "log", *options.flags) as server:
            for _ in range(options.rounds):
                for shape in SHAPES:
                    common = (server.target, options.model, *shape, options.seconds, folder)
                    seen.setdefault(shape, []).append((ours(*common), theirs(options.perf_analyzer, *common)))
    print("| images a request, in flight | loadtest: images/s, p50, p99 ms | perf_analyzer | images/s, ratio (range) |")
    print("|---|---|---|---|")
    for (images, in_flight), pairs in seen.items():
        middle = [
            [statistics.median(column) for column in zip(*side, strict=True)] for side in zip(*pairs, strict=True)
        ]
        cells = [f"{speed:,.0f}, {p50:.2f}, {p99:.2f}" for speed, p50, p99 in middle]
        ratios = sorted(one[0] / other[0] for one, other in pairs)
        ratio = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"| {images}, {in_flight} | {' | '.join(cells)} | {ratio} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
