"""ONNX Runtime execution providers: which are really here, and sessions that run on the one asked for.

ONNX Runtime falls back to its CPU provider without an error when a GPU library is missing, and gives single nodes
to it when a provider does not take them. A session made here runs on the provider it names, or is refused.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime as ort

from service import cpu

log = logging.getLogger(__name__)

AUTO = "auto"
# TensorRT is left out: it builds engines for minutes, so it is taken only when it is asked for.
AUTO_ORDER = ("cuda", "openvino", "cpu")
FASTEST_FIRST = ("tensorrt", *AUTO_ORDER)
NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
GPUS = ("cuda", "tensorrt")
# Held from the look for the plugin to its registration: a second registration of the same name is an error.
_REGISTERING = threading.Lock()
_SPINNING = "session.intra_op.allow_spinning"
# Nodes that may stay on the CPU beside a GPU provider: they compute shapes, not images.
_SHAPE_OPERATORS = frozenset(
    {"Shape", "Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "Constant", "Cast", "Range"}
)


class ProviderError(RuntimeError):
    """The provider is not here, or does not run the model."""


class ProviderAbsent(ProviderError):
    """The provider is not installed, or has no device on this machine: not a fault of what is here."""


@dataclass(frozen=True)
class Wanted:
    """What a session is to be: `precision` is what it computes in, and in nothing lower.

    `threads` are intra-op threads. `options` are the provider's own, by its own names, and replace those given here:
    what they make of the answers, the golden check sees.
    """

    provider: str  # a key of NAMES
    precision: str = "fp32"
    threads: int = 1
    max_batch_size: int = 64
    options: Mapping[str, str] = field(default_factory=dict)


def key(name: str) -> str:
    """The key in NAMES of a provider that ONNX Runtime names `name`."""
    return next(key for key, value in NAMES.items() if value == name)


def open_session(model: Path, wanted: Wanted) -> ort.InferenceSession:
    """A session of `model` as it is wanted. Raises ProviderError."""
    provider = wanted.provider
    if provider not in NAMES:
        raise ProviderError(f"unknown provider {provider!r}; there are {', '.join(NAMES)}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = wanted.threads
    options.inter_op_num_threads = 1
    # Threads that spin between two batches take the core that the event loop needs (docs/benchmarks.md).
    if _SPINNING not in wanted.options:
        options.add_session_config_entry(_SPINNING, "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = _OPENERS[provider](model, options, wanted)
    except ProviderError:
        raise
    except Exception as error:  # ONNX Runtime's errors share no base class but Exception
        raise ProviderError(f"{NAMES[provider]} does not open {model.name}: {error}") from error
    _check_placement(session, provider)
    return session


def _open_cpu(model: Path, options: ort.SessionOptions, wanted: Wanted) -> ort.InferenceSession:
    for name, value in wanted.options.items():
        options.add_session_config_entry(name, value)
    return _session(model, options, [NAMES["cpu"]])


def _open_openvino(model: Path, options: ort.SessionOptions, wanted: Wanted) -> ort.InferenceSession:
    """With the onnxruntime-openvino package, on any processor of its kind; with the plugin, on Intel's alone."""
    if wanted.precision == "bf16" and not cpu.computes_bf16():
        raise ProviderError("this processor does not compute in bf16")
    settings = {"load_config": json.dumps({"CPU": openvino_options(wanted)})}
    if _openvino_is_built_in():
        settings["device_type"] = "CPU"
        return _session(model, options, [(NAMES["openvino"], settings)])
    options.add_provider_for_devices(_plugin_devices()[:1], settings)
    return _session(model, options)


def openvino_options(wanted: Wanted) -> dict[str, str]:
    """Properties of OpenVINO's CPU device."""
    return {
        "INFERENCE_NUM_THREADS": str(wanted.threads),
        # OpenVINO takes an fp32 model to bf16 by itself where the processor has it: say what it may do.
        "INFERENCE_PRECISION_HINT": "bf16" if wanted.precision == "bf16" else "f32",
        "NUM_STREAMS": "1",
        **wanted.options,
    }


def _openvino_is_built_in() -> bool:
    """Whether ONNX Runtime was compiled with OpenVINO, so that no plugin is needed.

    This asks how ONNX Runtime was compiled, which never changes. The list of available providers does change: it names
    OpenVINO also when a plugin is registered.
    """
    return "OPENVINO" in ort.get_device()


def _plugin_devices() -> list[Any]:
    """The processor as the OpenVINO plugin offers it; the plugin is registered if nobody has. Raises ProviderAbsent."""
    with _REGISTERING:
        if not (devices := _openvino_devices()):
            try:
                _register_openvino()
            except ImportError:
                raise ProviderAbsent("the package onnxruntime-ep-openvino is not installed") from None
            devices = _openvino_devices()
    if not devices:
        raise ProviderAbsent("OpenVINO's plugin takes no processor but Intel's; the extra [openvino] takes others")
    return devices


