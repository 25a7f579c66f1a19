"""No one in: TLS and its renewal, callers with certificates, tokens and their rotation, and limits."""

from __future__ import annotations

import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from service.client import Client, ClientError, Options
from tests import certificates, colour_model
from tests.integration.server_process import ServerProcess, cli, serving

RED = [colour_model.plain((255, 0, 0))]
TOKEN, OTHER, ADMIN = "a-token-of-the-tests", "another-token-of-the-tests", "a-token-of-the-administrator"
EXPIRY = "cifarserve_certificate_expiry_timestamp_seconds"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    colour_model.publish(models)
    return models


def code_of(options: Options, server: ServerProcess) -> grpc.StatusCode | None:
    """How a classification ends; None: well."""
    with Client(server.target, options) as client:
        try:
            client.classify(RED)
        except ClientError as error:
            return error.code
    return None


def peer_certificate(server: ServerProcess) -> bytes:
    host, port = server.target.rsplit(":", 1)
    return ssl.get_server_certificate((host, int(port))).encode()


def until(condition: object, patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_renewed_certificate_is_taken_up_and_a_broken_one_is_not(models: Path, tmp_path: Path, workers: int) -> None:
    authority = certificates.make("authority")
    first, second = (certificates.make(f"server {number}", authority, days) for number, days in ((1, 20), (2, 40)))
    certificate, key = first.write(tmp_path, "server")
    flags = ("--tls-certificate", certificate, "--tls-key", key, "--workers", workers)
    options = Options(tls=True, root_certificates=authority.pem, attempts=1)
    with serving(models, tmp_path / "log", *flags) as server:
        assert code_of(options, server) is None
        assert code_of(Options(attempts=1), server) is grpc.StatusCode.UNAVAILABLE, "without TLS"
        stranger = certificates.make("stranger")
        assert code_of(Options(tls=True, root_certificates=stranger.pem, attempts=1), server)
        assert server.metric(EXPIRY) == first.certificate.not_valid_after_utc.timestamp()
        assert peer_certificate(server).strip() == first.pem.strip()

        with Client(server.target, options) as kept:
            kept.classify(RED)
            second.write(tmp_path, "server")
            # So often in a row that each worker has been asked: one reads its files only when a connection comes.
            until(lambda: all(peer_certificate(server).strip() == second.pem.strip() for _ in range(20)))
            assert code_of(options, server) is None
            kept.classify(RED)
        if workers == 1:
            assert server.metric(EXPIRY) == second.certificate.not_valid_after_utc.timestamp()

        key.write_bytes(first.key_pem)  # which does not belong to the certificate
        assert code_of(options, server) is None
        assert peer_certificate(server).strip() == second.pem.strip()
        until(lambda: "what was read before stays" in (tmp_path / "log").read_text())

        ca = tmp_path / "ca.pem"
        ca.write_bytes(authority.pem)
        assert cli("health", "--target", server.target, "--tls-ca", ca).stdout.strip() == "SERVING"
        assert cli("health", "--target", server.target).returncode == 1


def test_callers_need_a_certificate_of_the_authority(models: Path, tmp_path: Path) -> None:
    authority, stranger = certificates.make("authority"), certificates.make("stranger")
    certificate, key = certificates.make("server", authority).write(tmp_path, "server")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    mine, theirs = certificates.make("caller", authority), certificates.make("caller", stranger)
    with serving(
        models, tmp_path / "log", "--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", ca
    ) as server:

        def caller(pair: certificates.Pair) -> Options:
            return Options(
                tls=True, root_certificates=authority.pem, certificate=pair.pem, key=pair.key_pem, attempts=1
            )

        assert code_of(caller(mine), server) is None
        assert code_of(caller(theirs), server) is grpc.StatusCode.UNAVAILABLE
        assert code_of(Options(tls=True, root_certificates=authority.pem, attempts=1), server)
        own, own_key = mine.write(tmp_path, "caller")
        secured = ("--tls-ca", ca, "--tls-certificate", own, "--tls-key", own_key)
        assert cli("health", "--target", server.target, *secured).returncode == 0


def test_old_versions_of_tls_are_refused(models: Path, tmp_path: Path) -> None:
    certificate, key = certificates.make("server").write(tmp_path, "server")
    with serving(models, tmp_path / "log", "--tls-certificate", certificate, "--tls-key", key) as server:
        host, port = server.target.rsplit(":", 1)
        for version, works in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_3, True)):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.minimum_version = context.maximum_version = version
            context.set_alpn_protocols(["h2"])
            context.set_ciphers("ALL:@SECLEVEL=0")
            with socket.create_connection((host, int(port)), timeout=10) as plain:
                try:
                    with context.wrap_socket(plain) as secure:
                        assert secure.version()
                        worked = True
                except (ssl.SSLError, ConnectionError):
                    worked = False
            assert worked == works, version


