"""`cifarserve models rollback` and `promote`: pin a version in config.toml, where a polling server finds it."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from service.config import Settings
from service.folders import model_versions
from service.model_config import read_model_config, write_pin


class PromotionRefused(RuntimeError):
    """A gate is not passed. The message names every gate that failed, with its numbers."""


class PromotionError(RuntimeError):
    """There is nothing to promote or to roll back to, or the metrics cannot be read."""


@dataclass(frozen=True)
class Gates:
    min_images: int = 1000
    min_agreement: float = 0.98  # share of images with the same top class
    max_distance: float = 0.05  # mean total variation between the probabilities
    max_compute_ratio: float = 0.0  # compute seconds an image, shadow to primary; 0: not asked


def rollback(models: Path, name: str, to: int | None) -> int:
    """Serve `to`, or the version below the highest that the configuration serves. Returns it. Raises PromotionError."""
    folder = models / name
    present = model_versions(folder)
    if to is None:
        policy = read_model_config(folder, Settings()).versions
        candidates = policy.candidates(present)
        older = [version for version in present if candidates and version < candidates[0]]
        if not older:
            raise PromotionError(f"{folder}: there is no version below the one that is served")
        to = older[-1]
    if to not in present:
        raise PromotionError(f"{folder}: version {to} is not there; there is {', '.join(map(str, present)) or 'none'}")
    write_pin(folder, to)
    return to


def promote(models: Path, name: str, metrics_url: str, gates: Gates) -> tuple[int, str]:
    """Serve the shadow version if it has passed the gates; returns it, and the evidence in words.

    Raises PromotionRefused with the numbers, PromotionError, and ConfigError.
    """
    folder = models / name
    config = read_model_config(folder, Settings())
    if not config.shadow:
        raise PromotionError(f"{folder}: config.toml names no shadow to promote")
    samples = _scrape(metrics_url)
    shadow = {"model": name, "version": str(config.shadow)}
    agreed = _total(samples, "cifarserve_shadow_images_total", result="agreed", **shadow)
    compared = agreed + _total(samples, "cifarserve_shadow_images_total", result="disagreed", **shadow)
    agreement = agreed / compared if compared else 0.0
    distance = _total(samples, "cifarserve_shadow_distance_sum", **shadow) / compared if compared else 0.0
    evidence = f"{compared:.0f} images, agreement {agreement:.4f}, mean distance {distance:.4f}"
    failed = []
    if compared < gates.min_images:
        failed.append(f"{compared:.0f} images were compared, {gates.min_images} are needed")
    if compared and agreement < gates.min_agreement:
        failed.append(f"agreement {agreement:.4f} is below {gates.min_agreement:g}")
    if distance > gates.max_distance:
        failed.append(f"mean distance {distance:.4f} is above {gates.max_distance:g}")
    if gates.max_compute_ratio:
        ratio = _compute_ratio(samples, name, config.shadow)
        evidence += f", compute ratio {ratio:.2f}"
        if not ratio <= gates.max_compute_ratio:
            failed.append(f"compute ratio {ratio:.2f} is above {gates.max_compute_ratio:g}")
    if failed:
        raise PromotionRefused(f"version {config.shadow} of {name} is not promoted: {'; '.join(failed)}")
    write_pin(folder, config.shadow)
    return config.shadow, evidence


_Samples = list[tuple[str, Mapping[str, str], float]]


def _scrape(url: str) -> _Samples:
    if not url.startswith(("http://", "https://")):
        raise PromotionError(f"{url}: must be the http address of a server's metrics")
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - the scheme is checked above
            text = reply.read().decode()
    except (urllib.error.URLError, OSError, UnicodeDecodeError) as error:
        raise PromotionError(f"{url}: no metrics there: {error}") from None
    families = text_string_to_metric_families(text)
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def _total(samples: _Samples, name: str, **labels: str) -> float:
    return sum(value for found, own, value in samples if found == name and labels.items() <= own.items())


def _compute_ratio(samples: _Samples, name: str, shadow: int) -> float:
    """Seconds an image in the engine: the shadow's to those of all other versions. Infinite when either is unknown."""

    def seconds_per_image(*, is_shadow: bool) -> float:
        chosen = [s for s in samples if s[1].get("model") == name and (s[1].get("version") == str(shadow)) is is_shadow]
        images = _total(chosen, "cifarserve_images_total")
        return _total(chosen, "cifarserve_compute_seconds_sum") / images if images else 0.0

    primary = seconds_per_image(is_shadow=False)
    return seconds_per_image(is_shadow=True) / primary if primary else float("inf")
