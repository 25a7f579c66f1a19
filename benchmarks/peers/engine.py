"""What the peers share: settings from the environment, and the session, which is made alike for all."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime

MODEL = os.environ["MODEL"]
PORT = int(os.environ["PORT"])
THREADS = int(os.environ["THREADS"])
HEIGHT, WIDTH, CHANNELS = map(int, os.environ["SHAPE"].split(","))
CLASSES = int(os.environ["CLASSES"])
MAX_BATCH = 64
# For those that gather requests only while they wait.
DELAY = 0.002


class Engine:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self._session = onnxruntime.InferenceSession(
            MODEL, options, providers=["CPUExecutionProvider"], enable_fallback=False
        )
        for size in (1, MAX_BATCH):
            self.run(np.zeros((size, HEIGHT, WIDTH, CHANNELS), np.uint8))

    def run(self, images: np.ndarray) -> np.ndarray:
        """Probabilities float32 [n, classes] of uint8 [n, height, width, channels]."""
        return self._session.run(["probabilities"], {"image": images})[0]

    def run_many(self, requests: list[np.ndarray]) -> list[np.ndarray]:
        """The same for several requests, computed as one batch."""
        ends = np.cumsum([len(one) for one in requests])[:-1]
        return np.split(self.run(np.concatenate(requests) if len(requests) > 1 else requests[0]), ends)


def pixels(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, CHANNELS)
