"""BentoML: a batchable API. Pictures come as base64 in JSON, the least that such an API takes."""

import os
import sys
from base64 import b64decode

import bentoml
import engine


# Its line for every request would be part of what is measured.
@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Classifier:
    def __init__(self) -> None:
        self.engine = engine.Engine()

    @bentoml.api(route="/", batchable=True, batch_dim=0, max_batch_size=engine.MAX_BATCH, max_latency_ms=1000)
    def predict(self, images: list[str]) -> list[list[float]]:
        return self.engine.run(engine.pixels(b"".join(map(b64decode, images)))).tolist()


if __name__ == "__main__":
    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_server:Classifier"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(engine.PORT)])
