"""The model repository: brings what is served in line with the folder, one change at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Set

from service import folders, memory
from service.catalogue import READY, UNAVAILABLE, UNLOADING, Catalogue, VersionState
from service.config import ConfigError, Settings
from service.errors import ModelNotFound, Unavailable, short
from service.fallbacks import Fallbacks
from service.loading import Loader, Override, immutable
from service.lookup import MOST_NAMES, Lookup
from service.manifest import MANIFEST_FILE
from service.metrics import Metrics
from service.model_config import ModelConfig
from service.recovery import Recovery
from service.routing import Model
from service.serving import Loaded, LoadError, ServedModel

log = logging.getLogger(__name__)


class Repository(Lookup):
    """To be used from one event loop.

    `_models` is what is served. It is changed by whoever holds `_changing`, and by `_withdraw`, at any time: whoever
    holds the lock and has awaited anything reads it again.
    """

    def __init__(self, settings: Settings, metrics: Metrics, changed: Callable[[], None]) -> None:
        """`changed` is called whenever the set of served versions may have changed."""
        super().__init__(Catalogue(settings.model_repository))
        self._changed = changed
        self._settings = settings
        self._metrics = metrics
        self._loader = Loader(settings, metrics, self._catalogue, self._served)
        self._notices = self._loader.notices
        self._overrides: dict[str, Override] = {}  # in force, by model
        self._closed = False
        self._fallbacks = Fallbacks()
        self._recovery = Recovery(self._withdraw, self._load_again, changed)
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Future[None]] = set()

    @property
    def _recovering(self) -> Set[str]:
        return self._recovery.names

    def lost(self) -> bool:
        """Whether only a new process may be able to serve what this one should."""
        return self._recovery.lost

    async def start(self) -> None:
        """Load what should be served. What does not load is logged, and `ready` waits for it.

        Raises LoadError when nothing that should be served can be, or there is nothing.
        """
        settings = self._settings
        explicit = settings.model_control == "explicit"
        self._look()
        self._required = set(settings.load_model) if explicit else self._catalogue.present
        failures = await self.refresh(asked=True)
        if not self._models and (failures or not explicit):
            raise self._nothing_served(failures)
        for name in sorted(self.missing):
            log.error("the server is not ready: %s is not served", name)
        self._started = True
        self._changed()

    async def refresh(self, asked: bool) -> list[LoadError]:
        """Bring what is served in line with the folder. What fails is logged, returned, and leaves the old serving.

        `asked`: by the operator, so that what has failed is tried again at once; otherwise it is time for a look.
        """
        async with self._changing:
            if asked:
                self._loader.retries.forget_all()
            if (problem := self._look()) is not None:
                return [problem]
            failures: list[LoadError] = []
            for name in sorted(self._to_apply(asked)):
                failures += await self._apply(name, self._overrides.get(name))
            failures += self._report_gone()
            self._changed()
        return failures

    async def load(self, name: str, override: Override | None = None) -> None:
        """Load a model by name, as its config.toml says, or as `override` (keys of config.toml) does instead.

        Raises ModelNotFound when it is not in the folder, LoadError when it, or a version of it, does not load, or the
        files of a version that is served have been replaced.
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

    async def _load(self, name: str, override: Override | None) -> None:
        async with self._changing:
            self._refuse_if_closed()
            if (problem := self._look()) is not None:
                raise problem
            if name in self._catalogue.problems:
                raise LoadError(self._catalogue.problems[name], "folder")
            if name not in self._catalogue.present:
                raise ModelNotFound(f"model: {short(name)} is not in the repository")
            self._loader.retries.forget_model(name)
            override = override or None
            # Another override than the one in force takes its place only if all that it asks for loads.
            trial = override != self._overrides.get(name)
            if failures := await self._apply(name, override, trial):
                raise self._with_what_serves(name, failures[0])
            if override is None:
                self._overrides.pop(name, None)
            else:
                self._overrides[name] = override
            for served in self._served(name).values():
                if served.altered is not None:
                    raise LoadError(immutable(served), "manifest")

    async def _unload(self, name: str) -> None:
        async with self._changing:
            self._refuse_if_closed()
            model = self._models.pop(name, None)
            recovering = self._recovery.forget(name)
            if not recovering and model is None and name not in self._required:
                raise ModelNotFound(f"model: {short(name)} is not loaded")
            self._required.discard(name)
            self._overrides.pop(name, None)
            for version in recovering:
                self._catalogue.note(name, version, UNAVAILABLE, "unloaded")
            self._changed()
            await self._retire(name, model.versions if model else {})

    def index(self) -> list[VersionState]:
        """Every version that is in the folder, or was served, with its state and the reason for it.

        When the folder cannot be read, that is logged, and this is what was known before.
        """
        self._look()
        absent = self._required - self._models.keys() - self._catalogue.known
        rows = [VersionState(name, 0, UNAVAILABLE, "not in the repository") for name in absent]
        return sorted([*self._catalogue.index(), *rows], key=lambda one: (one.name, one.version))

    def states(self) -> list[tuple[str, int, str]]:
        """(model, version, state) of every version that was there at the last look. From any thread."""
        return self._catalogue.states()

    async def close(self) -> None:
        """Refuse new requests with Unavailable, and finish what is admitted. Nothing is loaded any more."""
        self._closed = True
        self._recovery.close()
        await asyncio.gather(*(served.batcher.close() for served in self.models()))

    def _look(self) -> LoadError | None:
        """Bring what is known of the folder up to date; returns what is wrong when it cannot be read as a whole."""
        try:
            known = self._catalogue.look()
        except OSError as error:
            message = f"cannot look into the model repository: {error}"
            if self._notices.is_new(("repository",), message):
                log.error("%s", message)
            return LoadError(message, "folder")
        self._notices.over(("repository",))
        self._metrics.forget_all_but(known)
        self._loader.retries.keep(known)
        for name, problem in self._notices.news("entry", self._catalogue.problems).items():
            log.error("%s; nothing is loaded from it", problem)
            self._metrics.load_failed(name, "folder")
        return None

    def _to_apply(self, asked: bool) -> set[str]:
        """The models to bring in line with the folder at this look."""
        control, present = self._settings.model_control, self._catalogue.present
        if control == "poll" or (asked and control == "none"):
            return present
        if asked:
            return present & self._required
        return present & (self.missing - self._recovery.names)

    def _report_gone(self) -> list[LoadError]:
        """Say which models are served, or should be, and are not in the folder. Those deleted are required no more."""
        present, problems = self._catalogue.present, self._catalogue.problems
        messages: dict[str, str] = {}
        failures: list[LoadError] = []
        for name in (self._models.keys() | self._recovery.names | self._required) - present:
            if name in problems:
                failures.append(LoadError(problems[name], "folder"))
            elif name in self._models:
                messages[name] = f"the folder of {name} is gone; its versions are served until they are unloaded"
            elif present and self._settings.model_control != "explicit":
                self._required.discard(name)
                self._recovery.forget(name)
            else:  # named by --load-model, or the whole repository is gone for now
                messages[name] = f"{name} is not served: it is not in {self._settings.model_repository}"
                failures.append(LoadError(messages[name], "folder"))
        for message in self._notices.news("gone", messages).values():
            log.warning("%s", message)
        return failures

    async def _apply(self, name: str, override: Override | None, trial: bool = False) -> list[LoadError]:
        """Load what the configuration wants and is not served, swap it in, retire what it no longer wants.

        What fails leaves what it would have replaced in service; in a `trial`, it leaves everything as it is. What
        nobody expected to fail is logged with its stack, and is a failure of this model alone.
        """
        try:
            failures = await self._bring_in_line(name, override, trial)
        except Exception as error:
            if self._notices.is_new(("unexpected", name), repr(error)):
                log.exception("%s cannot be brought in line with its folder", name)
            self._metrics.load_failed(name, "internal")
            return [LoadError(f"{name} is not loaded: an internal error; the log has it", "internal")]
        self._notices.over(("unexpected", name))
        return failures

    async def _bring_in_line(self, name: str, override: Override | None, trial: bool) -> list[LoadError]:
        try:
            config = self._loader.read_config(name, override)
        except ConfigError as error:
            return [self._loader.config_failed(name, str(error), trial)]
        if not trial:
            for line in self._catalogue.config_read(name, config.overruled.values()):
                log.warning("%s", line)
        chosen, failures = await self._load_regular(name, config)
        kept = self._served(name).keys() - {config.shadow} if failures else set()
        unfit = self._loader.unfit_shadow(name, config, {**dict.fromkeys(kept), **chosen})
        if unfit:
            failures.append(LoadError(unfit, "config"))
        elif config.shadow:
            try:
                chosen[config.shadow] = await self._ensure(name, config.shadow, config)
            except LoadError as error:
                chosen[config.shadow] = None
                failures.append(error)
        if self._closed or (trial and failures):
            self._discard(name, chosen)
            return failures or [LoadError(f"{name} is not loaded: the server is draining", "unchanged")]
        replaced = self._swap(name, config, {**dict.fromkeys(kept), **chosen})
        await self._retire(name, replaced)
        if unfit:
            self._catalogue.note(name, config.shadow, UNAVAILABLE, unfit)
        if not failures:
            await self._collect_garbage(name, config.keep_versions, self._served(name).keys() | chosen.keys())
        return failures

    async def _load_regular(self, name: str, config: ModelConfig) -> tuple[dict[int, Loaded | None], list[LoadError]]:
        """The versions that the configuration wants beside its shadow, None for those in service; and what failed."""
        chosen: dict[int, Loaded | None] = {}
        failures: list[LoadError] = []
        extra = {version for version in config.extra_versions if version not in config.versions.specific}
        for version in dict.fromkeys((*config.versions.candidates(self._catalogue.versions(name)), *sorted(extra))):
            enough = version not in extra and config.versions.enough(len(chosen.keys() - extra))
            if enough or version == config.shadow:
                continue
            try:
                chosen[version] = await self._ensure(name, version, config)
            except LoadError as error:
                failures.append(error)
        return chosen, failures

    async def _ensure(self, name: str, version: int, config: ModelConfig) -> Loaded | None:
        """As Loader.ensure. A device has room for a version again once its broken engine is closed."""
        if self._recovery.is_closing(name, version):
            raise LoadError(f"{name} version {version} is not served: its broken engine is being closed", "unchanged")
        return await self._loader.ensure(name, version, config)

    def _swap(self, name: str, config: ModelConfig, chosen: Mapping[int, Loaded | None]) -> Mapping[int, ServedModel]:
        """Put the chosen versions into service, and no others, in one step; returns those that are there no more.

        None stands for the version in service, which may have been withdrawn meanwhile: then it stays so.
        """
        before = self._served(name)
        after: dict[int, ServedModel] = {}
        for version, loaded in chosen.items():
            if loaded is None:
                if version in before:
                    after[version] = before[version]
                    after[version].adopt(config)
            elif self._recovery.is_closing(name, version):  # it broke meanwhile: recovery loads it when it is closed
                loaded.close()
            else:
                after[version] = self._made(loaded, config)
        if after:
            self._models[name] = Model(name, config, after)
            self._required.add(name)
        else:
            self._models.pop(name, None)
        if sorted(after) != sorted(before):
            log.info("%s serves %s now, before %s", name, sorted(after), sorted(before))
        self._changed()
        self._recovery.look_at(list(after.values()))
        return {version: served for version, served in before.items() if after.get(version) is not served}

    def _made(self, loaded: Loaded, config: ModelConfig) -> ServedModel:
        served = ServedModel(loaded, config, self._metrics, self._recovery.broken)
        self._catalogue.note(served.manifest.name, served.manifest.version, READY)
        if fallback := self._fallbacks.notice(loaded):
            log.warning("fallback: %s", fallback)
            served.metrics.fell_back(served.engine.provider, served.engine.precision)
        return served

    def _discard(self, name: str, chosen: Mapping[int, Loaded | None]) -> None:
        for version, loaded in chosen.items():
            if loaded is None:
                continue
            loaded.close()
            if version not in self._served(name):
                self._catalogue.note(name, version, UNAVAILABLE, "not loaded: another part of the change failed")

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
            if (problem := self._look()) is not None:
                raise problem
            if name not in self._catalogue.present:
                raise LoadError(f"{name} is not in the repository", "folder")
            self._loader.retries.make_due((name, version))
            failures = await self._apply(name, self._overrides.get(name))
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

    async def _collect_garbage(self, name: str, keep: int, used: set[int]) -> None:
        """Delete the versions beyond the highest `keep`, but for those that are used."""
        folder = self._settings.model_repository / name
        outcomes = await asyncio.to_thread(folders.collect_garbage, folder, keep, used)
        for version in [version for version, problem in outcomes.items() if not problem]:
            log.info("deleted %s version %d: keep_versions is %d", name, version, keep)
        problems = {str(version): problem for version, problem in outcomes.items() if problem}
        for number, problem in self._notices.news(f"keep_versions of {name}", problems).items():
            log.warning("cannot delete %s version %s: %s", name, number, problem)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise Unavailable("draining: models are not changed any more")

    def _nothing_served(self, failures: list[LoadError]) -> LoadError:
        """Why the server cannot start."""
        reasons = list(dict.fromkeys([*map(str, failures), *self._catalogue.problems.values()]))
        if not failures:
            folder = self._settings.model_repository
            reasons.insert(0, f"no model in {folder}: expected <model>/<version>/{MANIFEST_FILE}")
        more = f"; and {len(reasons) - MOST_NAMES} more" if len(reasons) > MOST_NAMES else ""
        return LoadError("; ".join(reasons[:MOST_NAMES]) + more, failures[0].reason if failures else "folder")

    def _with_what_serves(self, name: str, failure: LoadError) -> LoadError:
        versions = ", ".join(map(str, self.versions(name)[-MOST_NAMES:]))
        return LoadError(f"{failure} (of {name} is served: {versions or 'nothing'})", failure.reason)
