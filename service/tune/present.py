"""What is served now, and how: the model, its files, and the settings as `cifarserve serve` would take them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from service import cpu, folders, model_config, workers
from service.config import ConfigError, Settings
from service.model_config import CONFIG_FILE, Compute
from service.tune.candidates import Candidate


@dataclass(frozen=True)
class Present:
    settings: Settings
    settings_file: Path  # which `serve` would read, whether it is there or not
    name: str
    version: int
    folder: Path  # of the version
    config_text: str  # of the model's config.toml; empty: there is none
    compute: Compute

    @property
    def config_file(self) -> Path:
        return self.folder.parent / CONFIG_FILE

    @property
    def workers(self) -> int:
        return workers.count(self.settings)

    @property
    def threads(self) -> int:
        """Of each worker's engine."""
        count = self.workers
        shared = workers.share(dataclasses.replace(self.settings, workers=count), cpu.usable_cores(), 0).threads
        return self.compute.threads or (shared if count > 1 else cpu.usable_cores())

    def candidate(self, provider: str, precision: str) -> Candidate:
        """The settings as they are, where `auto` has come to this provider and precision."""
        compute = self.compute
        return Candidate(
            provider, precision, self.threads, self.workers, compute.max_batch_size, compute.max_queue_delay,
            compute.buckets, compute.target_latency,
        )  # fmt: skip


def find(settings: Settings, settings_file: Path, wanted: str) -> Present:
    """The version that is served of the model `wanted`, or of the only one there is; NAME:VERSION names another.

    Raises ConfigError.
    """
    repository = settings.model_repository
    names = sorted(folders.model_names(repository))
    name, _, number = wanted.partition(":")
    if not name:
        if len(names) != 1:
            found = ", ".join(names) or "none"
            raise ConfigError(f"--model: {repository} has more or less than one model: {found}; name it")
        name = names[0]
    if name not in names:
        raise ConfigError(f"--model: no model {name} in {repository}; there is {', '.join(names) or 'none'}")
    folder = repository / name
    config = model_config.read_model_config(folder, settings)
    present = folders.model_versions(folder)
    versions = [one for one in present if str(one) == number] if number else config.versions.candidates(present)
    if not versions:
        raise ConfigError(f"--model: {folder} has no version {number or str(config.versions)}")
    path = folder / CONFIG_FILE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return Present(settings, settings_file, name, versions[0], folder / str(versions[0]), text, config.compute)
