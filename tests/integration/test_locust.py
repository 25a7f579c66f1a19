"""deploy/loadtest/locustfile.py, run by locust itself, against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests import colour_model
from tests.integration.server_process import ENVIRONMENT, ROOT, ServerProcess

LOCUSTFILE = ROOT / "deploy/loadtest/locustfile.py"


def locust(*flags: object) -> tuple[subprocess.CompletedProcess[str], dict[str, object]]:
    """The end of a headless run of three seconds, and its only row of figures."""
    command = [sys.executable, "-m", "locust", "-f", LOCUSTFILE, "--headless", "--json", "--users", 4]
    command += ["--spawn-rate", 4, "--run-time", "3s", "--stop-timeout", 5, *flags]
    done = subprocess.run([*map(str, command)], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    (row,) = json.loads(done.stdout)
    return done, row


def test_locust_counts_what_the_server_counts(server: ServerProcess, tmp_path: Path) -> None:
    for number, image in enumerate(colour_model.distinct(3)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    before = server.metric("cifarserve_requests_total", code="OK")
    done, row = locust("--host", server.target, "--images", 2, "--pictures", tmp_path)
    assert done.returncode == 0, done.stderr
    assert row["name"] == "Classify, 2 image(s)"
    assert row["num_failures"] == 0
    assert row["num_requests"] == server.metric("cifarserve_requests_total", code="OK") - before > 0


def test_what_fails_is_counted_and_makes_locust_fail(server: ServerProcess) -> None:
    done, row = locust("--host", server.target, "--model", "other")
    assert done.returncode == 1
    assert row["num_failures"] == row["num_requests"]
    assert "NOT_FOUND" in done.stderr
