"""The page's way to the models: calls to this server's own gRPC port, made as any caller makes them.

So tokens, admission, limits, deadlines and metrics are those of every call, and one process serves the page as several
do. What the calls do not give, the pictures that a model sees and its report, is added here.
"""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import grpc
import numpy as np
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc
from cryptography import x509
from PIL import Image

from service import golden, images
from service.config import Settings
from service.manifest import GOLDEN_FILE

REPORT_FILE = "report.html"
_SECONDS = 10.0  # a call's deadline
_MOST_SAMPLES = 12
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where one listens, to where one calls


class Gateway:
    def __init__(self, settings: Settings, port: int) -> None:
        """`port` is gRPC's, on this machine."""
        self._settings = settings
        host = _ANY_ADDRESS.get(settings.host, settings.host)
        self._target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @contextmanager
    def connected(self, authorization: str) -> Iterator[Caller]:
        """A connection of its own, so that workers take turns and a renewed certificate is met at once.

        `authorization` is passed on as it came, empty for none. Raises OSError and ValueError for a certificate that
        cannot be read.
        """
        options: list[tuple[str, Any]] = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
        ]
        if self._settings.tls_certificate:
            # What it is itself is all that it trusts.
            content = Path(self._settings.tls_certificate).read_bytes()
            options.append(("grpc.ssl_target_name_override", _name_in(x509.load_pem_x509_certificate(content))))
            channel = grpc.secure_channel(self._target, grpc.ssl_channel_credentials(content), options)
        else:
            channel = grpc.insecure_channel(self._target, options)
        with channel:
            yield Caller(channel, authorization, self._settings.max_image_pixels)

    def report(self, model: pb.Model) -> BinaryIO | None:
        """The report of a version that is served; None when it has none."""
        return self._file(model, REPORT_FILE)

    def has_report(self, model: pb.Model) -> bool:
        return (self._folder(model) / REPORT_FILE).is_file()

    def samples(self, model: pb.Model) -> list[str]:
        """A few pictures that the version was checked with when it was published, one of each class, as data URLs."""
        file = self._file(model, GOLDEN_FILE)
        if file is None:
            return []
        with file:
            try:
                pictures, probabilities = golden.read(file)
                _, firsts = np.unique(probabilities.argmax(axis=1), return_index=True)
                chosen = pictures[firsts[:_MOST_SAMPLES]]
            except (ValueError, IndexError):  # not as it was when it was loaded
                return []
        fits = chosen.dtype == np.uint8 and chosen.shape[1:] == (model.height, model.width, model.channels)
        return [_data_url(picture) for picture in chosen] if fits else []

    def _folder(self, model: pb.Model) -> Path:
        return self._settings.model_repository / model.name / str(model.version)

    def _file(self, model: pb.Model, name: str) -> BinaryIO | None:
        """A file of the version's folder, which like the folder must not be a link; None when there is none."""
        folder = self._folder(model)
        try:
            if folder.is_symlink():
                return None
            return os.fdopen(os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW), "rb")
        except OSError:
            return None


class Caller:
    """Calls of one asker. All raise grpc.RpcError."""

    def __init__(self, channel: grpc.Channel, authorization: str, max_image_pixels: int) -> None:
        self._stub = pb_grpc.ClassifierStub(channel)
        self._metadata = (("authorization", authorization),) if authorization else ()
        self._max_image_pixels = max_image_pixels

    def models(self) -> list[pb.Model]:
        return list(self._call(self._stub.ListModels, pb.ListModelsRequest()).models)

    def model(self, name: str, version: int) -> pb.Model:
        """The version that is to answer; an empty name and version 0 leave the choice to the server."""
        found: pb.Model = self._call(self._stub.GetModel, pb.GetModelRequest(model=name, version=version))
        return found

    def classify(self, model: pb.Model, picture: bytes) -> dict[str, Any]:
        """All classes with their probabilities, most probable first, and the picture as the model has seen it."""
        request = pb.ClassifyRequest(
            model=model.name, version=model.version, images=[pb.Image(encoded=picture)], top_k=len(model.labels)
        )
        began = time.monotonic()
        reply: pb.ClassifyResponse = self._call(self._stub.Classify, request)
        seconds = time.monotonic() - began
        # A second time, and only now that the server has admitted and read the picture: by the same function.
        shape = model.height, model.width, model.channels
        seen = images.decode(picture, shape, self._max_image_pixels)
        return {
            "model": reply.model,
            "version": reply.version,
            "classes": [
                {"label": one.label, "probability": round(one.probability, 6)} for one in reply.predictions[0].classes
            ],
            "seen": _data_url(seen),
            "width": model.width,
            "height": model.height,
            "seconds": round(seconds, 6),
        }

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        return method(request, timeout=_SECONDS, metadata=self._metadata)


def describe(model: pb.Model, has_report: bool) -> dict[str, Any]:
    """A version, for the page."""
    return {
        "model": model.name,
        "version": model.version,
        "labels": list(model.labels),
        "width": model.width,
        "height": model.height,
        "provider": model.provider,
        "precision": model.precision,
        "accuracy": model.evaluation.accuracy,
        "images": model.evaluation.images,
        "dataset": model.dataset,
        "created": model.created,
        "report": has_report,
    }


def _name_in(certificate: x509.Certificate) -> str:
    """A name that the certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "localhost"
    found = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return found[0].replace("*", "page") if found else "localhost"


def _data_url(pixels: images.Pixels) -> str:
    """Of uint8 [height, width, channels], as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
