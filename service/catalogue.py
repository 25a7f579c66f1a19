"""What is known of every version of every model, in the folder or in service: its state, and the reason for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from service import folders

READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"


@dataclass(frozen=True)
class VersionState:
    name: str
    version: int
    state: str
    reason: str = ""


class Catalogue:
    """To be changed from one thread; `states` may be asked from any."""

    def __init__(self, repository: Path) -> None:
        """`repository` is the folder of the models."""
        self._repository = repository
        self._states: dict[tuple[str, int], VersionState] = {}
        self._config_errors: dict[str, str] = {}

    def present(self) -> set[str]:
        """The models that are in the folder now."""
        return folders.model_names(self._repository)

    def look(self) -> Iterable[tuple[str, int]]:
        """Note the versions in the folder that nothing is known of yet, and forget those that are gone.

        Returns (model, version) of all that is known now.
        """
        root = self._repository
        there = {(name, version) for name in self.present() for version in folders.model_versions(root / name)}
        for name, version in there - self._states.keys():
            self.note(name, version, UNAVAILABLE, "not loaded")
        for key in self._states.keys() - there:
            if self._states[key].state == UNAVAILABLE:
                del self._states[key]
        return self._states.keys()

    def note(self, name: str, version: int, state: str, reason: str = "") -> None:
        self._states[name, version] = VersionState(name, version, state, reason)

    def state(self, name: str, version: int) -> VersionState | None:
        return self._states.get((name, version))

    def not_ready(self, name: str, version: int) -> VersionState | None:
        """A version that a request for `name` (empty: any) and `version` (0: any) may mean, and that is not ready."""
        known = [
            state
            for state in self._states.values()
            if state.state != READY and version in (0, state.version) and name in ("", state.name)
        ]
        return known[-1] if known else None

    def config_failed(self, name: str, message: str) -> bool:
        """The model's config.toml is wrong, as `message` says; returns whether that is new."""
        new = self._config_errors.get(name) != message
        self._config_errors[name] = message
        return new

    def config_read(self, name: str) -> None:
        """The model's config.toml is right."""
        self._config_errors.pop(name, None)

    def wrong_configs(self) -> set[str]:
        """The models whose config.toml is wrong."""
        return set(self._config_errors)

    def index(self) -> list[VersionState]:
        """Every version, by name and number; the reason that a wrong config.toml gives goes before others."""
        return [
            state if state.state == READY or state.name not in self._config_errors
            else VersionState(state.name, state.version, state.state, self._config_errors[state.name])
            for _, state in sorted(self._states.items())
        ]  # fmt: skip

    def states(self) -> list[tuple[str, int, str]]:
        """(model, version, state) of every version that was there at the last look. From any thread."""
        return [(one.name, one.version, one.state) for one in list(self._states.values())]
