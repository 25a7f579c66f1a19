"""One served version: its engines, its batcher, its cache, its drift window; made from a folder, ended by `close`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service import cpu, folders, providers, signing
from service.batching import Batcher
from service.cache import ResponseCache
from service.config import ConfigError
from service.drift import DriftWindow
from service.engine import Engine, EngineError, Outputs
from service.images import Pixels
from service.manifest import GOLDEN_FILE, Manifest, ManifestError, model_file, read_manifest, verify_files
from service.metrics import Metrics
from service.model_config import Compute, ModelConfig
from service.pending import Answer, Request
from service.precisions import PrecisionError, fastest_first
from service.signing import KeyFileError
from service.version_metrics import VersionMetrics

log = logging.getLogger(__name__)


class LoadError(RuntimeError):
    """A version cannot be served. The message says which, and why; `reason` is one of REASONS, for the metric."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


REASONS = {
    ConfigError: "config", ManifestError: "manifest", EngineError: "engine", PrecisionError: "config",
    KeyFileError: "config",
}  # fmt: skip


@dataclass(frozen=True)
class PassedOver:
    """A provider or precision that was tried before the one that computes.

    `failed`: it is here and did not work; otherwise it is not installed, or has no device on this machine.
    """

    why: str
    failed: bool


@dataclass(frozen=True)
class Opened:
    """Engines that are all on one provider and in one precision, and what was passed over for it."""

    engines: tuple[Engine, ...]
    passed_over: tuple[PassedOver, ...] = ()

    def log(self, title: str) -> None:
        """Log what was passed over: as a warning where it failed."""
        engine = self.engines[0]
        for one in self.passed_over:
            level = logging.WARNING if one.failed else logging.INFO
            log.log(level, "%s is computed on %s in %s: %s", title, engine.provider, engine.precision, one.why)


@dataclass(frozen=True)
class Loaded:
    """A version that has passed every check, not yet serving."""

    manifest: Manifest
    opened: Opened
    compute: Compute
    fingerprint: object  # of the folder, before it was read

    @property
    def title(self) -> str:
        return f"{self.manifest.name} version {self.manifest.version}"

    def describe(self) -> str:
        """Provider, precision and accuracy, for the log."""
        engine = self.engines[0]
        return f"{engine.provider}, {engine.precision}, accuracy {self.manifest.evaluation['accuracy']:.4f}"

    def close(self) -> None:
        """Give the memory back of what did not get into service."""
        for engine in self.engines:
            engine.close()

    @property
    def engines(self) -> tuple[Engine, ...]:
        return self.opened.engines


