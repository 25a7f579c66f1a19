"""The servers of peers/: their environments, under the user's cache folder, and one of them running at a time."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime

from service.loadtest.plan import open_inference

FOLDER = Path(__file__).resolve().parent / "peers"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cifarserve" / "peers"
PATIENCE = 90.0  # seconds, until a server answers
INFER = "/inference.GRPCInferenceService/ModelInfer"


class Missing(Exception):
    """A peer cannot be had here; the reason is for people."""


@dataclass(frozen=True)
class Peer:
    name: str
    title: str
    packages: tuple[str, ...]
    ask: str  # infer, raw, or base64
    python: str = sys.executable
    precisions: tuple[str, ...] = ("fp32",)

    def environment(self) -> Path:
        """Its Python, in an environment that has exactly its packages; made when there is none. Raises Missing."""
        if not shutil.which(self.python):
            raise Missing(f"there is no {self.python}")
        folder = CACHE / self.name
        wanted = "\n".join([self.python, *self.packages, f"onnxruntime=={onnxruntime.__version__}"])
        stamp = folder / "made-of"
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            for command in _making(self.python, folder, wanted.splitlines()[1:]):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    said = (done.stderr or done.stdout).strip().splitlines()
                    raise Missing(f"its environment cannot be made: {said[-1] if said else done.returncode}")
            stamp.write_text(wanted)
        return folder / "bin" / "python"

    def arguments(self, port: int, body: Path) -> list[str]:
        """For `cifarserve loadtest`."""
        if self.ask == "infer":
            return ["--target", f"127.0.0.1:{port}", "--protocol", "infer", "--model", "cnn"]
        return ["--target", f"http://127.0.0.1:{port}/{self.path}", "--protocol", "http", "--body", str(body)]

    @property
    def path(self) -> str:
        return "predict" if self.name == "litserve" else ""

    def body(self, images: np.ndarray, folder: Path) -> Path:
        """A file with `images` as it wants them, for HTTP."""
        path = folder / f"{self.name}-{len(images)}.{'json' if self.ask == 'base64' else 'bin'}"
        path.write_bytes(self._encode(images))
        return path

    def classify(self, port: int, images: np.ndarray) -> np.ndarray:
        """Its probabilities [n, classes]. Raises OSError and grpc.RpcError."""
        if self.ask == "infer":
            return infer(f"127.0.0.1:{port}", "cnn", images)
        kind = "application/json" if self.ask == "base64" else "application/octet-stream"
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/{self.path}", data=self._encode(images), headers={"Content-Type": kind}
        )
        with urllib.request.urlopen(request, timeout=20) as reply:
            answer = reply.read()
        if self.ask == "base64":
            return np.array(json.loads(answer), np.float32)
        return np.frombuffer(answer, np.float32).reshape(len(images), -1)

    def _encode(self, images: np.ndarray) -> bytes:
        if self.ask == "base64":
            return json.dumps({"images": [base64.b64encode(one.tobytes()).decode() for one in images]}).encode()
        return images.tobytes()


def read() -> list[Peer]:
    table = tomllib.loads((FOLDER / "versions.toml").read_text())
    return [
        Peer(name, **{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
        for name, given in table.items()
    ]


def _making(python: str, folder: Path, packages: list[str]) -> list[list[str]]:
    """The commands that make an environment, with uv where it is."""
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv:
        make = [uv, "venv", "--quiet", "--python", python, str(folder)]
        return [make, [uv, "pip", "install", "--quiet", "--python", str(folder / "bin/python"), *packages]]
    return [
        [python, "-m", "venv", str(folder)],
        [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *packages],
    ]


def infer(target: str, model: str, images: np.ndarray) -> np.ndarray:
    oip = open_inference()
    request = oip.ModelInferRequest(model_name=model)
    request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    request.raw_input_contents.append(images.tobytes())
    with grpc.insecure_channel(target) as channel:
        reply = oip.ModelInferResponse.FromString(channel.unary_unary(INFER)(request.SerializeToString(), timeout=20))
    names = [output.name for output in reply.outputs]
    place = names.index("probabilities")
    if reply.raw_output_contents:
        return np.frombuffer(reply.raw_output_contents[place], np.float32).reshape(len(images), -1)
    return np.array(reply.outputs[place].contents.fp32_contents, np.float32).reshape(len(images), -1)


@contextmanager
def running(
    peer: Peer, model: Path, images: np.ndarray, expected: np.ndarray, threads: int, port: int, log: Path
) -> Iterator[tuple[int, float]]:
    """A peer that gives the expected answers: its process id, and the seconds until its first one. Raises Missing."""
    python = peer.environment()
    environment: dict[str, Any] = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    shape, classes = images.shape[1:], expected.shape[1]
    environment |= {
        "MODEL": str(model), "PORT": str(port), "THREADS": str(threads), "SHAPE": ",".join(map(str, shape)),
        "CLASSES": str(classes), "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "BENTOML_DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(python), f"{peer.name}_server.py"], cwd=FOLDER, env=environment, stdout=file, stderr=file
        )
    try:
        _wait(peer, process, port, images, expected, began)
        yield process.pid, time.monotonic() - began
    finally:
        stop(process)


def _wait(
    peer: Peer, process: subprocess.Popen[bytes], port: int, images: np.ndarray, expected: np.ndarray, began: float
) -> None:
    problem: Exception | None = None
    while time.monotonic() < began + PATIENCE:
        if process.poll() is not None:
            raise Missing(f"ended with status {process.returncode} at its start")
        try:
            found = peer.classify(port, images)
        except (OSError, grpc.RpcError) as error:
            problem = error
            time.sleep(0.05)
            continue
        if not np.allclose(found, expected, atol=2e-3):
            raise Missing("gives other answers than onnxruntime")
        return
    raise Missing(f"did not answer within {PATIENCE:g} s: {problem}")


def descendants(pid: int) -> list[int]:
    """All processes that come from `pid`, itself first."""
    found = [pid]
    for one in found:
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def stop(process: subprocess.Popen[Any]) -> None:
    """End it in order; kill what is left of it and of what it started."""
    started = descendants(process.pid)[1:]
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in started:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
