"""Every overlay with every two components, and all, is built by kubectl and is what Kubernetes, and the code, know."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from docs import generate
from service import config, health
from service.cli import _parser
from tests.integration.custom_resources import SPECS
from tests.integration.kubernetes_builds import (
    DEPLOY,
    KUBERNETES,
    OTHERS,
    OVERLAYS,
    RELEASES,
    VERSION,
    Resource,
    build,
    built,
    combinations,
    distinct,
    everything,
    kserve,
    needs_kubectl,
    pods,
    settings_of,
    without,
)
from tests.integration.server_process import ROOT


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_combination_is_built_and_valid(overlay: str) -> None:
    assert len(combinations()) == 38
    resources = distinct(resource for chosen in combinations() for resource in built(overlay, chosen))
    assert {resource["kind"] for resource in resources} >= {"Deployment", "CronJob", "Job", "HorizontalPodAutoscaler"}
    for resource in resources:
        check(resource)


def test_what_is_for_kserve_is_valid() -> None:
    for resource in kserve():
        check(resource)
    ((_, spec),) = pods(kserve())
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": spec["containers"]}}
    check(pod)


def fields_unknown_to_kserve(resources: list[Resource]) -> list[str]:
    command = [sys.executable, str(ROOT / "tests/integration/kserve_fields.py")]
    result = subprocess.run(command, input=json.dumps(resources), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found: list[str] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_kserve_itself_knows_every_field() -> None:
    assert fields_unknown_to_kserve(kserve()) == []
    service, _ = kserve()
    service["spec"]["predictor"]["canaryPercent"] = 10
    service["spec"]["predictor"]["model"]["modelFormat"]["named"] = "x"
    assert fields_unknown_to_kserve([service]) == [
        "V1beta1InferenceService.spec.predictor.model.modelFormat.named",
        "V1beta1InferenceService.spec.predictor.canaryPercent",
    ]


def broken_rules(resources: list[Resource]) -> list[str]:
    command = ["node", str(ROOT / "tests/integration/published_rules.mjs")]
    result = subprocess.run(command, input=json.dumps(resources), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found: list[str] = json.loads(result.stdout)
    return found


@needs_kubectl
@pytest.mark.skipif(
    shutil.which("node") is None or not (ROOT / "node_modules" / "@kubernetes-models").is_dir(),
    reason="needs Node.js and the packages that custom_resources.py names",
)
def test_the_other_custom_resources_obey_their_projects_published_rules() -> None:
    ours = [
        one for one in everything() if (one["apiVersion"], one["kind"]) in SPECS and "kserve" not in one["apiVersion"]
    ]
    assert {one["kind"] for one in ours} == {"ServiceMonitor", "PrometheusRule", "ScaledObject", "Certificate"}
    assert broken_rules(ours) == []
    (scaled, *_) = (one for one in ours if one["kind"] == "ScaledObject")
    scaled["spec"]["pollingSeconds"] = 15
    assert broken_rules([scaled]) == ["ScaledObject: spec.pollingSeconds is not known"]


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
            own = {one["name"]: one["value"] for one in container.get("env", ()) if one["name"] not in OTHERS}
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
    for chosen in ((), without("autoscaling-keda")):
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
        resources = built(overlay, without("autoscaling"))
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
        # As several pods do, at the same time.
        seeds = [subprocess.Popen([sys.executable, script, source, target]) for _ in range(4)]
        assert [seed.wait(60) for seed in seeds] == [0] * 4
    assert {str(path.relative_to(target)): path.read_text() for path in target.rglob("*.onnx")} == {
        "m/1/model.onnx": "published",
        "m/2/model.onnx": "image 2",
    }
    assert sorted(path.name for path in (target / "m").iterdir()) == ["1", "2"]