class ServedModel:
    """One version, ready to answer. To be used from one event loop."""

    def __init__(
        self, loaded: Loaded, config: ModelConfig, metrics: Metrics, broken: Callable[[ServedModel, str], None]
    ) -> None:
        """`broken` is called with the reason when an engine of it no longer computes."""
        self.manifest = loaded.manifest
        self.engine = loaded.engines[0]
        self._engines = loaded.engines
        self.compute = loaded.compute
        self.fingerprint = loaded.fingerprint  # of the files that it was loaded from
        self.altered: object = None  # the fingerprint of other files that have taken their place; None: none have
        self._closed = False
        self._drift_images = 0  # the size of the window that was made last, or that could not be made
        self.metrics: VersionMetrics = metrics.version(self.manifest.name, self.manifest.version, self.manifest.labels)
        self.batcher = Batcher(
            loaded.engines,
            max_queue_images=loaded.compute.max_queue_images,
            max_queue_bytes=loaded.compute.max_queue_bytes,
            max_delay=loaded.compute.max_queue_delay,
            target_latency=loaded.compute.target_latency,
            observer=self.metrics,
            in_background=loaded.compute.in_background,
            broken=lambda reason: broken(self, reason),
            title=self.title,
        )
        self.cache: ResponseCache | None = None
        self.drift: DriftWindow | None = None
        self._drift_images = 0  # as last configured
        self.adopt(config)
        self.metrics.watch_queue(loaded.compute.max_queue_images, self.batcher.oldest_seconds)
        self.metrics.serving(*self._computed_by)

    @property
    def title(self) -> str:
        return f"{self.manifest.name} version {self.manifest.version}"

    @property
    def description(self) -> str:
        """For people: what is served, how good it is, and what computes it."""
        return (
            f"{self.title} ({len(self.manifest.labels)} classes, accuracy {self.manifest.evaluation['accuracy']:.2%})"
            f" on {self.engine.provider}, {self.engine.precision}"
        )

    @property
    def _computed_by(self) -> tuple[str, str, str]:
        return self.engine.provider, self.engine.precision, self.compute.provider

    async def compute_answer(self, admitted: Request, images: Pixels, priority: int = 0) -> Answer:
        """The rows of `images`, from the cache where it has them, otherwise from the engine. As Request.compute."""
        answer = (
            await self._through_cache(self.cache, admitted, images, priority)
            if self.cache
            else await admitted.compute(images, priority)
        )
        if self.drift is not None:
            self.drift.add(answer.probabilities)
        return answer

    def adopt(self, config: ModelConfig) -> None:
        """Take over the settings that need no new engine: cache and drift window. What they hold stays if they fit."""
        if config.cache_bytes != (self.cache.limit if self.cache else 0):
            self.cache = cache = ResponseCache(config.cache_bytes) if config.cache_bytes else None
            self.metrics.watch_cache((lambda: cache.bytes) if cache else None)
        if self._drift_images != config.drift_images:
            self._drift_images = config.drift_images
            self.drift = _drift_window(self.manifest, config.drift_images)
            if self.drift is not None:
                self.metrics.watch_drift(self.drift.class_index, self.drift.confidence_index)

    async def close(self, replaced: bool) -> None:
        """Refuse what is new, finish what is admitted, and give the memory back, even if a request or a list still
        holds this. `replaced`: the same version is served by another object. To close it again only waits.
        """
        try:
            await self.batcher.close()
        except Exception:
            log.exception("%s: its batcher has failed", self.title)
        if self._closed:
            return
        self._closed = True
        for engine in self._engines:
            engine.close()
        self.cache = None
        if not replaced:
            self.metrics.retired(*self._computed_by)

    async def _through_cache(self, cache: ResponseCache, admitted: Request, images: Pixels, priority: int) -> Answer:
        keys = cache.keys(images)
        rows = [cache.get(key) for key in keys]
        missing = [index for index, row in enumerate(rows) if row is None]
        self.metrics.cached(hits=len(keys) - len(missing), misses=len(missing))
        queue_seconds = compute_seconds = 0.0
        if missing:
            admitted.shrink(len(missing))
            fresh = await admitted.compute(images[missing], priority)
            queue_seconds, compute_seconds = fresh.queue_seconds, fresh.compute_seconds
            for row, index in enumerate(missing):
                outputs = Outputs(fresh.probabilities, fresh.logits)
                cache.put(keys[index], outputs, row)
                rows[index] = fresh.probabilities[row], fresh.logits[row]
        complete = [row for row in rows if row is not None]
        probabilities, logits = (np.stack(parts) for parts in zip(*complete, strict=True))
        return Answer(probabilities, logits, queue_seconds, compute_seconds)


def load(folder: Path, name: str, version: int, compute: Compute) -> Loaded:
    """Verify a version's files, open it on the provider, warm it up, replay its golden inputs.

    Blocks for as long as that takes. Raises LoadError.
    """
    fingerprint = folders.fingerprint(folder)
    try:
        key = compute.model_public_key
        manifest = read_manifest(folder, signing.signed_manifest(folder, Path(key)) if key else None)
        if (manifest.name, manifest.version) != (name, version):
            raise ManifestError(f"{folder}: the manifest is of {manifest.name} version {manifest.version}")
        verify_files(folder, manifest, compute.max_model_bytes)
        opened = open_engines(folder, manifest, compute)
        opened.log(f"{name} version {version}")
        if compute.target_latency:
            for engine in opened.engines:
                engine.time_buckets()
                log.info("%s version %d: milliseconds a batch: %s", name, version, {
                    bucket: round(seconds * 1e3, 2) for bucket, seconds in engine.bucket_seconds.items()
                })  # fmt: skip
    except (ManifestError, EngineError, PrecisionError, KeyFileError) as error:
        raise LoadError(f"{name} version {version} is not served: {error}", REASONS[type(error)]) from error
    return Loaded(manifest, opened, compute, fingerprint)


