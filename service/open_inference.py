"""The servicer of the Open Inference Protocol, version 2: `inference.GRPCInferenceService`.

docs/protocol.md says what of it is supported, and with which clients it was tested.
"""

from __future__ import annotations

import json
import math
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
from service.classifier import check_ranking
from service.errors import InvalidInput, ModelNotFound, ServiceError, Unavailable, short
from service.frontend import Decode, Frontend, Timing, deadline_of
from service.serving import LoadError, ServedModel
from service.streams import Streams

_Context = grpc.aio.ServicerContext[Any, Any]
# Triton's parameter of a streamed response, true in the last one to a request: clients wait for it. Here, each request
# has one response.
_FINAL = "triton_final_response"
_MOST_DIGITS = 19  # of a version
_MOST_LEVELS = 16  # of a configuration in JSON
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
                reply.parameters[_FINAL].bool_param = True
                return pb.ModelStreamInferResponse(infer_response=reply)
            failed = pb.ModelInferResponse(
                id=request.id, model_name=request.model_name, model_version=request.model_version
            )
            failed.parameters[_FINAL].bool_param = True
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
            self._frontend.uncounted(grpc.StatusCode.NOT_FOUND.name)
            return status.from_error(error)
        return await self._frontend.answer(context, request.model_name, version, work, "model_name")

    async def _infer(
        self, model: ServedModel, timing: Timing, request: pb.ModelInferRequest, deadline: float | None
    ) -> pb.ModelInferResponse:
        manifest = model.manifest
        wanted = tensors.wanted_outputs(request, len(manifest.labels))
        count = tensors.images_in(request, manifest.image_shape)
        if request.outputs:
            check_ranking("outputs", count, sum(output.classes for output in wanted))

        def read() -> images.Pixels | list[Decode]:
            found = tensors.content(request, count, manifest.image_shape)
            if not isinstance(found, list):
                return found
            limits = self._frontend.limits()
            return [partial(_decode, index, data, *limits) for index, data in enumerate(found)]

        timeout = tensors.number(request.parameters, "timeout", "parameters")
        if timeout is not None and timeout > 0:
            allowed = time.monotonic() + timeout / 1e6
            deadline = allowed if deadline is None else min(deadline, allowed)
        priority = tensors.number(request.parameters, "priority", "parameters") or 0
        field, size = request.inputs[0].name, request.ByteSize
        answer = await self._frontend.classify(model, timing, field, count, read, size, deadline, priority)
        return messages.reply_to(request, model, answer, wanted)


def _override(parameters: Any) -> dict[str, Any] | None:
    """Keys of config.toml from a load request's `config`, a JSON text as Triton's clients send it.

    Taken are our own keys and Triton's `version_policy`. Raises InvalidInput; other parameters are refused.
    """
    for key in parameters:
        if key != "config":
            raise InvalidInput("parameters", f"{short(key)}: only config is supported")
    if "config" not in parameters:
        return None
    text = parameters["config"].string_param
    try:
        document = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite, parse_int=_whole
        )
        _require_flat(document)
        policy = document.pop("version_policy", None)
        if policy is not None:
            (kind,) = policy
            if kind == "specific":
                document["versions"] = [int(version) for version in policy[kind]["versions"]]
            else:
                document["versions"] = {"latest": f"latest {policy[kind].get('num_versions', 1)}", "all": "all"}[kind]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        problem = f"config: not a model configuration in JSON: {type(error).__name__}: {str(error)[:100]}"
        raise InvalidInput("parameters", problem) from None
    return dict(document)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a key that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _finite(text: str) -> float:
    """A JSON number. Raises ValueError for NaN and infinity, which are also what 1e400 is read as."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{short(text)} is not a finite number")
    return value


def _whole(text: str) -> int:
    """A whole number in JSON. Raises ValueError for one that is too large for any setting."""
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"{short(text)} is too large")
    return int(text)


def _require_flat(value: Any, levels: int = _MOST_LEVELS) -> None:
    """Raise ValueError when objects and lists are nested deeper than `levels`."""
    if not isinstance(value, dict | list):
        return
    if not levels:
        raise ValueError(f"nested deeper than {_MOST_LEVELS} levels")
    for one in value.values() if isinstance(value, dict) else value:
        _require_flat(one, levels - 1)


def _as_answer(error: Exception) -> Exception:
    """What a caller is told of a failed load: a wrong configuration is its own doing, the rest is the repository's."""
    if not isinstance(error, LoadError):
        return error
    return InvalidInput("parameters", str(error)) if error.reason == "config" else Unavailable(str(error))


def _version(text: str) -> int:
    """Empty: the server chooses, 0. Raises ModelNotFound for what cannot be a version."""
    if not text:
        return 0
    if len(text) > _MOST_DIGITS or not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ModelNotFound(f"version: {short(text)} is not served; versions are numbers from 1")
    return int(text)


def _decode(index: int, data: bytes, max_pixels: int, effort: images.Effort, row: images.Pixels) -> None:
    height, width, channels = row.shape
    try:
        row[:] = images.decode(data, (height, width, channels), max_pixels, effort)
    except images.ImageError as error:
        raise InvalidInput(f"{tensors.PICTURES_INPUT}[{index}]", str(error)) from None
