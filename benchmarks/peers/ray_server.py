"""Ray Serve: one replica that gathers requests, behind its HTTP proxy."""

import os
import signal
from pathlib import Path

import engine
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Classifier:
    def __init__(self) -> None:
        self.engine = engine.Engine()

    @serve.batch(max_batch_size=engine.MAX_BATCH, batch_wait_timeout_s=engine.DELAY)
    async def many(self, requests: list) -> list:
        return self.engine.run_many(requests)

    async def __call__(self, request: Request) -> Response:
        found = await self.many(engine.pixels(await request.body()))
        return Response(found.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # for the processes that Ray starts
    ray.init(
        num_cpus=engine.THREADS, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )  # fmt: skip
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=engine.PORT))
    serve.run(Classifier.bind(), name="cnn")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
