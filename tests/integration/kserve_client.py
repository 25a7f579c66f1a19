"""Asks a server through KServe's own gRPC client. A program of its own, since KServe's and tritonclient's messages have
the same names and cannot be in one process: `python kserve_client.py HOST:PORT MODEL` prints what it got as JSON."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

from tests import colour_model


async def main(target: str, model: str) -> None:
    client = InferenceGRPCClient(target)
    images = colour_model.distinct(3)
    tensor = InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=True)
    reply = await client.infer(InferRequest(model_name=model, infer_inputs=[tensor], request_id="seven"))
    found = {output.name: output.as_numpy().tolist() for output in reply.outputs}
    report = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model_ready": await client.is_model_ready(model),
        "right": bool(np.allclose(found["probabilities"], colour_model.expected(images), atol=1e-5)),
        "version": reply.model_version,
        "id": reply.id,
    }
    await client.close()
    print(json.dumps(report))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
