"""What the tests of the page share: a version with a report, pictures, and requests with every header at will."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from service.manifest import file_entry, read_manifest
from tests import colour_model
from tests.integration.server_process import ServerProcess

REPORT = "<!DOCTYPE html><title>report</title><h1>How it was tested</h1><script>document.title = 'ran'</script>"


def publish(repository: Path, **options: Any) -> Path:
    """As colour_model.publish, with a report."""
    folder = colour_model.publish(repository, **options)
    (folder / "report.html").write_text(REPORT)
    files = {**read_manifest(folder).files, "report.html": file_entry(folder / "report.html")}
    colour_model.edit_manifest(folder, files={name: vars(entry) for name, entry in files.items()})
    return folder


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def striped() -> np.ndarray:
    """Green, red and green again, side by side: red is what the middle crop shows. uint8 [40, 120, 3]."""
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, :, 1] = 255
    pixels[:, 35:85] = (255, 0, 0)
    return pixels


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(server: ServerProcess, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Reply:
    """The address as it is, not tidied; a header's name with _ for -."""
    address = urlsplit(server.metrics_url)
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=60)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        return Reply(reply.status, dict(reply.getheaders()), reply.read())
    finally:
        connection.close()


def classify(server: ServerProcess, body: bytes, query: str = "", **headers: str) -> Reply:
    return request(server, f"/classify{query}", "POST", body, **headers)
