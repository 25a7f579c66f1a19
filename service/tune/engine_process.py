"""A process that opens engines and times them: a provider that crashes takes only this one along.

Reads one job a line of JSON on standard input, and answers each with a line of JSON: what was measured, or `error`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from service import providers
from service.engine import Engine, EngineError, powers_of_two
from service.manifest import read_manifest
from service.model_config import Compute
from service.precisions import PrecisionError
from service.serving import LoadError, load, open_engine

# A batch is timed for so long, and at least so often: the fastest counts, as a busy machine only makes it slower.
_SECONDS, _TIMES = 0.06, 3
_LONGEST_BATCH = 1.0  # seconds
_PROBE = 8  # images of the batch that tells how large others may be


def present(job: dict[str, Any]) -> dict[str, Any]:
    """What the settings as they are come to: every file verified, the provider and precision of `auto` found."""
    loaded = load(Path(job["folder"]), job["name"], job["version"], _compute(job["compute"]))
    engine = loaded.engines[0]
    return {"provider": providers.key(engine.provider), "precision": engine.precision, "onnxruntime": ort.__version__}


def curve(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a batch by its size, of an engine that gives the golden answers."""
    folder, compute = Path(job["folder"]), _compute(job["compute"])
    manifest = read_manifest(folder)

    def opened(most: int) -> Engine:
        sizes = powers_of_two(most)
        buckets = halfway_too(sizes) if compute.provider in providers.GPUS else sizes
        chosen = dataclasses.replace(compute, max_batch_size=most, buckets=buckets, instances=1)
        return open_engine(folder, manifest, chosen)

    most = min(_PROBE, job["most"])
    engine = opened(most)
    each = _seconds(engine, most) / most
    while most < job["most"] and 2 * most * each <= min(_LONGEST_BATCH, job["longest"]):
        most = min(2 * most, job["most"])
    if most > engine.max_batch_size:
        del engine  # before the next: a device's memory may not be enough for both
        engine = opened(most)
    return {"seconds": {size: _seconds(engine, size) for size in engine.buckets}}


def halfway_too(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """`sizes` and the means of neighbours: with these as buckets, at most a third of a batch is padding, not half."""
    means = ((one + other) // 2 for one, other in pairwise(sizes))
    return tuple(sorted({*sizes, *means}))


def _seconds(engine: Engine, size: int) -> float:
    images = np.random.default_rng(0).integers(0, 256, (size, *engine.image_shape), np.uint8)
    took: list[float] = []
    while len(took) < _TIMES or sum(took) < _SECONDS:
        began = time.perf_counter()
        engine.run(images)
        took.append(time.perf_counter() - began)
    return min(took)


def _compute(record: dict[str, Any]) -> Compute:
    return Compute(**{**record, "buckets": tuple(record["buckets"])})


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = {"present": present, "curve": curve}[job["kind"]](job)
        except (EngineError, LoadError, PrecisionError, MemoryError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
