"""One ONNX Runtime session of one model version: padded to buckets, warmed, and checked against golden outputs."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from service import providers
from service.golden import read as read_golden
from service.images import Pixels
from service.runners import INPUT, OUTPUTS, DeviceRunner, Floats, HostRunner, Runner

# Largest difference of a probability from PyTorch's fp32 that a provider may show, by the precision it computes in.
# fp32: two orders above what reordered sums give; the others: what their bits of fraction (7, 10, 8) lead to
# at a softmax, with a margin of about two.
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 8e-2, "int8": 1.5e-1}

# The fastest of so many counts: a busy machine makes a run slower, never faster.
_TIMED_RUNS = 2


class EngineError(RuntimeError):
    """The model does not load, has another signature than a classifier, or gives wrong answers here.

    `absent`: only because the provider is not installed, or has no device on this machine.
    """

    def __init__(self, message: str, *, absent: bool = False) -> None:
        super().__init__(message)
        self.absent = absent


@dataclass(frozen=True)
class Outputs:
    probabilities: Floats  # [n, classes], each row sums to 1
    logits: Floats  # [n, classes]


class Engine:
    """Runs batches of images. Not thread-safe: one thread at a time calls `run`.

    Providers of GPUs, which compile or tune for each shape they meet, are only given shapes that were warmed: a batch
    is padded up to one of the `buckets`. On the CPU, with OpenVINO too, every size is taken as it comes.
    """

    def __init__(
        self,
        model: Path,
        *,
        provider: str = "cpu",
        precision: str = "fp32",
        threads: int = 1,
        max_batch_size: int = 64,
        buckets: Sequence[int] = (),
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Open `model` as providers.Wanted says it. No `buckets`: those that suit the provider.

        Raises EngineError when the session cannot be made on that provider, or the graph is no image classifier.
        """
        wanted = providers.Wanted(provider, precision, threads, max_batch_size, options or {})
        try:
            session = providers.open_session(model, wanted)
        except providers.ProviderError as error:
            raise EngineError(str(error), absent=isinstance(error, providers.ProviderAbsent)) from error
        self.precision = precision
        self.provider = providers.NAMES[provider]
        self.buckets, self.landmarks = _buckets(provider, max_batch_size, buckets)
        self.image_shape, classes = _signature(session)
        self._run: Runner = (
            DeviceRunner(session, "cuda", classes, graphs=providers.captures_graphs(wanted))
            if provider in providers.GPUS
            else HostRunner(session)
        )
        # Seconds that a batch of each landmark took, warm; empty until time_buckets.
        self.bucket_seconds: dict[int, float] = {}
        self._buffer = np.zeros((max_batch_size, *self.image_shape), np.uint8)

    @property
    def max_batch_size(self) -> int:
        return self.buckets[-1]

    def bucket(self, images: int) -> int:
        """The number of rows that a batch of `images` is computed with."""
        return self.buckets[bisect_left(self.buckets, images)]

    def run(self, images: Pixels) -> Outputs:
        """Classify uint8 [n, height, width, channels], 1 <= n <= max_batch_size."""
        return self.compute((images,))

    def compute(self, parts: Sequence[Pixels]) -> Outputs:
        """Classify the images of `parts`, as of `run`, in one batch: each is copied once, into the batch's buffer."""
        count = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        bucket = self.bucket(count)
        images = parts[0]
        if bucket != len(images):
            # Rows past `count` hold what an earlier batch left there: valid pixels, whose results are dropped.
            images = self._buffer[:bucket]
            np.concatenate(parts, out=images[:count])
        probabilities, logits = self._run(images)
        return Outputs(probabilities[:count], logits[:count])

    def close(self) -> None:
        """Let the session and its memory go, whoever still holds this engine. Nothing can be computed any more.

        To close it again changes nothing.
        """
        self._run = _Closed()
        self._buffer = np.empty((0, *self.image_shape), np.uint8)

    def warm_up(self) -> None:
        """Run every landmark, so that no caller waits for a provider to compile or tune for its shape."""
        for bucket in self.landmarks:
            for _ in range(self._run.warm_up_runs):
                self.run(self._buffer[:bucket])

    def time_buckets(self) -> None:
        """Measure bucket_seconds, after warm_up. For largest_batch alone: it would make every start longer."""
        for bucket in self.landmarks:
            took = []
            for _ in range(_TIMED_RUNS):
                started = time.perf_counter()
                self.run(self._buffer[:bucket])
                took.append(time.perf_counter() - started)
            self.bucket_seconds[bucket] = min(took)

    def largest_batch(self, target_latency: float) -> int:
        """The largest landmark with which an image is answered within `target_latency` seconds; at least the smallest.

        That is half of the target for its own batch, as the batch before it may just have begun when it comes.
        """
        fitting = [bucket for bucket, seconds in self.bucket_seconds.items() if 2 * seconds <= target_latency]
        return max(fitting, default=self.landmarks[0])

    def check_golden(self, golden: Path) -> None:
        """Replay the inputs of golden.npz; raise EngineError when a probability is off by more than TOLERANCE."""
        try:
            with golden.open("rb") as file:
                images, expected = read_golden(file)
        except (OSError, ValueError) as error:
            raise EngineError(f"{golden.name}: {error}") from error
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or len(images) != len(expected):
            raise EngineError(f"{golden.name}: images {images.dtype} {images.shape} do not fit the model")
        step = self.max_batch_size
        outputs = [self.run(images[start : start + step]).probabilities for start in range(0, len(images), step)]
        found = np.concatenate(outputs)
        if found.shape != expected.shape:
            raise EngineError(f"{golden.name}: the model gives {found.shape}, PyTorch gave {expected.shape}")
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE[self.precision]:  # not <=, so that NaN fails too
            raise EngineError(
                f"golden outputs differ by {difference:.2g} on {self.provider} in {self.precision};"
                f" at most {TOLERANCE[self.precision]:.2g} is allowed"
            )


