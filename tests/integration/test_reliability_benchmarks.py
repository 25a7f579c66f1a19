"""The short forms of soak, overload and refusals, which the figures in docs/reliability.md are made with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests import colour_model
from tests.integration.server_process import ENVIRONMENT, ROOT


def run(name: str, out: Path, *arguments: object) -> dict[str, object]:
    command = [sys.executable, ROOT / "benchmarks" / name, "--out", out, *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    result: dict[str, object] = json.loads(out.read_text())
    return result


def test_a_minute_of_mixed_traffic_ends_with_right_answers_and_nothing_grown(tmp_path: Path) -> None:
    result = run("soak.py", tmp_path / "soak.json", "--seconds", 60)
    assert result["problems"] == []
    ended = result["ended"]
    assert isinstance(ended, dict)
    for kind in ("one OK", "many OK", "encoded OK", "stream OK", "bad INVALID_ARGUMENT", "cancelled gone"):
        assert ended[kind] > 0, kind
    assert ended.get("late DEADLINE_EXCEEDED", 0) > 0
    assert result["versions"] >= 5  # type: ignore[operator]


def test_under_overload_most_is_shed_and_what_is_answered_is_answered_in_time(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models, work=3)
    result = run(
        "overload.py", tmp_path / "overload.json", "--models", models, "--side", colour_model.SIZE, "--images", 8,
        "--seconds", 3, "--rounds", 1, "--patience", 10, "--", "--max-batch-size", 8, "--max-queue-images", 32,
        "--max-images-per-request", 8,
    )  # fmt: skip
    (one,) = result["rounds"]  # type: ignore[misc]
    outcomes = one["outcomes"]
    # The queue is short beside the patience, also where a machine is slow: what is refused is so for want of room.
    assert outcomes.keys() <= {"OK", "OK afterwards", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    answered = outcomes.get("OK", 0) + outcomes.get("OK afterwards", 0)
    assert 0 < answered < outcomes["RESOURCE_EXHAUSTED"]
    # That bounds the wait, too; how much of the capacity is left is for the benchmark on a quiet machine to say.
    assert one["p99_ms_of_answered"] < 10_000


def test_a_full_server_refuses_all_but_what_holds_its_place(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    result = run(
        "refusal.py", tmp_path / "refusal.json", "--models", models, "--side", colour_model.SIZE,
        "--seconds", 1, "--rounds", 1,
    )  # fmt: skip
    ours = result["outcomes"]["cifarserve"]  # type: ignore[index]
    assert ours.pop("RESOURCE_EXHAUSTED") > 200
    assert sum(ours.values()) <= 2
    for bare in ("read", "unread"):
        assert result["outcomes"][bare].keys() == {"RESOURCE_EXHAUSTED"}  # type: ignore[index]
    assert min(result["medians"].values()) > 0  # type: ignore[attr-defined]
