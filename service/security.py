"""Who may call: TLS with certificates that are read again when they change, and tokens likewise.

A token is sent as gRPC metadata, `authorization: Bearer TOKEN`. It is looked at before the call's message is read.
Asking for health needs none, so that probes need no secret.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from service.config import ConfigError, Settings

log = logging.getLogger(__name__)

LEAST_TOKEN = 16  # characters
_HEALTH = "/grpc.health.v1.Health/"
ADMINISTRATION = frozenset(
    f"/inference.GRPCInferenceService/{method}" for method in ("RepositoryModelLoad", "RepositoryModelUnload")
)
_State = tuple[tuple[int, int, int], ...]


class Files:
    """The content of files, read again when one of them changes; what cannot be used is logged, and not taken up."""

    def __init__(self, setting: str, paths: Sequence[str], read: Callable[[], Any]) -> None:
        """Raises ConfigError, naming `setting`, when they cannot be used now."""
        self._setting = setting
        self._paths = paths
        self._read = read
        try:
            self._state = self._look()
            self.content = read()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{setting}: {error}") from None

    def refresh(self) -> bool:
        """Whether there is something new in `content`. May be called from any thread."""
        try:
            state = self._look()
            if state == self._state:
                return False
            self._state = state
            self.content = self._read()
        except (OSError, ValueError) as error:
            if self._state:
                log.error("%s: what was read before stays: %s", self._setting, error)
            self._state = ()
            return False
        log.info("%s: read again", self._setting)
        return True

    def _look(self) -> _State:
        found = [Path(path).stat() for path in self._paths]
        return tuple((one.st_mtime_ns, one.st_ino, one.st_size) for one in found)


class Certificates:
    """The server's certificate and key, and the authorities of its callers, if they must have a certificate."""

    def __init__(self, certificate: str, key: str, client_ca: str = "") -> None:
        """Raises ConfigError."""
        self._certificate, self._key, self._client_ca = Path(certificate), Path(key), client_ca
        paths = [certificate, key, *([client_ca] if client_ca else [])]
        self._files = Files("tls_certificate", paths, self._read)

    def expires(self) -> float:
        """Unix time at which the certificate in use ends."""
        ends: float = self._files.content[1]
        return ends

    def credentials(self) -> grpc.ServerCredentials:
        """For a port: every new connection gets what is then in the files. TLS 1.2 or newer, as gRPC has it."""
        return grpc.dynamic_ssl_server_credentials(
            self._files.content[0], self._changed, require_client_authentication=bool(self._client_ca)
        )

    def _changed(self) -> Any:
        """What gRPC asks at each new connection: the new configuration, or None for no change."""
        return self._files.content[0] if self._files.refresh() else None

    def _read(self) -> tuple[Any, float]:
        try:
            # OpenSSL says whether the two belong together; gRPC would find out at the first connection.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
        except ssl.SSLError as error:
            raise ValueError(f"{self._certificate} and {self._key}: {error}") from None
        chain, key = self._certificate.read_bytes(), self._key.read_bytes()
        authorities = Path(self._client_ca).read_bytes() if self._client_ca else None
        if authorities is not None:
            x509.load_pem_x509_certificates(authorities)
        configuration = grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=authorities)
        return configuration, x509.load_pem_x509_certificate(chain).not_valid_after_utc.timestamp()


class Tokens:
    """The tokens in a file, one a line; lines that are empty or begin with # count for nothing."""

    def __init__(self, setting: str, path: str) -> None:
        """Raises ConfigError."""
        self._path = Path(path)
        self._files = Files(setting, [path], self._read)

    def accept(self, token: bytes) -> bool:
        """Whether the file has it now. Takes as long for a token that is nearly right as for any other."""
        self._files.refresh()
        matches = [hmac.compare_digest(token, known) for known in self._files.content]
        return any(matches)

    def _read(self) -> tuple[bytes, ...]:
        lines = (line.strip() for line in self._path.read_bytes().splitlines())
        tokens = tuple(line for line in lines if line and not line.startswith(b"#"))
        if not tokens:
            raise ValueError(f"{self._path} has no token")
        if any(len(token) < LEAST_TOKEN for token in tokens):
            raise ValueError(f"{self._path} has a token of fewer than {LEAST_TOKEN} characters")
        return tokens


