"""The alert rules: accepted by Prometheus' own tool, with its unit tests, and about metrics that the server has."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from service.metrics import Metrics
from tests.integration.server_process import ROOT

RULES = ROOT / "deploy" / "prometheus"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
@pytest.mark.parametrize("arguments", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")])
def test_promtool_accepts_the_rules_and_their_tests_pass(arguments: tuple[str, ...]) -> None:
    result = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_metric_in_a_rule_is_one_that_the_server_has() -> None:
    named = set(re.findall(r"cifarserve_[a-z_]+", (RULES / "alerts.yml").read_text()))
    families = {family.name for family in Metrics().registry.collect()}
    assert named
    assert {name.removesuffix("_total") for name in named} <= families
