"""The HTTP port beside gRPC: /metrics, the page, /live and /ready for probes that speak no gRPC (or no TLS)."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import prometheus_client
from prometheus_client import CollectorRegistry

from service.page import Page

log = logging.getLogger(__name__)

_PATIENCE = 10.0  # seconds: a caller that sends nothing, or reads nothing, for so long is let go
_Start = Callable[..., Any]
_App = Callable[[dict[str, Any], _Start], Iterable[bytes]]


class HttpServer:
    """Listens and answers on threads of its own until `close`."""

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, ready: Callable[[], bool], live: Callable[[], bool],
        page: Page | None = None,
    ) -> None:  # fmt: skip
        """`ready` and `live` are called from other threads. Raises OSError when the port is taken."""
        kind = _Sixth if ":" in host else _Fourth
        application = _application(_scraped(registry), {"/ready": ready, "/live": live}, page)
        self._server = make_server(host, port, application, kind, _Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Fourth(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    address_family = socket.AF_INET

    def server_bind(self) -> None:
        # The original looks up this machine's name, which may take seconds where no one knows it.
        # Else no server could start again on this port while a scrape of the one before is in TIME_WAIT, for a minute.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, _request: object, client_address: object) -> None:
        error = sys.exception()
        # Connections that break, or that a browser opens in advance and never uses.
        level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
        log.log(level, "connection from %s: %r", client_address, error, exc_info=level == logging.ERROR)


class _Sixth(_Fourth):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE

    def log_message(self, *_arguments: object) -> None:
        """Nothing: a scrape is no event."""


def _scraped(registry: CollectorRegistry) -> _App:
    """Gives the metrics. All replies, which may be megabytes, are made by one thread: glibc keeps what a thread has
    freed, and with a new thread for each scrape it did so many times over (docs/reliability.md, "Soak").
    """
    metrics: Any = prometheus_client.make_wsgi_app(registry)
    scraper = ThreadPoolExecutor(1, "scrape")

    def scrape(environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        reply: Iterable[bytes] = scraper.submit(metrics, environ, start).result()
        return reply

    return scrape


def _application(metrics: _App, probes: Mapping[str, Callable[[], bool]], page: Page | None) -> _App:
    there_are = f"there are {'/, ' if page else ''}/metrics, /live and /ready"

    def answer(environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        path, method = environ.get("PATH_INFO", ""), environ.get("REQUEST_METHOD")
        if page is not None and page.handles(path):
            return page(environ, start)
        if path not in ("/metrics", *probes):
            return _plain(start, "404 Not Found", there_are)
        if method not in ("GET", "HEAD"):
            return _plain(start, "405 Method Not Allowed", "GET only")
        if path == "/metrics":
            return metrics(environ, start)
        if not probes[path]():
            return _plain(start, "503 Service Unavailable", f"not {path[1:]}")
        return _plain(start, "200 OK", path[1:])

    return answer


def _plain(start: _Start, status: str, text: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
    return [f"{text}\n".encode()]
