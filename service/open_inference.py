"""The servicer of the Open Inference Protocol, version 2: `inference.GRPCInferenceService`.

docs/protocol.md says what of it is supported, and with which clients it was tested.
"""

from __future__ import annotations

import json
import time
from functools import partial
from importlib.metadata import version as package_version
from typing import Any

import grpc
from google.rpc import status_pb2
from inference import grpc_predict_v2_pb2 as pb
from inference import grpc_predict_v2_pb2_grpc as pb_grpc

from service import images, status, tensors
from service import inference_messages as messages
from service.catalogue import READY
from service.errors import InvalidInput, ModelNotFound, ServiceError, Unavailable
from service.frontend import Decode, Frontend, Timing, deadline_of
from service.serving import LoadError, ServedModel
from service.streams import Streams

_Context = grpc.aio.ServicerContext[Any, Any]
EXTENSIONS = ("classification", "model_configuration", "model_repository", "schedule_policy", "statistics")


class OpenInference(pb_grpc.GRPCInferenceServiceServicer):
    """Implements protos/inference/grpc_predict_v2.proto, through the same front end as the typed API."""

    def __init__(self, frontend: Frontend, streams: Streams) -> None:
        self._frontend = frontend
        self._streams = streams

    async def ServerLive(self, _request: pb.ServerLiveRequest, _context: _Context) -> pb.ServerLiveResponse:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _request: pb.ServerReadyRequest, _context: _Context) -> pb.ServerReadyResponse:  # noqa: N802
        return pb.ServerReadyResponse(ready=self._frontend.repository.ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: _Context) -> pb.ModelReadyResponse:  # noqa: N802
        try:
            self._find(request.name, request.version)
        except InvalidInput as error:
            await status.abort(context, status.from_error(error))
        except ServiceError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(  # noqa: N802
        self, _request: pb.ServerMetadataRequest, _context: _Context
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name="cifarserve", version=package_version("cifarserve"), extensions=EXTENSIONS
        )

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: _Context
    ) -> pb.ModelMetadataResponse:
        model = await self._find_or_abort(request, context)
        versions = self._frontend.repository.versions(model.manifest.name)
        return pb.ModelMetadataResponse(
            name=model.manifest.name,
            versions=[str(version) for version in versions],
            platform=messages.PLATFORM,
            inputs=[messages.metadata_of(spec) for spec in model.manifest.inputs],
            outputs=[messages.metadata_of(spec) for spec in model.manifest.outputs],
        )

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: _Context) -> pb.ModelConfigResponse:  # noqa: N802
        model = await self._find_or_abort(request, context)
        return pb.ModelConfigResponse(
            config=messages.config_of(model, self._frontend.repository.config(model.manifest.name))
        )

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, context: _Context
    ) -> pb.ModelStatisticsResponse:
        one = request.name or request.version
        served = [await self._find_or_abort(request, context)] if one else self._frontend.repository.models()
        return pb.ModelStatisticsResponse(model_stats=[messages.statistics_of(model) for model in served])

    async def ModelInfer(self, request: pb.ModelInferRequest, context: _Context) -> pb.ModelInferResponse:  # noqa: N802
        reply = await self._answer(request, context, deadline_of(context))
        if isinstance(reply, status_pb2.Status):
            await status.abort(context, reply)
        return reply

    async def ModelStreamInfer(self, _requests: Any, context: _Context) -> None:  # noqa: N802
        deadline = deadline_of(context)

        async def answer(request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
            reply = await self._answer(request, context, deadline)
            if isinstance(reply, pb.ModelInferResponse):
                return pb.ModelStreamInferResponse(infer_response=reply)
            failed = pb.ModelInferResponse(
                id=request.id, model_name=request.model_name, model_version=request.model_version
            )
            message = f"{status.code_of(reply).name}: {reply.message}"
            return pb.ModelStreamInferResponse(error_message=message, infer_response=failed)

        await self._streams.serve(context, answer, tensors.claimed_images)

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, _context: _Context
    ) -> pb.RepositoryIndexResponse:
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=one.name, version=str(one.version or ""), state=one.state, reason=one.reason
                )
                for one in self._frontend.repository.index()
                if one.state == READY or not request.ready
            ]
        )

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, context: _Context
    ) -> pb.RepositoryModelLoadResponse:
        try:
            self._refuse_with_workers("loaded")
            await self._frontend.repository.load(request.model_name, _override(request.parameters))
        except Exception as error:
            await status.abort(context, status.from_error(_as_answer(error)))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, context: _Context
    ) -> pb.RepositoryModelUnloadResponse:
        try:
            self._refuse_with_workers("unloaded")
            if self._frontend.settings.model_control != "explicit":
                raise Unavailable("models are unloaded only with --model-control explicit")
            await self._frontend.repository.unload(request.model_name)
        except Exception as error:
            await status.abort(context, status.from_error(error))
        return pb.RepositoryModelUnloadResponse()

    def _refuse_with_workers(self, done: str) -> None:
        """A call reaches one worker, and the others would go on serving what they serve."""
        if self._frontend.settings.workers > 1:
            raise Unavailable(
                f"with several workers, models are not {done} by a call: change the folder or config.toml,"
                " then send SIGHUP, or let the server poll"
            )

    def _find(self, name: str, version: str) -> ServedModel:
        return self._frontend.repository.find(name, _version(version), field="name")

    async def _find_or_abort(self, request: Any, context: _Context) -> ServedModel:
        try:
            return self._find(request.name, request.version)
        except ServiceError as error:
            await status.abort(context, status.from_error(error))
            raise

    async def _answer(
        self, request: pb.ModelInferRequest, context: _Context, deadline: float | None
    ) -> pb.ModelInferResponse | status_pb2.Status:
        async def work(model: ServedModel, timing: Timing) -> pb.ModelInferResponse:
            timing.name = request.id
            return await self._infer(model, timing, request, deadline)

        try:
            version = _version(request.model_version)
        except ModelNotFound as error:
            return status.from_error(error)
        return await self._frontend.answer(context, request.model_name, version, work, "model_name")

    async def _infer(
        self, model: ServedModel, timing: Timing, request: pb.ModelInferRequest, deadline: float | None
    ) -> pb.ModelInferResponse:
        manifest = model.manifest
        wanted = tensors.wanted_outputs(request, len(manifest.labels))
        found = tensors.read_images(request, manifest.image_shape)
        content: images.Pixels | list[Decode]
        if isinstance(found, list):
            limits = self._frontend.limits()
            content = [partial(_decode, index, data, *limits) for index, data in enumerate(found)]
        else:
            content = found
        timeout = tensors.number(request.parameters, "timeout", "parameters")
        if timeout is not None and timeout > 0:
            allowed = time.monotonic() + timeout / 1e6
            deadline = allowed if deadline is None else min(deadline, allowed)
        priority = tensors.number(request.parameters, "priority", "parameters") or 0
        field, size, count = request.inputs[0].name, request.ByteSize, len(content)
        answer = await self._frontend.classify(model, timing, field, count, lambda: content, size, deadline, priority)
        return messages.reply_to(request, model, answer, wanted)


