"""Prints how many Python calls one request makes: `python request_cost.py REPOSITORY IMAGES`.

A program of its own, since the messages that it imports have the names of tritonclient's, which other tests import.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

from inference import grpc_predict_v2_pb2 as pb

from service.config import Settings
from service.event_loop import new_loop
from service.frontend import Frontend
from service.metrics import Metrics
from service.open_inference import OpenInference
from service.repository import Repository
from service.streams import Streams
from tests import colour_model

REQUESTS = 50


class Context:
    """As much of a call's context as a request without deadline and metadata needs."""

    def time_remaining(self) -> None:
        return None

    def invocation_metadata(self) -> tuple[()]:
        return ()


def count_calls(repository_folder: Path, images: int) -> float:
    """Python calls a request, over REQUESTS of them, one after the other."""
    settings = Settings(model_repository=repository_folder, provider="cpu", threads=1)
    request = pb.ModelInferRequest(model_name="colours")
    pixels = colour_model.distinct(images)
    request.inputs.add(name="image", datatype="UINT8", shape=pixels.shape)
    request.raw_input_contents.append(pixels.tobytes())
    calls = 0

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    async def main() -> None:
        metrics = Metrics()
        repository = Repository(settings, metrics, lambda: None)
        await repository.start()
        decoders = ThreadPoolExecutor(1)
        servicer = OpenInference(Frontend(repository, settings, metrics, decoders), Streams(1))
        context: Any = Context()
        await servicer.ModelInfer(request, context)
        sys.setprofile(count)
        try:
            for _ in range(REQUESTS):
                reply = await servicer.ModelInfer(request, context)
        finally:
            sys.setprofile(None)
        assert reply.outputs[0].shape == [images, len(colour_model.LABELS)]
        await repository.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:  # the loop of the server: asyncio's own makes calls, too
        runner.run(main())
    return calls / REQUESTS


if __name__ == "__main__":
    sys.stdout.write(f"{count_calls(Path(sys.argv[1]), int(sys.argv[2]))}\n")
