"""The files that tuning writes: what belongs to the model into its config.toml, what to the server into its own."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from service import config
from service.config import ConfigError
from service.model_config import Compute
from service.tune.candidates import Candidate

_CHOSEN = ("provider", "precision", "threads", "max_batch_size", "max_queue_delay", "target_latency", "buckets")
MODEL_KEYS = (*_CHOSEN, "provider_options")
SERVER_KEYS = ("workers",)
_TABLE = re.compile(r"\s*\[")
_TUNED_TABLE = re.compile(rf"\s*\[\s*{config.TUNED}\s*\]")


def model_keys(candidate: Candidate, now: Candidate, compute: Compute) -> dict[str, Any]:
    """The keys of config.toml that make a server compute as `candidate` says.

    Where that is what `compute`, the present settings, has come to (`now`), its own words stay: `auto` goes on to mean
    that a later version, which may not have passed in int8, is served in what it has passed in.
    """
    same_arm = (candidate.provider, candidate.precision) == (now.provider, now.precision)
    unchanged = {name for name in _CHOSEN if getattr(candidate, name) == getattr(now, name)}
    if not same_arm:
        unchanged -= {"provider", "precision"}
    if candidate.workers != now.workers:
        unchanged -= {"threads"}  # 0 is a share of the cores, of which there are more or fewer then
    keys = {name: getattr(compute if name in unchanged else candidate, name) for name in _CHOSEN}
    if not keys["buckets"]:
        del keys["buckets"]
    if candidate.provider == now.provider and compute.provider_options:
        keys["provider_options"] = dict(compute.provider_options)
    return keys


def server_keys(candidate: Candidate, now: Candidate) -> dict[str, Any]:
    """The keys of cifarserve.toml that differ from what the server does already."""
    return {} if candidate.workers == now.workers else {"workers": candidate.workers}


def rewritten(text: str, values: Mapping[str, Any], keys: Sequence[str], evidence: Sequence[str] = ()) -> str:
    """`text`, a file of settings, with all of `keys` replaced by `values`, and [tuned] by the lines of `evidence`.

    Raises ConfigError when the rest would not stay as it is.
    """
    before = tomllib.loads(text)
    replaced = re.compile(rf"\s*({'|'.join(keys)})\s*=")
    kept: list[str] = []
    in_tuned = in_table = False
    for line in text.splitlines():
        if _TABLE.match(line):
            in_tuned, in_table = bool(_TUNED_TABLE.match(line)), True
        if not in_tuned and (in_table or not replaced.match(line)):
            kept.append(line)
    lines = [f"{name} = {toml(value)}" for name, value in values.items()]
    lines += "\n".join(kept).strip("\n").splitlines()
    if evidence:
        lines += ["", f"[{config.TUNED}]", *evidence]
    made = "\n".join(lines) + "\n"
    rest = {name: value for name, value in before.items() if name not in (*keys, config.TUNED)}
    if _others(made, keys) != rest:
        raise ConfigError(f"write {', '.join(keys)} each on one line, so that they can be replaced")
    return made


def _others(text: str, keys: Sequence[str]) -> dict[str, Any] | None:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
    return {name: value for name, value in document.items() if name not in (*keys, config.TUNED)}


def write(path: Path, text: str) -> None:
    """In one rename: a server may be looking."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def toml(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml(str(name))} = {toml(one)}" for name, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    # JSON's escapes are TOML's, which also wants DEL escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
