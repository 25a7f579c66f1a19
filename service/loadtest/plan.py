"""What a load test sends: which calls, which messages, to whom; found out by asking the server what it serves."""

from __future__ import annotations

import dataclasses
import importlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cifarserve.v1 import classifier_pb2
from google.protobuf.message import DecodeError

from service.connection import Options

CLASSIFY = "/cifarserve.v1.Classifier/Classify"
CLASSIFY_STREAM = "/cifarserve.v1.Classifier/ClassifyStream"
INFER = "/inference.GRPCInferenceService/ModelInfer"
INFER_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
METADATA = "/inference.GRPCInferenceService/ModelMetadata"
GET_MODEL = "/cifarserve.v1.Classifier/GetModel"
# Different messages in rotation, so that no cache answers, and few enough to be kept in memory.
MESSAGES = 64
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


class LoadTestError(RuntimeError):
    """The test cannot be made: an unreachable server, a model with another input, no pictures. Fit for people."""


@dataclass(frozen=True)
class Load:
    """One measurement. Exactly one of `concurrency` (closed loop) and `rate` (requests a second, open loop) is set."""

    concurrency: int = 0
    rate: float = 0.0
    arrivals: str = "poisson"  # or constant
    seconds: float = 10.0
    warm_up: float = 1.0
    deadline: float = 10.0  # seconds, of a call


@dataclass(frozen=True)
class Work:
    """For one driver process, as JSON on its standard input. `messages` is a file of length-prefixed messages."""

    targets: tuple[str, ...]
    method: str
    stream: bool
    messages: str
    images: int  # in one message
    load: Load
    seed: int
    options: dict[str, Any]  # of service.connection.Options, bytes as text

    def to_record(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Work:
        return cls(**{**record, "targets": tuple(record["targets"]), "load": Load(**record["load"])})


@dataclass(frozen=True)
class Shape:
    """What a server says that it takes."""

    model: str
    height: int
    width: int
    channels: int
    input_name: str = "image"


def ask_shape(target: str, protocol: str, model: str, options: Options) -> Shape:
    """Ask `target` what `model` takes (empty: its only one). Raises LoadTestError."""
    credentials = options.credentials()
    channel = grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target)
    unary: Callable[[str], Any] = channel.unary_unary
    with channel:
        try:
            if protocol == "classify":
                request = classifier_pb2.GetModelRequest(model=model).SerializeToString()
                reply = unary(GET_MODEL)(request, timeout=options.timeout, metadata=options.metadata())
                found = classifier_pb2.Model.FromString(reply)
                return Shape(found.name, found.height, found.width, found.channels)
            if not model:
                raise LoadTestError("--model: the Open Inference Protocol needs the model's name")
            oip = open_inference()
            request = oip.ModelMetadataRequest(name=model).SerializeToString()
            reply = unary(METADATA)(request, timeout=options.timeout, metadata=options.metadata())
            return _shape_of(oip.ModelMetadataResponse.FromString(reply), model)
        except grpc.RpcError as error:
            raise LoadTestError(f"{target}: {error.code().name}: {error.details()}") from None
        except DecodeError as error:
            raise LoadTestError(f"{target}: its answer is no message of the protocol: {error}") from None


def open_inference() -> Any:
    """The messages of the Open Inference Protocol; loaded when asked for, since tritonclient brings the same names."""
    return importlib.import_module("inference.grpc_predict_v2_pb2")


def _shape_of(reply: Any, model: str) -> Shape:
    fitting = [
        tensor for tensor in reply.inputs
        if tensor.datatype == "UINT8" and len(tensor.shape) == 4 and all(size > 0 for size in tensor.shape[1:])
    ]  # fmt: skip
    if not fitting or fitting[0].shape[3] not in (1, 3):
        found = (
            ", ".join(f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in reply.inputs) or "nothing"
        )
        raise LoadTestError(f"model {model}: takes {found}; what can be sent is UINT8 [n, height, width, 1 or 3]")
    _, height, width, channels = fitting[0].shape
    return Shape(model, height, width, channels, fitting[0].name)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures under `folder`, in a fixed order. Raises LoadTestError when there are none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    if not found:
        raise LoadTestError(f"{folder}: no pictures ({', '.join(sorted(PICTURES))})")
    return found


def make_messages(
    protocol: str, shape: Shape, images: int, pictures: Sequence[Path] = (), *, encoded: bool = False
) -> list[bytes]:
    """Different messages of `images` each: noise in the model's own size, or `pictures`, as pixels or as they are.

    Raises LoadTestError.
    """
    if encoded and not pictures:
        raise LoadTestError("--encoded needs --pictures")
    if encoded and protocol == "infer":
        raise LoadTestError("--encoded is for the classify protocol")
    generator = np.random.default_rng(0)
    count = max(1, min(MESSAGES, (64 << 20) // (images * shape.height * shape.width * shape.channels)))
    made = []
    for number in range(count):
        chosen = [pictures[(number * images + index) % len(pictures)] for index in range(images)] if pictures else []
        if encoded:
            content = [classifier_pb2.Image(encoded=path.read_bytes()) for path in chosen]
            made.append(classifier_pb2.ClassifyRequest(model=shape.model, images=content).SerializeToString())
            continue
        size = (images, shape.height, shape.width, shape.channels)
        pixels = _read(chosen, shape) if chosen else generator.integers(0, 256, size, np.uint8)
        made.append(_classify(shape, pixels) if protocol == "classify" else _infer(shape, pixels))
    return made


def _read(paths: Sequence[Path], shape: Shape) -> Any:
    from service.images import ImageError, decode

    try:
        size = (shape.height, shape.width, shape.channels)
        return np.stack([decode(path.read_bytes(), size) for path in paths])
    except (ImageError, OSError) as error:
        raise LoadTestError(f"a picture cannot be read: {error}") from None


def _classify(shape: Shape, pixels: Any) -> bytes:
    colours = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
    content = [
        classifier_pb2.Image(
            raw=classifier_pb2.RawImage(rgb=np.ascontiguousarray(one).tobytes(), width=shape.width, height=shape.height)
        )
        for one in colours
    ]
    return bytes(classifier_pb2.ClassifyRequest(model=shape.model, images=content).SerializeToString())


def _infer(shape: Shape, pixels: Any) -> bytes:
    oip = open_inference()
    tensor = oip.ModelInferRequest.InferInputTensor(name=shape.input_name, datatype="UINT8", shape=pixels.shape)
    request = oip.ModelInferRequest(model_name=shape.model, inputs=[tensor], raw_input_contents=[pixels.tobytes()])
    return bytes(request.SerializeToString())


def write_messages(path: Path, messages: Sequence[bytes]) -> None:
    path.write_bytes(b"".join(struct.pack("<I", len(message)) + message for message in messages))


def read_messages(path: Path) -> Iterator[bytes]:
    data, place = path.read_bytes(), 0
    while place < len(data):
        (size,) = struct.unpack_from("<I", data, place)
        yield data[place + 4 : place + 4 + size]
        place += 4 + size
