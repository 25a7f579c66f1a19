"""model.py of Triton's Python backend."""

from __future__ import annotations

import os
import sys

sys.path[:0] = os.environ["PYTHONPATH"].split(":")  # which the backend's own Python does not read

import engine  # noqa: E402
import triton_python_backend_utils as triton  # noqa: E402


class TritonPythonModel:
    def initialize(self, arguments: dict[str, str]) -> None:
        self.engine = engine.Engine()

    def execute(self, requests: list) -> list:
        images = [triton.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        found = self.engine.run_many(images)
        return [triton.InferenceResponse([triton.Tensor("probabilities", one)]) for one in found]
