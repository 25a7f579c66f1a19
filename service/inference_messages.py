"""What the Open Inference Protocol says of a model and an answer: pure functions from our objects to its messages."""

from __future__ import annotations

import numpy as np
from inference import grpc_predict_v2_pb2 as pb

from service import tensors
from service.classifier import top_classes
from service.manifest import TensorSpec
from service.model_config import ModelConfig, VersionPolicy
from service.pending import Answer
from service.serving import ServedModel
from service.tallies import Statistics

PLATFORM = "onnx_onnxv1"
_DATATYPES = {"uint8": ("UINT8", pb.TYPE_UINT8), "float32": ("FP32", pb.TYPE_FP32)}


def reply_to(
    request: pb.ModelInferRequest, model: ServedModel, answer: Answer, wanted: list[tensors.Wanted]
) -> pb.ModelInferResponse:
    manifest = model.manifest
    reply = pb.ModelInferResponse(model_name=manifest.name, model_version=str(manifest.version), id=request.id)
    raw = tensors.uses_raw_contents(request)
    for output in wanted:
        values = answer.probabilities if output.name == "probabilities" else answer.logits
        tensor = reply.outputs.add(name=output.name)
        if output.classes:
            order, _ = top_classes(values, output.classes)
            strings = tensors.classification(values, manifest.labels, order)
            tensor.datatype = "BYTES"
            tensor.shape.extend(strings.shape)
            if raw:
                reply.raw_output_contents.append(tensors.pack_bytes(strings))
            else:
                tensor.contents.bytes_contents.extend(strings.ravel())
        else:
            tensor.datatype = "FP32"
            tensor.shape.extend(values.shape)
            if raw:
                reply.raw_output_contents.append(np.ascontiguousarray(values, "<f4").tobytes())
            else:
                tensor.contents.fp32_contents.extend(values.ravel().tolist())
    return reply


def metadata_of(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    datatype, _ = _DATATYPES[spec.dtype]
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=datatype, shape=spec.shape)


def config_of(model: ServedModel, config: ModelConfig) -> pb.ModelConfig:
    manifest, engine = model.manifest, model.engine
    on_gpu = engine.provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider")
    kind = pb.ModelInstanceGroup.KIND_GPU if on_gpu else pb.ModelInstanceGroup.KIND_CPU
    return pb.ModelConfig(
        name=manifest.name,
        platform=PLATFORM,
        backend="onnxruntime",
        max_batch_size=engine.max_batch_size,
        input=[pb.ModelInput(name=s.name, data_type=_DATATYPES[s.dtype][1], dims=s.shape[1:]) for s in manifest.inputs],
        output=[
            pb.ModelOutput(name=s.name, data_type=_DATATYPES[s.dtype][1], dims=s.shape[1:]) for s in manifest.outputs
        ],
        instance_group=[pb.ModelInstanceGroup(name=manifest.name, count=model.compute.instances, kind=kind)],
        default_model_filename="model.onnx",
        dynamic_batching=pb.ModelDynamicBatching(preferred_batch_size=engine.landmarks),
        version_policy=_version_policy(config.versions),
    )


def _version_policy(policy: VersionPolicy) -> pb.ModelVersionPolicy:
    if policy.specific:
        return pb.ModelVersionPolicy(specific=pb.ModelVersionPolicy.Specific(versions=policy.specific))
    if policy.latest:
        return pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=policy.latest))
    return pb.ModelVersionPolicy(all=pb.ModelVersionPolicy.All())


def _duration(count: int, seconds: float) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=round(seconds * 1e9))


def statistics_of(model: ServedModel) -> pb.ModelStatistics:
    found: Statistics = model.metrics.statistics
    return pb.ModelStatistics(
        name=model.manifest.name,
        version=str(model.manifest.version),
        last_inference=round(found.last * 1e3),
        inference_count=found.images,
        execution_count=sum(batches for batches, _ in found.batches.values()),
        inference_stats=pb.InferStatistics(
            success=_duration(found.succeeded, found.success_seconds),
            fail=_duration(found.failed, found.failure_seconds),
            queue=_duration(found.computed, found.queue_seconds),
            compute_input=_duration(found.computed, found.decode_seconds),
            compute_infer=_duration(found.computed, found.compute_seconds),
            compute_output=_duration(found.computed, found.reply_seconds),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=size, compute_infer=_duration(batches, seconds))
            for size, (batches, seconds) in sorted(found.batches.items())
        ],
    )
