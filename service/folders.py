"""The model repository on disk: `<model>/<version>/`. What is not named like a model or a version is passed over."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION_NAME = re.compile(r"[1-9][0-9]{0,17}")


def model_names(repository: Path) -> set[str]:
    """The models that have a version."""
    folders = repository.iterdir() if repository.is_dir() else ()
    return {folder.name for folder in folders if _MODEL_NAME.fullmatch(folder.name) and model_versions(folder)}


def collect_garbage(folder: Path, keep: int, used: set[int]) -> None:
    """Delete the versions in `folder` beyond the highest `keep` that are not used; 0 keeps all."""
    for version in set(model_versions(folder)[:-keep] if keep else ()) - used:
        try:
            delete_version(folder, version)
        except OSError as error:
            log.warning("cannot delete %s version %d: %s", folder.name, version, error)
            continue
        log.info("deleted %s version %d: keep_versions is %d", folder.name, version, keep)


def delete_version(folder: Path, version: int) -> None:
    """Delete one version of the model in `folder`: out of sight by one rename, then from disk. Raises OSError."""
    trash = folder / f".trash-{version}"
    (folder / str(version)).rename(trash)
    shutil.rmtree(trash)


def model_versions(folder: Path) -> list[int]:
    """The versions of one model, ascending: folders with a number for a name, without leading zeros."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if _VERSION_NAME.fullmatch(entry.name))


def looks(folder: Path) -> object:
    """Changes when a version folder is replaced or mended."""
    try:
        return sorted((entry.name, entry.stat().st_mtime_ns, entry.stat().st_size) for entry in folder.iterdir())
    except OSError as error:
        return str(error)
