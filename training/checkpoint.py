"""Checkpoints: tensors as safetensors, everything else as JSON, replaced in one step. Nothing in them is code.

`checkpoint.json` names the file of its tensors and their SHA-256. The tensors are written first under a new name,
then the JSON replaces the old one by a rename, then the old tensors go: killed anywhere, one whole checkpoint is left.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from service.documents import parse_json
from training.errors import CheckpointError, TrainingError
from training.files import write_atomically, write_json
from training.recipes import Recipe
from training.run import RunSpec

FORMAT_VERSION = 2  # 1 numbered the optimizer's tensors in another order
FILE = "checkpoint.json"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave. Losses are mean cross entropies, accuracies fractions, seconds those of training, with the
    statistics of averaged weights and without validation."""

    epoch: int
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Position:
    """How far a run has come: `step` batches into `epoch` (both from 0), and what the epochs before it gave.

    `seconds` is the time spent training in the current epoch.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    history: tuple[EpochRecord, ...] = field(default=())

    def best(self, recipe: Recipe) -> EpochRecord | None:
        """The epoch whose weights are kept; None before the end of the first.

        The last, when the rate falls to 0: the run was made for it, and to pick another by the validation images would
        only add their noise. Otherwise the one with the highest validation accuracy, the first of equals.
        """
        if recipe.warm_up >= 0:
            return self.history[-1] if self.history else None
        return max(self.history, key=lambda record: record.validation_accuracy, default=None)


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` are named as `training.state` puts them there: model.*, best.*, optimizer.*, totals, once averaging has
    begun average.*, and in a run of several paths first.*."""

    spec: RunSpec
    position: Position
    tensors: Tensors


def save(run: Path, checkpoint: Checkpoint) -> None:
    """Write into the folder `run`, replacing the checkpoint there."""
    run.mkdir(parents=True, exist_ok=True)
    position = checkpoint.position
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()})
    tensors_file = f"checkpoint-{position.epoch:04d}-{position.step:06d}.safetensors"
    write_atomically(run / tensors_file, data)
    document = {
        "format_version": FORMAT_VERSION,
        "run": checkpoint.spec.to_record(),
        "position": dataclasses.asdict(position),
        "tensors": {"file": tensors_file, "sha256": hashlib.sha256(data).hexdigest()},
    }
    write_json(run / FILE, document)
    # With those that a killed save had not renamed yet.
    for old in (*run.glob("checkpoint-*.safetensors"), *run.glob(".checkpoint-*.safetensors.tmp")):
        if old.name != tensors_file:
            old.unlink()


def exists(run: Path) -> bool:
    return (run / FILE).is_file()


def load(run: Path) -> Checkpoint:
    """The checkpoint in `run`, its tensors on the CPU. Raises CheckpointError: missing, damaged, unknown format."""
    document = _read_document(run)
    spec, position = _parse(run, document)
    return Checkpoint(spec, position, _read_tensors(run, document))


def load_spec(run: Path) -> RunSpec:
    """Only what the run is, without its tensors. Raises CheckpointError."""
    return _parse(run, _read_document(run))[0]


def _read_document(run: Path) -> dict[str, Any]:
    path = run / FILE
    try:
        document: dict[str, Any] = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{run}: no checkpoint there; `cifarserve train --run {run}` makes one") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None
    found = document.get("format_version") if isinstance(document, dict) else None
    if found != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version is {found}, this program reads {FORMAT_VERSION}")
    return document


def _parse(run: Path, document: dict[str, Any]) -> tuple[RunSpec, Position]:
    try:
        record = document["position"]
        history = tuple(EpochRecord(**each) for each in record["history"])
        return RunSpec.from_record(document["run"]), Position(**{**record, "history": history})
    except (KeyError, TypeError, ValueError, TrainingError) as error:  # TrainingError: values no recipe can have
        raise CheckpointError(f"{run / FILE}: damaged: {error!r}") from None


def _read_tensors(run: Path, document: dict[str, Any]) -> Tensors:
    try:
        name, expected = document["tensors"]["file"], document["tensors"]["sha256"]
        # By its bare name: a checkpoint's tensors lie beside it, whatever the JSON says.
        path = run / Path(name).name
        data = path.read_bytes()
    except (KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{run / FILE}: its tensors cannot be read: {error!r}") from None
    if hashlib.sha256(data).hexdigest() != expected:
        raise CheckpointError(f"{path}: damaged: its SHA-256 is not the one in {FILE}")
    try:
        return dict(safetensors.torch.load(data))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None


def part(tensors: Tensors, prefix: str) -> Tensors:
    """Those whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
