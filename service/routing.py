"""Which version of a model answers a request that names none: the highest, or by traffic shares."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from service.model_config import ModelConfig
from service.serving import ServedModel


@dataclass
class Model:
    """One model: the versions of it that are ready, by number, and what its config.toml says of them."""

    name: str
    config: ModelConfig
    versions: dict[int, ServedModel] = field(default_factory=dict)

    def route(self, sticky: str | None) -> ServedModel:
        """The version for a request that names none: by the traffic shares, else the highest but the shadow.

        The same `sticky` text always gets the same version, as long as the shares stay.
        """
        shares = {version: share for version, share in self.config.traffic.items() if version in self.versions}
        if sum(shares.values()) > 0:
            point = random.random() if sticky is None else _unit(f"{self.name}\n{sticky}")
            return self.versions[_pick(shares, point)]
        regular = [version for version in self.versions if version != self.config.shadow]
        return self.versions[max(regular or self.versions)]

    def mirror(self, served: ServedModel) -> ServedModel | None:
        """The shadow that gets a copy of a request that `served` answers: by its share, and only if it is ready."""
        if not self.config.shadow or self.config.shadow == served.manifest.version:
            return None
        return self.versions.get(self.config.shadow) if random.random() < self.config.shadow_share else None


def _unit(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone, evenly spread."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _pick(shares: Mapping[int, float], point: float) -> int:
    """The key whose interval holds `point`, when [0, 1) is divided by `shares` in the order of the keys."""
    threshold = point * sum(shares.values())
    for version in sorted(shares):
        threshold -= shares[version]
        if threshold < 0:
            return version
    return max(version for version, share in shares.items() if share > 0)
