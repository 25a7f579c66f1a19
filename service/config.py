"""Every setting of the server, in one typed place, with the source of each value.

A flag goes before the environment, that before a model's config.toml (`service.model_config`), that before
cifarserve.toml, that before the default.

The field `max_batch_size` is `max_batch_size = 64` in cifarserve.toml, `CIFARSERVE_MAX_BATCH_SIZE=64` in the
environment and `--max-batch-size 64` on the command line. A wrong value is reported with the place it came from.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.documents import DocumentError, is_finite, parse_toml
from service.images import DEFAULT_MAX_PIXELS

ENVIRONMENT_PREFIX = "CIFARSERVE_"
DEFAULT_FILE = Path("cifarserve.toml")
# A table in a file of settings, where `cifarserve tune` writes what it measured: for people, and read by nobody.
TUNED = "tuned"


class ConfigError(ValueError):
    """A setting is wrong. The message names the setting and where it was given."""


def _setting(default: Any, description: str, **limits: Any) -> Any:
    """A field with its one-line description and limits: `least`, `most`, `choices`."""
    return field(default=default, metadata={"help": description, **limits})


@dataclass(frozen=True)
class Settings:
    """All settings, checked. Sizes are in bytes, times in seconds, queues in images."""

    model_repository: Path = _setting(Path("models"), "folder that holds <model>/<version>/")
    host: str = _setting("127.0.0.1", "address to listen on, for gRPC and metrics")
    port: int = _setting(8001, "gRPC port; 0 takes a free one", least=0, most=65535)
    metrics_host: str = _setting("", "address to listen on for metrics; empty: as host")
    metrics_port: int = _setting(8002, "port of /metrics; 0 takes a free one", least=0, most=65535)
    page: bool = _setting(True, "a page for people at / of the port of the metrics; --no-page: only the metrics")
    tls_certificate: str = _setting("", "PEM file with the server's certificate and its chain; empty: no TLS")
    tls_key: str = _setting("", "PEM file with the certificate's private key")
    tls_client_ca: str = _setting(
        "", "PEM file with the authorities whose certificates callers must show; empty: they need none"
    )
    token_file: str = _setting("", "file with the tokens that open inference, one a line; empty: no token is needed")
    admin_token_file: str = _setting(
        "", "the same for loading and unloading models; empty: nobody may, if there is a token_file"
    )
    insecure: bool = _setting(
        False, "allow other addresses than the loopback without both TLS and a proof of who calls"
    )
    model_public_key: str = _setting(
        "", "PEM file with the Ed25519 key that every version must be signed with; empty: none need be"
    )
    max_model_bytes: int = _setting(1 << 30, "size of all files of one version", least=1)
    model_control: str = _setting(
        "none", "none: load all at start; poll: watch the folder; explicit: only what load_model and the load RPC name",
        choices=("none", "poll", "explicit"),
    )  # fmt: skip
    poll_seconds: float = _setting(5.0, "with model_control poll: time between two looks", least=0.05)
    load_model: tuple[str, ...] = _setting((), "with model_control explicit: models to load at start, a,b,c")
    provider: str = _setting(
        "auto", "what computes; auto takes the first of cuda, openvino, cpu that is really there",
        choices=("auto", "cpu", "openvino", "cuda", "tensorrt"),
    )  # fmt: skip
    workers: int = _setting(
        1, "processes that share the port; 0 or auto: one for every two cores", least=0, most=256, auto=0
    )
    precision: str = _setting(
        "auto", "arithmetic; auto takes the fastest in which the version has passed its gates",
        choices=("auto", "fp32", "bf16", "fp16", "int8"),
    )  # fmt: skip
    threads: int = _setting(0, "threads that compute; 0: the cores this process may use", least=0, most=1024)
    decode_threads: int = _setting(
        0, "threads that decode pictures; 0: the cores this process may use", least=0, most=1024
    )
    max_batch_size: int = _setting(64, "most images computed at once", least=1, most=4096)
    max_queue_delay: float = _setting(
        0.0, "seconds for which a batch that is not full waits for more images; 0: an idle engine starts at once",
        least=0.0, most=10.0,
    )  # fmt: skip
    target_latency: float = _setting(
        0.0, "seconds: batches no larger than keep within it, as timed at load; 0: up to max_batch_size", least=0.0
    )
    max_queue_images: int = _setting(1024, "images that may wait; beyond, requests are shed", least=1)
    max_queue_bytes: int = _setting(
        256 << 20, "messages of the requests that are being answered; beyond, requests are shed", least=1
    )
    max_images_per_request: int = _setting(256, "images in one request", least=1)
    max_message_bytes: int = _setting(32 << 20, "size of one message", least=1024, most=(1 << 31) - 1)
    max_image_pixels: int = _setting(
        DEFAULT_MAX_PIXELS, "width x height of one picture, checked before decoding", least=1
    )
    decode_seconds: float = _setting(
        10.0, "processor time that decoding the pictures of one request may take; it is refused then", least=0.01
    )
    stream_window: int = _setting(
        256, "images of one stream that are worked on at once; it is read no further", least=1
    )
    max_connections: int = _setting(4096, "connections at once; more are closed as they come", least=1)
    max_streams: int = _setting(1024, "calls at once on one connection; more wait at the caller", least=1)
    max_metadata_bytes: int = _setting(16 << 10, "size of the metadata of one call", least=1024, most=1 << 20)
    ping_seconds: float = _setting(
        10.0, "least time between two keepalive pings of a caller; who goes on pinging faster is cut off", least=0.0
    )
    max_connection_age_seconds: float = _setting(
        0.0, "connections are closed after this time, so that clients look for new replicas; 0: never", least=0.0
    )
    lame_duck_seconds: float = _setting(
        0.0, "after SIGTERM, time from health NOT_SERVING until new calls are refused", least=0.0
    )
    drain_seconds: float = _setting(30.0, "after SIGTERM, longest wait for accepted calls to finish", least=0.0)
    log_level: str = _setting("info", "least severe lines to log", choices=("debug", "info", "warning", "error"))
    log_format: str = _setting(
        "auto", "json: one object a line; auto: text on a terminal, else json", choices=("auto", "text", "json")
    )
    access_log_share: float = _setting(
        0.0, "share of the requests that get a line in the log; all do with log_level debug", least=0.0, most=1.0
    )

    # Where each value is from: a flag, a variable, or the path of the file. What is not in it is a default.
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_images_per_request > self.max_queue_images:
            raise ConfigError("max_images_per_request: must not be above max_queue_images")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ConfigError("tls_certificate and tls_key: give both or neither")
        if self.tls_client_ca and not self.tls_certificate:
            raise ConfigError("tls_client_ca: needs tls_certificate and tls_key")

    def overruling(self, name: str) -> str:
        """The flag or variable that set `name`, and so goes before a model's config.toml; empty: neither did."""
        source = self.sources.get(name, "")
        return source if source in (flag(name), variable(name)) else ""


