"""The rules: accepted by Prometheus' own tool, with its tests; about metrics that exist; each alert with a runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs import generate
from service.client import Client, Options
from service.version_metrics import FAILURES
from tests import colour_model
from tests.integration.prometheus_process import needs_prometheus, scraping
from tests.integration.server_process import ROOT, serving

RULES = ROOT / "deploy" / "prometheus"
# Metrics in the rules that others export: Prometheus itself, and cert-manager.
FOREIGN = {"up", "certmanager_certificate_expiration_timestamp_seconds"}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "rules.yml", "alerts.yml"),
        ("test", "rules", "alerts_test.yml", "slow_alerts_test.yml"),
        ("check", "config", "prometheus.yml"),
    ],
)
def test_promtool_accepts_the_rules_and_their_tests_pass(arguments: tuple[str, ...]) -> None:
    result = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_metric_in_a_rule_is_one_that_the_server_has_or_a_rule_records() -> None:
    text = "".join((RULES / name).read_text() for name in generate.RULES)
    recorded = set(re.findall(r"record: (\S+)", text))
    known = FOREIGN | recorded
    for family in (*generate.own_families(), *generate.supervisor_families(), *generate.process_families()):
        known |= {family.name, *(f"{family.name}_{part}" for part in ("bucket", "count", "sum"))}
    expressions = [
        rule["expr"]
        for group in yaml.safe_load(generate.prometheus_rule())["spec"]["groups"]
        for rule in group["rules"]
    ]
    named = {
        name
        for expression in expressions
        for name in re.findall(r"[a-z_:]*(?:cifarserve|process|certmanager)_[a-z0-9_:]+", expression)
    }
    assert len(named) > 30
    assert named <= known


def test_the_codes_of_failures_are_those_that_the_server_counts_from_the_start() -> None:
    found = set(re.findall(r'code=~"([A-Z_|]+)"', (RULES / "rules.yml").read_text()))
    assert found == {"|".join(FAILURES)}


def test_every_alert_has_unit_tests_and_a_runbook_under_its_name() -> None:
    headings = re.findall(r"^#+ (Cifarserve\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    tests = (RULES / "alerts_test.yml").read_text() + (RULES / "slow_alerts_test.yml").read_text()
    for alert in alerts():
        name = alert["alert"]
        assert name in headings
        assert alert["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        assert re.search(rf"alertname: {name}\n +exp_alerts:\n +- exp_labels", tests), f"{name} is never tested to fire"
    assert sorted(headings) == sorted(alert["alert"] for alert in alerts())


@needs_prometheus
def test_prometheus_evaluates_every_rule_on_a_live_server(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    # The second version cannot be loaded, which must raise an alert.
    colour_model.edit_manifest(colour_model.publish(models, version=2), labels=None)
    with (
        serving(models, tmp_path / "log") as server,
        scraping(server.metrics_url, tmp_path / "prometheus") as prometheus,
        Client(server.target, Options(timeout=60)) as client,
    ):
        traffic = 'job_model_version_code:cifarserve_requests:rate5m{model="colours", version="1", code="OK"} > 0'
        while not (prometheus.query(traffic) and prometheus.query("job:cifarserve_failures:ratio_rate5m")):
            client.classify([colour_model.plain((255, 0, 0))])
        rules = prometheus.rules()
        assert {rule["health"] for rule in rules} == {"ok"}, [rule for rule in rules if rule["health"] != "ok"]
        assert {rule["name"] for rule in rules if rule["type"] == "alerting"} == {one["alert"] for one in alerts()}
        (failures,) = prometheus.query("job:cifarserve_failures:ratio_rate5m")
        assert (failures["metric"]["job"], float(failures["value"][1])) == ("cifarserve", 0.0)
        # The failure was there before Prometheus was: the series never went up.
        firing = 'ALERTS{alertname="CifarserveLoadFailed", reason="manifest", alertstate="firing"}'
        assert prometheus.query(firing)
