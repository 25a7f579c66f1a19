"""The quick form of `make bench` against a small model, and how it deals with the servers that it compares with."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import peer_process, tables
from tests import colour_model
from tests.integration.server_process import ENVIRONMENT, ROOT

# A peer as those of benchmarks/peers: raw pixels in, raw floats out.
SERVER = """
import os, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
open(os.environ["CHILD"], "w").write(str(child.pid))


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes.fromhex(os.environ["ANSWER"]))


time.sleep(0.3)
HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
ANSWER = np.array([[0.25, 0.75]], np.float32)


def test_the_quick_form_measures_every_part_and_is_drawn(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    out = tmp_path / "results.json"
    command = [sys.executable, ROOT / "benchmarks/run.py", "--quick", "--models", models, "--model", "colours"]
    done = subprocess.run([*map(str, command), "--out", out], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    shapes = {one["shape"]: one for one in result["server"]}
    assert len(shapes) == 10
    assert all(one["images_per_second"] > 0 and not one.get("errors") for one in shapes.values())
    assert shapes["32 images, 4 in flight"]["server"]["images_in_a_batch"] >= 32
    assert [one["concurrency"] for one in result["curve"]] == [1, 8]
    assert result["overload"]["rounds"][0]["outcomes"]["OK"] > 0
    assert result["start"]["seconds"][0] > 0
    assert "| fp32 | JPEG of 4000x3000, 4 in flight |" in tables.serving(result)
    assert "from the command to ready" in tables.start(result)
    assert len(ElementTree.fromstring(tables.curve_picture(result)).findall(".//{*}polyline")) == 1


def test_what_was_kept_is_a_whole_run_and_can_be_drawn() -> None:
    result = tables.results()
    assert {"cifarserve"} < {one["title"] for one in result["peers"]}
    picture = ElementTree.fromstring(tables.peers_picture(result))
    measured = [one for one in result["peers"] if "levels" in one and one["precision"] == "fp32"]
    assert len(picture.findall("{*}rect")) == 1 + 4 * len(measured), "the paper, and a bar for each"


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> peer_process.Peer:
    (tmp_path / "small_server.py").write_text(SERVER)
    monkeypatch.setattr(peer_process, "FOLDER", tmp_path)
    monkeypatch.setattr(peer_process.Peer, "environment", lambda self: Path(sys.executable))
    monkeypatch.setenv("ANSWER", ANSWER.tobytes().hex())
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    return peer_process.Peer("small", "Small", (), "raw")


@pytest.fixture
def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def run(peer: peer_process.Peer, port: int, folder: Path) -> tuple[int, float]:
    images = np.zeros((1, 2, 2, 3), np.uint8)
    with peer_process.running(peer, Path("model.onnx"), images, ANSWER, 1, port, folder / "log") as found:
        return found


def test_a_peer_is_started_asked_and_ended_with_all_that_it_started(
    peer: peer_process.Peer, unused_port: int, tmp_path: Path
) -> None:
    _, ready = run(peer, unused_port, tmp_path)
    assert ready > 0.3
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("what the peer started lives on")


def test_a_peer_that_answers_wrongly_or_ends_is_left_out(
    peer: peer_process.Peer, unused_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANSWER", (1 - ANSWER).tobytes().hex())
    with pytest.raises(peer_process.Missing, match="other answers"):
        run(peer, unused_port, tmp_path)
    (tmp_path / "small_server.py").write_text("raise SystemExit(3)")
    with pytest.raises(peer_process.Missing, match="ended with status 3"):
        run(peer, unused_port, tmp_path)


def test_an_environment_that_cannot_be_made_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_process, "CACHE", tmp_path)
    with pytest.raises(peer_process.Missing, match="there is no /nowhere/python"):
        peer_process.Peer("x", "X", (), "raw", python="/nowhere/python").environment()
    with pytest.raises(peer_process.Missing, match="cannot be made"):
        peer_process.Peer("x", "X", (str(tmp_path / "no-such-package.whl"),), "raw").environment()
    ours = {"title": "ours", "precision": "fp32", "levels": [], "mib": 1.0, "ready_seconds": 1.0}
    rows = [ours, {"title": "X", "precision": "fp32", "packages": [], "skipped": "no python"}]
    assert "Skipped: X: no python." in tables.peers({"peers": rows})


def test_every_peer_has_its_server_and_pins_what_it_is_made_of() -> None:
    for peer in peer_process.read():
        assert (ROOT / "benchmarks/peers" / f"{peer.name}_server.py").is_file()
        assert "==" in peer.packages[0]
        assert Path(peer.python).name.startswith("python")
