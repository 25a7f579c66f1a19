"""The flags of commands that call a server: how to encrypt, and who asks. Imports gRPC only when it is needed."""

from __future__ import annotations

import argparse
import errno
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.connection import Options


def add(command: argparse.ArgumentParser, *, token: bool = True) -> None:
    """Define the flags; without `token` for calls that need none."""
    command.add_argument("--tls", action="store_true", help="encrypt; the server's authority is one that gRPC knows")
    command.add_argument("--tls-ca", type=Path, help="encrypt; PEM file with the server's authority")
    command.add_argument("--tls-certificate", type=Path, help="encrypt; PEM file with the caller's own certificate")
    command.add_argument("--tls-key", type=Path, help="PEM file with its private key")
    if token:
        command.add_argument("--token-file", type=Path, help="file whose first line is the token for the server")


def read(options: argparse.Namespace) -> Options:
    """How the flags say to connect. Raises OSError, which names the file or flag, for one that cannot be used."""
    from service.connection import Options

    if (options.tls_certificate is None) != (options.tls_key is None):
        raise OSError(errno.EINVAL, "one needs the other", "--tls-certificate, --tls-key")
    token_file: Path | None = getattr(options, "token_file", None)
    return Options(
        tls=options.tls or options.tls_ca is not None or options.tls_certificate is not None,
        root_certificates=_content(options.tls_ca),
        certificate=_content(options.tls_certificate),
        key=_content(options.tls_key),
        token=_token(token_file) if token_file else "",
    )


def _content(path: Path | None) -> bytes:
    return path.read_bytes() if path else b""


def _token(path: Path) -> str:
    words = path.read_bytes().split()
    if not words:
        raise OSError(errno.EINVAL, "has no token", path)
    if not all(0x21 <= byte <= 0x7E for byte in words[0]):
        raise OSError(errno.EINVAL, "its token has other characters than those of ASCII", path)
    return words[0].decode()
