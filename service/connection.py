"""How a caller connects to a server: limits, retries, encryption, and who it says it is."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc


@dataclass(frozen=True)
class Options:
    """How to connect and call. `timeout`, in seconds, bounds a call with all its retries.

    `round_robin` spreads the calls over all addresses that the target stands for, as a headless service's name does.
    `tls` encrypts: the server's certificate must be of an authority in `root_certificates` (PEM; empty: those that
    gRPC knows), and `certificate` and `key` (PEM) are the caller's own, where the server asks for one. `token` opens
    a server that wants one; it is sent as it is, so do not send it without `tls` over a network that others can read.
    """

    timeout: float = 10.0
    attempts: int = 4
    max_message_bytes: int = 64 << 20
    round_robin: bool = False
    tls: bool = False
    root_certificates: bytes = b""
    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)
    token: str = field(default="", repr=False)

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For the channel; None: it is not encrypted."""
        if not self.tls:
            return None
        return grpc.ssl_channel_credentials(self.root_certificates or None, self.key or None, self.certificate or None)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel_options(self) -> list[tuple[str, int | str]]:
        limit, policy = self.max_message_bytes, "round_robin" if self.round_robin else "pick_first"
        return [
            ("grpc.max_send_message_length", limit),
            ("grpc.max_receive_message_length", limit),
            ("grpc.lb_policy_name", policy),
        ]
