"""Every combination of overlay and components is built by kubectl and is what Kubernetes, and the code, know."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from docs import generate
from service import config, health
from service.cli import _parser
from tests.integration.custom_resources import SPECS
from tests.integration.server_process import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
OVERLAYS = sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir())
COMPONENTS = sorted(folder.name for folder in (KUBERNETES / "components").iterdir())
# The oldest Kubernetes that has all that is used: gRPC probes, PodDisruptionBudget's unhealthyPodEvictionPolicy.
RELEASES = ("1.31", kubernetes_validate.latest_version())
Resource = dict[str, Any]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, for its kustomize")


def build(folder: Path) -> list[Resource]:
    result = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def combinations() -> list[tuple[str, ...]]:
    """All sets of components, but those with two autoscalers."""
    sets = (chosen for size in range(len(COMPONENTS) + 1) for chosen in itertools.combinations(COMPONENTS, size))
    return [chosen for chosen in sets if not {"autoscaling", "autoscaling-keda"} <= set(chosen)]


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
        elif kind == "ServingRuntime":
            yield kind, resource["spec"]


def settings_of(resources: list[Resource]) -> config.Settings:
    (found,) = (one["data"] for one in resources if one["metadata"]["name"].startswith("cifarserve-settings"))
    assert {name.removeprefix("CIFARSERVE_").lower() for name in found} <= config.FIELDS.keys()
    return config.load({}, found)


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_combination_is_built_and_valid(overlay: str) -> None:
    assert len(combinations()) == 48
    resources = distinct(resource for chosen in combinations() for resource in built(overlay, chosen))
    assert {resource["kind"] for resource in resources} >= {"Deployment", "CronJob", "HorizontalPodAutoscaler"}
    for resource in resources:
        check(resource)


def test_what_is_for_kserve_is_valid() -> None:
    for resource in kserve():
        check(resource)
    ((_, spec),) = pods(kserve())
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": spec["containers"]}}
    check(pod)


def check(resource: Resource) -> None:
    key = resource["apiVersion"], resource["kind"]
    if key in SPECS:
        jsonschema.validate(resource["spec"], SPECS[key])
        return
    for release in RELEASES:
        kubernetes_validate.validate(resource, release, strict=True)


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_built_as_it_is_and_makes_its_own_namespace(overlay: str) -> None:
    resources = build(KUBERNETES / "overlays" / overlay)
    (name,) = (one["metadata"]["name"] for one in resources if one["kind"] == "Namespace")
    assert {one["metadata"]["namespace"] for one in resources if one["kind"] != "Namespace"} == {name}


@needs_kubectl
def test_a_wrong_field_is_refused_so_the_check_above_can_fail() -> None:
    (deployment,) = (one for one in built("cpu", ()) if one["kind"] == "Deployment")
    deployment = json.loads(json.dumps(deployment))
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 30
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, RELEASES[-1], strict=True)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            {"predictor": {"model": {"format": "x"}}}, SPECS["serving.kserve.io/v1beta1", "InferenceService"]
        )


@needs_kubectl
def test_pods_have_images_commands_and_settings_that_exist() -> None:
    for kind, spec in pods(everything()):
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            image, tag = container["image"].split(":")
            assert (image, tag) in {
                ("cifarserve", VERSION),
                ("cifarserve", f"{VERSION}-gpu"),
                ("cifarserve-train", VERSION),
            }
            assert kind == "CronJob" or image == "cifarserve"
            if "args" in container:
                _parser().parse_args(container["args"])
            own = {one["name"]: one["value"] for one in container.get("env", ())}
            assert {name.removeprefix("CIFARSERVE_").lower() for name in own} <= config.FIELDS.keys()
            config.load({}, own)
            mounts = {mount["name"] for mount in container.get("volumeMounts", ())}
            assert mounts <= {volume["name"] for volume in spec.get("volumes", ())}


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_may_only_read_metrics_meets_no_page(overlay: str) -> None:
    assert settings_of(built(overlay, ())).page == (overlay == "dev")
    ((_, spec),) = pods(kserve())
    assert {"name": "CIFARSERVE_PAGE", "value": "false"} in spec["containers"][0]["env"]


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_probes_and_patience_are_those_of_the_server(overlay: str) -> None:
    for chosen in ((), tuple(one for one in COMPONENTS if one != "autoscaling-keda")):
        resources = built(overlay, chosen)
        settings = settings_of(resources)
        ((_, spec),) = ((kind, spec) for kind, spec in pods(resources) if kind == "Deployment")
        (server,) = spec["containers"]
        ports = {port["name"]: port["containerPort"] for port in server["ports"]}
        assert ports == {"grpc": settings.port, "metrics": settings.metrics_port}
        probes = {name: server[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
        if settings.tls_certificate:  # which the kubelet's gRPC probes do not speak
            assert not any("grpc" in probe for probe in probes.values())
            asked = {name: (probe["httpGet"]["path"], probe["httpGet"]["port"]) for name, probe in probes.items()}
            ready = ("/ready", "metrics")
            assert asked == {"startup": ready, "readiness": ready, "liveness": ("/live", "metrics")}
            mounted = {mount["mountPath"] for mount in server["volumeMounts"]}
            for file in (settings.tls_certificate, settings.tls_key, settings.token_file, settings.admin_token_file):
                assert str(Path(file).parent) in mounted
        else:
            assert all(probe["grpc"]["port"] == settings.port for probe in probes.values())
            assert probes["liveness"]["grpc"]["service"] == health.LIVENESS
            assert "service" not in probes["readiness"]["grpc"]
        patience = settings.lame_duck_seconds + settings.drain_seconds
        assert spec["terminationGracePeriodSeconds"] >= patience + 5
        readiness = server["readinessProbe"]
        assert (
            overlay == "dev" or settings.lame_duck_seconds > readiness["periodSeconds"] * readiness["failureThreshold"]
        )
        (service,) = (one["spec"] for one in resources if one["kind"] == "Service")
        assert service["clusterIP"] == "None"
        assert {port["name"]: port["port"] for port in service["ports"]} == ports
        assert settings.max_connection_age_seconds > 0
        # Without this, Kubernetes itself sets CIFARSERVE_PORT to an address.
        assert spec["enableServiceLinks"] is False
        limits = server["resources"]["limits"]
        assert overlay == "dev" or limits["cpu"] == server["resources"]["requests"]["cpu"]


@needs_kubectl
def test_pods_are_restricted_and_labels_find_them() -> None:
    for overlay in OVERLAYS:
        resources = built(overlay, tuple(one for one in COMPONENTS if one != "autoscaling"))
        for _, spec in pods(resources):
            assert spec["automountServiceAccountToken"] is False
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in (*spec.get("initContainers", ()), *spec["containers"]):
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
                assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        (deployment,) = (one["spec"] for one in resources if one["kind"] == "Deployment")
        labels = deployment["template"]["metadata"]["labels"]
        assert "replicas" not in deployment, "the autoscaler owns it"
        for resource in resources:
            spec = resource.get("spec", {})
            if resource["kind"] == "Service":
                assert spec["selector"].items() <= labels.items()
                found = resource["metadata"]["labels"]
            elif resource["kind"] == "PodDisruptionBudget":
                assert spec["selector"]["matchLabels"].items() <= labels.items()
        (monitor,) = (one["spec"] for one in resources if one["kind"] == "ServiceMonitor")
        assert monitor["selector"]["matchLabels"].items() <= found.items()


@needs_kubectl
def test_the_rules_and_the_dashboard_in_the_cluster_are_the_plain_files() -> None:
    resources = built("cpu", ("monitoring",))
    (rule,) = (one["spec"]["groups"] for one in resources if one["kind"] == "PrometheusRule")
    plain = [yaml.safe_load((DEPLOY / "prometheus" / name).read_text())["groups"] for name in generate.RULES]
    assert rule == [group for groups in plain for group in groups]
    (dashboard,) = (one for one in resources if one["metadata"].get("labels", {}).get("grafana_dashboard"))
    assert dashboard["data"]["dashboard.json"] == (DEPLOY / "grafana" / "dashboard.json").read_text()


def test_autoscalers_ask_for_a_metric_that_the_server_has() -> None:
    folder = KUBERNETES / "components"
    (pods_metric, _) = yaml.safe_load((folder / "autoscaling/autoscaler.yaml").read_text())["spec"]["metrics"]
    (rule,) = yaml.safe_load((folder / "autoscaling/adapter-rule.yaml").read_text())["rules"]["custom"]
    assert rule["name"]["as"] == pods_metric["pods"]["metric"]["name"]
    (trigger, _) = yaml.safe_load((folder / "autoscaling-keda/scaled-object.yaml").read_text())["spec"]["triggers"]
    known = {family.name for family in generate.own_families()}
    for query in (rule["seriesQuery"], rule["metricsQuery"], trigger["metadata"]["query"]):
        (name,) = set(re.findall(r"cifarserve_\w+", query))
        assert name in known


def test_seeding_copies_what_is_missing_and_touches_nothing_else(tmp_path: Path) -> None:
    source, target = tmp_path / "image", tmp_path / "volume"
    for version in ("1", "2"):
        (source / "m" / version).mkdir(parents=True)
        (source / "m" / version / "model.onnx").write_text(f"image {version}")
    (target / "m" / "1").mkdir(parents=True)
    (target / "m" / "1" / "model.onnx").write_text("published")
    script = KUBERNETES / "components" / "retrain" / "seed.py"
    for _ in range(2):
        subprocess.run([sys.executable, script, source, target], check=True, timeout=60)
    assert {str(path.relative_to(target)): path.read_text() for path in target.rglob("*.onnx")} == {
        "m/1/model.onnx": "published",
        "m/2/model.onnx": "image 2",
    }
    assert sorted(path.name for path in (target / "m").iterdir()) == ["1", "2"]
