"""The read side of the repository: what is served, what should be, and which version answers a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from service.catalogue import Catalogue
from service.errors import InvalidInput, ModelNotFound, ServiceError, Unavailable, short
from service.model_config import ModelConfig
from service.routing import Model
from service.serving import ServedModel

MOST_NAMES = 10  # in an error message


class Lookup:
    """To be used from one event loop."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._models: dict[str, Model] = {}
        # The models that must be served for the server to be ready: those that it was started for, and all that were
        # served since. A model that comes later and does not load is not ready itself, and takes no server away.
        self._required: set[str] = set()
        self._started = False

    @property
    def _recovering(self) -> Set[str]:
        """The models of which a version is out of service until it is loaded again."""
        raise NotImplementedError

    def find(self, name: str, version: int, sticky: str | None = None, field: str = "model") -> ServedModel:
        """The version that answers a request; an empty name means the only model, version 0 the server's choice.

        Raises ModelNotFound; InvalidInput, for `field`, when no model is named and several are served; Unavailable for
        what is there but not ready, or while the models are still loading.
        """
        model = self._models.get(name) or (None if name else self._sole())
        if model is not None:
            if version == 0:
                return model.route(sticky)
            if version in model.versions:
                return model.versions[version]
            name = model.name
        raise self._refusal(name, version, field)

    def _refusal(self, name: str, version: int, field: str) -> ServiceError:
        """Why no version answers a request."""
        if not self._started:
            return Unavailable("the models are loading")
        if not name and (served := self._models.keys() | self._recovering):
            if len(served) > 1:
                return InvalidInput(field, f"names no model, and several are served: {some(served)}; name one of them")
            (name,) = served
        if name and (last := self._catalogue.not_ready(name, version)) is not None:
            which = f" version {last.version}" if last.version else ""
            return Unavailable(f"{last.name}{which} is not ready: {last.state}; the log says why")
        if name and name not in self._models and name in self._required:
            return Unavailable(f"{short(name)} is not ready: it is not in the repository")
        if not name and (known := self._catalogue.known):
            return Unavailable(f"no model is served; not ready: {some(known)}; the log says why")
        served_now = some(f"{one.manifest.name} {one.manifest.version}" for one in self.models())
        which = f"version {version}" if version else "any version"
        return ModelNotFound(f"{short(name)}: {which} is not in the repository; served: {served_now or 'none'}")

    def _sole(self) -> Model | None:
        """The only model, if there is one: a model that is out of service for the moment counts too."""
        if len(self._models) != 1:
            return None
        (model,) = self._models.values()
        return model if self._recovering <= {model.name} else None

    def only(self) -> ServedModel | None:
        """The version that every request is for, when a single one is served."""
        model = self._sole()
        return next(iter(model.versions.values())) if model is not None and len(model.versions) == 1 else None

    def sticky_header(self, name: str) -> str:
        """The metadata key by which this model's requests are routed, or an empty text."""
        model = self._models.get(name) or (None if name else self._sole())
        return model.config.sticky_header if model else ""

    def shadow_of(self, served: ServedModel) -> ServedModel | None:
        """The version to which a request that `served` answers is mirrored: by its share, and only if it is ready."""
        model = self._models.get(served.manifest.name)
        return model.mirror(served) if model else None

    @property
    def missing(self) -> set[str]:
        """The models without which the server is not ready."""
        return (self._required | self._recovering) - self._models.keys()

    def ready(self) -> bool:
        """Whether every model that should be served is."""
        return self._started and not self.missing

    def config(self, name: str) -> ModelConfig:
        return self._models[name].config

    def versions(self, name: str) -> list[int]:
        """The versions of a model that are ready, ascending."""
        return sorted(self._served(name))

    def names(self) -> list[str]:
        """The models with a version that is ready."""
        return sorted(name for name, model in self._models.items() if model.versions)

    def known(self) -> set[str]:
        """The models that are served, that should be, or that are in the folder."""
        return self._models.keys() | self._required | self._catalogue.known

    def models(self) -> list[ServedModel]:
        """Everything served: by name, then by version, highest first."""
        return [
            self._models[name].versions[version]
            for name in self.names()
            for version in sorted(self._models[name].versions, reverse=True)
        ]

    def _served(self, name: str) -> Mapping[int, ServedModel]:
        """The versions of a model that are in service at this moment."""
        return self._models[name].versions if name in self._models else {}


def some(names: Iterable[str]) -> str:
    """The names for a message, the first ones of many."""
    found = sorted(names)
    more = f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else ""
    return ", ".join(found[:MOST_NAMES]) + more
