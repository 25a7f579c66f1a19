"""What is known of every version of every model, in the folder or in service: its state, and the reason for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from service import folders

READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"


@dataclass(frozen=True)
class VersionState:
    name: str
    version: int  # 0: of the model as a whole, none of whose versions is known
    state: str
    reason: str = ""


class Catalogue:
    """To be changed from one thread; `states` may be asked from any."""

    def __init__(self, repository: Path) -> None:
        """`repository` is the folder of the models."""
        self._repository = repository
        self._states: dict[tuple[str, int], VersionState] = {}
        self._config_errors: dict[str, str] = {}
        self._listing = folders.Listing()
        self._overruled: dict[str, tuple[str, ...]] = {}

    @property
    def present(self) -> set[str]:
        """The models that were in the folder at the last look."""
        return set(self._listing.versions)

    @property
    def problems(self) -> dict[str, str]:
        """Entries of the folder that could not be read at the last look, by name, and why."""
        return self._listing.problems

    @property
    def known(self) -> set[str]:
        """The models that are, or may be, in the folder, or were in service when they left it."""
        return {name for name, _ in self._states} | self.problems.keys()

    def versions(self, name: str) -> list[int]:
        """Those of a model that were in the folder at the last look, ascending."""
        return self._listing.versions.get(name, [])

    def look(self) -> Iterable[tuple[str, int]]:
        """Note the versions in the folder that nothing is known of yet, and forget those that are gone.

        Returns (model, version) of all that is known now. Raises OSError when the folder itself cannot be read; what
        was known stays.
        """
        self._listing = folders.listing(self._repository)
        there = {(name, version) for name, versions in self._listing.versions.items() for version in versions}
        for name, version in there - self._states.keys():
            self.note(name, version, UNAVAILABLE, "not loaded")
        for key in self._states.keys() - there:
            if self._states[key].state == UNAVAILABLE:
                del self._states[key]
        for name in self._config_errors.keys() - self.present:
            del self._config_errors[name]
        return self._states.keys()

    def note(self, name: str, version: int, state: str, reason: str = "") -> None:
        self._states[name, version] = VersionState(name, version, state, reason)

    def annotate(self, name: str, version: int, reason: str) -> None:
        """Give another reason for the state that a version is in."""
        if (state := self._states.get((name, version))) is not None and state.reason != reason:
            self._states[name, version] = replace(state, reason=reason)

    def not_ready(self, name: str, version: int) -> VersionState | None:
        """The highest version that a request for `name` and `version` (0: any) may mean, and that is not ready."""
        numbers = [
            number
            for (model, number), state in self._states.items()
            if model == name and version in (0, number) and state.state != READY
        ]
        if numbers:
            return self._states[name, max(numbers)]
        return VersionState(name, 0, UNAVAILABLE, self.problems[name]) if name in self.problems else None

    def config_failed(self, name: str, message: str) -> bool:
        """The model's config.toml is wrong, as `message` says; returns whether that is new."""
        new = self._config_errors.get(name) != message
        self._config_errors[name] = message
        return new

    def config_read(self, name: str, overruled: Iterable[str]) -> list[str]:
        """The model's config.toml is right; returns which of the lines of `overruled` are new since the last read."""
        self._config_errors.pop(name, None)
        before, self._overruled[name] = self._overruled.get(name, ()), tuple(overruled)
        return [line for line in self._overruled[name] if line not in before]

    def index(self) -> list[VersionState]:
        """Every version, by name and number; the reason that a wrong config.toml gives goes before others.

        An entry that could not be read and of which no version is known has one row, without a version.
        """
        versions = [
            state if state.state == READY or state.name not in self._config_errors
            else replace(state, reason=self._config_errors[state.name])
            for _, state in sorted(self._states.items())
        ]  # fmt: skip
        names = {one.name for one in versions}
        unread = [VersionState(name, 0, UNAVAILABLE, why) for name, why in self.problems.items() if name not in names]
        return sorted([*versions, *unread], key=lambda one: (one.name, one.version))

    def states(self) -> list[tuple[str, int, str]]:
        """(model, version, state) of every version that was there at the last look. From any thread."""
        return [(one.name, one.version, one.state) for one in list(self._states.values())]