def _override(parameters: Any) -> dict[str, Any] | None:
    """Keys of config.toml from a load request's `config`, a JSON text as Triton's clients send it.

    Taken are our own keys and Triton's `version_policy`. Raises InvalidInput; other parameters are refused.
    """
    for key in parameters:
        if key != "config":
            raise InvalidInput("parameters", f"{key}: only config is supported")
    if "config" not in parameters:
        return None
    try:
        document = json.loads(parameters["config"].string_param)
        policy = document.pop("version_policy", None)
        if policy is not None:
            (kind,) = policy
            if kind == "specific":
                document["versions"] = [int(version) for version in policy[kind]["versions"]]
            else:
                document["versions"] = {"latest": f"latest {policy[kind].get('num_versions', 1)}", "all": "all"}[kind]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput("parameters", f"config: not a model configuration in JSON: {error!r}") from None
    return dict(document)


def _as_answer(error: Exception) -> Exception:
    """What a caller is told of a failed load: a wrong configuration is its own doing, the rest is the repository's."""
    if not isinstance(error, LoadError):
        return error
    return InvalidInput("parameters", str(error)) if error.reason == "config" else Unavailable(str(error))


def _version(text: str) -> int:
    """Empty: the server chooses, 0. Raises ModelNotFound for what cannot be a version."""
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ModelNotFound(f"version: {text!r} is not served; versions are numbers from 1")
    return int(text)


def _decode(index: int, data: bytes, max_pixels: int, effort: images.Effort, row: images.Pixels) -> None:
    height, width, channels = row.shape
    try:
        row[:] = images.decode(data, (height, width, channels), max_pixels, effort)
    except images.ImageError as error:
        raise InvalidInput(f"{tensors.PICTURES_INPUT}[{index}]", str(error)) from None
