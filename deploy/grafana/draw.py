"""Draws the dashboard's queries, from a real Prometheus that scrapes a real server under load: draw.py OUT.png PICTURES

A stand-in for a screenshot where no Grafana runs; needs matplotlib, and Prometheus' binary. `cifarserve loadtest` sends
the PICTURES (a folder of files), one after the other, then more at a time, then more than the server can take, and then
noise, which the drift index must notice.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from tests.integration.prometheus_process import Prometheus, scraping
from tests.integration.server_process import ENVIRONMENT, ROOT, command, serving

PANELS = (
    "Requests by status",
    "Request time",
    "p99 of each stage",
    "Images",
    "Batch size",
    "Queue, share of its bound",
    "Engine busy",
    "Predicted classes",
    "Mean confidence",
    "Drift index",
    "Processor time",
    "Memory",
)
PICTURES = "with pictures"
PHASES = (
    ("one at a time", PICTURES, "--concurrency=1"),
    ("16 at a time", PICTURES, "--concurrency=16"),
    ("32 a request", PICTURES, "--images=32", "--concurrency=4"),
    ("too many", PICTURES, "--images=32", "--concurrency=96"),
    ("noise", "", "--images=32", "--concurrency=2"),
)
SECONDS_A_PHASE = 15
WINDOW = "10s"
UNITS = {"s": "seconds", "percentunit": "share", "reqps": "requests/s", "bytes": "bytes", "short": ""}


def main(out: str, pictures: str) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(ROOT / "models", Path(folder) / "log") as server,
        scraping(server.metrics_url, Path(folder) / "prometheus") as prometheus,
    ):
        began = time.time()
        phases = []
        for name, with_pictures, *flags in PHASES:
            phases.append((time.time() - began, name))
            flags += ["--target", server.target, "--seconds", str(SECONDS_A_PHASE), "--processes", "1"]
            flags += ["--pictures", pictures] if with_pictures else []
            arguments = command("loadtest", *flags)
            subprocess.run(arguments, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        draw(prometheus, began, time.time(), phases, out)


def draw(prometheus: Prometheus, began: float, ended: float, phases: list[tuple[float, str]], out: str) -> None:
    panels = {one["title"]: one for one in json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())["panels"]}
    figure, axes = plt.subplots(4, 3, figsize=(14, 12), constrained_layout=True)
    for title, axis in zip(PANELS, axes.flat, strict=True):
        draw_panel(panels[title], axis, prometheus, began, ended)
        for start, name in phases:
            axis.axvline(start, color="0.8", linewidth=0.8, zorder=0)
            if title in PANELS[:3]:
                axis.text(start, 1.01, f" {name}", fontsize=6, color="0.4", transform=axis.get_xaxis_transform())
    figure.suptitle(
        "Queries of deploy/grafana/dashboard.json, drawn by matplotlib from Prometheus: not a screenshot of Grafana.\n"
        "Seconds since start; server and load test on the same machine, beside other work."
    )
    figure.savefig(out, dpi=75, pil_kwargs={"optimize": True})


def draw_panel(panel: dict[str, Any], axis: Axes, prometheus: Prometheus, began: float, ended: float) -> None:
    for target in panel["targets"]:
        query = target["expr"].replace("$job", "cifarserve").replace("$model", ".*").replace("$__rate_interval", WINDOW)
        for series in prometheus.query_range(query, began, ended, 1):
            label = target["legendFormat"]
            for name, value in series["metric"].items():
                label = label.replace("{{" + name + "}}", value)
            points = np.array(series["values"], float)
            axis.plot(points[:, 0] - began, points[:, 1], label=label, linewidth=1)
    unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    axis.set_title(f"{panel['title']}{unit and f' [{unit}]'}", pad=12)
    axis.set_ylim(0, None)
    axis.legend(fontsize=6)


if __name__ == "__main__":
    main(*sys.argv[1:])