def holds(folder: Path, manifest: Manifest) -> bool:
    """Whether the folder holds the files that `manifest` was read with. Hashes all of them."""
    try:
        if read_manifest(folder) != manifest:
            return False
        verify_files(folder, manifest)
    except (ManifestError, OSError):
        return False
    return True


def open_engine(folder: Path, manifest: Manifest, compute: Compute) -> Engine:
    """One engine, as of open_engines; what was passed over is logged."""
    opened = open_engines(folder, manifest, dataclasses.replace(compute, instances=1))
    opened.log(f"{manifest.name} version {manifest.version}")
    (engine,) = opened.engines
    return engine


def open_engines(folder: Path, manifest: Manifest, compute: Compute) -> Opened:
    """All instances, on the best provider and, there, in the fastest precision in which each gives the golden answers.

    Raises EngineError when there is none, PrecisionError when the one asked for has not passed its gates.
    """
    passed_over: list[PassedOver] = []
    for provider in providers.AUTO_ORDER if compute.provider == providers.AUTO else (compute.provider,):
        precisions = fastest_first(manifest, provider, compute.precision)
        if not precisions:
            passed_over.append(PassedOver(f"none of its precisions is for provider {provider}", failed=False))
        for precision in precisions:
            try:
                return Opened(_open_all_in(folder, manifest, compute, provider, precision), tuple(passed_over))
            except EngineError as error:
                passed_over.append(PassedOver(str(error), failed=not error.absent))
                if error.absent:
                    break
    raise EngineError("; ".join(dict.fromkeys(one.why for one in passed_over)))


def _open_all_in(
    folder: Path, manifest: Manifest, compute: Compute, provider: str, precision: str
) -> tuple[Engine, ...]:
    engines: list[Engine] = []
    try:
        for _ in range(compute.instances):
            engines.append(_open_in(folder, manifest, compute, provider, precision))  # noqa: PERF401 - close() needs them
    except EngineError as error:
        for engine in engines:
            engine.close()
        if engines:
            raise EngineError(f"instance {len(engines) + 1} of {compute.instances}: {error}") from error
        raise
    return tuple(engines)


def _open_in(folder: Path, manifest: Manifest, compute: Compute, provider: str, precision: str) -> Engine:
    engine = Engine(
        folder / model_file(precision),
        provider=provider,
        precision=precision,
        threads=compute.threads or cpu.usable_cores(),
        max_batch_size=compute.max_batch_size,
        buckets=compute.buckets,
        options=compute.provider_options,
    )
    if engine.image_shape != manifest.image_shape:
        raise EngineError(f"the graph takes {engine.image_shape}, the manifest says {manifest.image_shape}")
    try:
        engine.warm_up()
        engine.check_golden(folder / GOLDEN_FILE)
    except EngineError:
        raise
    except Exception as error:  # whatever the provider raises when it cannot compute what it has loaded
        raise EngineError(f"it loads and does not compute on {engine.provider}: {error}") from error
    return engine


def _drift_window(manifest: Manifest, images: int) -> DriftWindow | None:
    if not manifest.baseline:
        return None
    title = f"{manifest.name} version {manifest.version}"
    try:
        window = DriftWindow(manifest, images)
    except (KeyError, TypeError, ValueError) as error:
        log.warning("%s: drift is not measured: its baseline is not usable: %r", title, error)
        return None
    for problem in window.problems():
        log.warning("%s: %s", title, problem)
    return window
