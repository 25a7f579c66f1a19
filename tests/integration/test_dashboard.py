"""The dashboard: Prometheus itself answers every query of it, from a live server; what it names, the server has."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from docs import generate
from service.client import Client, Options
from tests import colour_model
from tests.integration.prometheus_process import needs_prometheus, scraping
from tests.integration.server_process import ROOT, serving

FILE = ROOT / "deploy" / "grafana" / "dashboard.json"
# What Grafana puts in for its own variables.
VARIABLES = {"$job": "cifarserve", "$model": ".*", "$__rate_interval": "1m"}
# Panels of what a server does only when it is told to, or when something goes wrong, or with a GPU.
MAY_BE_EMPTY = {"Shadow: share that agrees", "Loads that failed", "GPU utilisation", "GPU memory"}


def queries() -> list[tuple[str, str]]:
    """(panel, expression), with Grafana's variables filled in."""
    found = []
    for panel in json.loads(FILE.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            found.append((panel["title"], expression))
    return found


def test_every_metric_on_the_dashboard_is_one_that_the_server_has_or_a_rule_records() -> None:
    rules = "".join((ROOT / "deploy" / "prometheus" / name).read_text() for name in generate.RULES)
    known = set(re.findall(r"record: (\S+)", rules))
    for family in (*generate.own_families(), *generate.process_families()):
        known |= {family.name, *(f"{family.name}_{part}" for part in ("bucket", "count", "sum"))}
    named = set(re.findall(r"[a-z_:]*(?:cifarserve|process|grpc_server)_[a-z0-9_:]+", FILE.read_text()))
    assert len(named) > 20
    assert named <= known


def test_panels_have_each_a_place_of_their_own() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in json.loads(FILE.read_text())["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert max(x for x, _ in own) < 24
        assert not own & cells, panel["title"]
        cells |= own


@needs_prometheus
def test_every_query_gives_data_of_a_live_server(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models, baseline=colour_model.BASELINE)
    images = list(colour_model.distinct(250))
    with (
        serving(models, tmp_path / "log") as server,
        scraping(server.metrics_url, tmp_path / "prometheus") as prometheus,
        Client(server.target, Options(timeout=60)) as client,
    ):
        unanswered = queries()
        assert len(unanswered) > 20
        # A rate needs two scrapes, and what is recorded of it an evaluation more: traffic until then.
        deadline = time.monotonic() + 120
        while unanswered and time.monotonic() < deadline:
            client.classify(images)
            with pytest.raises(Exception, match="images"):
                client.classify([])
            unanswered = [
                (panel, query) for panel, query in unanswered
                if not prometheus.query(query) and panel not in MAY_BE_EMPTY and "dropped" not in query
            ]  # fmt: skip
        assert not unanswered
