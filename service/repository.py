"""The model repository: what is in the folder, what of it is served, and which version answers a request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping

from service import folders, memory, serving
from service.catalogue import LOADING, READY, UNAVAILABLE, UNLOADING, Catalogue, VersionState
from service.config import ConfigError, Settings
from service.errors import ModelNotFound, Unavailable
from service.manifest import MANIFEST_FILE
from service.metrics import Metrics
from service.model_config import CONFIG_FILE, ModelConfig, parse, read_model_config
from service.recovery import Recovery
from service.routing import Model
from service.serving import LoadError, ServedModel

log = logging.getLogger(__name__)


class Repository:
    """To be used from one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics, changed: Callable[[], None]) -> None:
        """`changed` is called whenever what is served may have."""
        self._changed = changed
        self._settings = settings
        self._metrics = metrics
        self._models: dict[str, Model] = {}
        self._catalogue = Catalogue(settings.model_repository)
        self._overrides: dict[str, Mapping[str, object]] = {}
        # What a version looked like when it failed to load: it is tried again only when that has changed.
        self._failed: dict[tuple[str, int], object] = {}
        self._started = False
        self._recovery = Recovery(self._withdraw, self._load_again, changed)
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """Load what should be served. Raises LoadError when a model cannot be, or there is none to load."""
        settings = self._settings
        self._look()
        if settings.model_control == "explicit":
            for name in settings.load_model:
                await self.load(name)
        else:
            failures = await self.refresh()
            if failures and not self._catalogue.present() <= self._models.keys():
                raise failures[0]
            if not self._models:
                folder = settings.model_repository
                raise LoadError(f"no model in {folder}: expected <model>/<version>/{MANIFEST_FILE}", "manifest")
        self._started = True
        self._changed()

    async def refresh(self) -> list[LoadError]:
        """Bring what is served in line with the folder. What fails is logged, returned, and leaves the old serving."""
        failures: list[LoadError] = []
        async with self._changing:
            self._look()
            explicit = self._settings.model_control == "explicit"
            for name in sorted(self._models if explicit else self._catalogue.present()):
                failures += await self._apply(name)
            for name in set(self._models) - self._catalogue.present():
                log.warning("the folder of %s is gone; its versions are served until they are unloaded", name)
        return failures

    async def load(self, name: str, override: Mapping[str, object] | None = None) -> None:
        """Load a model by name, as its config.toml says, or as `override` (keys of config.toml) does instead.

        Raises ModelNotFound when it is not in the folder, LoadError when it, or a version of it, does not load.
        """
        await self._uninterrupted(self._load(name, override))

    async def unload(self, name: str) -> None:
        """Serve a model no more; returns when what it had accepted is answered. Raises ModelNotFound."""
        await self._uninterrupted(self._unload(name))

    async def _uninterrupted(self, change: Coroutine[None, None, None]) -> None:
        """Wait for a change that goes on to its end even if whoever waits for it goes away."""
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    async def _load(self, name: str, override: Mapping[str, object] | None) -> None:
        async with self._changing:
            if name not in self._catalogue.present():
                raise ModelNotFound(f"model: {name!r} is not in the repository")
            self._overrides.pop(name, None)
            if override:
                self._overrides[name] = override
            for key in [key for key in self._failed if key[0] == name]:
                del self._failed[key]
            if failures := await self._apply(name):
                raise failures[0]

    async def _unload(self, name: str) -> None:
        async with self._changing:
            model = self._models.pop(name, None)
            if not self._recovery.forget(name) and model is None:
                raise ModelNotFound(f"model: {name!r} is not loaded")
            self._overrides.pop(name, None)
            self._changed()
            await self._retire(name, model.versions if model else {})

    def find(self, name: str, version: int, sticky: str | None = None) -> ServedModel:
        """The version that answers a request; an empty name means the only model, version 0 the server's choice.

        Raises ModelNotFound; Unavailable for what is there but not ready, or while the models are still loading.
        """
        if not name and len(self._models) == 1:
            (name,) = self._models
        model = self._models.get(name)
        if model is not None and version == 0:
            return model.route(sticky)
        if model is not None and version in model.versions:
            return model.versions[version]
        if not self._started:
            raise Unavailable("the models are loading")
        if (last := self._catalogue.not_ready(name, version)) is not None:
            raise Unavailable(f"{last.name} version {last.version} is not ready: {last.state}; the log says why")
        served = ", ".join(f"{one.manifest.name} {one.manifest.version}" for one in self.models())
        raise ModelNotFound(f"{name!r} version {version or 'any'} is not in the repository; served: {served or 'none'}")

    def only(self) -> ServedModel | None:
        """The version that every request is for, when a single one is served."""
        if len(self._models) != 1:
            return None
        (model,) = self._models.values()
        return next(iter(model.versions.values())) if len(model.versions) == 1 else None

    def sticky_header(self, name: str) -> str:
        """The metadata key by which this model's requests are routed, or an empty text."""
        model = self._models.get(name) or (next(iter(self._models.values())) if len(self._models) == 1 else None)
        return model.config.sticky_header if model else ""

    def shadow_of(self, served: ServedModel) -> ServedModel | None:
        """The version to which a request that `served` answers is mirrored: by its share, and only if it is ready."""
        model = self._models.get(served.manifest.name)
        return model.mirror(served) if model else None

    def ready(self) -> bool:
        """Whether every model that should be served is."""
        # A wrong config.toml beside a version that serves is an error to mend, not a reason to turn callers away.
        return self._started and self._models.keys() >= self._catalogue.wrong_configs() | self._recovery.names

    def lost(self) -> bool:
        """Whether only a new process may be able to serve what this one should."""
        return self._recovery.lost

    def config(self, name: str) -> ModelConfig:
        return self._models[name].config

    def versions(self, name: str) -> list[int]:
        """The versions of a model that are ready, ascending."""
        return sorted(self._models[name].versions) if name in self._models else []

    def names(self) -> list[str]:
        """The models with a version that is ready."""
        return sorted(name for name, model in self._models.items() if model.versions)

    def models(self) -> list[ServedModel]:
        """Everything served: by name, then by version, highest first."""
        return [
            self._models[name].versions[version]
            for name in self.names()
            for version in sorted(self._models[name].versions, reverse=True)
        ]

    def index(self) -> list[VersionState]:
        """Every version that is in the folder, or was served, with its state and the reason for it."""
        self._look()
        return self._catalogue.index()

    def states(self) -> list[tuple[str, int, str]]:
        """(model, version, state) of every version that was there at the last look. From any thread."""
        return self._catalogue.states()

    async def close(self) -> None:
        """Refuse new requests with Unavailable, and finish what is admitted."""
        self._recovery.close()
        await asyncio.gather(*(served.batcher.close() for served in self.models()))

    def _look(self) -> None:
        self._metrics.forget_all_but(self._catalogue.look())

    async def _apply(self, name: str) -> list[LoadError]:
        """Load what the configuration wants and is not served, swap it in, retire what it no longer wants."""
        folder = self._settings.model_repository / name
        source = str(folder / CONFIG_FILE)
        try:
            config = read_model_config(folder, self._settings)
            if name in self._overrides:
                source = f"load parameters of {name}"
                config = parse(self._overrides[name], self._settings, source)
        except ConfigError as error:
            return [self._config_failed(name, str(error))]
        self._catalogue.config_read(name)
        present = folders.model_versions(folder)
        current = self._models.get(name)
        serving_now = dict(current.versions) if current else {}
        missing = [version for version in (*config.extra_versions, *config.versions.specific) if version not in present]
        if missing:
            return [self._config_failed(name, f"{source}: version {missing[0]} is not in the repository")]
        wanted: dict[int, ServedModel] = {}
        failures: list[LoadError] = []
        extra = [version for version in config.extra_versions if version not in config.versions.specific]
        for version in (*config.versions.candidates(present), *extra):
            regular = version not in extra
            if version in wanted or (regular and config.versions.enough(len(set(wanted) - set(extra)))):
                continue
            try:
                wanted[version] = await self._ensure(name, version, config, serving_now.get(version))
            except LoadError as error:
                failures.append(error)
        # What failed leaves what it would have replaced in service.
        kept = {version: served for version, served in serving_now.items() if failures and version not in wanted}
        if wanted or kept:
            self._models[name] = Model(name, config, {**kept, **wanted})
        replaced = {v: served for v, served in serving_now.items() if {**kept, **wanted}.get(v) is not served}
        if self.versions(name) != sorted(serving_now):
            log.info("%s serves %s now, before %s", name, self.versions(name), sorted(serving_now))
        self._changed()
        self._recovery.look_at(wanted.values())
        await self._retire(name, replaced)
        if not failures:
            await asyncio.to_thread(folders.collect_garbage, folder, config.keep_versions, set(wanted))
        return failures

    def _config_failed(self, name: str, message: str) -> LoadError:
        if self._catalogue.config_failed(name, message):
            log.error("%s", message)
            self._metrics.load_failed(name, "config")
        return LoadError(message, "config")

    async def _ensure(self, name: str, version: int, config: ModelConfig, served: ServedModel | None) -> ServedModel:
        """The version in service as configured: the one that is, or one that is loaded now."""
        compute = config.compute_of(version)
        if served is not None and served.compute == compute:
            served.adopt(config)
            return served
        folder = self._settings.model_repository / name / str(version)
        looks = folders.looks(folder), compute
        if self._failed.get((name, version)) == looks:
            failed = self._catalogue.state(name, version)
            raise LoadError(failed.reason if failed else "", "unchanged")
        if served is None:
            self._catalogue.note(name, version, LOADING)
        started = time.monotonic()
        try:
            loaded = await asyncio.to_thread(serving.load, folder, name, version, compute)
        except LoadError as error:
            self._failed[name, version] = looks
            if served is None:
                self._catalogue.note(name, version, UNAVAILABLE, str(error))
            self._metrics.load_failed(name, error.reason)
            log.error("%s", error)
            raise
        self._failed.pop((name, version), None)
        fresh = ServedModel(loaded, config, self._metrics, self._recovery.broken)
        self._catalogue.note(name, version, READY)
        log.info("loaded %s in %.2f s: %s", fresh.title, time.monotonic() - started, fresh.describe())
        return fresh

    def _withdraw(self, served: ServedModel, reason: str) -> bool:
        """Give a version no more requests, from now on; False when it is no longer the one that gets them."""
        name, version = served.manifest.name, served.manifest.version
        model = self._models.get(name)
        if model is None or model.versions.get(version) is not served:
            return False
        log.error("%s is not ready: %s", served.title, reason)
        del self._models[name]
        if rest := {number: other for number, other in model.versions.items() if number != version}:
            self._models[name] = Model(name, model.config, rest)
        self._catalogue.note(name, version, UNAVAILABLE, reason)
        self._changed()
        return True

    async def _load_again(self, name: str, version: int) -> None:
        """Put a version that was withdrawn back into service, if it is still wanted. Raises LoadError."""
        async with self._changing:
            if name not in self._catalogue.present():
                raise LoadError(f"{name} is not in the repository", "manifest")
            self._failed.pop((name, version), None)
            failures = await self._apply(name)
            if failures and version not in self.versions(name):
                raise failures[0]

    async def _retire(self, name: str, versions: Mapping[int, ServedModel]) -> None:
        """Let versions go that no new request is given to; requests that chose one before hold it until answered."""
        for version, served in versions.items():
            replaced = version in self.versions(name)
            if not replaced:
                self._catalogue.note(name, version, UNLOADING)
            await served.close(replaced)
            if not replaced:
                self._catalogue.note(name, version, UNAVAILABLE, "unloaded")
            log.info("retired %s", served.title)
        if versions:
            await asyncio.to_thread(memory.release)
