"""`models/<name>/config.toml`: which versions of one model are served, and how. Optional; every key has a default.

versions = "latest"             # or "latest 2", "all", [1, 3]
traffic = { 1 = 95, 2 = 5 }     # canary: shares of the requests that name no version
sticky_header = "x-user"        # the same value of this header always goes to the same version
shadow = 3                      # mirror requests to this version, off the request path
shadow_share = 0.1
keep_versions = 5               # delete older folders that are not served; 0 keeps all
cache_bytes = 0                 # remember answers by their pixels, up to this size
instances = 1                   # engines that share the queue
drift_images = 4096             # size of the sliding window that is compared with the test split
provider = "cpu"                # these go before cifarserve.toml and the defaults; a flag or a variable before them
precision = "fp32"
threads = 2
max_batch_size = 32
max_queue_delay = 0.002         # seconds for which a batch that is not full waits
target_latency = 0.02           # seconds: no larger batches than keep within it
max_queue_images = 512
max_queue_bytes = 100000000     # of the messages of all requests that are being answered
buckets = [8, 16, 32]           # sizes that batches are padded up to; without, those that suit the provider
provider_options = { use_tf32 = 1 }  # the provider's own, by its names: see docs/operations.md
[tuned]                         # what `cifarserve tune` measured: for people
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service import config
from service.config import ConfigError, Settings
from service.documents import DocumentError, is_finite, parse_toml
from service.manifest import PRECISIONS, read_file
from service.precisions import FASTEST_FIRST

CONFIG_FILE = "config.toml"
ALL = "all"
_MOST_DIGITS = 19  # of a version
_LATEST = re.compile(r"latest(?: ([1-9][0-9]{0,3}))?")
_OVERRIDES = (
    "provider",
    "precision",
    "threads",
    "max_batch_size",
    "max_queue_delay",
    "target_latency",
    "max_queue_images",
    "max_queue_bytes",
)


@dataclass(frozen=True)
class VersionPolicy:
    """The highest `latest` versions, or, when that is 0, `specific` ones; both empty: all."""

    latest: int = 1
    specific: tuple[int, ...] = ()

    def candidates(self, present: Iterable[int]) -> list[int]:
        """The versions that may be served, best first."""
        versions = sorted(present, reverse=True)
        return [version for version in versions if version in self.specific] if self.specific else versions

    def enough(self, loaded: int) -> bool:
        """Whether `loaded` versions are all that this policy wants."""
        return 0 < self.latest <= loaded

    def __str__(self) -> str:
        return str(list(self.specific)) if self.specific else f"latest {self.latest}" if self.latest else ALL


@dataclass(frozen=True)
class Compute:
    """What an engine is made with; a change of any of it means loading again."""

    provider: str
    precision: str
    threads: int
    max_batch_size: int
    max_queue_delay: float  # seconds
    target_latency: float  # seconds; 0: none
    max_queue_images: int
    max_queue_bytes: int
    instances: int
    buckets: tuple[int, ...] = ()
    provider_options: Mapping[str, str] = field(default_factory=dict)
    model_public_key: str = ""
    max_model_bytes: int | None = None
    in_background: bool = False


@dataclass(frozen=True)
class ModelConfig:
    compute: Compute
    versions: VersionPolicy = VersionPolicy()
    traffic: Mapping[int, float] = field(default_factory=dict)
    sticky_header: str = ""
    shadow: int = 0  # a version; 0: none
    shadow_share: float = 1.0
    keep_versions: int = 0
    cache_bytes: int = 0
    drift_images: int = 4096
    # Keys of config.toml that do not hold, each with the flag or variable that goes before it, in words.
    overruled: Mapping[str, str] = field(default_factory=dict)

    def compute_of(self, version: int) -> Compute:
        """What the engines of `version` are made with: the shadow gets one thread, and that of the lowest priority."""
        if version != self.shadow:
            return self.compute
        return dataclasses.replace(self.compute, threads=1, instances=1, in_background=True)

    @property
    def extra_versions(self) -> tuple[int, ...]:
        """Versions that are wanted beside those of the policy."""
        return tuple(dict.fromkeys((*self.traffic, *((self.shadow,) if self.shadow else ()))))


def read_model_config(folder: Path, settings: Settings) -> ModelConfig:
    """The configuration of the model in `folder`; the server's settings where it says nothing.

    Raises ConfigError naming the file and the key.
    """
    return parse(read_document(folder), settings, str(folder / CONFIG_FILE))


def read_document(folder: Path) -> dict[str, Any]:
    """What config.toml in `folder` says, as it is; nothing without a file. Raises ConfigError."""
    path = folder / CONFIG_FILE
    try:
        document = parse_toml(read_file(path).decode())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, DocumentError) as error:
        raise ConfigError(f"{path}: {error}") from None
    document.pop(config.TUNED, None)
    return document


def parse(document: Mapping[str, Any], settings: Settings, source: str) -> ModelConfig:
    """As read_model_config, from a parsed document that came from `source`.

    A flag or a variable goes before the same key of the document: see `ModelConfig.overruled`.
    """
    values = {name: value for name, value in document.items() if name != config.TUNED}
    said = {
        name: config.check_setting(name, values.pop(name), f"{source}: {name}") for name in _OVERRIDES if name in values
    }
    buckets_said = _buckets(values.pop("buckets", []), f"{source}: buckets")
    options_said = _options(values.pop("provider_options", {}), f"{source}: provider_options")
    chosen, overruled = _in_force({**said, "buckets": buckets_said, "provider_options": options_said}, settings)
    buckets, options = chosen.pop("buckets"), chosen.pop("provider_options")
    compute = {name: getattr(settings, name) for name in _OVERRIDES} | chosen
    instances = _whole(values.pop("instances", 1), f"{source}: instances", least=1, most=64)
    if options and compute["provider"] == "auto":
        raise ConfigError(f"{source}: provider_options: need a provider to be named, not auto")
    for size in buckets:
        _whole(size, f"{source}: buckets", least=1, most=compute["max_batch_size"])
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if name not in _READERS:
            raise ConfigError(f"{source}: {name}: there is no such setting")
        fields[name] = _READERS[name](value, f"{source}: {name}")
    made = Compute(
        **compute,
        instances=instances,
        buckets=buckets,
        provider_options=options,
        # Not to be changed by who can only write into the model's folder.
        model_public_key=settings.model_public_key,
        max_model_bytes=settings.max_model_bytes,
    )
    result = ModelConfig(
        compute=made, overruled={name: f"{source}: {name}: {why}" for name, why in overruled.items()}, **fields
    )
    if result.shadow and result.shadow in result.traffic:
        raise ConfigError(f"{source}: shadow: version {result.shadow} cannot also be in traffic")
    return result


def _in_force(said: Mapping[str, Any], settings: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """What holds of `said`, keys of config.toml, and of each other key why it does not.

    A key goes with what it was said for: when a flag or a variable names another provider, its options, its buckets,
    and a precision that the other does not compute in are left out; so are buckets above another max_batch_size.
    """
    kept, overruled = dict(said), {}

    def leave_out(name: str, why: str) -> None:
        kept.pop(name, None)
        overruled[name] = f"{json.dumps(said[name])} {why}"

    by = {name: f"{by} {getattr(settings, name)}" for name in _OVERRIDES if (by := settings.overruling(name))}
    for name in (name for name in by if name in said):
        kept.pop(name)
        if said[name] != getattr(settings, name):
            leave_out(name, f"is overruled by {by[name]}")
    if "provider" in overruled:
        why = f"is left out: it is for provider {said['provider']}, and {by['provider']} goes before that"
        for name in ("provider_options", "buckets"):
            if said[name]:
                leave_out(name, why)
        if kept.get("precision", "auto") not in ("auto", *FASTEST_FIRST.get(settings.provider, PRECISIONS)):
            leave_out("precision", why)
    elif "max_batch_size" in by:
        fitting = tuple(size for size in said["buckets"] if size <= settings.max_batch_size)
        if fitting != said["buckets"]:
            leave_out("buckets", f"is left out above {by['max_batch_size']}")
            kept["buckets"] = fitting
    return {"buckets": (), "provider_options": {}, **kept}, overruled


def pinned(current: ModelConfig, versions: tuple[int, ...]) -> ModelConfig:
    """The same, but serving exactly these versions."""
    return dataclasses.replace(current, versions=VersionPolicy(0, versions), traffic={}, shadow=0)


def write_pin(folder: Path, version: int) -> None:
    """Make config.toml serve exactly `version`: its other keys stay, `traffic` and `shadow` go.

    Raises ConfigError when the file there is not readable.
    """
    path = folder / CONFIG_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        parse_toml("\n".join(lines))
    except DocumentError as error:
        raise ConfigError(f"{path}: {error}") from None
    kept = [line for line in lines if not re.match(r"\s*(versions|traffic|shadow)\s*=", line)]
    text = "\n".join([f"versions = [{version}]", *kept]) + "\n"
    try:
        document = parse_toml(text)
    except DocumentError:
        document = {}
    if document.get("versions") != [version] or {"traffic", "shadow"} & document.keys():
        raise ConfigError(f"{path}: write versions, traffic and shadow each on one line, so that they can be replaced")
    temporary = path.with_name(f".{CONFIG_FILE}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _policy(value: Any, source: str) -> VersionPolicy:
    if value == ALL:
        return VersionPolicy(0)
    if isinstance(value, str) and (match := _LATEST.fullmatch(value)):
        return VersionPolicy(int(match[1] or 1))
    if isinstance(value, list) and value:
        return VersionPolicy(0, tuple(_whole(version, source, least=1) for version in value))
    raise ConfigError(f'{source}: must be "latest", "latest N", "all" or a list of versions, is {value!r}')


def _traffic(value: Any, source: str) -> dict[int, float]:
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{source}: must be a table of versions and shares, is {value!r}")
    shares = {}
    for key, share in value.items():
        if len(key) > _MOST_DIGITS or not key.isascii() or not key.isdigit() or int(key) < 1:
            raise ConfigError(f"{source}: {key!r} is not a version")
        shares[int(key)] = _number(share, f"{source}.{key}", least=0)
    if not 0 < sum(shares.values()) < math.inf:
        raise ConfigError(f"{source}: the shares must add up to a finite number above 0")
    return shares


def _buckets(value: Any, source: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{source}: must be a list of batch sizes, is {value!r}")
    return tuple(_whole(size, source, least=1) for size in value)


def _options(value: Any, source: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: must be a table of the provider's options, is {value!r}")
    for name, option in value.items():
        if type(option) not in (str, int, bool):
            raise ConfigError(f"{source}.{name}: must be text, a whole number, true or false, is {option!r}")
    return {name: str(int(option)) if isinstance(option, bool) else str(option) for name, option in value.items()}


def _whole(value: Any, source: str, least: int = 0, most: int = 1 << 62) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"{source}: must be a whole number from {least} to {most}, is {value!r}")
    return value


def _number(value: Any, source: str, least: float, most: float = math.inf) -> float:
    if type(value) not in (int, float) or not least <= value <= most or not is_finite(value):
        raise ConfigError(f"{source}: must be a number from {least} to {most}, is {value!r}")
    return float(value)


def _text(value: Any, source: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{source}: must be text, is {value!r}")
    return value.lower()  # gRPC's metadata keys are lower case


_Reader = Callable[[Any, str], Any]
_READERS: dict[str, _Reader] = {
    "versions": _policy,
    "traffic": _traffic,
    "sticky_header": _text,
    "shadow": lambda value, source: _whole(value, source, least=1),
    "shadow_share": lambda value, source: _number(value, source, least=0, most=1),
    "keep_versions": _whole,
    "cache_bytes": _whole,
    "drift_images": lambda value, source: _whole(value, source, least=100, most=10_000_000),
}
