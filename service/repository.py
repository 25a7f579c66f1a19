"""The model repository: finds versions on disk, verifies and loads them, and says which one answers a request."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path

from service import cpu
from service.batching import Batcher
from service.config import Settings
from service.engine import Engine, EngineError
from service.errors import ModelNotFound, Unavailable
from service.manifest import GOLDEN_FILE, MODEL_FILE, Manifest, ManifestError, read_manifest, verify_files
from service.metrics import Metrics, VersionMetrics

log = logging.getLogger(__name__)

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION_NAME = re.compile(r"[1-9][0-9]{0,17}")


class LoadError(RuntimeError):
    """A version cannot be served. The message says which, and why."""


@dataclass(frozen=True)
class ServedModel:
    """One version, ready to answer."""

    manifest: Manifest
    engine: Engine
    batcher: Batcher
    metrics: VersionMetrics

    @property
    def title(self) -> str:
        return f"{self.manifest.name} version {self.manifest.version}"


class Repository:
    """The highest version of every model in the folder, served. To be used from one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._models: dict[str, ServedModel] = {}
        self._loaded = False
        self._refreshing = asyncio.Lock()

    async def start(self) -> None:
        """Load every model. Raises LoadError when one fails, or there is none."""
        if failures := await self.refresh():
            raise failures[0]
        if not self._models:
            raise LoadError(f"no model in {self._settings.model_repository}: expected <model>/<version>/manifest.json")
        self._loaded = True

    async def refresh(self) -> list[LoadError]:
        """Bring what is served in line with the folder: load newer versions, swap them in, retire the older.

        A version that fails to load leaves the one before it serving; the failures are logged and returned.
        """
        failures = []
        async with self._refreshing:
            for name, version in sorted(latest_versions(self._settings.model_repository).items()):
                current = self._models.get(name)
                if current is not None and current.manifest.version >= version:
                    continue
                try:
                    await self._swap_in(name, version)
                except LoadError as error:
                    log.error("%s", error)
                    failures.append(error)
        return failures

    def find(self, name: str, version: int) -> ServedModel:
        """The version that answers a request; an empty name means the only model, version 0 the highest.

        Raises ModelNotFound, or Unavailable while the models are still loading.
        """
        if not self._loaded:
            raise Unavailable("the models are loading")
        if not name and len(self._models) == 1:
            (model,) = self._models.values()
        elif name in self._models:
            model = self._models[name]
        else:
            served = ", ".join(sorted(self._models))
            raise ModelNotFound(f"model: {name!r} is not served; there is {served}")
        if version not in (0, model.manifest.version):
            raise ModelNotFound(f"version: {version} of {model.manifest.name!r} is not served; there is {model.title}")
        return model

    def ready(self) -> bool:
        """Whether every model that should be served is."""
        return self._loaded

    def versions(self, name: str) -> list[int]:
        """The versions of a model that are ready, ascending."""
        return [self._models[name].manifest.version] if name in self._models else []

    def models(self) -> list[ServedModel]:
        """Everything served, by name."""
        return [self._models[name] for name in sorted(self._models)]

    async def close(self) -> None:
        """Refuse new requests with Unavailable, and finish what is admitted."""
        await asyncio.gather(*(model.batcher.close() for model in self.models()))

    async def _swap_in(self, name: str, version: int) -> None:
        started = time.monotonic()
        manifest, engine = await asyncio.to_thread(load, self._settings, name, version)
        metrics = self._metrics.version(name, version)
        batcher = Batcher(engine, max_queue_images=self._settings.max_queue_images, observer=metrics)
        model = ServedModel(manifest, engine, batcher, metrics)
        metrics.serving(engine.provider, engine.precision)
        previous, self._models[name] = self._models.get(name), model
        log.info(
            "loaded %s in %.2f s: %s, %s, accuracy %.4f",
            model.title, time.monotonic() - started, engine.provider, engine.precision, manifest.evaluation["accuracy"],
        )  # fmt: skip
        if previous is not None:
            # Requests that already chose the old version hold it; its batcher ends when the last is answered.
            await previous.batcher.close()
            previous.metrics.retired(previous.engine.provider, previous.engine.precision)
            log.info("retired %s", previous.title)


def latest_versions(repository: Path) -> dict[str, int]:
    """The highest version of each model in the folder; what is not named like a model or a version is passed over."""
    found = {}
    for folder in repository.iterdir() if repository.is_dir() else ():
        if _MODEL_NAME.fullmatch(folder.name) and (versions := model_versions(folder)):
            found[folder.name] = versions[-1]
    return found


def model_versions(folder: Path) -> list[int]:
    """The versions of one model, ascending: folders with a number for a name, without leading zeros."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if _VERSION_NAME.fullmatch(entry.name))


def load(settings: Settings, name: str, version: int) -> tuple[Manifest, Engine]:
    """Verify a version's files, open it on the provider, warm every bucket, replay its golden inputs.

    Blocks for as long as that takes. Raises LoadError.
    """
    folder = settings.model_repository / name / str(version)
    try:
        manifest = read_manifest(folder)
        if (manifest.name, manifest.version) != (name, version):
            raise ManifestError(f"{folder}: the manifest is of {manifest.name} version {manifest.version}")
        verify_files(folder, manifest)
        engine = Engine(
            folder / MODEL_FILE,
            provider=settings.provider,
            precisions=_own_first(manifest),
            threads=settings.threads or cpu.usable_cores(),
            max_batch_size=settings.max_batch_size,
        )
        if engine.image_shape != manifest.image_shape:
            raise EngineError(f"the graph takes {engine.image_shape}, the manifest says {manifest.image_shape}")
        engine.warm_up()
        engine.check_golden(folder / GOLDEN_FILE)
    except (ManifestError, EngineError) as error:
        raise LoadError(f"{name} version {version} is not served: {error}") from error
    return manifest, engine


def _own_first(manifest: Manifest) -> tuple[str, ...]:
    others = tuple(precision for precision in manifest.compute_precisions if precision != manifest.precision)
    return manifest.precision, *others
