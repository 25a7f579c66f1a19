"""MLServer: a runtime of its own with adaptive batching, in one process."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import engine
import uvloop
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor


class Classifier(MLModel):
    async def load(self) -> bool:
        self.engine, self.thread = engine.Engine(), ThreadPoolExecutor(1)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = NumpyCodec.decode_input(payload.inputs[0])
        found = await asyncio.get_running_loop().run_in_executor(self.thread, self.engine.run, images)
        outputs = [NumpyCodec.encode_output("probabilities", found)]
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=outputs)


async def main() -> None:
    settings = Settings(
        host="127.0.0.1", grpc_port=engine.PORT, http_port=engine.PORT + 1, parallel_workers=0, metrics_endpoint=None,
        debug=False, load_models_at_startup=False,
    )  # fmt: skip
    size = [-1, engine.HEIGHT, engine.WIDTH, engine.CHANNELS]
    model = ModelSettings(
        name="cnn", implementation=Classifier, parameters=ModelParameters(version="1"),
        max_batch_size=engine.MAX_BATCH, max_batch_time=engine.DELAY,
        inputs=[MetadataTensor(name="image", datatype="UINT8", shape=size)],
        outputs=[MetadataTensor(name="probabilities", datatype="FP32", shape=[-1, engine.CLASSES])],
    )  # fmt: skip
    await MLServer(settings).start([model])


if __name__ == "__main__":
    uvloop.run(main())