@pytest.fixture
def guarded(models: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    (tmp_path / "tokens").write_text(f"# who may classify\n{TOKEN}\n\n")
    (tmp_path / "admin").write_text(ADMIN)
    flags = ("--token-file", tmp_path / "tokens", "--admin-token-file", tmp_path / "admin")
    with serving(models, tmp_path / "log", *flags, "--model-control", "explicit", "--load-model", "colours") as server:
        yield server


def test_a_token_opens_inference_and_health_needs_none(guarded: ServerProcess) -> None:
    refused = grpc.StatusCode.UNAUTHENTICATED
    assert code_of(Options(attempts=1, token=TOKEN), guarded) is None
    assert code_of(Options(attempts=1, token=ADMIN), guarded) is None
    for wrong in ("", TOKEN[:-1], TOKEN + "x", "#"):
        assert code_of(Options(attempts=1, token=wrong), guarded) is refused, wrong
    assert guarded.metric("grpc_server_handled_total", grpc_method="Classify", grpc_code="UNAUTHENTICATED") == 4
    with grpc.insecure_channel(guarded.target) as channel:
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == 1
        stub = pb_grpc.ClassifierStub(channel)
        for call in (
            lambda: stub.ListModels(pb.ListModelsRequest()),
            lambda: list(stub.ClassifyStream(iter([pb.ClassifyRequest()]))),
            lambda: stub.Classify(pb.ClassifyRequest(), metadata=[("authorization", f"Basic {TOKEN}")]),
            lambda: stub.Classify(pb.ClassifyRequest(), metadata=[("authorization", "Bearer")]),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is refused
            assert TOKEN not in caught.value.details()
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/cifarserve.v1.Classifier/Invented")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    log = guarded.log.read_text()
    assert TOKEN not in log
    assert ADMIN not in log


def test_a_token_of_inference_opens_no_administration(guarded: ServerProcess) -> None:
    def headers(token: str) -> dict[str, str]:
        return {"authorization": f"Bearer {token}"}

    with triton.InferenceServerClient(guarded.target) as client:
        assert client.is_model_ready("colours", headers=headers(TOKEN))
        with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
            client.unload_model("colours", headers=headers(TOKEN))
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            client.unload_model("colours")
        assert client.is_model_ready("colours", headers=headers(TOKEN))
        client.unload_model("colours", headers=headers(ADMIN))
        assert not client.is_model_ready("colours", headers=headers(TOKEN))


def test_tokens_rotate_without_a_restart_and_a_broken_file_changes_nothing(
    guarded: ServerProcess, tmp_path: Path
) -> None:
    file, old, new = tmp_path / "tokens", Options(attempts=1, token=TOKEN), Options(attempts=1, token=OTHER)
    file.write_text(f"{TOKEN}\n{OTHER}\n")
    assert code_of(old, guarded) is code_of(new, guarded) is None
    file.write_text(OTHER)
    assert code_of(old, guarded) is grpc.StatusCode.UNAUTHENTICATED
    assert code_of(new, guarded) is None
    file.write_text("")
    assert code_of(new, guarded) is None
    file.unlink()
    assert code_of(new, guarded) is None
    file.write_text(TOKEN)
    assert code_of(old, guarded) is None
    assert code_of(new, guarded) is grpc.StatusCode.UNAUTHENTICATED


def test_the_command_line_sends_a_token(guarded: ServerProcess, tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(picture)
    asked = ("classify", "--target", guarded.target, picture)
    assert "UNAUTHENTICATED" in cli(*asked).stderr
    assert "missing: No such file" in cli(*asked, "--token-file", tmp_path / "missing").stderr
    (tmp_path / "mine").write_text(TOKEN + "\n")
    done = cli(*asked, "--token-file", tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    assert "red" in done.stdout
    listed = cli("models", "--target", guarded.target, "--token-file", tmp_path / "mine")
    assert "colours" in listed.stdout
    assert "missing: No such file" in cli("models", "--token-file", tmp_path / "missing").stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--host", "0.0.0.0"), "without TLS (tls_certificate, tls_key) and a proof of who calls"),
        (("--host", "::", "--token-file", "tokens"), "without TLS"),
        (("--tls-certificate", "server.pem"), "tls_certificate and tls_key: give both"),
        (("--tls-client-ca", "server.pem"), "tls_client_ca: needs"),
        (("--tls-certificate", "server.pem", "--tls-key", "missing.key"), "tls_certificate:"),
        (("--tls-certificate", "tokens", "--tls-key", "server.key"), "tls_certificate:"),
        (("--tls-certificate", "server.pem", "--tls-key", "other.key"), "tls_certificate:"),
        (("--token-file", "missing"), "token_file:"),
        (("--token-file", "empty"), "has no token"),
        (("--admin-token-file", "short"), "fewer than 16 characters"),
        (("--insecure", "perhaps"), "--insecure: 'perhaps' is not true or false"),
    ],
)
def test_an_unsafe_or_broken_set_up_is_refused_by_name(
    models: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    certificates.make("server").write(tmp_path, "server")
    certificates.make("other").write(tmp_path, "other")
    for name, text in (("tokens", TOKEN), ("empty", "# none yet\n"), ("short", "secret")):
        (tmp_path / name).write_text(text)
    done = cli("serve", "--model-repository", models, "--port", 0, "--metrics-port", 0, *flags, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr


def test_who_says_insecure_is_warned_and_served(models: Path, tmp_path: Path) -> None:
    flags = ("--host", "0.0.0.0", "--metrics-host", "127.0.0.1", "--insecure")
    with serving(models, tmp_path / "log", *flags) as server:
        assert server.metrics_url.startswith("http://127.0.0.1:")
        server.target = server.target.replace("0.0.0.0", "127.0.0.1")
        assert code_of(Options(), server) is None
        until(lambda: "can be reached from other machines" in server.log.read_text())


def test_probes_over_http(models: Path, tmp_path: Path) -> None:
    def status(path: str, method: str = "GET") -> int:
        request = urllib.request.Request(server.metrics_url.replace("/metrics", path), method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code

    with serving(models, tmp_path / "log", "--lame-duck-seconds", 3) as server:
        assert [status(path) for path in ("/live", "/ready", "/metrics", "/other")] == [200, 200, 200, 404]
        assert status("/metrics", "POST") == 405
        server.terminate()
        until(lambda: status("/ready") == 503, 2.5)
        assert status("/live") == 200


def test_too_much_metadata_and_too_many_connections_are_refused_and_the_server_goes_on(
    models: Path, tmp_path: Path
) -> None:
    with serving(models, tmp_path / "log", "--max-metadata-bytes", 4096, "--max-connections", 8) as server:
        with grpc.insecure_channel(server.target) as channel:
            stub = pb_grpc.ClassifierStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.ListModels(pb.ListModelsRequest(), metadata=[("x-much", "m" * 8192)])
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert stub.ListModels(pb.ListModelsRequest()).models
        host, port = server.target.rsplit(":", 1)
        with ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection((host, int(port)), timeout=10)) for _ in range(20)]
            assert sum(map(_is_closed, idle)) >= 12
        until(lambda: code_of(Options(attempts=1, timeout=5), server) is None)


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed it: one that it keeps begins with its HTTP/2 settings."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(("least_seconds", "cut_off"), [(60, True), (0, False)])
def test_a_caller_that_pings_faster_than_it_may_is_cut_off(
    models: Path, tmp_path: Path, least_seconds: int, cut_off: bool
) -> None:
    options = [
        ("grpc.keepalive_time_ms", 200), ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0), ("grpc.http2.ping_timeout_ms", 5000),
    ]  # fmt: skip
    with serving(models, tmp_path / "log", "--ping-seconds", least_seconds) as server:
        states: list[grpc.ChannelConnectivity] = []
        with grpc.insecure_channel(server.target, options=options) as channel:
            channel.subscribe(states.append)
            assert pb_grpc.ClassifierStub(channel).ListModels(pb.ListModelsRequest()).models
            until(lambda: grpc.ChannelConnectivity.READY in states)

            def left() -> bool:
                return states[-1] is not grpc.ChannelConnectivity.READY

            if cut_off:
                until(left)
            else:
                time.sleep(5)
                assert not left(), states
        assert code_of(Options(), server) is None
