"""Notices a version that computes on a slower provider, or in a slower precision, than one before it."""

from __future__ import annotations

from dataclasses import dataclass

from service import precisions, providers
from service.serving import Loaded

# Versions of one model that are remembered, the last loaded ones.
_REMEMBERED = 16


@dataclass(frozen=True)
class _Computed:
    title: str
    provider: str  # a key of providers.NAMES
    precision: str

    def __str__(self) -> str:
        return f"{self.title} computes on {providers.NAMES[self.provider]} in {self.precision}"


class Fallbacks:
    """What has computed each model in this process so far. To be used from one event loop."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[int, _Computed]] = {}
        self._best_of_auto: _Computed | None = None

    def notice(self, loaded: Loaded) -> str:
        """Note a version that has loaded. Returns what it fell back from, and why, or an empty text if it did not.

        A version falls back when a better provider or precision is here and does not work, or when one of these was
        better and its settings still allow that: itself when it was loaded before, else the version below it; and, in
        the provider alone, what `auto` found for any model.
        """
        manifest, engine = loaded.manifest, loaded.engines[0]
        title = f"{manifest.name} version {manifest.version}"
        now = _Computed(title, providers.key(engine.provider), engine.precision)
        better = self._better(now, loaded)
        self._remember(now, loaded)
        passed_over = loaded.opened.passed_over
        if better is None and not any(one.failed for one in passed_over):
            return ""
        reasons = dict.fromkeys(one.why for one in passed_over if better or one.failed)
        why = "; ".join(reasons) or f"it may be computed in {', '.join(manifest.compute_precisions)}"
        before = f", but {better}" if better else ""
        return f"{now}{before}: {why}"

    def _better(self, now: _Computed, loaded: Loaded) -> _Computed | None:
        """What was better than `now`, and what the settings still allow."""
        known = self._versions.get(loaded.manifest.name, {})
        before = max((version for version in known if version <= loaded.manifest.version), default=None)
        if before is not None and _is_slower(now, known[before], loaded):
            return known[before]
        best = self._best_of_auto
        return best if best is not None and _has_slower_provider(now, best, loaded) else None

    def _remember(self, now: _Computed, loaded: Loaded) -> None:
        known = self._versions.setdefault(loaded.manifest.name, {})
        known.pop(loaded.manifest.version, None)
        known[loaded.manifest.version] = now
        if len(known) > _REMEMBERED:
            del known[next(iter(known))]
        best = self._best_of_auto
        if loaded.compute.provider == providers.AUTO and (best is None or _rank(now) < _rank(best)):
            self._best_of_auto = now


def _is_slower(now: _Computed, before: _Computed, loaded: Loaded) -> bool:
    if now.provider != before.provider:
        return _has_slower_provider(now, before, loaded)
    may_choose = loaded.compute.precision == precisions.AUTO
    return may_choose and precisions.is_slower(now.precision, before.precision, now.provider)


def _has_slower_provider(now: _Computed, before: _Computed, loaded: Loaded) -> bool:
    return loaded.compute.provider == providers.AUTO and _rank(now) > _rank(before)


def _rank(computed: _Computed) -> int:
    """The lower, the faster."""
    return providers.FASTEST_FIRST.index(computed.provider)
