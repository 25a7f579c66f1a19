"""How far the server is from its two ceilings: a bare loop over the engine, and a gRPC echo of the same messages.

All in one run and alternately, round by round, so that what else the machine does falls on all alike; figures are
medians over the rounds. Writes serve.json and serve.md into --out, and prints the table.

    python benchmarks/serve.py --models models --model cifar10 --provider cpu -- --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}", "PYTHONUNBUFFERED": "1"}
SHAPES: dict[str, dict[str, Any]] = {
    "1 image, c1": {"kind": "raw", "images": 1, "in_flight": 1},
    "1 image, c16": {"kind": "raw", "images": 1, "in_flight": 16},
    "1 image, c64": {"kind": "raw", "images": 1, "in_flight": 64},
    "32 images, c4": {"kind": "raw", "images": 32, "in_flight": 4},
    "stream, 1 image, 64 unanswered": {"kind": "stream", "images": 1, "in_flight": 64},
    "JPEG 32x32, c16": {"kind": "32x32", "images": 1, "in_flight": 16},
    "JPEG 4000x3000, c4": {"kind": "4000x3000", "images": 1, "in_flight": 4},
}
ENGINE = """
import json, sys, time
from pathlib import Path
import numpy as np
from service.engine import Engine
path, provider, threads, batch, seconds = json.loads(sys.argv[1])
engine = Engine(Path(path), provider=provider, threads=threads, max_batch_size=batch)
images = np.random.default_rng(0).integers(0, 256, (batch, *engine.image_shape), dtype=np.uint8)
engine.run(images)
runs, used, started = 0, time.process_time(), time.perf_counter()
while time.perf_counter() < started + seconds:
    engine.run(images)
    runs += batch
print(json.dumps({"images_per_second": runs / (time.perf_counter() - started),
                  "server_us": (time.process_time() - used) / runs * 1e6, "provider": engine.provider}))
"""


def main() -> None:
    options = parse()
    manifest = json.loads((sorted(options.models.glob(f"{options.model}/*/manifest.json"))[-1]).read_text())
    version = options.models / options.model / str(manifest["version"])
    classes, side = len(manifest["labels"]), manifest["inputs"][0]["shape"][1]
    wanted = [name for name in SHAPES if not options.only or any(part in name for part in options.only)]
    samples: dict[tuple[str, str], list[dict[str, float]]] = {}
    file = version / ("model.onnx" if options.precision == "fp32" else f"model.{options.precision}.onnx")
    flags = ["--model-repository", options.models, "--provider", options.provider, "--precision", options.precision]
    flags += options.flags
    with started(["-m", "service.cli", "serve", "--port", 0, "--metrics-port", 0, *flags]) as (server, target):
        with started(["benchmarks/echo.py", classes]) as (echo, echo_target):
            for _ in range(options.rounds):
                for batch in (1, 32):
                    arguments = [str(file), options.provider]
                    result = run(["-c", ENGINE, json.dumps([*arguments, options.threads, batch, options.seconds])])
                    samples.setdefault((f"engine loop, batches of {batch}", "engine"), []).append(result)
                for name in wanted:
                    for who, process, address in (("server", server, target), ("echo", echo, echo_target)):
                        if who == "echo" and "JPEG" in name:
                            continue
                        call = {"target": address, "shape": SHAPES[name], "model": options.model, "side": side}
                        before = processor_seconds(process.pid)
                        result = run(["benchmarks/client.py", json.dumps({**call, "seconds": options.seconds})])
                        result["server_us"] = (processor_seconds(process.pid) - before) / result["requests"] * 1e6
                        samples.setdefault((name, who), []).append(result)
        peak = next(line for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if "VmHWM" in line)
    report(options, samples, int(peak.split()[1]) / 1024)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--precision", default="int8", help="of the server and the engine loop (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the engine loop")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of shapes")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("flags", nargs="*", help="after --: flags for cifarserve serve")
    return parser.parse_args()


@contextmanager
def started(arguments: list[Any]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server and its address, which it prints: ours after `gRPC`, the echo alone."""
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert process.stdout is not None
    try:
        target = ""
        for line in process.stdout:
            words = line.split()
            if words[0].isdigit() or words[0] == "gRPC":
                target = f"127.0.0.1:{words[-1].rpartition(':')[2]}"
            if words[0].isdigit() or words[0] == "try":
                break
        if not target:
            raise SystemExit(f"{' '.join(command)} did not start")
        yield process, target
    finally:
        process.terminate()
        process.wait()


def run(arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT, check=True)
    return dict(json.loads(result.stdout))


def processor_seconds(pid: int) -> float:
    """Of the process, with the threads that it has ended, and of its children: the workers, when there are some."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") + sum(processor_seconds(int(one)) for one in children)


def report(options: argparse.Namespace, samples: dict[tuple[str, str], list[dict[str, Any]]], peak: float) -> None:
    rows = []
    for (name, who), found in samples.items():
        numbers = {key for key, value in found[0].items() if isinstance(value, float)}
        rows.append({"shape": name, "of": who} | {key: statistics.median(one[key] for one in found) for key in numbers})
    speed = {(row["shape"], row["of"]): row["images_per_second"] for row in rows}
    lines = [
        "| shape | of | images/s | to echo | to engine loop | p50 ms | p99 ms | server us | client us |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        loop = speed["engine loop, batches of 32", "engine"]
        echo = speed.get((row["shape"], "echo"))
        row["to_engine"] = row["images_per_second"] / loop
        row["to_echo"] = row["images_per_second"] / echo if echo else None
        cells = [
            f"{row['images_per_second']:,.0f}",
            f"{row['to_echo']:.2f}" if echo else "",
            f"{row['to_engine']:.2f}",
            *(f"{row[key]:,.{digits}f}" if key in row else "" for key, digits in
              (("p50_ms", 1), ("p99_ms", 1), ("server_us", 0), ("client_us", 0))),
        ]  # fmt: skip
        lines.append(f"| {row['shape']} | {row['of']} | " + " | ".join(cells) + " |")
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "server_peak_mib": peak,
        "provider": next(one[0]["provider"] for (_, who), one in samples.items() if who == "engine"),
        "command": " ".join(map(str, sys.argv)),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "serve.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    text = "\n".join([f"{key}: {value}" for key, value in machine.items()] + ["", *lines]) + "\n"
    (options.out / "serve.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
