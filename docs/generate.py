"""Writes what the documents and deploy/ repeat of the code, and what was measured: tables, pictures.

    python docs/generate.py         # or `make docs`; a test fails when a file is not what this writes

Between `<!-- generated: NAME -->` and `<!-- end -->` stands what the function of that name gives.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml
from prometheus_client.metrics_core import Metric

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import tables  # noqa: E402
from service import config  # noqa: E402
from service.grpc_metrics import CallMetrics  # noqa: E402
from service.metric_families import Families, Family  # noqa: E402
from service.metrics import Metrics  # noqa: E402
from service.workers import worker_metrics  # noqa: E402

RULES = ("rules.yml", "alerts.yml")
PROMETHEUS_RULE = Path("deploy/kubernetes/components/monitoring/prometheus-rule.yaml")
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def settings() -> str:
    rows = []
    for name, field in config.FIELDS.items():
        limits = field.metadata
        allowed = ", ".join(f"`{choice}`" for choice in limits.get("choices", ()))
        if "least" in limits:
            allowed = f"{limits['least']} to {limits['most']}" if "most" in limits else f"at least {limits['least']}"
        variable = config.ENVIRONMENT_PREFIX + name.upper()
        rows.append(f"| `{variable}` | `{field.default}` | {allowed} | {limits['help']} |")
    return "\n".join(["| variable | default | allowed | what it is |", "|---|---|---|---|", *rows, ""])


def metrics() -> str:
    families = [*own_families(), *supervisor_families(), *process_families()]
    rows = [
        f"| `{one.name}` | {one.kind} | {', '.join(one.labels)} | {one.documentation.rstrip('.')} |" for one in families
    ]
    return "\n".join(["| metric | type | labels | what it is |", "|---|---|---|---|", *rows, ""])


def own_families() -> list[Family]:
    """Every family that the server makes, before any traffic."""
    return _metrics().families.described


def supervisor_families() -> list[Family]:
    """Those of the process that starts several workers."""
    families = Families()
    worker_metrics(families)
    return families.described


def process_families() -> list[Family]:
    """What Prometheus' client adds of the process and the interpreter."""
    own = {family.name.removesuffix("_total") for family in own_families()}
    return [_described(family) for family in _metrics().registry.collect() if family.name not in own]


def prometheus_rule() -> str:
    """deploy/prometheus' rules as the resource of Prometheus' operator."""
    groups = [
        group for name in RULES for group in yaml.safe_load((ROOT / "deploy/prometheus" / name).read_text())["groups"]
    ]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "cifarserve"},
        "spec": {"groups": groups},
    }
    text: str = yaml.safe_dump(resource, sort_keys=False, width=160)
    return "# Generated from deploy/prometheus by docs/generate.py: change it there.\n" + text


def written(path: Path) -> str:
    """The file at `path`, relative to the project, with its generated parts as they should be."""
    if path == PROMETHEUS_RULE:
        return prometheus_rule()
    if path in PICTURES:
        return PICTURES[path](tables.results())
    blocks: dict[str, Callable[[], str]] = {
        "settings": settings, "metrics": metrics, **{f"bench_{name}": partial(_measured, name) for name in MEASURED},
    }  # fmt: skip
    text = (ROOT / path).read_text(encoding="utf-8")
    return _BLOCK.sub(lambda match: match[1] + blocks[match[2]]() + match[3], text)


def _measured(name: str) -> str:
    return MEASURED[name](tables.results())


MEASURED = {
    "machine": tables.machine, "serving": tables.serving, "start": tables.start, "peers": tables.peers,
    "curve": tables.curve_sentence,
}  # fmt: skip
PICTURES = {
    Path("docs/images/bench-curve.svg"): tables.curve_picture,
    Path("docs/images/bench-peers.svg"): tables.peers_picture,
}
FILES = (Path("docs/operations.md"), Path("docs/benchmarks.md"), PROMETHEUS_RULE, *PICTURES)


def _metrics() -> Metrics:
    """As service.server puts them together, which a test compares with what a running server exposes."""
    metrics = Metrics()
    metrics.watch_states(list)
    CallMetrics(metrics.families, metrics.unknown)
    return metrics


def _described(family: Metric) -> Family:
    suffix = "_total" if family.type == "counter" else ""
    labels = tuple(dict.fromkeys(label for sample in family.samples for label in sample.labels))
    return Family(family.name + suffix, family.type, labels, family.documentation)


if __name__ == "__main__":
    for path in FILES:
        (ROOT / path).write_text(written(path), encoding="utf-8")
        sys.stdout.write(f"{path}\n")
