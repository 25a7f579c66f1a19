"""What is asked of whom, and what the server says that it takes."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from cifarserve.v1 import classifier_pb2
from google.protobuf.message import DecodeError

from service.connection import Options

CLASSIFY = "/cifarserve.v1.Classifier/Classify"
CLASSIFY_STREAM = "/cifarserve.v1.Classifier/ClassifyStream"
INFER = "/inference.GRPCInferenceService/ModelInfer"
INFER_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
METADATA = "/inference.GRPCInferenceService/ModelMetadata"
GET_MODEL = "/cifarserve.v1.Classifier/GetModel"
HTTP = "POST"


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
    stable: float = 0.05  # it may end early once the last windows differ by less than this share; 0: it does not


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
    content_type: str = ""  # of messages over HTTP

    def to_record(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Work:
        return cls(**{**record, "targets": tuple(record["targets"]), "load": Load(**record["load"])})


@dataclass(frozen=True)
class Tensor:
    """An input of the Open Inference Protocol; -1 in `shape` is a size that may vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def is_image(self) -> bool:
        """Whether it is UINT8 [n, height, width, 1 or 3], of a known size."""
        sizes = self.shape[1:]
        return self.datatype == "UINT8" and len(sizes) == 3 and min(sizes) > 0 and sizes[2] in (1, 3)

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


@dataclass(frozen=True)
class Shape:
    """What a server says that it takes. `served` is what else it says of it, for the report."""

    model: str
    inputs: tuple[Tensor, ...]
    served: str = ""


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
                image = Tensor("image", "UINT8", (-1, found.height, found.width, found.channels))
                said = f"version {found.version} in {found.precision or 'its own precision'} on {found.provider}"
                return Shape(found.name, (image,), said)
            if not model:
                raise LoadTestError("--model: the Open Inference Protocol needs the model's name")
            oip = open_inference()
            request = oip.ModelMetadataRequest(name=model).SerializeToString()
            reply = unary(METADATA)(request, timeout=options.timeout, metadata=options.metadata())
            answer = oip.ModelMetadataResponse.FromString(reply)
            inputs = tuple(Tensor(one.name, one.datatype, tuple(one.shape)) for one in answer.inputs)
            if not inputs:
                raise LoadTestError(f"{target}: does not say what model {model} takes")
            versions = f"version {', '.join(answer.versions)}" if answer.versions else ""
            return Shape(model, inputs, " ".join(filter(None, (versions, answer.platform and f"on {answer.platform}"))))
        except grpc.RpcError as error:
            raise LoadTestError(f"{target}: {error.code().name}: {error.details()}") from None
        except DecodeError as error:
            raise LoadTestError(f"{target}: its answer is no message of the protocol: {error}") from None


def open_inference() -> Any:
    """The messages of the Open Inference Protocol; loaded when asked for, since tritonclient brings the same names."""
    return importlib.import_module("inference.grpc_predict_v2_pb2")
