"""The typed servicer, cifarserve.v1.Classifier: requests to pixels, pixels to the batcher, rows to predictions."""

from __future__ import annotations

from functools import partial
from typing import Any

import grpc
import numpy as np
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc
from google.rpc import status_pb2

from service import images, status
from service.errors import InvalidInput, ServiceError
from service.frontend import Decode, Frontend, Timing, deadline_of
from service.runners import Floats
from service.serving import ServedModel
from service.streams import Streams

DEFAULT_TOP_K = 5
# Classes in one reply, over all its images. Each is some bytes of text that the event loop writes.
MOST_RANKED = 1 << 16
_Context = grpc.aio.ServicerContext[Any, Any]


class Classifier(pb_grpc.ClassifierServicer):
    """Implements protos/cifarserve/v1/classifier.proto, which documents the calls and their errors."""

    def __init__(self, frontend: Frontend, streams: Streams) -> None:
        self._frontend = frontend
        self._streams = streams

    async def Classify(self, request: pb.ClassifyRequest, context: _Context) -> pb.ClassifyResponse:  # noqa: N802
        reply = await self._answer(request, context, deadline_of(context))
        if isinstance(reply, status_pb2.Status):
            await status.abort(context, reply)
        return reply

    async def ClassifyStream(self, _requests: Any, context: _Context) -> None:  # noqa: N802
        deadline = deadline_of(context)

        async def answer(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
            reply = await self._answer(request, context, deadline)
            return pb.ClassifyResponse(id=request.id, error=reply) if isinstance(reply, status_pb2.Status) else reply

        await self._streams.serve(context, answer, lambda request: len(request.images))

    async def ListModels(self, _request: pb.ListModelsRequest, _context: _Context) -> pb.ListModelsResponse:  # noqa: N802
        return pb.ListModelsResponse(models=[_describe(model) for model in self._frontend.repository.models()])

    async def GetModel(self, request: pb.GetModelRequest, context: _Context) -> pb.Model:  # noqa: N802
        try:
            return _describe(self._frontend.repository.find(request.model, request.version))
        except ServiceError as error:
            await status.abort(context, status.from_error(error))
            raise

    async def _answer(
        self, request: pb.ClassifyRequest, context: _Context, deadline: float | None
    ) -> pb.ClassifyResponse | status_pb2.Status:
        async def work(model: ServedModel, timing: Timing) -> pb.ClassifyResponse:
            timing.name = request.id
            return await self._classify(model, timing, request, deadline)

        return await self._frontend.answer(context, request.model, request.version, work)

    async def _classify(
        self, model: ServedModel, timing: Timing, request: pb.ClassifyRequest, deadline: float | None
    ) -> pb.ClassifyResponse:
        labels, shape = model.manifest.labels, model.manifest.image_shape
        top_k = _top_k(request, len(labels))

        def read() -> images.Pixels | list[Decode]:
            pixels = _pixels(request, shape)
            if pixels is not None:
                return pixels
            limits = self._frontend.limits()
            return [partial(_decode, index, image, *limits) for index, image in enumerate(request.images)]

        count = len(request.images)
        check_ranking("top_k", count, top_k)
        answer = await self._frontend.classify(model, timing, "images", count, read, request.ByteSize, deadline)
        return pb.ClassifyResponse(
            id=request.id,
            model=model.manifest.name,
            version=model.manifest.version,
            predictions=_predictions(answer.probabilities, labels, top_k),
        )


def _top_k(request: pb.ClassifyRequest, classes: int) -> int:
    if not request.HasField("top_k"):
        return min(DEFAULT_TOP_K, classes)
    if not 1 <= request.top_k <= classes:
        raise InvalidInput("top_k", f"must be between 1 and {classes}, the number of classes, is {request.top_k}")
    return request.top_k


def _pixels(request: pb.ClassifyRequest, shape: tuple[int, int, int]) -> images.Pixels | None:
    """uint8 [n, height, width, channels] when all images are raw pixels of that shape: copying needs no thread."""
    size = shape[0] * shape[1] * shape[2]
    rows = []
    for image in request.images:
        raw = image.raw  # of an image without one: an empty message, with height 0
        if (raw.height, raw.width, 3) != shape or len(raw.rgb) != size:
            return None
        rows.append(raw.rgb)
    if not rows:
        return None
    return np.frombuffer(rows[0] if len(rows) == 1 else b"".join(rows), np.uint8).reshape(-1, *shape)


def _decode(index: int, image: pb.Image, max_pixels: int, effort: images.Effort, row: images.Pixels) -> None:
    """Bring one image to the shape of `row`, and write it there."""
    source = image.WhichOneof("source")
    height, width, channels = row.shape
    shape = (height, width, channels)
    try:
        if source == "encoded":
            row[:] = images.decode(image.encoded, shape, max_pixels, effort)
        elif source == "raw":
            raw = image.raw
            if raw.width * raw.height > max_pixels:
                raise images.ImageError(f"{raw.width} x {raw.height} pixels are too many, the limit is {max_pixels}")
            row[:] = images.from_raw(raw.rgb, raw.width, raw.height, shape)
        else:
            raise InvalidInput(f"images[{index}]", "has neither encoded nor raw")
    except images.ImageError as error:
        raise InvalidInput(f"images[{index}].{source}", str(error)) from None


def check_ranking(field: str, count: int, classes: int) -> None:
    """Raise InvalidInput when a reply that ranks so many classes for each of `count` images would be too large."""
    if count * classes > MOST_RANKED:
        problem = f"{classes} classes for each of {count} images are more than {MOST_RANKED} in one reply"
        raise InvalidInput(field, f"{problem}; ask for fewer classes, or send fewer images")


def top_classes(probabilities: Floats, top_k: int) -> tuple[list[list[int]], list[list[float]]]:
    """For each row of [n, classes] its `top_k` classes and their values, highest first, equal ones by index."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return order.tolist(), np.take_along_axis(probabilities, order, axis=1).tolist()


def _predictions(probabilities: Floats, labels: tuple[str, ...], top_k: int) -> list[pb.Prediction]:
    return [
        pb.Prediction(
            classes=[
                pb.ClassProbability(label=labels[index], index=index, probability=value)
                for index, value in zip(indices, values, strict=True)
            ]
        )
        for indices, values in zip(*top_classes(probabilities, top_k), strict=True)
    ]


def _describe(model: ServedModel) -> pb.Model:
    manifest, engine = model.manifest, model.engine
    height, width, channels = manifest.image_shape
    evaluation = manifest.evaluation
    return pb.Model(
        name=manifest.name,
        version=manifest.version,
        labels=manifest.labels,
        height=height,
        width=width,
        channels=channels,
        provider=engine.provider,
        precision=engine.precision,
        max_batch_size=engine.max_batch_size,
        created=manifest.created,
        dataset=str(manifest.dataset.get("name", "")),
        evaluation=pb.Evaluation(
            accuracy=evaluation["accuracy"],
            macro_f1=evaluation.get("macro", {}).get("f1", 0.0),
            expected_calibration_error=evaluation.get("ece", 0.0),
            images=evaluation.get("n", 0),
        ),
    )
