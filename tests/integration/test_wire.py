"""Bytes at the port that are no call, or hardly one: the server stays up, answers others, and does not grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.fuzz import wire
from tests.integration.server_process import ENVIRONMENT, ServerProcess
from tests.integration.test_lost_engine import ask

METHOD = "/cifarserve.v1.Classifier/Classify"


def at(server: ServerProcess, data: bytes) -> str:
    host, port = server.target.rsplit(":", 1)
    return wire.send((host, int(port)), data, patience=30)


def test_mutated_frames_headers_and_messages(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.wire", "--inputs", "400", "--seed", "3"]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    result = json.loads(done.stdout)
    assert result["inputs"] == 400
    assert {name.split(":")[0] for name in result["ended"]} == {
        name for name in vars(wire.Inputs) if name.startswith(("a_", "any_"))
    }
    for status in ("0", "3"):  # some are good all the same; some are refused by our own checks
        assert any(name.endswith(f"status {status}") for name in result["ended"]), status


def test_a_path_that_is_no_text_ends_its_own_call_only(server: ServerProcess) -> None:
    frames = wire.call(METHOD, b"")
    _, flags, stream, block = frames[1]
    frames[1] = (wire.HEADERS, flags, stream, block.replace(b"Classify", b"Cl\xd9\xd9\xd9\xd9fy"))
    assert at(server, wire.sent(frames)) != "status 0"
    assert ask(server) == "OK"
    assert at(server, wire.sent(wire.call(METHOD, b"")))  # new connections are taken, too


def test_a_message_that_says_it_is_too_long_is_refused(server: ServerProcess) -> None:
    assert at(server, wire.sent(wire.call(METHOD, b"\x0a\x00", b"\x00\xff\xff\xff\xff"))) == "status 8"
    assert ask(server) == "OK"
