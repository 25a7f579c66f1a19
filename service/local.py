"""How a process reaches servers on its own machine: by the loopback, and never through a proxy."""

from __future__ import annotations

import ipaddress
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_local(host: str) -> bool:
    """Whether the name or address `host` leads to this machine alone; so does a wildcard when it is called."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        name = host.rstrip(".").lower()
        return name == "localhost" or name.endswith(".localhost")
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def address(host: str, port: int) -> str:
    """HOST:PORT under which this machine reaches its own server that listens on `host`, an IPv6 address in brackets."""
    try:
        if (listening := ipaddress.ip_address(host)).is_unspecified:
            host = "127.0.0.1" if listening.version == 4 else "::1"
    except ValueError:  # a name
        pass
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def get(url: str, timeout: float, headers: Mapping[str, str] | None = None) -> bytes:
    """What is at an http(s) URL; from this machine directly, from others as the environment's proxies say.

    Raises OSError, ValueError and HTTPException.
    """
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 - whoever calls this knows the URL
    host = urlsplit(url).hostname or ""
    opened = _DIRECT.open if is_local(host) else urllib.request.urlopen
    with opened(request, timeout=timeout) as reply:
        content: bytes = reply.read()
    return content


def channel_options(target: str) -> list[tuple[str, Any]]:
    """For a gRPC channel to `target`: no proxy when it is on this machine."""
    name = target.rpartition("/")[2].removeprefix("ipv4:").removeprefix("ipv6:")
    host, colon, _port = name.rpartition(":")
    bare = host if colon and (host.startswith("[") or ":" not in host) else name
    return [("grpc.enable_http_proxy", 0)] if is_local(bare) else []
