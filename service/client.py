"""A typed client of cifarserve.v1.Classifier, synchronous and asynchronous.

    with Client("localhost:8001") as client:
        for prediction in client.classify(["cat.jpg", "dog.png"], top_k=3):
            print(prediction.best.label, prediction.best.probability)

Needs grpcio, NumPy and the stubs; Pillow only when PIL images are given.
"""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import grpc
import numpy as np
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from service.connection import Options as Options

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image as PilImage

    # A path, an encoded picture, a PIL image, or RGB pixels uint8 [height, width, 3].
    ImageLike: TypeAlias = str | Path | bytes | PilImage | npt.NDArray[np.uint8]

_DETAILS_KEY = "grpc-status-details-bin"
_TRY_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_FIRST_BACKOFF = 0.05  # seconds; doubles with every attempt
_MOST_BACKOFF = 2.0
_DEFAULTS = Options()


class ClientError(Exception):
    """The server refused, or could not be reached. `fields` are the fields that were wrong, with the reason."""

    def __init__(self, code: grpc.StatusCode, message: str, fields: dict[str, str], retry_after: float | None) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.fields = fields
        self.retry_after = retry_after


@dataclass(frozen=True)
class ClassProbability:
    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What one image shows, most probable class first, and who said so."""

    classes: tuple[ClassProbability, ...]
    model: str
    version: int

    @property
    def best(self) -> ClassProbability:
        return self.classes[0]


class Client:
    """Blocking client of one server. May be shared by threads."""

    def __init__(self, target: str = "localhost:8001", options: Options = _DEFAULTS) -> None:
        self._options = options
        settings, credentials = options.channel_options(), options.credentials()
        self._channel = (
            grpc.secure_channel(target, credentials, settings)
            if credentials
            else grpc.insecure_channel(target, settings)
        )
        self._stub = pb_grpc.ClassifierStub(self._channel)

    def classify(
        self,
        images: Sequence[ImageLike],
        *,
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        timeout: float | None = None,
    ) -> list[Prediction]:
        """Classify images (see ImageLike), all in one request. Raises ClientError; OSError for an unreadable path."""
        request = to_request(images, model, version, top_k)
        return to_predictions(self._call(self._stub.Classify, request, timeout))

    def classify_stream(self, batches: Iterable[Sequence[ImageLike]], **choice: Any) -> Iterator[list[Prediction]]:
        """Classify many requests over one stream, in order. `choice`: model, version, top_k. Nothing is retried."""
        requests = (to_request(images, **choice) for images in batches)
        try:
            for reply in self._stub.ClassifyStream(requests, metadata=self._options.metadata()):
                yield to_predictions(reply)
        except grpc.RpcError as error:
            raise to_client_error(error) from None

    def models(self) -> list[pb.Model]:
        return list(self._call(self._stub.ListModels, pb.ListModelsRequest(), None).models)

    def model(self, name: str = "", version: int = 0) -> pb.Model:
        model: pb.Model = self._call(self._stub.GetModel, pb.GetModelRequest(model=name, version=version), None)
        return model

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        deadline = time.monotonic() + (self._options.timeout if timeout is None else timeout)
        metadata = self._options.metadata()
        for attempt in range(1, self._options.attempts + 1):
            try:
                return method(request, timeout=deadline - time.monotonic(), metadata=metadata)
            except grpc.RpcError as error:
                time.sleep(_pause(to_client_error(error), attempt, self._options.attempts, deadline))
        raise AssertionError("the last attempt returns or raises")


class AsyncClient:
    """The same for asyncio; to be made and used inside one event loop."""

    def __init__(self, target: str = "localhost:8001", options: Options = _DEFAULTS) -> None:
        self._options = options
        settings, credentials = options.channel_options(), options.credentials()
        self._channel = (
            grpc.aio.secure_channel(target, credentials, settings)
            if credentials
            else grpc.aio.insecure_channel(target, settings)
        )
        self._stub = pb_grpc.ClassifierStub(self._channel)

    async def classify(
        self,
        images: Sequence[ImageLike],
        *,
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - gRPC sends it to the server as the call's deadline
    ) -> list[Prediction]:
        """Classify images (see ImageLike), all in one request. Raises ClientError; OSError for an unreadable path."""
        request = await asyncio.to_thread(to_request, images, model, version, top_k)
        return to_predictions(await self._call(self._stub.Classify, request, timeout))

    async def classify_stream(
        self, batches: AsyncIterable[Sequence[ImageLike]], **choice: Any
    ) -> AsyncIterator[list[Prediction]]:
        """Classify many requests over one stream, in order. `choice`: model, version, top_k. Nothing is retried."""

        async def requests() -> AsyncIterator[pb.ClassifyRequest]:
            async for images in batches:
                yield await asyncio.to_thread(to_request, images, **choice)

        try:
            async for reply in self._stub.ClassifyStream(requests(), metadata=self._options.metadata()):
                yield to_predictions(reply)
        except grpc.RpcError as error:
            raise to_client_error(error) from None

    async def models(self) -> list[pb.Model]:
        return list((await self._call(self._stub.ListModels, pb.ListModelsRequest(), None)).models)

    async def model(self, name: str = "", version: int = 0) -> pb.Model:
        model: pb.Model = await self._call(self._stub.GetModel, pb.GetModelRequest(model=name, version=version), None)
        return model

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, method: Any, request: Any, timeout: float | None) -> Any:  # noqa: ASYNC109
        deadline = time.monotonic() + (self._options.timeout if timeout is None else timeout)
        metadata = self._options.metadata()
        for attempt in range(1, self._options.attempts + 1):
            try:
                return await method(request, timeout=deadline - time.monotonic(), metadata=metadata)
            except grpc.RpcError as error:
                await asyncio.sleep(_pause(to_client_error(error), attempt, self._options.attempts, deadline))
        raise AssertionError("the last attempt returns or raises")


def _pause(error: ClientError, attempt: int, attempts: int, deadline: float) -> float:
    """Seconds to wait before the next attempt. Raises `error` when there should be none.

    UNAVAILABLE is tried again, and CANCELLED, which gRPC servers that stop answer to calls they had not looked at;
    RESOURCE_EXHAUSTED only when the server says after how long, since it is also what gRPC answers to a message over
    the limit. Jittered, so that callers that were shed together do not return together.
    """
    again = error.code in _TRY_AGAIN or error.retry_after is not None
    backoff = min(_MOST_BACKOFF, _FIRST_BACKOFF * 2 ** (attempt - 1))
    pause: float = max(backoff, error.retry_after or 0.0) * random.uniform(1.0, 1.5)
    if not again or attempt == attempts or time.monotonic() + pause >= deadline:
        raise error from None
    return pause


def to_request(
    images: Sequence[ImageLike], model: str = "", version: int = 0, top_k: int | None = None
) -> pb.ClassifyRequest:
    """The message for `images`. Raises OSError for an unreadable path, TypeError for what is no image."""
    if isinstance(images, str | bytes | Path):
        raise TypeError("images must be a list, also when there is only one")
    return pb.ClassifyRequest(model=model, version=version, images=[_to_image(image) for image in images], top_k=top_k)


def _to_image(image: Any) -> pb.Image:
    if isinstance(image, str | Path):
        return pb.Image(encoded=Path(image).read_bytes())
    if isinstance(image, bytes | bytearray | memoryview):
        return pb.Image(encoded=bytes(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise TypeError(f"pixels must be uint8 [height, width, 3], are {image.dtype} {list(image.shape)}")
        height, width, _ = image.shape
        return pb.Image(raw=pb.RawImage(rgb=image.tobytes(), width=width, height=height))
    if hasattr(image, "save") and hasattr(image, "convert"):
        # As PNG, lossless and with its transparency and orientation, so that the server treats it like the file.
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1, exif=image.getexif())
        return pb.Image(encoded=file.getvalue())
    raise TypeError(f"{type(image).__name__} is not a path, bytes, PIL image or NumPy array")


def to_predictions(reply: pb.ClassifyResponse) -> list[Prediction]:
    """The predictions of a reply. Raises ClientError for a stream's reply that carries an error."""
    if reply.HasField("error"):
        raise _from_status(reply.error)
    return [
        Prediction(
            classes=tuple(ClassProbability(one.label, one.index, one.probability) for one in prediction.classes),
            model=reply.model,
            version=reply.version,
        )
        for prediction in reply.predictions
    ]


def to_client_error(error: grpc.RpcError) -> ClientError:
    """The error of a failed call, with the google.rpc details that the server sent along."""
    trailing: Any = error.trailing_metadata()
    metadata = dict(trailing or ())
    code, message = error.code(), error.details() or ""
    try:
        status = status_pb2.Status.FromString(metadata.get(_DETAILS_KEY, b""))
    except DecodeError:
        status = status_pb2.Status()
    fields, retry_after = _details(status)
    return ClientError(code, message, fields, retry_after)


def _from_status(status: status_pb2.Status) -> ClientError:
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    return ClientError(code, status.message, *_details(status))


def _details(status: status_pb2.Status) -> tuple[dict[str, str], float | None]:
    """Fields that were wrong, with the reason, and after how many seconds to come back, if it says so."""
    fields: dict[str, str] = {}
    retry_after = None
    for detail in status.details:
        request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(request):
            fields |= {violation.field: violation.description for violation in request.field_violations}
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return fields, retry_after
