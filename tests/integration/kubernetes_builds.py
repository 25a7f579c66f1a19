"""What kubectl makes of the overlays and components in deploy/kubernetes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service import config, tracing
from tests.integration.server_process import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
OVERLAYS = sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir())
COMPONENTS = sorted(folder.name for folder in (KUBERNETES / "components").iterdir())
AUTOSCALERS = ("autoscaling", "autoscaling-keda")
# The oldest Kubernetes that has all that is used: gRPC probes, PodDisruptionBudget's unhealthyPodEvictionPolicy.
RELEASES = ("1.31", kubernetes_validate.latest_version())
# Variables that are no settings of ours: OpenTelemetry's, and where libraries keep what they compile.
OTHERS = {tracing.ENDPOINT, "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "XDG_CACHE_HOME", "CUDA_CACHE_PATH"}
Resource = dict[str, Any]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, for its kustomize")


def build(folder: Path) -> list[Resource]:
    result = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def combinations() -> list[tuple[str, ...]]:
    """No component, each, each two together, and as many as go together: of the two autoscalers one."""
    few = (chosen for size in range(3) for chosen in itertools.combinations(COMPONENTS, size))
    pairs = [chosen for chosen in few if not set(AUTOSCALERS) <= set(chosen)]
    return [*pairs, *(without(one) for one in AUTOSCALERS)]


def without(component: str) -> tuple[str, ...]:
    return tuple(one for one in COMPONENTS if one != component)


@cache
def all_built(overlay: str) -> dict[tuple[str, ...], list[Resource]]:
    """`overlay` with each set of components: in one run, where each has a namespace to be told apart by."""
    with scratch() as folder:
        up = os.path.relpath(KUBERNETES, folder)
        names = {f"set-{number}": chosen for number, chosen in enumerate(combinations())}
        for name, chosen in names.items():
            document = {
                "resources": [f"../{up}/overlays/{overlay}"],
                "components": [f"../{up}/components/{component}" for component in chosen],
                "namespace": name,
            }
            (folder / name).mkdir()
            (folder / name / "kustomization.yaml").write_text(yaml.safe_dump(document))
        (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": list(names)}))
        resources = build(folder)
    found: dict[tuple[str, ...], list[Resource]] = {chosen: [] for chosen in combinations()}
    for resource in resources:
        metadata = resource["metadata"]
        found[names[metadata.pop("namespace", metadata["name"])]].append(resource)
    return found


def built(overlay: str, chosen: tuple[str, ...]) -> list[Resource]:
    return all_built(overlay)[chosen]


class scratch:  # noqa: N801
    """A folder beside the project's own: kustomize takes no absolute paths, nor those that lead through links."""

    def __enter__(self) -> Path:
        self.path = KUBERNETES / f".built-{os.getpid()}"
        self.path.mkdir()
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path)


def distinct(resources: Iterable[Resource]) -> list[Resource]:
    return list({json.dumps(resource, sort_keys=True): resource for resource in resources}.values())


def kserve() -> list[Resource]:
    return [yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "kserve").glob("*.yaml"))]


def everything() -> list[Resource]:
    """Every different resource of all combinations, and those for KServe."""
    from_kustomize = (one for name in OVERLAYS for resources in all_built(name).values() for one in resources)
    return distinct((*from_kustomize, *kserve()))


def pods(resources: list[Resource]) -> Iterator[tuple[str, Resource]]:
    """(kind, spec) of every pod that the resources make."""
    for resource in resources:
        kind = resource["kind"]
        if kind == "Deployment":
            yield kind, resource["spec"]["template"]["spec"]
        elif kind == "CronJob":
            yield kind, resource["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        elif kind == "Job":
            yield kind, resource["spec"]["template"]["spec"]
        elif kind == "ServingRuntime":
            yield kind, resource["spec"]


def settings_of(resources: list[Resource]) -> config.Settings:
    (found,) = (one["data"] for one in resources if one["metadata"]["name"].startswith("cifarserve-settings"))
    assert {name.removeprefix("CIFARSERVE_").lower() for name in found} <= config.FIELDS.keys()
    return config.load({}, found)


def of_kind(resources: list[Resource], kind: str, name: str = "") -> Resource:
    (found,) = (one for one in resources if one["kind"] == kind and name in ("", one["metadata"]["name"]))
    return found
