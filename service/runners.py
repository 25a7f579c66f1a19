"""How a batch gets through a session: from and to arrays of the host, or through buffers kept on a device.

A runner takes uint8 [n, height, width, channels], n one of the engine's buckets, and gives probabilities and logits,
float32 [n, classes], in arrays of their own.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from service.images import Pixels

INPUT = "image"
OUTPUTS = ("probabilities", "logits")

Floats = npt.NDArray[np.float32]


class Runner(Protocol):
    # Runs of a shape until it is as fast as it gets.
    warm_up_runs: int

    def __call__(self, images: Pixels, /) -> tuple[Floats, Floats]: ...


class HostRunner:
    """Inputs are read where they lie; ONNX Runtime allocates the outputs."""

    warm_up_runs = 1

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session

    def __call__(self, images: Pixels) -> tuple[Floats, Floats]:
        probabilities, logits = self._session.run(OUTPUTS, {INPUT: images})
        return probabilities, logits


class DeviceRunner:
    """Buffers on the device for each batch size, bound once: a run is one copy there, the kernels, one copy back.

    With `graphs`, the kernels of each size are recorded as a CUDA graph and then replayed by a single launch. ONNX
    Runtime keeps graphs by `gpu_graph_id` and, in its CUDA provider, by thread: a thread that meets a size for the
    first time records its own, after the two plain runs in which the arena settles.
    """

    def __init__(self, session: ort.InferenceSession, device: str, classes: int, *, graphs: bool) -> None:
        self._session = session
        self._device = device  # as ONNX Runtime names it: cuda, or cpu
        self._classes = classes
        self._graphs = graphs
        self._bound: dict[int, _Bound] = {}
        self.warm_up_runs = 3 if graphs else 1

    def __call__(self, images: Pixels) -> tuple[Floats, Floats]:
        bound = self._bound.get(len(images))
        if bound is None:
            bound = self._bound[len(images)] = _Bound(
                self._session, self._device, images.shape, self._classes, len(images) if self._graphs else None
            )
        return bound.run(images)


class _Bound:
    def __init__(
        self, session: ort.InferenceSession, device: str, shape: tuple[int, ...], classes: int, graph: int | None
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._image = _buffer(shape, np.uint8, device)
        self._binding.bind_ortvalue_input(INPUT, self._image)
        self._outputs = [_buffer((shape[0], classes), np.float32, device) for _ in OUTPUTS]
        for name, value in zip(OUTPUTS, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)
        self._options = ort.RunOptions()
        if graph is not None:
            self._options.add_run_config_entry("gpu_graph_id", str(graph))

    def run(self, images: Pixels) -> tuple[Floats, Floats]:
        self._image.update_inplace(images)
        self._session.run_with_iobinding(self._binding, self._options)
        # On the host, numpy() is the buffer itself, which the next batch overwrites.
        probabilities, logits = (value.numpy().copy() for value in self._outputs)
        return probabilities, logits


def _buffer(shape: tuple[int, ...], kind: Any, device: str) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, device, 0)
