"""The wire's ceiling: a grpc.aio server that answers every ModelInfer with the same reply, on uvloop as ours.

Arguments: classes, for the size of the reply. Prints the port.
"""

from __future__ import annotations

import sys

import grpc
import uvloop
from inference import grpc_predict_v2_pb2 as pb
from inference import grpc_predict_v2_pb2_grpc as pb_grpc


class Echo(pb_grpc.GRPCInferenceServiceServicer):
    def __init__(self, classes: int) -> None:
        self._classes = classes

    async def ModelInfer(self, request: pb.ModelInferRequest, context: object) -> pb.ModelInferResponse:  # noqa: N802
        shape = [request.inputs[0].shape[0], self._classes]
        reply = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        for name in ("probabilities", "logits"):
            reply.outputs.add(name=name, datatype="FP32", shape=shape)
            reply.raw_output_contents.append(bytes(4 * shape[0] * shape[1]))
        return reply

    async def ModelStreamInfer(self, requests: object, context: object) -> object:  # noqa: N802
        async for request in requests:
            yield pb.ModelStreamInferResponse(infer_response=await self.ModelInfer(request, context))


async def main(classes: int) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(Echo(classes), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
