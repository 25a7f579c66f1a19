"""Addresses as text: `host:port`, with brackets around an IPv6 address, as callers and URLs need them."""

from __future__ import annotations

import ipaddress


def joined(host: str, port: int) -> str:
    """`host:port`; `[host]:port` for an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def to_call(host: str, port: int) -> str:
    """The same for callers on this machine of a server that listens on `host`: nobody can call "all addresses"."""
    return joined(_loopback(host), port)


def _loopback(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a name
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"
