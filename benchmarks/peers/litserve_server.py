"""LitServe: raw pixels in, raw floats out, batches as it makes them."""

from typing import Annotated

import engine
import litserve
from fastapi import Body, Response


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.engine = engine.Engine()

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]):
        return engine.pixels(request)

    def batch(self, inputs):
        return inputs

    def predict(self, requests):
        return self.engine.run_many(requests)

    def unbatch(self, output):
        return output

    def encode_response(self, output) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    api = Classifier(max_batch_size=engine.MAX_BATCH, batch_timeout=engine.DELAY)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=engine.PORT, num_api_servers=1, generate_client_file=False, log_level="warning")
