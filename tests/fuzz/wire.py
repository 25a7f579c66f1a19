"""Malformed HTTP/2, gRPC and protobuf at a server's port: whether it goes on answering, and holds no more than before.

    python -m tests.fuzz.wire --inputs 100000 --seed 1

Starts a server of its own on a free port and, on many connections, sends what begins like a call and is then changed:
bytes of the whole exchange, frames (type, flags, stream, a length that is not theirs), headers, gRPC's five bytes
before a message, the messages of both protocols. After every 500 a good request must get its right answer. Prints JSON;
the exit status is 1 when the server died, did not answer, had an internal error of ours, or grew. (Statuses 2 and 13
are gRPC's own, for messages and headers that cannot be parsed.)
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from service.client import Client, Options
from tests import colour_model
from tests.fuzz import mutate
from tests.integration.server_process import ServerProcess, serving

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4
METHODS = {
    "requests": ("/cifarserve.v1.Classifier/Classify", "/cifarserve.v1.Classifier/ClassifyStream"),
    "tensors": ("/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ModelStreamInfer"),
}
CALLERS = 8
EVERY = 500  # inputs between two good requests
PATIENCE = 1.0  # seconds for the end of an answer, which a call that was cut short never gets
# A server that has seen the first quarter holds this much more at the end, at most.
MAY_ADD = {"resident_mib": 16.0, "descriptors": 10.0, "threads": 4.0}
Frame = tuple[int, int, int, bytes]  # type, flags, stream, payload


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack(">I", size % (1 << 24))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header(name: bytes, value: bytes) -> bytes:
    """HPACK: a literal that is not indexed, as it stands."""
    return b"\x00" + bytes((len(name) % 127,)) + name + bytes((len(value) % 127,)) + value


def call(method: str, message: bytes, prefix: bytes | None = None) -> list[Frame]:
    fields = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "x", "te": "trailers"}
    fields["content-type"] = "application/grpc"
    block = b"".join(header(name.encode(), value.encode()) for name, value in fields.items())
    body = (struct.pack(">BI", 0, len(message)) if prefix is None else prefix) + message
    parts = [body[at : at + 16384] for at in range(0, len(body), 16384)]
    data = [(DATA, 0, 1, part) for part in parts[:-1]] + [(DATA, END_STREAM, 1, parts[-1])]
    return [(SETTINGS, 0, 0, b""), (HEADERS, END_HEADERS, 1, block), *data]


def sent(frames: list[Frame]) -> bytes:
    return PREFACE + b"".join(frame(*one) for one in frames)


class Inputs:
    """Makes one input after the other from a seed."""

    def __init__(self, seed: int) -> None:
        from tests.fuzz import targets  # here, as tritonclient's stubs cannot be in one process with these

        self.chance = random.Random(seed)
        self.seeds = {name: targets.seeds(name) for name in METHODS}
        self.messages = targets.MESSAGES
        self.kinds: tuple[Callable[[], bytes], ...] = (
            self.any_bytes, self.any_frames, self.any_headers, self.any_prefix, self.any_message, self.any_fields,
            self.a_part, self.a_flood,
        )  # fmt: skip

    def next(self) -> tuple[str, bytes]:
        kind = self.chance.choice(self.kinds)
        return kind.__name__, kind()

    def _call(self) -> list[Frame]:
        name = self.chance.choice(sorted(METHODS))
        return call(self.chance.choice(METHODS[name]), self.chance.choice(self.seeds[name]))

    def any_bytes(self) -> bytes:
        data = sent(self._call())
        kept = self.chance.choice((0, len(PREFACE)))
        return data[:kept] + mutate.changed_bytes(data[kept:], self.chance)

    def any_frames(self) -> bytes:
        chance, data = self.chance, PREFACE
        for kind, flags, stream, payload in self._call():
            what = chance.randrange(8)
            size = None
            if what == 0:
                kind = chance.randrange(256)
            elif what == 1:
                flags = chance.randrange(256)
            elif what == 2:
                stream = chance.choice((0, 2, 3, 1 << 31, (1 << 31) - 1, chance.randrange(1 << 32)))
            elif what == 3:
                size = chance.choice((0, 1, len(payload) + 1, 16385, (1 << 24) - 1))
            elif what == 4:
                payload = mutate.changed_bytes(payload, chance)
            elif what == 5:
                data += frame(chance.randrange(12), chance.randrange(256), chance.randrange(4), chance.randbytes(8))
            data += frame(kind, flags, stream, payload, size)
        return data

    def any_headers(self) -> bytes:
        frames = self._call()
        block = frames[1][3]
        if self.chance.random() < 0.5:
            name = self.chance.choice((b"grpc-timeout", b"grpc-encoding", b":path", b"x-bin", self.chance.randbytes(6)))
            block += header(name, self.chance.choice((b"", b"1n", b"99999999S", b"gzip", self.chance.randbytes(20))))
        else:
            block = mutate.changed_bytes(block, self.chance)
        frames[1] = (HEADERS, END_HEADERS, 1, block)
        return sent(frames)

    def any_prefix(self) -> bytes:
        name = self.chance.choice(sorted(METHODS))
        message = self.chance.choice(self.seeds[name])
        length = self.chance.choice((0, 1, len(message) - 1, len(message) + 1, 1 << 31, (1 << 32) - 1))
        prefix = struct.pack(">BI", self.chance.choice((0, 1, 2, 255)), length)
        return sent(call(self.chance.choice(METHODS[name]), message, prefix))

    def any_message(self) -> bytes:
        name = self.chance.choice(sorted(METHODS))
        message = mutate.changed_bytes(self.chance.choice(self.seeds[name]), self.chance)
        return sent(call(self.chance.choice(METHODS[name]), message))

    def any_fields(self) -> bytes:
        name = self.chance.choice(sorted(METHODS))
        change = mutate.of_messages(self.messages[name])
        message = change(self.chance.choice(self.seeds[name]), 1 << 20, self.chance.randrange(1 << 32))
        return sent(call(self.chance.choice(METHODS[name]), message))

    def a_part(self) -> bytes:
        data = sent(self._call())
        return data[: self.chance.randrange(len(data))]

    def a_flood(self) -> bytes:
        kind = self.chance.choice((2, RST_STREAM, SETTINGS, 6, 8, 9))
        size = {2: 5, RST_STREAM: 4, SETTINGS: 6, 6: 8, 8: 4, 9: 3}[kind]
        one = frame(kind, 0, self.chance.choice((0, 1)), self.chance.randbytes(size))
        return sent(self._call()[:2]) + one * self.chance.randrange(1, 300)


def send(target: tuple[str, int], data: bytes, patience: float = PATIENCE) -> str:
    """How the server ended it: with this status, GOAWAY, a reset, the connection closed, or not within `patience`."""
    with socket.create_connection(target, timeout=10) as connection:
        connection.settimeout(patience)
        try:
            connection.sendall(data)
            return _ended(connection, patience)
        except TimeoutError:
            return "nothing"
        except OSError:
            return "closed"


def _ended(connection: socket.socket, patience: float) -> str:
    found, status = b"", ""
    deadline = time.monotonic() + patience
    while chunk := connection.recv(65536):
        found += chunk
        while len(found) >= 9 and len(found) >= 9 + (size := int.from_bytes(found[:3])):
            kind, flags, payload, found = found[3], found[4], found[9 : 9 + size], found[9 + size :]
            if kind in (RST_STREAM, GOAWAY):
                return "reset" if kind == RST_STREAM else "GOAWAY"
            # In trailers, gRPC writes names and values as they stand.
            if kind == HEADERS and (code := re.search(rb"grpc-status.([0-9]+)", payload)):
                status = f"status {int(code[1])}"
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                return status or "ended"
        if time.monotonic() > deadline:
            return "nothing"
    return status or "closed"


def holdings(server: ServerProcess) -> dict[str, float]:
    folder = Path(f"/proc/{server.process.pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return {
        "resident_mib": round(int(status["VmRSS"].split()[0]) / 1024, 1),
        "descriptors": sum(1 for _ in (folder / "fd").iterdir()),
        "threads": int(status["Threads"]),
    }


def drive(server: ServerProcess, inputs: int, seed: int) -> dict[str, object]:
    """Send so many inputs, and say what came back and what grew."""
    host, port = server.target.rsplit(":", 1)
    ended: Counter[str] = Counter()
    lock = threading.Lock()
    source, good = Inputs(seed), 0
    quarter: dict[str, float] = {}

    def one(item: tuple[str, bytes]) -> None:
        outcome = send((host, int(port)), item[1])
        with lock:
            ended[f"{item[0]}: {outcome}"] += 1

    with Client(server.target, Options(attempts=1, timeout=30)) as client, ThreadPoolExecutor(CALLERS) as pool:
        for first in range(0, inputs, EVERY):
            list(pool.map(one, [source.next() for _ in range(min(EVERY, inputs - first))]))
            (prediction,) = client.classify([colour_model.plain((255, 0, 0))])
            assert prediction.best.label == "red"
            good += 1
            if not quarter and 4 * (first + EVERY) >= inputs:
                time.sleep(PATIENCE)
                quarter = holdings(server)
        time.sleep(2 * PATIENCE)
        last = holdings(server)
    problems = []
    for name, added in MAY_ADD.items():
        if last[name] > quarter[name] + added:
            problems.append(f"{name} grew from {quarter[name]} to {last[name]}")
    return {
        "inputs": ended.total(), "seed": seed, "good_requests": good, "ended": dict(sorted(ended.items())),
        "after_a_quarter_and_at_the_end": [quarter, last], "problems": problems,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        colour_model.publish(Path(folder) / "models")
        # The messages of the corpus do not name it.
        (Path(folder) / "models" / "colours").rename(Path(folder) / "models" / "m")
        colour_model.edit_manifest(Path(folder) / "models" / "m" / "1", name="m")
        with serving(Path(folder) / "models", Path(folder) / "log") as server:
            result = drive(server, options.inputs, options.seed)
        if errors := [line for line in (Path(folder) / "log").read_text().splitlines() if "internal error" in line]:
            result["problems"] = [*result["problems"], *errors[:5]]  # type: ignore[misc]
    print(json.dumps(result, indent=2))
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