@functools.cache
def _register_openvino() -> None:
    """ONNX Runtime keeps plugins for the life of the process and refuses a name a second time, hence the cache."""
    plugin = importlib.import_module("onnxruntime_ep_openvino")
    ort.register_execution_provider_library("cifarserve-openvino", plugin.get_library_path())


def _openvino_devices() -> list[Any]:
    # Its meta devices (OpenVINOExecutionProvider.AUTO and the like) have longer names.
    return [
        device
        for device in ort.get_ep_devices()
        if device.ep_name == NAMES["openvino"] and device.device.type == ort.OrtHardwareDeviceType.CPU
    ]


def _open_cuda(model: Path, options: ort.SessionOptions, wanted: Wanted) -> ort.InferenceSession:
    _load_cuda_libraries(NAMES["cuda"])
    return _session(model, options, [(NAMES["cuda"], cuda_options(wanted))])


def cuda_options(wanted: Wanted) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider."""
    return {
        # TF32 keeps 10 bits of fraction: a lower precision than fp32's gates have seen.
        "use_tf32": "0",
        # Buckets keep the number of shapes small, so an exhaustive search is paid once, at warm-up.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        # Otherwise the arena doubles, and never gives anything back. `gpu_mem_limit` sets an upper bound.
        "arena_extend_strategy": "kSameAsRequested",
        **wanted.options,
    }


def _open_tensorrt(model: Path, options: ort.SessionOptions, wanted: Wanted) -> ort.InferenceSession:
    _load_cuda_libraries(NAMES["tensorrt"])
    # The libraries' Python package, where it is the way in which they came.
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorrt_libs")
    height, width, channels = _image_sides(model)
    settings = tensorrt_options(wanted, f"{height}x{width}x{channels}", _engine_cache())
    return _session(model, options, [(NAMES["tensorrt"], settings), NAMES["cuda"]])


def tensorrt_options(wanted: Wanted, image: str, cache: Path | None) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT provider; `image` is height x width x channels.

    One profile takes every bucket, so that an engine is built once, before the version is ready; with `cache` it is
    kept, by the model, the GPU and the version of TensorRT.
    """
    kept = {} if cache is None else {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
    }  # fmt: skip
    return {
        "trt_fp16_enable": "1" if wanted.precision == "fp16" else "0",
        "trt_profile_min_shapes": f"image:1x{image}",
        "trt_profile_opt_shapes": f"image:{wanted.max_batch_size}x{image}",
        "trt_profile_max_shapes": f"image:{wanted.max_batch_size}x{image}",
        **kept,
        **wanted.options,
    }


def _engine_cache() -> Path | None:
    """Where TensorRT's engines are kept: a folder of the user's, or none where that cannot be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cifarserve" / "tensorrt"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("TensorRT's engines are built at every start, set XDG_CACHE_HOME to keep them: %s", error)
        return None
    return cache


def _image_sides(model: Path) -> tuple[int, int, int]:
    """Height, width and channels of the input, as the CPU provider reads them from the file."""
    reader = _session(model, ort.SessionOptions(), [NAMES["cpu"]])
    _, height, width, channels = reader.get_inputs()[0].shape
    return height, width, channels


def _load_cuda_libraries(name: str) -> None:
    """Load CUDA and cuDNN from their Python packages, so that no system-wide CUDA is needed."""
    if name not in ort.get_available_providers():
        raise ProviderAbsent(f"this onnxruntime has no {name}; install the extra [gpu] instead of [cpu]")
    # It prints what it does not find to standard output, where our own output is read by programs.
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        ort.preload_dlls()
    if missing := " ".join(printed.getvalue().split()):
        log.warning("%s: %s", name, missing)


def _session(model: Path, options: ort.SessionOptions, providers: list[Any] | None = None) -> ort.InferenceSession:
    """A session on `providers` (None: those that are in `options`), and on no other.

    With its own fall-back, ONNX Runtime would print to standard output and go on with its CPU provider, both when a
    session is made and when it runs.
    """
    return ort.InferenceSession(model, options, providers=providers, enable_fallback=False)


def captures_graphs(wanted: Wanted) -> bool:
    """Whether the options ask for CUDA graphs, by either provider's name for them."""
    return any(wanted.options.get(name) == "1" for name in ("enable_cuda_graph", "trt_cuda_graph_enable"))


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


_Opener = Callable[[Path, ort.SessionOptions, Wanted], ort.InferenceSession]
_OPENERS: dict[str, _Opener] = {
    "cpu": _open_cpu,
    "cuda": _open_cuda,
    "openvino": _open_openvino,
    "tensorrt": _open_tensorrt,
}
