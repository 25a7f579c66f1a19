"""What is fuzzed: each target takes bytes, and may raise nothing but what the code says it raises for bad input."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from cifarserve.v1 import classifier_pb2
from google.protobuf.message import DecodeError, Message
from inference import grpc_predict_v2_pb2

from service import classifier, images, model_config, tensors
from service.config import ConfigError, Settings
from service.errors import InvalidInput
from service.manifest import ManifestError, read_manifest

SHAPE = (32, 32, 3)
MOST_PIXELS = 1 << 20  # so that a small picture that unpacks to a large one takes no seconds
MOST_SECONDS = 5.0
SETTINGS = Settings()


def pictures(data: bytes) -> None:
    """What a caller sends as an encoded picture."""
    with suppress(images.ImageError):
        decoded = images.decode(data, SHAPE, MOST_PIXELS, images.Effort(MOST_SECONDS))
        assert (decoded.shape, decoded.dtype) == (SHAPE, np.uint8)


def tensors_(data: bytes) -> None:
    """A ModelInferRequest of the Open Inference Protocol."""
    request = grpc_predict_v2_pb2.ModelInferRequest()
    with suppress(DecodeError, InvalidInput):
        request.ParseFromString(data)
        tensors.claimed_images(request)
        tensors.number(request.parameters, "timeout", "parameters")
        tensors.number(request.parameters, "priority", "parameters")
        tensors.wanted_outputs(request, 10)
        found = tensors.read_images(request, SHAPE)
        if isinstance(found, list):
            assert found
            assert all(isinstance(one, bytes) for one in found)
        else:
            assert (found.shape[1:], found.dtype) == (SHAPE, np.uint8)


def requests(data: bytes) -> None:
    """A ClassifyRequest of our own protocol."""
    request = classifier_pb2.ClassifyRequest()
    with suppress(DecodeError, InvalidInput):
        request.ParseFromString(data)
        assert 1 <= classifier._top_k(request, 10) <= 10
        pixels = classifier._pixels(request, SHAPE)
        if pixels is not None:
            assert pixels.shape == (len(request.images), *SHAPE)
            return
        row = np.empty(SHAPE, np.uint8)
        for index, image in enumerate(request.images):
            classifier._decode(index, image, MOST_PIXELS, images.Effort(MOST_SECONDS), row)


def documents(data: bytes) -> None:
    """manifest.json and config.toml of a model."""
    with suppress(ManifestError):
        manifest = read_manifest(Path("version"), data)
        assert len(manifest.labels) >= 2
    with suppress(UnicodeDecodeError, tomllib.TOMLDecodeError, ConfigError):
        model_config.parse(tomllib.loads(data.decode()), SETTINGS, "config.toml")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "pictures": pictures, "tensors": tensors_, "requests": requests, "documents": documents,
}  # fmt: skip


MESSAGES: dict[str, type[Message]] = {
    "tensors": grpc_predict_v2_pb2.ModelInferRequest, "requests": classifier_pb2.ClassifyRequest,
}  # fmt: skip


def seeds(name: str) -> list[bytes]:
    """The corpus in this folder."""
    return [path.read_bytes() for path in sorted((Path(__file__).parent / "corpus" / name).iterdir())]
