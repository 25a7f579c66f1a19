"""Loads versions: whether a try is due, what failed, and whether what is in service is what the folder holds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from service import folders, serving, shadow
from service.catalogue import LOADING, UNAVAILABLE, Catalogue
from service.config import ConfigError, Settings
from service.manifest import ManifestError, read_manifest
from service.metrics import Metrics
from service.model_config import CONFIG_FILE, ModelConfig, parse, read_model_config
from service.notices import Notices
from service.retries import Key, Retries
from service.serving import Loaded, LoadError, ServedModel

log = logging.getLogger(__name__)

Override = Mapping[str, object]  # keys of config.toml, in its place


class Loader:
    """To be used from one event loop, by whoever holds the lock on changes of the repository."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        catalogue: Catalogue,
        in_service: Callable[[str], Mapping[int, ServedModel]],
    ) -> None:
        """`in_service` gives the versions of a model that are in service at the moment of the call."""
        self._settings = settings
        self._metrics = metrics
        self._catalogue = catalogue
        self._served = in_service
        self.retries = Retries()
        self.notices = Notices()

    def read_config(self, name: str, override: Override | None) -> ModelConfig:
        """The model's configuration, whose versions are all there. Raises ConfigError.

        A key that a flag or a variable overrules is an error in an override, for its caller.
        """
        folder = self._settings.model_repository / name
        config, source = read_model_config(folder, self._settings), str(folder / CONFIG_FILE)
        if override is not None:
            source = f"load parameters of {name}"
            config = parse(override, self._settings, source)
            for line in config.overruled.values():
                raise ConfigError(f"{line}; leave it out, or start the server without that")
        for version in (*config.extra_versions, *config.versions.specific):
            if version not in self._catalogue.versions(name):
                raise ConfigError(f"{source}: version {version} is not in the repository")
        return config

    def config_failed(self, name: str, message: str, trial: bool) -> LoadError:
        if trial or self._catalogue.config_failed(name, message):
            log.error("%s", message)
            self._metrics.load_failed(name, "config")
        return LoadError(message, "config")

    def unfit_shadow(self, name: str, config: ModelConfig, others: Mapping[int, Loaded | None]) -> str:
        """Why the shadow that `config` names cannot be compared with `others`; an empty text when it can.

        None among `others` is the version in service.
        """
        served = self._served(name)
        own = served[config.shadow].manifest if config.shadow in served else None
        problem = ""
        try:
            if config.shadow and own is None:
                own = read_manifest(self._settings.model_repository / name / str(config.shadow))
        except ManifestError:  # to load it fails too, and says why
            own = None
        for version, loaded in others.items():
            primary = loaded or served.get(version)
            if own is not None and primary is not None and not problem:
                problem = shadow.unfit(own, primary.manifest)
        if problem and self.notices.is_new(("shadow", name), problem):
            log.error("%s", problem)
            self._metrics.load_failed(name, "config")
        if not problem:
            self.notices.over(("shadow", name))
        return problem

    async def ensure(self, name: str, version: int, config: ModelConfig) -> Loaded | None:
        """A version as configured: what is to take its place in service, or None when it is there. Raises LoadError."""
        compute = config.compute_of(version)
        folder = self._settings.model_repository / name / str(version)
        served = self._served(name).get(version)
        if served is not None and (await self._is_altered(served) or served.compute == compute):
            if served.compute != compute:
                raise LoadError(immutable(served), "unchanged")
            return None
        key = name, version
        inputs = folders.fingerprint(folder), compute, folders.fingerprint(Path(compute.model_public_key))
        if reason := self.retries.waits(key, inputs):
            raise LoadError(reason, "unchanged")
        if version not in self._served(name):
            self._catalogue.note(name, version, LOADING)
        started = time.monotonic()
        try:
            loaded = await asyncio.to_thread(serving.load, folder, name, version, compute)
        except Exception as error:
            raise self._failed(key, inputs, error) from error
        self.retries.forget([key])
        log.info("loaded %s in %.2f s: %s", loaded.title, time.monotonic() - started, loaded.describe())
        return loaded

    def _failed(self, key: Key, inputs: object, error: Exception) -> LoadError:
        """Note that a version did not load: in the index, the log, the metric, and for the next try."""
        name, version = key
        expected = isinstance(error, LoadError)
        failure = error if isinstance(error, LoadError) else LoadError(
            f"{name} version {version} is not served: unexpected {type(error).__name__}: {error}", "internal"
        )  # fmt: skip
        if version not in self._served(name):
            self._catalogue.note(name, version, UNAVAILABLE, str(failure))
        self._metrics.load_failed(name, failure.reason)
        if self.retries.failed(key, inputs, str(failure)):
            log.error("%s", failure, exc_info=None if expected else error)
        return failure

    async def _is_altered(self, served: ServedModel) -> bool:
        """Whether the files of a version in service are other ones than those that it was loaded from."""
        name, version = served.manifest.name, served.manifest.version
        folder = self._settings.model_repository / name / str(version)
        found = folders.fingerprint(folder)
        if found not in (served.fingerprint, served.altered):
            same = await asyncio.to_thread(serving.holds, folder, served.manifest)
            served.fingerprint, served.altered = (found, None) if same else (served.fingerprint, found)
            if not same:
                log.warning("%s", immutable(served))
        elif found == served.fingerprint:
            served.altered = None
        self._catalogue.annotate(name, version, immutable(served) if served.altered is not None else "")
        return served.altered is not None


def immutable(served: ServedModel) -> str:
    return (
        f"{served.title}: its files are not those that it was loaded from. A version is immutable: publish the new"
        " files as a new version. What was loaded serves on"
    )
