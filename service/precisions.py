"""Which precision of a version to compute in, on a provider and a processor: the fastest of those that passed.

The orders are of measured speed (docs/benchmarks.md) where there was hardware to measure on. ONNX Runtime's CUDA
provider runs quantise and dequantise nodes one by one, and TensorRT takes no uint8 activations: int8 is not for them.
"""

from __future__ import annotations

from service import cpu
from service.manifest import Manifest

AUTO = "auto"
FASTEST_FIRST = {
    "cpu": ("int8", "fp32"),
    "openvino": ("int8", "bf16", "fp32"),
    "cuda": ("fp16", "fp32"),
    "tensorrt": ("fp16", "fp32"),
}


class PrecisionError(ValueError):
    """The precision asked for is not one that this version may be computed in."""


def fastest_first(manifest: Manifest, provider: str, wanted: str) -> tuple[str, ...]:
    """Precisions to try on `provider`, a key of `service.providers.NAMES`: those that passed and are here to run.

    `wanted` names one, or is "auto". Raises PrecisionError when the version has not passed in the one named.
    """
    if wanted != AUTO:
        if wanted not in manifest.compute_precisions:
            raise PrecisionError(f"precision {wanted} was asked for; it passed in {_passed(manifest)} only")
        return (wanted,)
    return tuple(
        precision
        for precision in FASTEST_FIRST[provider]
        if precision in manifest.compute_precisions and _is_fast_here(precision, provider)
    )


def is_slower(precision: str, other: str, provider: str) -> bool:
    """Whether `provider` computes in `precision` more slowly than in `other`."""
    order = FASTEST_FIRST[provider]
    return precision in order and other in order and order.index(precision) > order.index(other)


def _is_fast_here(precision: str, provider: str) -> bool:
    """Without instructions for it, a processor computes int8 and bf16 more slowly than fp32, and int8 less exactly."""
    if provider not in ("cpu", "openvino"):
        return True
    return {"int8": cpu.computes_int8, "bf16": cpu.computes_bf16}.get(precision, lambda: True)()


def _passed(manifest: Manifest) -> str:
    return ", ".join(manifest.compute_precisions)
