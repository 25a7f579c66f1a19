"""What is in deploy/kubernetes agrees with itself: selectors, ports, policies, volumes, patience."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from service import tracing
from service.cli import _parser
from tests.integration.kubernetes_builds import (
    DEPLOY,
    OVERLAYS,
    built,
    needs_kubectl,
    of_kind,
    pods,
    settings_of,
    without,
)


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_load_test_asks_the_servers_and_may_reach_them(overlay: str) -> None:
    resources = built(overlay, ("loadtest",))
    deployment = of_kind(resources, "Deployment")["spec"]["template"]
    job = of_kind(resources, "Job")["spec"]["template"]
    (server,), (loadtest,) = deployment["spec"]["containers"], job["spec"]["containers"]
    assert loadtest["image"] == server["image"]
    options = _parser().parse_args(loadtest["args"])
    service = of_kind(resources, "Service")
    port = settings_of(resources).port
    assert options.target == f"dns:///{service['metadata']['name']}:{port}"
    # A headless service's name stands for all pods; without this, one of them would be measured.
    assert options.round_robin
    policy = of_kind(resources, "NetworkPolicy", "cifarserve-loadtest")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= job["metadata"]["labels"].items()
    to_servers, to_names = policy["egress"]
    assert to_servers["to"][0]["podSelector"]["matchLabels"].items() <= deployment["metadata"]["labels"].items()
    assert to_servers["ports"] == [{"port": port}]
    assert {one["port"] for one in to_names["ports"]} == {53}
    assert not job["metadata"]["labels"].items() >= service["spec"]["selector"].items(), "it would be asked itself"


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_load_test_of_secured_servers_has_their_authority_and_the_token_for_inference_alone(overlay: str) -> None:
    resources = built(overlay, ("loadtest", "secured"))
    pod = of_kind(resources, "Job")["spec"]["template"]["spec"]
    (loadtest,) = pod["containers"]
    options = _parser().parse_args(loadtest["args"])
    (certificate,) = (one for one in resources if one["kind"] == "Certificate")
    assert options.target.removeprefix("dns:///").partition(":")[0] in certificate["spec"]["dnsNames"]
    folders = {mount["name"]: mount["mountPath"] for mount in loadtest["volumeMounts"]}
    files = {
        f"{folders[volume['name']]}/{item['path']}": (volume["secret"]["secretName"], item["key"])
        for volume in pod["volumes"]
        for item in volume.get("secret", {}).get("items", ())
    }
    assert files == {
        str(options.tls_ca): (certificate["spec"]["secretName"], "ca.crt"),
        str(options.token_file): ("cifarserve-tokens", "inference"),
    }
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    server = settings_of(resources)
    assert str(options.token_file) == server.token_file
    assert str(options.token_file) != server.admin_token_file


@needs_kubectl
def test_traces_have_a_way_out_to_the_collector_that_they_are_sent_to() -> None:
    resources = built("cpu", ("tracing",))
    (server,) = of_kind(resources, "Deployment")["spec"]["template"]["spec"]["containers"]
    variables = {one["name"]: one["value"] for one in server["env"]}
    collector = urlsplit(variables[tracing.ENDPOINT])
    to_collector, _ = of_kind(resources, "NetworkPolicy", "cifarserve-tracing")["spec"]["egress"]
    (place,) = to_collector["to"]
    assert place["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": str(collector.hostname).split(".")[1]
    }
    assert to_collector["ports"] == [{"port": collector.port}]
    assert of_kind(resources, "NetworkPolicy", "cifarserve")["spec"]["egress"] == []


@needs_kubectl
def test_every_selector_finds_pods_and_every_scaler_the_deployment() -> None:
    for chosen in (without("autoscaling"), without("autoscaling-keda")):
        resources = built("cpu", chosen)
        templates = [
            one["spec"]["template"]["metadata"]["labels"] for one in resources if "template" in one.get("spec", {})
        ]
        templates.append(of_kind(resources, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"])
        deployment = of_kind(resources, "Deployment")
        for policy in (one for one in resources if one["kind"] == "NetworkPolicy"):
            wanted = policy["spec"]["podSelector"]["matchLabels"].items()
            assert any(wanted <= labels.items() for labels in templates), policy["metadata"]["name"]
        ports = {port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
        for policy in (one for one in resources if one["kind"] == "NetworkPolicy"):
            used = {port["port"] for rule in policy["spec"].get("ingress", ()) for port in rule["ports"]}
            assert used <= ports
        monitor, service = of_kind(resources, "ServiceMonitor"), of_kind(resources, "Service")
        assert {one["port"] for one in monitor["spec"]["endpoints"]} <= {
            one["name"] for one in service["spec"]["ports"]
        }
        for spread in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            labels = deployment["spec"]["template"]["metadata"]["labels"]
            assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
        scalers = [one["spec"] for one in resources if one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
        assert [one["scaleTargetRef"]["name"] for one in scalers] == [deployment["metadata"]["name"]]
        # Two, so that one may end at any time: what the disruption budget and the rollout count on.
        assert all(one.get("minReplicas", one.get("minReplicaCount")) >= 2 for one in scalers)


@needs_kubectl
def test_the_retraining_does_not_overlap_itself_and_shares_its_volume_with_all_replicas() -> None:
    resources = built("gpu", ("retrain",))
    job = of_kind(resources, "CronJob")["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    assert 0 < job["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 7 * 86400, "before the next one"
    claims = {one["metadata"]["name"]: one["spec"] for one in resources if one["kind"] == "PersistentVolumeClaim"}
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for _, spec in pods(resources)
        for volume in spec["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert used == claims.keys()
    assert all(claim["accessModes"] == ["ReadWriteMany"] for claim in claims.values())
    settings = settings_of(resources)
    assert settings.model_control == "poll"
    (server,) = of_kind(resources, "Deployment")["spec"]["template"]["spec"]["containers"]
    places = {mount["name"]: mount["mountPath"] for mount in server["volumeMounts"]}
    # Where the image has its own models, by the Dockerfile.
    assert f"CIFARSERVE_MODEL_REPOSITORY={places['models']}" in (DEPLOY / "docker" / "Dockerfile").read_text()


@needs_kubectl
@pytest.mark.parametrize(("overlay", "seconds"), [("cpu", 180), ("gpu", 600)])
def test_models_have_their_time_to_load_before_the_liveness_probe_counts(overlay: str, seconds: int) -> None:
    (server,) = of_kind(built(overlay, ()), "Deployment")["spec"]["template"]["spec"]["containers"]
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= seconds
    assert {"XDG_CACHE_HOME": "/cache"}.items() <= {
        one["name"]: one["value"] for one in server.get("env", ())
    }.items() or (overlay == "cpu")
