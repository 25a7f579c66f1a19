"""ONNX Runtime execution providers: which are really here, and sessions that run on the one asked for.

ONNX Runtime falls back to its CPU provider without an error when a GPU library is missing, and gives single nodes
to it when a provider does not take them. A session made here runs on the provider it names, or is refused.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort

from service import cpu

log = logging.getLogger(__name__)

AUTO = "auto"
# TensorRT is left out: it builds engines for minutes, so it is taken only when it is asked for.
AUTO_ORDER = ("cuda", "openvino", "cpu")
NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# Nodes that may stay on the CPU beside a GPU provider: they compute shapes, not images.
_SHAPE_OPERATORS = frozenset(
    {"Shape", "Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "Constant", "Cast", "Range"}
)


class ProviderError(RuntimeError):
    """The provider is not here, or does not run the model."""


def open_session(model: Path, provider: str, precision: str, threads: int) -> ort.InferenceSession:
    """A session of `model` on `provider` (a key of NAMES), which computes in `precision` and in nothing lower.

    `threads` is the number of intra-op threads. Raises ProviderError.
    """
    if provider not in NAMES:
        raise ProviderError(f"unknown provider {provider!r}; there are {', '.join(NAMES)}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin between two batches take the core that the event loop needs (docs/benchmarks.md).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = _OPENERS[provider](model, options, precision, threads)
    except ProviderError:
        raise
    except Exception as error:  # ONNX Runtime's errors share no base class but Exception
        raise ProviderError(f"{NAMES[provider]} does not open {model.name}: {error}") from error
    _check_placement(session, provider)
    return session


def _open_cpu(model: Path, options: ort.SessionOptions, _precision: str, _threads: int) -> ort.InferenceSession:
    return ort.InferenceSession(model, options, providers=[NAMES["cpu"]])


def _open_openvino(model: Path, options: ort.SessionOptions, precision: str, threads: int) -> ort.InferenceSession:
    try:
        _register_openvino()
    except ImportError:
        raise ProviderError("the package onnxruntime-ep-openvino is not installed") from None
    devices = _openvino_devices()
    if not devices:
        raise ProviderError("OpenVINO finds no Intel device on this machine")
    if precision == "bf16" and not cpu.computes_bf16():
        raise ProviderError("this processor does not compute in bf16")
    # OpenVINO takes an fp32 model to bf16 by itself where the processor has it: say what it may do.
    hint = "bf16" if precision == "bf16" else "f32"
    config = {"CPU": {"INFERENCE_NUM_THREADS": str(threads), "INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": "1"}}
    options.add_provider_for_devices(devices[:1], {"load_config": json.dumps(config)})
    return ort.InferenceSession(model, options)


@functools.cache
def _register_openvino() -> None:
    """ONNX Runtime keeps plugins for the life of the process and refuses a second registration, hence the cache."""
    plugin = importlib.import_module("onnxruntime_ep_openvino")
    ort.register_execution_provider_library("openvino", plugin.get_library_path())


def _openvino_devices() -> list[Any]:
    # Its meta devices (OpenVINOExecutionProvider.AUTO and the like) have longer names.
    return [
        device
        for device in ort.get_ep_devices()
        if device.ep_name == NAMES["openvino"] and device.device.type == ort.OrtHardwareDeviceType.CPU
    ]


def _open_cuda(model: Path, options: ort.SessionOptions, _precision: str, _threads: int) -> ort.InferenceSession:
    _load_cuda_libraries(NAMES["cuda"])
    settings = {
        # TF32 keeps 10 bits of fraction: a lower precision than fp32's gates have seen.
        "use_tf32": "0",
        # Buckets keep the number of shapes small, so an exhaustive search is paid once, at warm-up.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "arena_extend_strategy": "kSameAsRequested",
    }
    return ort.InferenceSession(model, options, providers=[(NAMES["cuda"], settings)])


def _open_tensorrt(model: Path, options: ort.SessionOptions, precision: str, _threads: int) -> ort.InferenceSession:
    _load_cuda_libraries(NAMES["tensorrt"])
    settings = {"trt_fp16_enable": "1" if precision == "fp16" else "0"}
    providers = [(NAMES["tensorrt"], settings), NAMES["cuda"]]
    return ort.InferenceSession(model, options, providers=providers)


def _load_cuda_libraries(name: str) -> None:
    """Load CUDA and cuDNN from their Python packages, so that no system-wide CUDA is needed."""
    if name not in ort.get_available_providers():
        raise ProviderError(f"this onnxruntime has no {name}; install the extra [gpu] instead of [cpu]")
    ort.preload_dlls()


def _check_placement(session: ort.InferenceSession, provider: str) -> None:
    """Raise ProviderError unless `provider` runs the model, and no node that touches images runs on a lesser one."""
    name = NAMES[provider]
    allowed = {name, NAMES["cuda"]} if provider == "tensorrt" else {name}
    parts = session.get_provider_graph_assignment_info()
    astray = [
        f"{node.op_type} ({part.ep_name})"
        for part in parts
        if part.ep_name not in allowed
        for node in part.get_nodes()
        if node.op_type not in _SHAPE_OPERATORS
    ]
    if astray or all(part.ep_name != name for part in parts):
        raise ProviderError(f"{name} was asked for, but does not run: {', '.join(astray) or 'any node'}")


_Opener = Callable[[Path, ort.SessionOptions, str, int], ort.InferenceSession]
_OPENERS: dict[str, _Opener] = {
    "cpu": _open_cpu,
    "cuda": _open_cuda,
    "openvino": _open_openvino,
    "tensorrt": _open_tensorrt,
}