class _Closed:
    """The runner of an engine that is closed."""

    warm_up_runs = 0

    def __call__(self, _images: Pixels, /) -> tuple[Floats, Floats]:
        raise EngineError("the engine is closed")


def _buckets(provider: str, most: int, wanted: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes to compute, ending with `most`, and those of them to warm and to time."""
    if wanted:
        buckets = tuple(sorted({*wanted, most}))
        if not 1 <= buckets[0] <= buckets[-1] == most:
            raise EngineError(f"buckets must be from 1 to max_batch_size, {most}; they are {list(wanted)}")
        return buckets, buckets
    powers = powers_of_two(most)
    if provider in providers.GPUS:
        return powers, powers
    # Time grows in proportion to the size, and a new one costs next to nothing (docs/benchmarks.md).
    return tuple(range(1, most + 1)), powers


def powers_of_two(most: int) -> tuple[int, ...]:
    """Those below `most`, and `most` itself: 48 gives (1, 2, 4, 8, 16, 32, 48)."""
    if most < 1:
        raise EngineError(f"max_batch_size must be at least 1, is {most}")
    powers = [1 << bits for bits in range(most.bit_length()) if 1 << bits < most]
    return (*powers, most)


def _signature(session: ort.InferenceSession) -> tuple[tuple[int, int, int], int]:
    """(height, width, channels) of the graph's input, and the number of classes.

    Raises EngineError when they are not the design's.
    """
    inputs = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    outputs = {value.name: (value.type, value.shape) for value in session.get_outputs()}
    kind, shape = inputs.get(INPUT, ("", []))
    sized = len(shape) == 4 and all(isinstance(size, int) for size in shape[1:])
    if len(inputs) != 1 or kind != "tensor(uint8)" or not sized or isinstance(shape[0], int):
        raise EngineError(f"the model's input must be image: uint8 [n, height, width, channels], is {inputs}")
    found = [outputs.get(name, ("", [])) for name in OUTPUTS]
    classes = {sizes[1] if kind == "tensor(float)" and len(sizes) == 2 else None for kind, sizes in found}
    count = classes.pop()
    if classes or not isinstance(count, int):
        raise EngineError(
            f"the model's outputs must be probabilities and logits, float32 [n, classes]; they are {outputs}"
        )
    height, width, channels = shape[1:]
    return (height, width, channels), count
