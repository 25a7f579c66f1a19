"""The load test against real servers: what it counts, what it finds out, and what it says when that cannot be."""

from __future__ import annotations

import html
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import certificates, colour_model
from tests.integration.server_process import ENVIRONMENT, ServerProcess, cli, command, serving

QUICK = ("--seconds", 2, "--warm-up", 0, "--processes", 1)


@contextmanager
def once_it_answers(server: ServerProcess, action: Callable[[], None]) -> Iterator[None]:
    """Does `action` in a thread when the server has answered a second's requests or so."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            if server.metric("cifarserve_requests_total", code="OK") > 40:
                action()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("loadtest")
    colour_model.publish(folder / "models")
    with serving(folder / "models", folder / "log") as server:
        yield server


def loadtest(server: ServerProcess, out: Path, *flags: object, status: int = 0) -> dict[str, Any]:
    done = cli("loadtest", "--target", server.target, "--out", out, *QUICK, *flags)
    assert done.returncode == status, done.stderr + done.stdout
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def test_a_sweep_counts_what_the_server_counts_and_draws_a_page(server: ServerProcess, tmp_path: Path) -> None:
    before = server.metric("cifarserve_requests_total", code="OK")
    flags = ("--concurrency", "1,8", "--images", 3, "--metrics", server.metrics_url, "--processes", 2)
    result = loadtest(server, tmp_path / "out.json", *flags)
    counted = server.metric("cifarserve_requests_total", code="OK") - before
    assert [one["concurrency"] for one in result["levels"]] == [1, 8]
    assert sum(sum(one["histogram"].values()) for one in result["levels"]) == counted
    for one in result["levels"]:
        assert not one["errors"]
        assert one["images_per_second"] == pytest.approx(3 * one["requests_per_second"], rel=1e-3)
        assert one["latency_seconds"]["p50"] <= one["latency_seconds"]["p99"] <= one["latency_seconds"]["p99.99"]
        assert one["server"]["images_in_a_batch"] >= 3
        assert one["server"]["cores"] > 0
    page = (tmp_path / "out.html").read_text()
    assert "knee" in page
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    "flags",
    [("--protocol", "infer", "--model", "colours"), ("--stream",), ("--encoded",),
     ("--protocol", "infer", "--model", "colours", "--stream")],
    ids=["infer", "stream", "encoded", "infer-stream"],
)  # fmt: skip
def test_every_way_of_asking_is_answered(server: ServerProcess, tmp_path: Path, flags: tuple[str, ...]) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(colour_model.distinct(3)):
        Image.fromarray(image).save(pictures / f"{number}.png")
    (one,) = loadtest(server, tmp_path / "out.json", "--pictures", pictures, "--concurrency", 4, *flags)["levels"]
    assert not one["errors"]
    assert one["requests_per_second"] > 0


def test_an_open_loop_sends_at_its_rate(server: ServerProcess, tmp_path: Path) -> None:
    flags = ("--rate", 50, "--arrivals", "constant", "--seconds", 4)
    (one,) = loadtest(server, tmp_path / "out.json", *flags)["levels"]
    assert one["requests_per_second"] == pytest.approx(50, rel=0.1)


def test_a_server_that_stalls_is_charged_for_all_that_waited(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log") as server:

        def stall() -> None:
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(1)
            server.process.send_signal(signal.SIGCONT)

        with once_it_answers(server, stall):
            (one,) = loadtest(server, tmp_path / "out.json", "--rate", 40, "--seconds", 4)["levels"]
    # 40 of some 160 requests were to be sent in that second; a closed loop would have met the stall once.
    assert one["latency_seconds"]["p95"] > 0.5


def test_errors_are_counted_by_code(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models, work=10)
    flags = ("--max-queue-images", 4, "--max-images-per-request", 4)
    with serving(models, tmp_path / "log", *flags) as server:
        (one,) = loadtest(server, tmp_path / "out.json", "--concurrency", 32)["levels"]
    assert one["errors"]["RESOURCE_EXHAUSTED"] > 0
    assert one["requests_per_second"] > 0


def test_a_server_that_dies_in_the_middle_leaves_what_was_seen(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log") as server, once_it_answers(server, server.process.kill):
        flags = ("--concurrency", 4, "--seconds", 4)
        (one,) = loadtest(server, tmp_path / "out.json", *flags)["levels"]
    assert sum(one["histogram"].values()) > 0
    assert one["errors"]["UNAVAILABLE"] > 0
    assert one["error_details"]["UNAVAILABLE"] in html.unescape((tmp_path / "out.html").read_text())


def test_a_server_that_is_gone_before_the_next_load_leaves_what_was_measured(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log") as server, once_it_answers(server, server.process.kill):
        flags = ("--concurrency", "4,4,4,4,4,4", "--metrics", server.metrics_url)
        result = loadtest(server, tmp_path / "out.json", *flags, status=1)
    assert 1 <= len(result["levels"]) < 6
    assert sum(result["levels"][0]["histogram"].values()) > 0
    assert result["levels"][-1]["broken"]
    assert html.escape(result["levels"][-1]["broken"]) in (tmp_path / "out.html").read_text()


def test_an_interrupted_test_keeps_what_was_measured(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    out = tmp_path / "out.json"
    with serving(models, tmp_path / "log") as server:
        flags = (
            "--target",
            server.target,
            "--out",
            out,
            *QUICK,
            "--seconds",
            60,
            "--concurrency",
            "2,4",
            "--stable",
            0,
        )
        process = subprocess.Popen(command("loadtest", *flags), env=ENVIRONMENT, stderr=subprocess.PIPE)
        with process, once_it_answers(server, lambda: process.send_signal(signal.SIGINT)):
            _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in said
    (one,) = json.loads(out.read_text())["levels"]
    assert one["broken"] == "interrupted"
    assert sum(one["histogram"].values()) > 0


def test_a_stream_can_be_asked_at_a_rate_and_is_opened_again(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log", "--max-connection-age-seconds", 1, "--drain-seconds", 1) as server:
        flags = ("--rate", 50, "--stream", "--seconds", 4, "--stable", 0)
        (one,) = loadtest(server, tmp_path / "out.json", *flags)["levels"]
        streams = server.metric("grpc_server_started_total", grpc_method="ClassifyStream")
    assert 1 < streams < sum(one["histogram"].values()), "one after the other, not one a request"
    assert one["requests_per_second"] == pytest.approx(50, rel=0.3)


class Echo(BaseHTTPRequestHandler):
    """Answers in chunks or with a length, in turns, and refuses bodies that are not a JSON list."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        good = body.startswith(b"[") and self.headers["Content-Type"] == "application/json"
        self.send_response(200 if good else 422)
        Echo.asked += good
        if Echo.asked % 2:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        else:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def test_any_http_address_can_be_asked(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text("[1]")
    (tmp_path / "bad.json").write_text("{}")
    web = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=web.serve_forever).start()
    try:
        flags = ("--target", f"http://127.0.0.1:{web.server_port}/a?b=c", "--protocol", "http", "--concurrency", 3)
        bodies = ("--body", tmp_path / "good.json", tmp_path / "bad.json")
        flags = (*flags, *bodies, "--server-pid", os.getpid(), "--out", tmp_path / "out.json", *QUICK)
        done = cli("loadtest", *flags)
    finally:
        web.shutdown()
        web.server_close()
    assert done.returncode == 0, done.stderr
    (one,) = json.loads((tmp_path / "out.json").read_text())["levels"]
    assert sum(one["histogram"].values()) == Echo.asked > 0
    assert one["errors"].keys() == {"HTTP_422"}
    assert one["error_details"] == {"HTTP_422": "{}"}
    assert one["server"]["cores"] > 0


def test_an_objective_is_found_and_a_missed_one_is_status_1(server: ServerProcess, tmp_path: Path) -> None:
    flags = ("--slo", "p99<2s", "--min-rps", 1e9, "--seconds", 1)
    result = loadtest(server, tmp_path / "out.json", *flags, status=1)
    assert result["slo"]["requests_per_second"] > 0
    assert "p99 < 2000 ms holds up to" in result["slo"]["sentence"]
    missed = loadtest(server, tmp_path / "out.json", "--slo", "p50<1us", "--seconds", 1, status=1)
    assert missed["slo"]["requests_per_second"] == 0


def test_two_runs_are_compared(server: ServerProcess, tmp_path: Path) -> None:
    loadtest(server, tmp_path / "old.json", "--concurrency", 4, "--seconds", 3)
    flags = ("--concurrency", "4,5", "--seconds", 3, "--compare", tmp_path / "old.json")
    done = cli("loadtest", "--target", server.target, "--out", tmp_path / "new.json", *QUICK, *flags)
    assert done.returncode == 0, done.stderr
    assert "4 in flight: " in done.stdout
    assert "times the older (" in done.stdout.replace("\n", " ")
    assert "Compared" in (tmp_path / "new.html").read_text()


def test_tls_and_tokens(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    certificate, key = certificates.make("server").write(tmp_path, "server")
    (tmp_path / "tokens").write_text("a-token-of-the-tests")
    flags = ("--tls-certificate", certificate, "--tls-key", key, "--token-file", tmp_path / "tokens")
    with serving(models, tmp_path / "log", *flags) as server:
        secured = ("--tls-ca", certificate, "--token-file", tmp_path / "tokens", "--concurrency", 2)
        (one,) = loadtest(server, tmp_path / "out.json", *secured)["levels"]
        assert not one["errors"]
        done = cli("loadtest", "--target", server.target, "--tls-ca", certificate, "--concurrency", 2, *QUICK)
        assert done.returncode == 1
        assert "UNAUTHENTICATED" in done.stderr


def test_several_targets_take_turns(server: ServerProcess, models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    with serving(models, tmp_path / "log") as second:
        before = server.metric("cifarserve_requests_total", code="OK")
        both = ("--target", f"{server.target},{second.target}", "--concurrency", 4)
        result = loadtest(server, tmp_path / "out.json", *both)
        shares = (
            server.metric("cifarserve_requests_total", code="OK") - before,
            second.metric("cifarserve_requests_total", code="OK"),
        )
    assert sum(shares) == sum(result["levels"][0]["histogram"].values())
    assert min(shares) > 0


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--target", "localhost:1"), 1, "localhost:1: UNAVAILABLE"),
        (("--model", "other"), 1, "NOT_FOUND"),
        (("--protocol", "infer"), 1, "--model: the Open Inference Protocol needs"),
        (("--encoded",), 1, "--encoded needs --pictures"),
        (("--pictures", "."), 1, "no pictures"),
        (("--slo", "fast"), 2, "--slo: 'fast' is not of the form"),
        (("--compare", "missing.json"), 2, "missing.json"),
        (("--concurrency", "0"), 2, "must be above 0"),
        (("--images", "0"), 2, "must be 1 or above"),
        (("--seconds", "0"), 2, "must be above 0"),
        (("--target", ","), 2, "--target: names no address"),
        (("--compare", "/etc/hostname"), 2, "is no result of a load test"),
        (("--out", "missing/out.json"), 2, "--out: missing is no folder"),
        (("--images", "300", "--concurrency", "1"), 1, "from 1 to 256 images, are 300"),
        (("--body", "x.json"), 2, "--body is for --protocol http"),
        (("--protocol", "http"), 1, "--protocol http sends --body files"),
        (("--protocol", "http", "--target", "localhost:1", "--body", __file__), 1, "not of the form http://"),
        (("--protocol", "http", "--target", "http://localhost:1/", "--body", __file__), 1, "cannot connect to"),
        (("--server-pid", "4194305", "--concurrency", "1"), 1, "--server-pid 4194305"),
        (("--metrics", "http://localhost:1/metrics", "--concurrency", "1"), 1, "http://localhost:1/metrics"),
    ],
)  # fmt: skip
def test_what_cannot_be_tested_is_said(
    server: ServerProcess, tmp_path: Path, flags: tuple[str, ...], status: int, message: str
) -> None:
    arguments = command("loadtest", "--target", server.target, *QUICK, *flags)
    done = subprocess.run(arguments, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
