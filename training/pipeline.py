"""`cifarserve retrain`: from pictures to a published version, or to a refusal that names its gate.

Train, evaluate (round, calibrate, measure), export in every precision, gates, publish. Each stage leaves its result
in the run folder, and `--resume` begins where the last one stopped: a stage that is complete is not done again.
How it ended is in the run folder's result.json, for schedulers.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from service.folders import model_versions
from service.manifest import Manifest, ManifestError, read_manifest
from service.terminal import Console
from training import checkpoint, finished, gates, stages
from training import export as exporting
from training import publish as publishing
from training.datasets import Dataset
from training.errors import CheckpointError, TrainingError
from training.export import Export
from training.files import write_json
from training.finished import FinishedModel
from training.gates import Limits, Verdict

T = TypeVar("T")

RESULT_FILE = "result.json"
FORMAT_VERSION = 1
_OUTCOMES = {0: "published", 2: "failed", 3: "refused", 4: "failed", 130: "interrupted", 143: "interrupted"}


@dataclass
class Result:
    """What a scheduler wants to know. `stages` maps the stages gone through to their seconds, None when done before."""

    run: str = ""
    outcome: str = ""
    exit_code: int = 1
    message: str = ""
    model: str = ""
    version: int | None = None
    accuracy: float | None = None
    stages: dict[str, float | None] = field(default_factory=dict)
    gates: list[Verdict] = field(default_factory=list)


def retrain(arguments: argparse.Namespace) -> None:
    """All stages. Raises TrainingError, whose exit code says how it ended; so does the result file, either way."""
    result = Result(model=arguments.name, run=str(arguments.run or ""))
    try:
        _retrain(arguments, stages.new_console(), result)
    except TrainingError as error:
        result.message, result.exit_code = str(error), error.exit_code
        raise
    else:
        result.exit_code = 0
    finally:
        result.outcome = _OUTCOMES.get(result.exit_code, "failed")
        _write(result, arguments.result)


def _retrain(arguments: argparse.Namespace, console: Console, result: Result) -> None:
    # Before the hours of training.
    publishing.check_name(arguments.name)
    publishing.check_key(arguments.sign_key)
    with _timed(result, "train"):
        run, dataset = stages.train(arguments, console)
        result.run = str(run)
    with _timed(result, "evaluate") as stage:
        model = _done_before(stage, _evaluated(run, arguments.weights, arguments.six_views)) or stages.evaluate(
            run, dataset, arguments.weights, console, six_views=arguments.six_views
        )
        result.accuracy = model.evaluation["accuracy"]
    with _timed(result, "export") as stage:
        exported = _done_before(stage, _exported(run, arguments.precisions)) or stages.export(
            run, model, dataset, arguments.precisions, console
        )
    published = _published(arguments.models, arguments.name, model, exported)
    if published is None:
        with _timed(result, "gates"):
            _pass_gates(arguments, run, model, exported, dataset, result, console)
        with _timed(result, "publish"):
            published = stages.publish(arguments, run, model, exported, console)
    else:
        console.print(f"published before, as {published.name} version {published.version}")
    result.version = published.version
    result.message = f"published {published.name} version {published.version}"


def _pass_gates(
    arguments: argparse.Namespace,
    run: Path,
    model: FinishedModel,
    exported: Export,
    dataset: Dataset,
    result: Result,
    console: Console,
) -> None:
    limits = Limits(**{each.name: getattr(arguments, each.name) for each in dataclasses.fields(Limits)})
    manifest = publishing.served(arguments.models, arguments.name)
    served = (manifest, arguments.models / manifest.name / str(manifest.version)) if manifest else None
    result.gates = gates.judge(model, exported, run, served, dataset.test, limits)
    for verdict in result.gates:
        console.print(f"gate {verdict.gate}: {'passed' if verdict.passed else 'REFUSED'}: {verdict.message}")
    gates.require(result.gates)


@contextmanager
def _timed(result: Result, stage: str) -> Iterator[dict[str, Any]]:
    """Notes a stage's seconds; the block may say in what is yielded that there was nothing to do."""
    notes: dict[str, Any] = {}
    began = time.perf_counter()
    try:
        yield notes
    finally:
        result.stages[stage] = None if notes.get("before") else round(time.perf_counter() - began, 6)


def _done_before(notes: dict[str, Any], found: T | None) -> T | None:
    notes["before"] = found is not None
    return found


def _evaluated(run: Path, weights: str, six_views: bool) -> FinishedModel | None:
    """The finished model of exactly this training, if it is there."""
    try:
        model, saved = finished.load(run), checkpoint.load(run)
    except CheckpointError:
        return None
    history = [dataclasses.asdict(record) for record in saved.position.history]
    same = model.spec == saved.spec and model.recipe["history"] == history and model.recipe["weights"] == weights
    return model if same and (not six_views or "accuracy_in_six_views" in model.evaluation) else None


def _exported(run: Path, precisions: tuple[str, ...]) -> Export | None:
    """The export of exactly that model, in these precisions, if it is there."""
    try:
        exported = exporting.load(run)
    except CheckpointError:
        return None
    return exported if {each.precision for each in exported.parity} == {"fp32", *precisions} else None


def _published(repository: Path, name: str, model: FinishedModel, exported: Export) -> Manifest | None:
    """The version that this very export of this very run became, if it was published already."""
    for version in model_versions(repository / name):
        try:
            manifest = read_manifest(repository / name / str(version))
        except ManifestError:
            continue  # a damaged version is none of ours
        if (manifest.recipe, manifest.files) == (model.recipe, exported.files):
            return manifest
    return None


def _write(result: Result, asked: Path | None) -> None:
    record = {"format_version": FORMAT_VERSION, **dataclasses.asdict(result)}
    if result.run and Path(result.run).is_dir():
        write_json(Path(result.run, RESULT_FILE), record)
    if asked:
        write_json(asked, record)
