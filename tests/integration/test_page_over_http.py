"""What the page asks for over HTTP: the way of every request, and no way round who may call."""

from __future__ import annotations

import base64
import io
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from service import images, security
from service.client import Client, Options
from service.config import Settings
from tests import certificates, colour_model
from tests.integration.page_server import REPORT, classify, png, publish, request, striped
from tests.integration.server_process import ServerProcess, serving

TOKEN = "a-token-of-the-tests"
SHAPE = (colour_model.SIZE, colour_model.SIZE, 3)
CALL = {"grpc_service": "cifarserve.v1.Classifier", "grpc_method": "Classify"}


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("page")
    publish(folder / "models")
    publish(folder / "models", version=2, scale=0.5)
    (folder / "models" / "colours" / "config.toml").write_text('versions = "all"\n')
    limits = ("--max-message-bytes", 300_000, "--max-image-pixels", 200_000)
    with serving(folder / "models", folder / "log", *limits) as server:
        yield server


@pytest.fixture
def models(models: Path) -> Path:
    publish(models)
    return models


def pixels_of(url: str) -> np.ndarray:
    """Of a data URL."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def test_a_picture_goes_the_way_of_every_request_and_comes_back_as_the_model_saw_it(page_server: ServerProcess) -> None:
    before = page_server.metric("grpc_server_handled_total", **CALL, grpc_code="OK")
    counted = page_server.metric("cifarserve_requests_total", model="colours", version="2", code="OK")
    reply = classify(page_server, png(striped()))
    assert reply.status == 200
    seen = images.decode(png(striped()), SHAPE)
    assert np.array_equal(pixels_of(reply.json["seen"]), seen)
    (expected,) = colour_model.expected(seen[None], scale=0.5)
    found = {one["label"]: one["probability"] for one in reply.json["classes"]}
    assert found == pytest.approx(dict(zip(colour_model.LABELS, expected, strict=True)), abs=1e-4)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert (reply.json["model"], reply.json["version"]) == ("colours", 2)
    assert page_server.metric("grpc_server_handled_total", **CALL, grpc_code="OK") == before + 1
    assert page_server.metric("cifarserve_requests_total", model="colours", version="2", code="OK") == counted + 1
    assert classify(page_server, png(striped()), "?model=colours&version=1").json["version"] == 1


@pytest.mark.parametrize(
    ("query", "body", "status", "message"),
    [
        ("", b"no picture", 400, "this file is not a picture in a known format"),
        ("", b"", 400, "this file is empty"),
        ("", png(striped())[:60], 400, "this file cannot be decoded"),
        ("", png(np.zeros((500, 500, 3), np.uint8)), 400, "500 x 500 pixels, the limit is 200000"),
        ("?model=birds", png(striped()), 404, "birds"),
        ("?version=9", png(striped()), 404, "version"),
        ("?version=latest", png(striped()), 400, "'latest' is not a number"),
        ("", bytes(300_001), 413, "300001 bytes, the limit is 300000 (max_message_bytes)"),
        ("", bytes(299_999), 413, "larger than max"),  # with what is around it in the message
        ("", bytes(20_000_000), 413, "max_message_bytes"),
    ],
)
def test_what_is_wrong_is_said(page_server: ServerProcess, query: str, body: bytes, status: int, message: str) -> None:
    reply = classify(page_server, body, query)
    assert (reply.status, reply.headers["Content-Type"]) == (status, "application/json")
    assert message in reply.json["error"]
    assert classify(page_server, png(striped())).status == 200


def test_other_methods_paths_and_bodies_without_a_length_are_refused(page_server: ServerProcess) -> None:
    assert request(page_server, "/classify").status == 405
    assert request(page_server, "/", "POST", b"").status == 405
    assert classify(page_server, b"", Transfer_Encoding="chunked").status == 411
    for path in (
        "/models/colours/3/report.html",
        "/models/colours/0/report.html",
        "/models/birds/1/report.html",
        "/models/colours/1/manifest.json",
        "/models/../colours/1/report.html",
        "/models/%2e%2e%2fcolours/1/report.html",
        "/models/colours/1/../../../log",
        "/models/colours/1/report.html/",
        "/page.html",
    ):
        assert request(page_server, path).status == 404, path


def test_the_page_lets_in_nothing_but_itself_and_the_report_can_do_nothing(page_server: ServerProcess) -> None:
    page = request(page_server, "/")
    policy = page.headers["Content-Security-Policy"]
    assert page.status == 200
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    report = request(page_server, "/models/colours/1/report.html")
    assert report.body.decode() == REPORT
    assert report.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    assert page.headers["X-Content-Type-Options"] == report.headers["X-Content-Type-Options"] == "nosniff"


def test_what_is_served_is_listed_with_samples(page_server: ServerProcess) -> None:
    listed = request(page_server, "/models").json["models"]
    assert [(one["model"], one["version"], one["accuracy"], one["report"]) for one in listed] == [
        ("colours", 2, 0.9, True), ("colours", 1, 0.9, True),
    ]  # fmt: skip
    assert listed[0]["labels"] == list(colour_model.LABELS)
    samples = request(page_server, "/models/colours/2/samples").json["samples"]
    assert samples
    golden = colour_model.distinct(8)
    assert all(any(np.array_equal(pixels_of(each), one) for one in golden) for each in samples)


def test_a_report_that_has_become_a_link_or_is_gone_is_not_followed(models: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with serving(models, tmp_path / "log") as server:
        report = models / "colours" / "1" / "report.html"
        report.unlink()
        assert request(server, "/models/colours/1/report.html").status == 404
        report.symlink_to(tmp_path / "secret")
        reply = request(server, "/models/colours/1/report.html")
        assert reply.status == 404
        assert b"secret" not in reply.body


def test_other_sites_get_nothing_through_somebodys_browser(page_server: ServerProcess) -> None:
    picture, port = png(striped()), urlsplit(page_server.metrics_url).port
    own = f"127.0.0.1:{port}"
    assert classify(page_server, picture, Origin="https://elsewhere.example").status == 403
    assert classify(page_server, picture, Origin="null").status == 403
    assert classify(page_server, picture, Origin=f"http://{own}").status == 200
    for path in ("/models", "/models/colours/1/report.html", "/models/colours/1/samples"):
        # A name that its owner has pointed here, after the browser loaded the owner's page from it.
        assert request(page_server, path, Host=f"rebound.example:{port}").status == 403
        for host in (own, f"localhost:{port}", f"[::1]:{port}", "cifarserve"):
            assert request(page_server, path, Host=host).status == 200, host
    assert classify(page_server, picture, Host="rebound.example", Origin="http://rebound.example").status == 403


@pytest.mark.parametrize("workers", [1, 2])
def test_a_token_is_needed_where_gRPC_needs_one(models: Path, tmp_path: Path, workers: int) -> None:  # noqa: N802
    (tmp_path / "tokens").write_text(TOKEN)
    with serving(models, tmp_path / "log", "--token-file", tmp_path / "tokens", "--workers", workers) as server:
        for path in ("/models", "/models/colours/1/report.html", "/models/colours/1/samples"):
            assert request(server, path).status == 401
            assert request(server, path, Authorization=f"Bearer {TOKEN}").status == 200
        for given in ("Bearer another-token-of-the-tests", f"Basic {TOKEN}", "Bearer", "Bearer \xe4"):
            assert classify(server, png(striped()), Authorization=given).status == 401, given
        refused = classify(server, bytes(40_000_000))  # not received first
        assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        answer = classify(server, png(striped()), Authorization=f"Bearer {TOKEN}", Host="page.example")
        assert answer.json["classes"][0]["label"] == "red"
        assert TOKEN not in server.log.read_text()
        assert b'data-needs-token="True"' in request(server, "/").body


def test_several_workers_answer_as_one(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "--workers", 2, "--threads", 1) as server:
        for _ in range(8):
            assert classify(server, png(striped())).json["classes"][0]["label"] == "red"
        assert server.metric("cifarserve_requests_total", code="OK") == 8
        assert request(server, "/models/colours/1/report.html").status == 200


def test_without_the_page_only_the_metrics_are_there(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "--no-page") as server:
        assert not any(line.startswith("page") for line in server.announced)
        for path in ("/", "/models", "/models/colours/1/report.html"):
            assert request(server, path).status == 404
        assert classify(server, png(striped())).status == 404
        assert server.metric("cifarserve_model_info") == 1


def test_with_tls_it_asks_through_tls_and_with_certificates_of_callers_not_at_all(models: Path, tmp_path: Path) -> None:
    authority = certificates.make("authority")
    certificate, key = certificates.make("server", authority).write(tmp_path, "server")
    tls = ("--tls-certificate", certificate, "--tls-key", key)
    with serving(models, tmp_path / "log", *tls) as server:
        assert classify(server, png(striped())).json["classes"][0]["label"] == "red"
        certificates.make("server", authority, days=60).write(tmp_path, "server")
        assert classify(server, png(striped())).status == 200
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    with serving(models, tmp_path / "log", *tls, "--tls-client-ca", tmp_path / "ca.pem") as server:
        for reply in (classify(server, png(striped())), request(server, "/models")):
            assert (reply.status, "tls_client_ca" in reply.json["error"]) == (403, True)
        assert b'data-no-calls="callers must show a certificate' in request(server, "/").body
        assert server.metric("cifarserve_model_info") == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"token_file": "t"}, ""),
        ({"tls_certificate": "c", "tls_key": "k"}, ""),
        ({"host": "0.0.0.0", "insecure": True}, ""),
        ({"host": "0.0.0.0", "insecure": True, "token_file": "t"}, ""),
        ({"host": "0.0.0.0", "tls_certificate": "c", "tls_key": "k", "metrics_host": "127.0.0.1"}, ""),
        ({"metrics_host": "0.0.0.0"}, "gRPC is for this machine alone"),
        ({"host": "0.0.0.0", "tls_certificate": "c", "tls_key": "k", "token_file": "t"}, "in the clear"),
        ({"host": "0.0.0.0", "tls_certificate": "c", "tls_key": "k", "insecure": True}, "in the clear"),
        ({"tls_certificate": "c", "tls_key": "k", "tls_client_ca": "a"}, "tls_client_ca"),
    ],
)
def test_it_is_no_way_round_who_may_call(changes: dict[str, object], reason: str) -> None:
    found = security.why_no_calls_over_http(Settings(**changes))
    assert reason in found
    assert bool(reason) == bool(found)


def test_slow_senders_hold_up_the_page_alone_and_not_for_long(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log") as server, ExitStack() as stack:
        address = "127.0.0.1", int(urlsplit(server.metrics_url).port or 0)
        head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n12345"
        stack.enter_context(socket.create_connection(address))  # as browsers do, and say nothing on it
        slow = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(5)]
        for each in slow:
            each.sendall(head)
        (refused,), _, _ = select.select(slow, (), (), 60)  # so the other four are at work
        assert refused.recv(100).startswith(b"HTTP/1.0 503 ")
        slow.remove(refused)
        busy = classify(server, png(striped()))
        assert (busy.status, busy.headers["Retry-After"]) == (503, "1")
        assert busy.json["error"] == "4 pictures are at work: try again"
        with Client(server.target, Options(timeout=30, attempts=1)) as client:
            assert client.classify([colour_model.plain((255, 0, 0))])[0].best.label == "red"
        for each in slow:
            assert each.recv(100).startswith(b"HTTP/1.0 408 ")
        assert classify(server, png(striped())).status == 200
        assert "Traceback" not in server.log.read_text()
