"""The manifest of a published model version: what is in the folder, and what is known about it.

`training.publish` writes it, the server and the command line read it. One JSON file beside the model, so that
a version carries its own labels, signature, evaluation and provenance wherever it is copied.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from service.documents import parse_json

FORMAT_VERSION = 1
MODEL_FILE = "model.onnx"
GOLDEN_FILE = "golden.npz"
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"  # see service.signing
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
# bf16 has no file of its own: providers take the fp32 graph to it.
_PRECISION_FILES = {"fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}


class ManifestError(ValueError):
    """A manifest, or a file it vouches for, is not what it should be. The message names the file and the key."""


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the graph; -1 in `shape` stands for the batch."""

    name: str
    dtype: str  # NumPy's name: uint8, float32
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything the server needs to serve a version, and everything a person asks about it.

    `precision` is that of `model.onnx`. `compute_precisions` lists the precisions whose gates this version has
    passed: no provider may compute in any other; `model_file` names the file of each. `recipe`, `dataset`,
    `evaluation`, `parity`, `baseline` and `provenance` are records for people and tools; the server reads only
    `evaluation["accuracy"]` and shows the rest.
    """

    name: str
    version: int
    created: str  # ISO 8601, UTC
    files: dict[str, FileEntry]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    precision: str
    compute_precisions: tuple[str, ...]
    opset: int
    recipe: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    parity: list[dict[str, Any]] = field(default_factory=list)
    baseline: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = self.inputs[0].shape[1:]
        return height, width, channels

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"


def model_file(precision: str) -> str:
    """The name of the file that is computed in `precision`, one of PRECISIONS."""
    return _PRECISION_FILES.get(precision, MODEL_FILE)


def read_manifest(folder: Path, content: bytes | None = None) -> Manifest:
    """Read and check `folder/manifest.json`. Raises ManifestError naming the key that is wrong.

    Checks structure only; `verify_files` checks the bytes. `content` is what is in it, if it was read before.
    """
    path = folder / MANIFEST_FILE
    try:
        document = parse_json(read_file(path) if content is None else content)
    except FileNotFoundError:
        raise ManifestError(f"{path}: missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: unreadable: {error}") from None
    return _Reader(path).manifest(document)


def read_file(path: Path) -> bytes:
    """What is in a plain file. Raises OSError, for others too: whoever opens a named pipe may wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is no plain file", str(path))
    return path.read_bytes()


def verify_files(folder: Path, manifest: Manifest, most_bytes: int | None = None) -> None:
    """Compare size and SHA-256 of every file with the manifest. Raises ManifestError for the first that differs.

    Likewise for links, for files that nobody vouches for, and for a version of more than `most_bytes`.
    """
    size = sum(entry.size for entry in manifest.files.values())
    if most_bytes is not None and size > most_bytes:
        raise ManifestError(f"{folder}: {size} bytes, the limit is {most_bytes} (max_model_bytes)")
    if folder.is_symlink():
        raise ManifestError(f"{folder}: is a symbolic link; a version is a plain folder")
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise ManifestError(f"{folder}: {error.strerror}") from None
    for path in paths:
        if path.is_symlink():
            raise ManifestError(f"{path}: is a symbolic link; a version holds plain files")
        if path.name not in (*manifest.files, MANIFEST_FILE, SIGNATURE_FILE):
            # A model could take its weights from it.
            raise ManifestError(f"{path}: is not in the manifest")
    for name, entry in manifest.files.items():
        _verify_file(folder / name, entry)


def _verify_file(path: Path, entry: FileEntry) -> None:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ManifestError(f"{path}: is not a plain file")
        if found.st_size != entry.size:
            raise ManifestError(f"{path}: {found.st_size} bytes, the manifest says {entry.size}")
        if file_entry(path).sha256 != entry.sha256:
            raise ManifestError(f"{path}: SHA-256 differs from the manifest's")
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from None


