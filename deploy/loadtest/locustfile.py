"""Load for the typed gRPC API from locust, for those whose tests and dashboards live there.

    pip install 'cifarserve[loadtest]'
    locust -f deploy/loadtest/locustfile.py --host localhost:8001 --images 4 --pictures photos
    locust -f deploy/loadtest/locustfile.py --host localhost:8001 --headless --users 16 --run-time 30s --json

Each user asks, waits for the answer, and asks again: a closed loop, so a server that stalls is asked less often.
`cifarserve loadtest --rate` asks on time whatever the server does, and needs a fraction of the processor for it.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.experimental.gevent

# Before any channel is made: calls yield to locust's other users.
grpc.experimental.gevent.init_gevent()

import numpy as np  # noqa: E402
from locust import User, constant, events, task  # noqa: E402

from service.client import Client, ClientError  # noqa: E402
from service.connection import Options  # noqa: E402
from service.loadtest.messages import pictures_in  # noqa: E402

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from service.client import ImageLike


@events.init_command_line_parser.add_listener
def add_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=1, help="in one request")
    parser.add_argument("--pictures", default="", help="folder of pictures to send as they are (default: noise)")
    parser.add_argument("--model", default="", help="name of the model (default: the only one)")
    parser.add_argument("--side", type=int, default=32, help="of the noise, in pixels")
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds, of each call")
    parser.add_argument("--tls-ca", default="", help="encrypt; PEM file with the server's authority")
    # Else locust's web page would show it to whoever looks.
    parser.add_argument("--token-file", default="", include_in_web_ui=False, help="its first line is the token")


class Caller(User):
    """Classifies some images, and again."""

    host = "localhost:8001"
    wait_time = constant(0)

    def on_start(self) -> None:
        given = self.environment.parsed_options
        token = Path(given.token_file).read_text().split()[0] if given.token_file else ""
        authority = Path(given.tls_ca).read_bytes() if given.tls_ca else b""
        # One attempt: what fails is to be counted, not tried again.
        options = Options(
            timeout=given.deadline, attempts=1, tls=bool(authority), root_certificates=authority, token=token
        )
        self.client = Client(self.host, options)
        self.model = given.model
        self.turns = itertools.cycle(_requests(given))

    def on_stop(self) -> None:
        self.client.close()

    @task
    def classify(self) -> None:
        images = next(self.turns)
        problem: ClientError | None = None
        began = time.perf_counter()
        try:
            self.client.classify(images, model=self.model)
        except ClientError as error:
            problem = error
        events.request.fire(
            request_type="gRPC", name=f"Classify, {len(images)} image(s)", response_length=0, exception=problem,
            response_time=(time.perf_counter() - began) * 1e3, context=self.context(),
        )  # fmt: skip


def _requests(given: Any) -> list[list[ImageLike]]:
    """The images of some different requests."""
    count = given.images
    if given.pictures:
        files = [path.read_bytes() for path in pictures_in(Path(given.pictures))]
        return [[files[(first + index) % len(files)] for index in range(count)] for first in range(len(files))]
    noise = np.random.default_rng().integers(0, 256, (16, count, given.side, given.side, 3), np.uint8)
    return [list(one) for one in noise]
