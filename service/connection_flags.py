"""The flags of commands that call a server: how to encrypt, and who asks. Imports gRPC only when it is needed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.connection import Options


def add(command: argparse.ArgumentParser, *, token: bool = True) -> None:
    """Define the flags; without `token` for calls that need none."""
    command.add_argument("--tls", action="store_true", help="encrypt; the server's authority is one that gRPC knows")
    command.add_argument("--tls-ca", type=Path, help="encrypt; PEM file with the server's authority")
    command.add_argument("--tls-certificate", type=Path, help="PEM file with the caller's own certificate")
    command.add_argument("--tls-key", type=Path, help="PEM file with its private key")
    if token:
        command.add_argument("--token-file", type=Path, help="file whose first line is the token for the server")


def read(options: argparse.Namespace) -> Options:
    """How the flags say to connect. Raises OSError for a file that cannot be read."""
    from service.connection import Options

    def content(path: Path | None) -> bytes:
        return path.read_bytes() if path else b""

    words = content(getattr(options, "token_file", None)).decode().split()
    return Options(
        tls=options.tls or options.tls_ca is not None,
        root_certificates=content(options.tls_ca),
        certificate=content(options.tls_certificate),
        key=content(options.tls_key),
        token=words[0] if words else "",
    )
