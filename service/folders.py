"""The model repository on disk: `<model>/<version>/`. What is not named like a model or a version is passed over."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION_NAME = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Listing:
    """What was in a repository when it was looked at."""

    versions: dict[str, list[int]] = field(default_factory=dict)  # of every model that has one, ascending
    problems: dict[str, str] = field(default_factory=dict)  # entries that could not be read, by name, and why


def listing(repository: Path) -> Listing:
    """Look into the repository. An entry that cannot be read is a problem of that entry alone.

    Raises OSError when the repository itself cannot be read; one that does not exist is empty.
    """
    found = Listing()
    for folder in repository.iterdir() if repository.is_dir() else ():
        if not _MODEL_NAME.fullmatch(folder.name):
            continue
        try:
            versions = _versions(folder)
        except FileNotFoundError as error:
            if folder.is_symlink():  # otherwise it has just been deleted
                found.problems[folder.name] = f"{folder}: cannot be read: {error.strerror}: a link to nothing"
            continue
        except OSError as error:
            found.problems[folder.name] = f"{folder}: cannot be read: {error.strerror}"
            continue
        if versions:
            found.versions[folder.name] = versions
    return found


def model_names(repository: Path) -> set[str]:
    """The models that have a version. Raises OSError when the repository cannot be read."""
    return set(listing(repository).versions)


def model_versions(folder: Path) -> list[int]:
    """The versions of one model, ascending; none when there is no such folder. Raises OSError when it is unreadable."""
    try:
        return _versions(folder)
    except FileNotFoundError:
        return []


def _versions(folder: Path) -> list[int]:
    """Entries with a number for a name, without leading zeros, ascending."""
    try:
        return sorted(int(entry.name) for entry in folder.iterdir() if _VERSION_NAME.fullmatch(entry.name))
    except NotADirectoryError:
        return []


def collect_garbage(folder: Path, keep: int, used: set[int]) -> dict[int, str]:
    """Delete the versions in `folder` beyond the highest `keep` that are not used; 0 keeps all.

    Returns the versions that were to go: with an empty text if they have gone, otherwise with the reason.
    """
    outcomes: dict[int, str] = {}
    try:
        old = set(model_versions(folder)[:-keep] if keep else ()) - used
    except OSError:  # the next look reports it
        return outcomes
    for version in sorted(old):
        try:
            delete_version(folder, version)
            outcomes[version] = ""
        except OSError as error:
            outcomes[version] = str(error)
    return outcomes


def delete_version(folder: Path, version: int) -> None:
    """Delete one version of the model in `folder`: out of sight by one rename, then from disk. Raises OSError."""
    trash = folder / f".trash-{version}"
    (folder / str(version)).rename(trash)
    shutil.rmtree(trash)


def fingerprint(path: Path) -> object:
    """Names, sizes, times and inodes of a file, or of what is in a folder: differs when anything there has changed.

    It includes the time of the last change of the inode, which no program can set back.
    """
    try:
        entries = sorted(path.iterdir()) if path.is_dir() else [path]
        return tuple(
            (entry.name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
            for entry in entries
            for found in (entry.stat(),)
        )
    except OSError as error:
        return str(error)
