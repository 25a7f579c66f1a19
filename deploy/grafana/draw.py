"""Draws the dashboard's queries, from a real Prometheus that scrapes a real server under load: draw.py OUT.png

A stand-in for a screenshot where no Grafana runs; needs matplotlib, and Prometheus' binary. Load comes and goes: four
callers, each asking for one image at a time, then for 32.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from service.client import Client, Options
from tests.integration.prometheus_process import scraping
from tests.integration.server_process import ROOT, serving

PANELS = (
    "Requests by status",
    "Request time",
    "p99 of each stage",
    "Images",
    "Batch size",
    "Engine busy",
    "Predicted classes",
    "Mean confidence",
    "Memory",
)
SECONDS_A_PHASE = 30
WINDOW = "10s"


def main(out: str) -> None:
    panels = {
        panel["title"]: panel for panel in json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())["panels"]
    }
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32, 32, 32, 3), np.uint8)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(ROOT / "models", Path(folder) / "log") as server,
        scraping(server.metrics_url, Path(folder) / "prometheus") as prometheus,
        Client(server.target, Options(timeout=60)) as client,
    ):
        began = time.time()
        for count in (1, 32):
            _load(client, images[:count], SECONDS_A_PHASE)
        figure, axes = plt.subplots(3, 3, figsize=(15, 9), constrained_layout=True)
        for title, axis in zip(PANELS, axes.flat, strict=True):
            for target in panels[title]["targets"]:
                query = target["expr"].replace("$job", "cifarserve").replace("$model", ".*")
                query = query.replace("$__rate_interval", WINDOW)
                for series in prometheus.query_range(query, began, time.time(), 1):
                    label = target["legendFormat"]
                    for name, value in series["metric"].items():
                        label = label.replace("{{" + name + "}}", value)
                    points = np.array(series["values"], float)
                    axis.plot(points[:, 0] - began, points[:, 1], label=label, linewidth=1)
            axis.set(title=f"{title} [{panels[title]['fieldConfig']['defaults']['unit']}]", ylim=(0, None))
            axis.legend(fontsize=7)
    figure.suptitle(
        "The dashboard's queries, drawn by matplotlib from Prometheus (no screenshot of Grafana); seconds since start"
    )
    figure.savefig(out, dpi=80)


def _load(client: Client, images: np.ndarray, seconds: float) -> None:
    end = time.monotonic() + seconds

    def call_on() -> None:
        while time.monotonic() < end:
            client.classify(list(images))

    callers = [threading.Thread(target=call_on) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()


if __name__ == "__main__":
    main(sys.argv[1])
