"""Runs `cifarserve serve` as a process of its own, as a user would, and reads from its output where it listens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}", "PYTHONUNBUFFERED": "1"}


@dataclass
class ServerProcess:
    process: subprocess.Popen[str]
    log: Path
    announced: list[str]
    target: str
    metrics_url: str

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Every sample by name and labels, through Prometheus' own parser."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as reply:
            families = text_string_to_metric_families(reply.read().decode())
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of `name` that have these labels."""
        wanted = labels.items()
        return sum(
            value for (found, own), value in self.metrics().items() if found == name and wanted <= dict(own).items()
        )

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = 60) -> int:
        return self.process.wait(timeout)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "service.cli", *map(str, arguments)]


def cli(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `cifarserve` with these arguments to its end."""
    return subprocess.run(command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=120, **options)


@contextmanager
def serving(
    repository: Path,
    log: Path,
    *flags: object,
    environment: dict[str, str] | None = None,
    port: int = 0,
    prefix: Sequence[str] = (),
) -> Iterator[ServerProcess]:
    """A server on free ports, ready when this yields. It must end by itself within a minute of a SIGTERM.

    `environment` is added to that of the tests; `prefix` is a command that runs the server.
    """
    arguments = command("serve", "--model-repository", repository, "--port", port, "--metrics-port", 0, *flags)
    arguments = [*prefix, *arguments]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=stderr, text=True, env=ENVIRONMENT | (environment or {})
        )
    try:
        announced = []
        assert process.stdout is not None
        for line in process.stdout:
            announced.append(line.rstrip("\n"))
            if line.startswith("try"):
                break
        else:
            raise AssertionError(f"the server did not start:\n{log.read_text()}")
        values = {words[0]: words[-1] for words in map(str.split, announced)}
        yield ServerProcess(process, log, announced, values["gRPC"], values["metrics"])
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