FIELDS = {field.name: field for field in dataclasses.fields(Settings) if "help" in field.metadata}
TYPES: dict[str, Any] = typing.get_type_hints(Settings)
TUPLE = tuple[str, ...]
# What Kubernetes sets for a Service named cifarserve, or cifarserve-something: CIFARSERVE_SERVICE_HOST,
# CIFARSERVE_SERVICE_PORT_GRPC, CIFARSERVE_PORT_8001_TCP_ADDR; and CIFARSERVE_PORT=tcp://10.0.0.1:8001.
_SERVICE_LINK = re.compile(
    rf"{ENVIRONMENT_PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
# Names of the prefix that are read by others: the project's tests.
_NO_SETTINGS = {"CIFARSERVE_TEST_DATA"}
_SWITCH = {"true": True, "1": True, "false": False, "0": False}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting, and `--config` for the file. Absent flags leave nothing in the namespace."""
    parser.add_argument("--config", type=Path, help=f"settings file (default: {DEFAULT_FILE}, when it is there)")
    for name, setting in FIELDS.items():
        # A switch may go without its value.
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if TYPES[name] is bool else {}
        parser.add_argument(
            flag(name),
            dest=name,
            default=argparse.SUPPRESS,
            **switch,
            metavar=_metavar(name),
            help=f"{setting.metadata['help']} (default: {setting.default})",
        )
        if setting.default is True:
            no = "--no-" + flag(name)[2:]
            parser.add_argument(
                no, dest=name, default=argparse.SUPPRESS, action="store_const", const="false", help=argparse.SUPPRESS
            )


def load(flags: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from all sources. `flags` maps field names to text, as argparse gives it, and `config` to the file.

    Raises ConfigError naming the source and the key.
    """
    environment = os.environ if environment is None else environment
    _refuse_unknown(environment)
    values, path = _from_file(flags.get("config"))
    sources = dict.fromkeys(values, str(path))
    for name in FIELDS:
        if (key := variable(name)) in environment and not _is_injected(key, environment[key]):
            values[name], sources[name] = _parse(name, environment[key], key), key
    for name in FIELDS:
        if name in flags:
            values[name], sources[name] = _parse(name, flags[name], flag(name)), flag(name)
    return Settings(**values, sources=sources)


def from_json(text: str) -> Settings:
    """The settings that dataclasses.asdict gave, through JSON. Raises ConfigError."""
    document = json.loads(text)
    sources = document.pop("sources", {})
    return Settings(**{name: check_setting(name, value, name) for name, value in document.items()}, sources=sources)


def injected(environment: Mapping[str, str]) -> list[str]:
    """Variables of our prefix that Kubernetes sets in every pod for a Service named cifarserve; they are ignored."""
    ours = (name for name in environment if name.startswith(ENVIRONMENT_PREFIX))
    return sorted(name for name in ours if _is_injected(name, environment[name]))


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper()


def _is_injected(name: str, value: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_ADDRESS.match(value)))


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    for key in sorted(environment):
        name = key.removeprefix(ENVIRONMENT_PREFIX)
        if name == key or key in _NO_SETTINGS or _is_injected(key, environment[key]):
            continue
        if key not in map(variable, FIELDS):
            near = difflib.get_close_matches(name.lower(), FIELDS, 1)
            hint = f"did you mean {variable(near[0])}?" if near else "unset it, or see `cifarserve serve --help`"
            raise ConfigError(f"{key}: there is no such setting; {hint}")