def file_entry(path: Path) -> FileEntry:
    """Hash and size of a file, for the manifest. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(sha256=digest, size=path.stat().st_size)


class _Reader:
    """Turns parsed JSON into a Manifest; every complaint names the file and the key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, key: str, problem: str) -> NoReturn:
        raise ManifestError(f"{self.path}: {key}: {problem}")

    def get(self, record: Any, key: str, kind: type, where: str = "") -> Any:
        if not isinstance(record, dict):
            self.fail(where.rstrip(".") or "document", "must be an object")
        if key not in record:
            self.fail(where + key, "missing")
        value = record[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.fail(where + key, f"must be {kind.__name__}, not {type(value).__name__}")
        return value

    def manifest(self, document: Any) -> Manifest:
        found = self.get(document, "format_version", int)
        if found != FORMAT_VERSION:
            self.fail("format_version", f"is {found}; this program reads {FORMAT_VERSION}")
        manifest = Manifest(
            name=self.get(document, "name", str),
            version=self.get(document, "version", int),
            created=self.get(document, "created", str),
            files=self.files(self.get(document, "files", dict)),
            inputs=self.tensors(document, "inputs"),
            outputs=self.tensors(document, "outputs"),
            labels=self.strings(document, "labels"),
            precision=self.get(document, "precision", str),
            compute_precisions=self.strings(document, "compute_precisions"),
            opset=self.get(document, "opset", int),
            recipe=self.get(document, "recipe", dict),
            dataset=self.get(document, "dataset", dict),
            evaluation=self.get(document, "evaluation", dict),
            parity=self.get(document, "parity", list),
            baseline=self.get(document, "baseline", dict),
            provenance=self.get(document, "provenance", dict),
        )
        self.check(manifest)
        return manifest

    def check(self, manifest: Manifest) -> None:
        """What a classifier must satisfy beyond the types: the shapes, labels and precisions fit each other."""
        if manifest.version < 1:
            self.fail("version", f"must be at least 1, is {manifest.version}")
        (first, *others) = manifest.inputs or [TensorSpec("", "", ())]
        if others or first.dtype != "uint8" or len(first.shape) != 4 or first.shape[3] not in (1, 3):
            self.fail("inputs", "must be one uint8 tensor of shape [-1, height, width, 1 or 3]")
        if first.shape[0] != -1 or not all(1 <= size <= 4096 for size in first.shape[1:]):
            self.fail("inputs", f"shape {list(first.shape)} must be -1 and then sizes between 1 and 4096")
        expected = {name: ("float32", (-1, len(manifest.labels))) for name in ("probabilities", "logits")}
        if {spec.name: (spec.dtype, spec.shape) for spec in manifest.outputs} != expected:
            self.fail("outputs", "must be probabilities and logits, float32 [-1, number of labels]")
        if len(manifest.labels) < 2 or len(set(manifest.labels)) != len(manifest.labels):
            self.fail("labels", "must be at least two different names")
        if GOLDEN_FILE not in manifest.files:
            self.fail("files", f"must list {GOLDEN_FILE}")
        self.check_precisions(manifest)
        accuracy = manifest.evaluation.get("accuracy")
        if not isinstance(accuracy, int | float) or not (math.isfinite(accuracy) and 0 <= accuracy <= 1):
            self.fail("evaluation.accuracy", f"must be a fraction between 0 and 1, is {accuracy!r}")

    def check_precisions(self, manifest: Manifest) -> None:
        """Each of them is known and has its file, the model's own among them."""
        if manifest.precision not in manifest.compute_precisions:
            self.fail("compute_precisions", f"must contain the model's own precision, {manifest.precision!r}")
        if unknown := set(manifest.compute_precisions) - set(PRECISIONS):
            self.fail("compute_precisions", f"unknown: {', '.join(sorted(unknown))}")
        for precision in manifest.compute_precisions:
            if model_file(precision) not in manifest.files:
                self.fail("files", f"must list {model_file(precision)}, the model in {precision}")

    def files(self, record: dict[str, Any]) -> dict[str, FileEntry]:
        entries = {}
        for name, value in record.items():
            if name != Path(name).name or name in ("", ".", ".."):
                self.fail(f"files.{name}", "must be a plain file name inside the version's folder")
            where = f"files.{name}."
            entries[name] = FileEntry(
                sha256=self.get(value, "sha256", str, where), size=self.get(value, "size", int, where)
            )
        return entries

    def tensors(self, document: Any, key: str) -> tuple[TensorSpec, ...]:
        specs = []
        for position, record in enumerate(self.get(document, key, list)):
            where = f"{key}[{position}]."
            shape = self.get(record, "shape", list, where)
            if not all(isinstance(size, int) and not isinstance(size, bool) for size in shape):
                self.fail(f"{where}shape", "must be a list of integers")
            name, dtype = (self.get(record, part, str, where) for part in ("name", "dtype"))
            specs.append(TensorSpec(name=name, dtype=dtype, shape=tuple(shape)))
        return tuple(specs)

    def strings(self, document: Any, key: str) -> tuple[str, ...]:
        values = self.get(document, key, list)
        if not all(isinstance(value, str) and value for value in values):
            self.fail(key, "must be a list of non-empty strings")
        return tuple(values)
