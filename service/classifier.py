"""The typed servicer, cifarserve.v1.Classifier: requests to pixels, pixels to the batcher, rows to predictions."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import grpc
import numpy as np
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc
from google.rpc import status_pb2

from service import images, status
from service.config import Settings
from service.engine import Floats
from service.errors import InvalidInput, ModelNotFound, Unavailable
from service.metrics import Metrics
from service.repository import Repository, ServedModel

DEFAULT_TOP_K = 5
_Context = grpc.aio.ServicerContext[Any, Any]
_Answer: TypeAlias = pb.ClassifyResponse | status_pb2.Status


class Classifier(pb_grpc.ClassifierServicer):
    """Implements protos/cifarserve/v1/classifier.proto, which documents the calls and their errors."""

    def __init__(self, repository: Repository, settings: Settings, metrics: Metrics, decoders: ThreadPoolExecutor):
        self._repository = repository
        self._settings = settings
        self._metrics = metrics
        self._decoders = decoders
        self._readers: set[asyncio.Task[None]] = set()

    async def Classify(self, request: pb.ClassifyRequest, context: _Context) -> pb.ClassifyResponse:  # noqa: N802
        answer = await self._answer(request, _deadline(context))
        if isinstance(answer, status_pb2.Status):
            await status.abort(context, answer)
        return answer

    async def ClassifyStream(self, _requests: Any, context: _Context) -> None:  # noqa: N802
        """Read, work and reply at the same time, with at most `stream_window` requests in between."""
        deadline = _deadline(context)
        window = asyncio.Semaphore(self._settings.stream_window)
        answers: asyncio.Queue[tuple[str, asyncio.Task[_Answer]] | None] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self._read(context, deadline, window, answers, group))
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
            reader.add_done_callback(lambda _: answers.put_nowait(None))
            while (entry := await answers.get()) is not None:
                request_id, task = entry
                answer = await task
                if isinstance(answer, status_pb2.Status):
                    answer = pb.ClassifyResponse(id=request_id, error=answer)
                await context.write(answer)
                window.release()
        if reader.cancelled():
            await status.abort(context, status.from_error(Unavailable("the server is draining")))

    async def ListModels(self, _request: pb.ListModelsRequest, _context: _Context) -> pb.ListModelsResponse:  # noqa: N802
        return pb.ListModelsResponse(models=[_describe(model) for model in self._repository.models()])

    async def GetModel(self, request: pb.GetModelRequest, context: _Context) -> pb.Model:  # noqa: N802
        try:
            return _describe(self._repository.find(request.model, request.version))
        except (ModelNotFound, Unavailable) as error:
            await status.abort(context, status.from_error(error))
            raise

    def drain(self) -> None:
        """Read no more from the open streams; they end when what was read is answered."""
        for reader in self._readers:
            reader.cancel()

    async def _read(
        self,
        context: _Context,
        deadline: float | None,
        window: asyncio.Semaphore,
        answers: asyncio.Queue[tuple[str, asyncio.Task[_Answer]] | None],
        group: asyncio.TaskGroup,
    ) -> None:
        while True:
            await window.acquire()
            request = await context.read()
            if request is grpc.aio.EOF:
                return
            answers.put_nowait((request.id, group.create_task(self._answer(request, deadline))))

    async def _answer(self, request: pb.ClassifyRequest, deadline: float | None) -> _Answer:
        """The reply to one request, or the status that it fails with; counted either way."""
        started = time.monotonic()
        model: ServedModel | None = None
        code = grpc.StatusCode.CANCELLED
        try:
            model = self._repository.find(request.model, request.version)
            reply = await self._classify(model, request, deadline)
            code = grpc.StatusCode.OK
            return reply
        except Exception as error:
            failure = status.from_error(error)
            code = status.code_of(failure)
            return failure
        finally:
            if model is None:
                self._metrics.unknown(code.name)
            else:
                model.metrics.answered(code.name, time.monotonic() - started)

    async def _classify(
        self, model: ServedModel, request: pb.ClassifyRequest, deadline: float | None
    ) -> pb.ClassifyResponse:
        count = len(request.images)
        top_k = self._check(model, request)
        with model.batcher.admit(count) as admitted:
            pixels = await self._decode(model, request)
            answer = await admitted.compute(pixels, deadline)
        return pb.ClassifyResponse(
            id=request.id,
            model=model.manifest.name,
            version=model.manifest.version,
            predictions=_predictions(answer.probabilities, model.manifest.labels, top_k),
        )

    def _check(self, model: ServedModel, request: pb.ClassifyRequest) -> int:
        """What can be wrong with a request before its images are looked at. Returns top_k."""
        most = self._settings.max_images_per_request
        if not request.images:
            raise InvalidInput("images", "at least one is needed")
        if len(request.images) > most:
            raise InvalidInput("images", f"{len(request.images)} are too many, the limit is {most}")
        classes = len(model.manifest.labels)
        if not request.HasField("top_k"):
            return min(DEFAULT_TOP_K, classes)
        if not 1 <= request.top_k <= classes:
            raise InvalidInput("top_k", f"must be between 1 and {classes}, the number of classes, is {request.top_k}")
        return request.top_k

    async def _decode(self, model: ServedModel, request: pb.ClassifyRequest) -> images.Pixels:
        """All images of a request: uint8 [n, height, width, channels]. Raises InvalidInput for the first bad one."""
        shape = model.manifest.image_shape
        batch = np.empty((len(request.images), *shape), np.uint8)
        loop = asyncio.get_running_loop()
        limit = self._settings.max_image_pixels
        pending = []
        for index, image in enumerate(request.images):
            if image.WhichOneof("source") == "raw" and (image.raw.height, image.raw.width, 3) == shape:
                _decode_into(batch, index, image, limit)  # a copy of some bytes: not worth a thread
            else:
                pending.append(loop.run_in_executor(self._decoders, _decode_into, batch, index, image, limit))
        for decoding in await asyncio.gather(*pending, return_exceptions=True):
            if decoding is not None:
                raise decoding
        return batch


def _decode_into(batch: images.Pixels, index: int, image: pb.Image, max_pixels: int) -> None:
    """Bring one image to the model's shape, into its row of the batch."""
    source = image.WhichOneof("source")
    shape = batch.shape[1:]
    try:
        if source == "encoded":
            batch[index] = images.decode(image.encoded, shape, max_pixels)
        elif source == "raw":
            if image.raw.width * image.raw.height > max_pixels:
                raise images.ImageError(f"{image.raw.width} x {image.raw.height} pixels, the limit is {max_pixels}")
            batch[index] = images.from_raw(image.raw.rgb, image.raw.width, image.raw.height, shape)
        else:
            raise InvalidInput(f"images[{index}]", "has neither encoded nor raw")
    except images.ImageError as error:
        raise InvalidInput(f"images[{index}].{source}", str(error)) from None


def _predictions(probabilities: Floats, labels: tuple[str, ...], top_k: int) -> list[pb.Prediction]:
    """For each row of [n, classes] its `top_k` classes, most probable first, equal ones by index."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    best = np.take_along_axis(probabilities, order, axis=1)
    return [
        pb.Prediction(
            classes=[
                pb.ClassProbability(label=labels[index], index=index, probability=probability)
                for index, probability in zip(indices, row, strict=True)
            ]
        )
        for indices, row in zip(order.tolist(), best.tolist(), strict=True)
    ]


def _deadline(context: _Context) -> float | None:
    """The call's deadline on time.monotonic()'s clock."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


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
