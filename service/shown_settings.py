"""`cifarserve serve --print-settings`: every value that a server would start with, and where it is from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service import config, folders, model_config
from service.config import ConfigError, Settings
from service.model_config import CONFIG_FILE

_WIDEST = 40  # characters of a value before the column of sources moves to the right


def lines(settings: Settings) -> list[str]:
    """Of the server's settings, then of what each model's config.toml changes, or is wrong with it."""
    rows = [(name, _text(getattr(settings, name)), settings.sources.get(name, "default")) for name in config.FIELDS]
    for name in sorted(folders.model_names(settings.model_repository)):
        try:
            rows += _model_rows(settings.model_repository / name, settings)
        except ConfigError as error:
            rows.append((f"{name}.{CONFIG_FILE}", "wrong", str(error)))
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    values = min(values, _WIDEST)
    return [f"{name:<{names}}  {value:<{values}}  {source}" for name, value, source in rows]


def _model_rows(folder: Path, settings: Settings) -> list[tuple[str, str, str]]:
    document = model_config.read_document(folder)
    found = model_config.parse(document, settings, str(folder / CONFIG_FILE))
    rows = []
    for key, said in document.items():
        value = getattr(found.compute, key, said)
        rows.append((f"{folder.name}.{key}", _text(value), found.overruled.get(key, str(folder / CONFIG_FILE))))
    return rows


def _text(value: Any) -> str:
    """As a variable has it; tables as JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value) or '""'
