"""Runs the real Prometheus with the rules of deploy/prometheus on one server, and asks it as a dashboard would."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.server_process import ROOT

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs prometheus, of Debian's package of that name"
)


@dataclass
class Prometheus:
    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples that an instant query gives. Raises HTTPError for a query that does not parse."""
        found: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return found

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get("query_range", query=expression, start=start, end=end, step=step)[
            "result"
        ]
        return found

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str, **parameters: object) -> dict[str, Any]:
        with urllib.request.urlopen(
            f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=30
        ) as reply:
            data: dict[str, Any] = json.load(reply)["data"]
        return data


@contextmanager
def scraping(metrics_url: str, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes and evaluates every second; ready, and its first evaluation done, when this yields."""
    folder.mkdir()
    configuration = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(ROOT / "deploy/prometheus" / name) for name in configuration["rule_files"]]
    (job,) = (job for job in configuration["scrape_configs"] if job["job_name"] == "cifarserve")
    target = urllib.parse.urlsplit(metrics_url).netloc
    configuration["scrape_configs"] = [{"job_name": job["job_name"], "static_configs": [{"targets": [target]}]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["prometheus", *arguments, f"--web.listen-address={address}"], stderr=log, stdout=log
        )
    try:
        prometheus = Prometheus(f"http://{address}")
        deadline = time.monotonic() + 60
        while not _evaluated(prometheus):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield prometheus
    finally:
        process.terminate()
        process.wait(30)


def _evaluated(prometheus: Prometheus) -> bool:
    try:
        rules = prometheus.rules()
    except (urllib.error.URLError, ConnectionError):
        return False
    return bool(rules) and all(rule["health"] != "unknown" for rule in rules)
