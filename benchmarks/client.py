"""One load client: calls in a closed loop, one message made beforehand; prints what it saw as one line of JSON.

Run by serve.py as a process of its own, so that its share of the processor can be told from the server's.
"""

from __future__ import annotations

import asyncio
import io
import json
import resource
import sys
import time

import grpc
import numpy as np
from cifarserve.v1 import classifier_pb2
from inference import grpc_predict_v2_pb2 as oip
from PIL import Image

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
CLASSIFY = "/cifarserve.v1.Classifier/Classify"
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def raw_message(model: str, images: int, side: int) -> bytes:
    """A ModelInferRequest with uint8 [images, side, side, 3] of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=pixels.shape)
    request = oip.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[pixels.tobytes()])
    return request.SerializeToString()


def picture_message(model: str, width: int, height: int) -> bytes:
    """A ClassifyRequest with one JPEG: a few coarse shapes, which a JPEG of noise would not be."""
    coarse = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    image = classifier_pb2.Image(encoded=file.getvalue())
    return classifier_pb2.ClassifyRequest(model=model, images=[image]).SerializeToString()


async def unary(channel: grpc.aio.Channel, method: str, message: bytes, in_flight: int, seconds: float) -> list[float]:
    """Seconds that each call took."""
    call = channel.unary_unary(method)
    await asyncio.gather(*(call(message) for _ in range(in_flight)))
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def loop() -> None:
        while (started := time.perf_counter()) < end:
            await call(message)
            took.append(time.perf_counter() - started)

    await asyncio.gather(*(loop() for _ in range(in_flight)))
    return took


async def stream(channel: grpc.aio.Channel, message: bytes, in_flight: int, seconds: float) -> list[float]:
    """As unary, on one stream with so many requests unanswered."""
    call = channel.stream_stream(STREAM)()
    sent: list[float] = []
    took: list[float] = []
    end = time.perf_counter() + seconds
    for _ in range(in_flight):
        sent.append(time.perf_counter())
        await call.write(message)
    while len(took) < len(sent):
        await call.read()
        took.append(time.perf_counter() - sent[len(took)])
        if time.perf_counter() < end:
            sent.append(time.perf_counter())
            await call.write(message)
    await call.done_writing()
    return took


async def main(target: str, shape: dict[str, object], model: str, side: int, seconds: float) -> dict[str, float]:
    kind, images, in_flight = str(shape["kind"]), int(str(shape["images"])), int(str(shape["in_flight"]))
    async with grpc.aio.insecure_channel(target, options=UNLIMITED) as channel:
        began, used = time.perf_counter(), time.process_time()
        if kind == "stream":
            took = await stream(channel, raw_message(model, images, side), in_flight, seconds)
        elif kind == "raw":
            took = await unary(channel, INFER, raw_message(model, images, side), in_flight, seconds)
        else:
            width, height = map(int, kind.split("x"))
            message = picture_message(model, width, height)
            began, used = time.perf_counter(), time.process_time()
            took = await unary(channel, CLASSIFY, message, in_flight, seconds)
        elapsed = time.perf_counter() - began
    return {
        "requests": len(took),
        "images_per_second": len(took) * images / elapsed,
        "p50_ms": float(np.percentile(took, 50)) * 1e3,
        "p99_ms": float(np.percentile(took, 99)) * 1e3,
        "client_us": (time.process_time() - used) / len(took) * 1e6,
        "client_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    print(json.dumps(asyncio.run(main(**arguments))))