class Guard(grpc.aio.ServerInterceptor):
    """Refuses calls without the token that they need: UNAUTHENTICATED, or PERMISSION_DENIED for the wrong one.

    The tokens of administration open everything. `refused` is told of each call of a method that there is.
    """

    def __init__(
        self, tokens: Tokens | None, admin: Tokens | None, refused: Callable[[str, Any, grpc.StatusCode], None]
    ) -> None:
        self._tokens, self._admin, self._refused = tokens, admin, refused

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        method: str = details.method
        if handler is None or method.startswith(_HEALTH):
            return handler
        problem = self._problem(method, details.invocation_metadata or ())
        if problem is None:
            return handler
        code, message = problem
        self._refused(method, handler, code)

        async def refuse(_requests: Any, context: Any) -> None:
            await context.abort(code, message)

        # Of this kind whatever the method's own: it reads no message before it answers.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _problem(self, method: str, metadata: Any) -> tuple[grpc.StatusCode, str] | None:
        administers = method in ADMINISTRATION
        if administers and self._admin is None:
            return grpc.StatusCode.PERMISSION_DENIED, "this server takes no administration: it has no admin_token_file"
        if not administers and self._tokens is None:
            return None
        given = next((value for key, value in metadata if key == "authorization"), None)
        if given is None:
            return grpc.StatusCode.UNAUTHENTICATED, "a token is needed, as metadata: authorization: Bearer TOKEN"
        scheme, _, token = str(given).partition(" ")
        secret = token.strip().encode()
        if scheme.lower() != "bearer" or not secret:
            return grpc.StatusCode.UNAUTHENTICATED, "the metadata authorization must be: Bearer TOKEN"
        if self._admin is not None and self._admin.accept(secret):
            return None
        if self._tokens is not None and self._tokens.accept(secret):
            denied = grpc.StatusCode.PERMISSION_DENIED, "the token does not open administration"
            return denied if administers else None
        return grpc.StatusCode.UNAUTHENTICATED, "the token is not known here"


def certificates(settings: Settings) -> Certificates | None:
    """Those of the settings, or None for no TLS. Raises ConfigError."""
    if not settings.tls_certificate:
        return None
    return Certificates(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def guard(settings: Settings, refused: Callable[[str, Any, grpc.StatusCode], None]) -> Guard | None:
    """The guard that the settings ask for, or None when everything is open. Raises ConfigError."""
    tokens = Tokens("token_file", settings.token_file) if settings.token_file else None
    admin = Tokens("admin_token_file", settings.admin_token_file) if settings.admin_token_file else None
    return Guard(tokens, admin, refused) if tokens or admin else None


def require_safe(settings: Settings) -> None:
    """Raise ConfigError when others could reach a server that does not know who they are, unless that is allowed."""
    if is_loopback(settings.host):
        return
    missing = [
        what
        for what, there in (
            ("TLS (tls_certificate, tls_key)", settings.tls_certificate),
            ("a proof of who calls (token_file or tls_client_ca)", settings.token_file or settings.tls_client_ca),
        )
        if not there
    ]
    if not missing:
        return
    problem = f"host: {settings.host} can be reached from other machines, without {' and '.join(missing)}"
    if not settings.insecure:
        raise ConfigError(f"{problem}; to serve so all the same, behind something that guards it, say --insecure")
    log.warning("%s: allowed by the setting insecure", problem)


def why_no_calls_over_http(settings: Settings) -> str:
    """Why the port of the metrics, which has no TLS, must not take calls to the models; empty: it may.

    It may where nobody can come through it who could not come through gRPC, and nothing is sent in the clear that
    gRPC would encrypt.
    """
    if settings.tls_client_ca:
        return "callers must show a certificate (tls_client_ca), which cannot be asked for over HTTP"
    host = settings.metrics_host or settings.host
    if is_loopback(host):
        return ""
    if settings.tls_certificate:
        return f"pictures and tokens would travel in the clear: this port, on {host}, has no TLS (see metrics_host)"
    if not settings.insecure:
        return f"gRPC is for this machine alone, and this port, on {host}, can be reached from others"
    return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
