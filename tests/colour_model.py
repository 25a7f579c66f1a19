"""A tiny real ONNX classifier for the serving tests: its answer depends on the image's mean colour, in a known way.

Different colours give different probabilities, so a test can tell whose answer it got; NumPy gives the expected ones.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.manifest import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, Manifest, TensorSpec, file_entry

LABELS = ("red", "green", "blue", "dark", "bright")
SIZE = 8
# logits = mean RGB (0..1) @ WEIGHTS + BIAS
WEIGHTS = np.array([[8, -4, -4, -3, 3], [-4, 8, -4, -3, 3], [-4, -4, 8, -3, 3]], np.float32)
BIAS = np.array([0, 0, 0, 3, -3], np.float32)

# Of the test split, as in a manifest: predicted classes evenly spread, half of the images with a confidence below 0.5.
BASELINE = {
    "class_distribution": dict.fromkeys(LABELS, 1 / len(LABELS)),
    "confidence_edges": [0.0, 0.5, 1.0],
    "confidence_counts": [5000, 5000],
}


def expected(images: np.ndarray, scale: float = 1.0, classes: int = len(LABELS)) -> np.ndarray:
    """Probabilities [n, classes] of uint8 [n, h, w, 3], computed without ONNX."""
    logits = (images.astype(np.float64).mean(axis=(1, 2)) / 255 @ WEIGHTS[:, :classes] + BIAS[:classes]) * scale
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def plain(colour: tuple[int, int, int], size: int = SIZE) -> np.ndarray:
    """A picture of one colour: uint8 [size, size, 3]."""
    return np.full((size, size, 3), colour, np.uint8)


def distinct(count: int) -> np.ndarray:
    """`count` (at most 4096) pictures of colours that are all different: uint8 [count, SIZE, SIZE, 3]."""
    steps = np.arange(count)
    colours = np.stack([steps % 16, steps // 16 % 16, steps // 256], axis=1) * 16
    return np.broadcast_to(colours[:, None, None].astype(np.uint8), (count, SIZE, SIZE, 3)).copy()


def build(scale: float = 1.0, work: int = 0, classes: int = len(LABELS)) -> onnx.ModelProto:
    """The graph; `scale` sharpens its answers, `work` makes each batch cost that many 1024^3 matrix products."""
    constants = {"weights": WEIGHTS[:, :classes] * scale, "bias": BIAS[:classes] * scale, "full": np.float32(255)}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "full"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        *_burn(work),
        helper.make_node("Add", ["sum", "nothing"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    initializers = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.array([1, 2], np.int64), "axes"))
    if work:
        initializers.append(numpy_helper.from_array(np.array([1024, 1024], np.int64), "square"))
        initializers.append(numpy_helper.from_array(np.float32(0), "zero"))
    else:
        initializers.append(numpy_helper.from_array(np.float32(0), "nothing"))
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", classes])
            for name in ("probabilities", "logits")
        ],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _burn(work: int) -> list[onnx.NodeProto]:
    """Matrix products that depend on the input, so that they are not folded away, and add up to nothing."""
    if not work:
        return []
    nodes = [
        helper.make_node("ReduceMean", ["scaled"], ["level"], keepdims=0),
        helper.make_node("Expand", ["level", "square"], ["burn0"]),
    ]
    for step in range(work):
        nodes.append(helper.make_node("MatMul", [f"burn{step}", "burn0"], [f"product{step}"]))
        nodes.append(helper.make_node("Tanh", [f"product{step}"], [f"burn{step + 1}"]))
    nodes.append(helper.make_node("ReduceMean", [f"burn{work}"], ["burnt"], keepdims=0))
    nodes.append(helper.make_node("Mul", ["burnt", "zero"], ["nothing"]))
    return nodes


def publish(
    repository: Path,
    name: str = "colours",
    version: int = 1,
    *,
    scale: float = 1.0,
    work: int = 0,
    labels: tuple[str, ...] = LABELS,
    **changes: object,
) -> Path:
    """Write a version folder as `cifarserve publish` lays it out; `changes` replace fields of the manifest.

    `labels` are at most as many as LABELS, and take their places.
    """
    classes = len(labels)
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    onnx.save(build(scale, work, classes), folder / MODEL_FILE)
    images = distinct(8)
    np.savez(folder / GOLDEN_FILE, image=images, probabilities=expected(images, scale, classes).astype(np.float32))
    manifest = Manifest(
        name=name,
        version=version,
        created="2026-01-01T00:00:00+00:00",
        files={file: file_entry(folder / file) for file in (MODEL_FILE, GOLDEN_FILE)},
        inputs=(TensorSpec("image", "uint8", (-1, SIZE, SIZE, 3)),),
        outputs=tuple(TensorSpec(output, "float32", (-1, classes)) for output in ("probabilities", "logits")),
        labels=labels,
        precision="fp32",
        compute_precisions=("fp32",),
        opset=18,
        dataset={"name": "plain colours"},
        evaluation={"accuracy": 0.9, "macro": {"f1": 0.8}, "ece": 0.05, "n": 100},
    )
    (folder / MANIFEST_FILE).write_text(dataclasses.replace(manifest, **changes).to_json())
    if work:  # a start would spend most of a test's time on warming seven sizes
        (folder.parent / "config.toml").write_text("buckets = [1]\n")
    return folder


def edit_manifest(folder: Path, **changes: object) -> None:
    """Change keys of a published manifest.json; None removes one."""
    path = folder / MANIFEST_FILE
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