def _metavar(name: str) -> str:
    if choices := FIELDS[name].metadata.get("choices"):
        return "{" + ",".join(choices) + "}"
    return "LIST" if TYPES[name] == TUPLE else TYPES[name].__name__


def _from_file(given: Path | None) -> tuple[dict[str, Any], Path]:
    """The values in the file of settings, and its path."""
    path = given or DEFAULT_FILE
    if given is None and not path.exists():
        return {}, path
    try:
        document = parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, DocumentError) as error:
        raise ConfigError(f"{path}: {error}") from None
    document.pop(TUNED, None)
    for name in document:
        if name not in FIELDS:
            raise ConfigError(f"{path}: {name}: there is no such setting")
    return {name: check_setting(name, value, f"{path}: {name}") for name, value in document.items()}, path


def _parse(name: str, text: str, source: str) -> Any:
    """Text from the environment or the command line to the field's type."""
    kind = TYPES[name]
    if text == "auto" and "auto" in FIELDS[name].metadata:
        return FIELDS[name].metadata["auto"]
    try:
        if kind == TUPLE:
            value: Any = tuple(part for part in text.split(",") if part)
        else:
            value = _SWITCH[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise ConfigError(f"{source}: {text!r} is not {_article(kind)}") from None
    return check_setting(name, value, source)


def check_setting(name: str, value: Any, source: str) -> Any:
    """The value of the field `name` in its type and within its limits. Raises ConfigError naming `source`."""
    kind = TYPES[name]
    if value == "auto" and "auto" in FIELDS[name].metadata:
        return FIELDS[name].metadata["auto"]
    if kind == TUPLE and isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(value)
    if kind is Path and isinstance(value, str):
        value = Path(value)
    if kind is float and type(value) in (int, float):
        if not is_finite(value):
            raise ConfigError(f"{source}: must be a finite number")
        value = float(value)
    if type(value) is not kind and not (kind is Path and isinstance(value, Path)):
        raise ConfigError(f"{source}: must be {_article(kind)}, not {value!r}")
    limits = FIELDS[name].metadata
    if "choices" in limits and value not in limits["choices"]:
        raise ConfigError(f"{source}: {value!r} is not one of {', '.join(limits['choices'])}")
    if "least" in limits and not value >= limits["least"]:  # not >=, so that NaN fails too
        raise ConfigError(f"{source}: must be at least {limits['least']}, is {value}")
    if "most" in limits and value > limits["most"]:
        raise ConfigError(f"{source}: must be at most {limits['most']}, is {value}")
    return value


def _article(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    return "a list of names" if kind == TUPLE else names[kind]
