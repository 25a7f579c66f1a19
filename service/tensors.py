"""Tensors of the Open Inference Protocol: requests to pixels or pictures, results to reply tensors.

Works on the protocol's messages by their field names and imports no generated code, so that it also takes those of
other packages (two packages that define the same messages cannot be loaded into one process).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.errors import InvalidInput
from service.images import Pixels
from service.runners import Floats

PIXELS_INPUT = "image"
PICTURES_INPUT = "image_bytes"
OUTPUTS = ("probabilities", "logits")


@dataclass(frozen=True)
class Wanted:
    """One requested output; `classes` is the parameter `classification`, 0 when all values are wanted."""

    name: str
    classes: int


def read_images(request: Any, shape: tuple[int, int, int]) -> Pixels | list[bytes]:
    """The images of a ModelInferRequest: uint8 [n, height, width, channels] without a copy, or n encoded pictures.

    Raises InvalidInput naming the input: not exactly one of `image` and `image_bytes`, wrong datatype, shape, length,
    or raw and typed contents mixed.
    """
    if len(request.inputs) != 1 or request.inputs[0].name not in (PIXELS_INPUT, PICTURES_INPUT):
        names = ", ".join(tensor.name for tensor in request.inputs) or "none"
        raise InvalidInput("inputs", f"must be one tensor, {PIXELS_INPUT} or {PICTURES_INPUT}; got {names}")
    tensor = request.inputs[0]
    if "shared_memory_region" in tensor.parameters:
        raise InvalidInput(tensor.name, "shared memory is not supported")
    raw = _raw_contents(request, tensor)
    return _pixels(tensor, raw, shape) if tensor.name == PIXELS_INPUT else _pictures(tensor, raw)


def claimed_images(request: Any) -> int:
    """How many images a request says it carries, before anything of it is checked."""
    shape = request.inputs[0].shape if request.inputs else ()
    return int(shape[0]) if shape else 0


def uses_raw_contents(request: Any) -> bool:
    return len(request.raw_input_contents) > 0


def wanted_outputs(request: Any, classes: int) -> list[Wanted]:
    """The outputs a request asks for, all when it names none. Raises InvalidInput."""
    if not request.outputs:
        return [Wanted(name, 0) for name in OUTPUTS]
    wanted = []
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise InvalidInput("outputs", f"{output.name!r} is not an output; there are {', '.join(OUTPUTS)}")
        if "shared_memory_region" in output.parameters:
            raise InvalidInput(output.name, "shared memory is not supported")
        top = number(output.parameters, "classification", output.name) or 0
        if not 0 <= top <= classes:
            raise InvalidInput(output.name, f"classification must be from 0 to {classes}, is {top}")
        wanted.append(Wanted(output.name, top))
    return wanted


def number(parameters: Any, key: str, field: str) -> int | None:
    """The whole number under `key`, in whichever form a client sent it; None when it is absent. Raises InvalidInput."""
    if key not in parameters:
        return None
    parameter = parameters[key]
    choice = parameter.WhichOneof("parameter_choice")
    value: Any = getattr(parameter, choice) if choice else None
    try:
        if float(value).is_integer():
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InvalidInput(field, f"parameter {key} must be a whole number, is {value!r}")


def classification(values: Floats, labels: Sequence[str], order: Sequence[Sequence[int]]) -> npt.NDArray[np.object_]:
    """The strings `value:index:label` of the protocol's classification extension: object [n, k] of bytes."""
    rows = [
        [f"{values[row, index]:f}:{index}:{labels[index]}".encode() for index in indices]
        for row, indices in enumerate(order)
    ]
    return np.array(rows, np.object_)


def pack_bytes(array: npt.NDArray[np.object_]) -> bytes:
    """BYTES in raw form: each element after its length, 4 bytes little-endian."""
    return b"".join(struct.pack("<I", len(element)) + element for element in array.ravel())


def _raw_contents(request: Any, tensor: Any) -> bytes | None:
    """The raw bytes of the only input, or None when it has typed contents."""
    if not uses_raw_contents(request):
        return None
    if len(request.raw_input_contents) != len(request.inputs):
        raise InvalidInput(
            "raw_input_contents", f"{len(request.raw_input_contents)} entries for {len(request.inputs)} inputs"
        )
    if tensor.HasField("contents"):
        raise InvalidInput(tensor.name, "has contents although raw_input_contents is used")
    content: bytes = request.raw_input_contents[0]
    return content


def _pixels(tensor: Any, raw: bytes | None, shape: tuple[int, int, int]) -> Pixels:
    if tensor.datatype != "UINT8":
        raise InvalidInput(tensor.name, f"datatype must be UINT8, is {tensor.datatype!r}")
    given = tuple(tensor.shape)
    if len(given) != 4 or given[1:] != shape or given[0] < 1:
        raise InvalidInput(tensor.name, f"shape must be [n, {', '.join(map(str, shape))}], is {list(given)}")
    size = given[0] * shape[0] * shape[1] * shape[2]
    if raw is not None:
        if len(raw) != size:
            raise InvalidInput(tensor.name, f"shape {list(given)} needs {size} bytes, got {len(raw)}")
        return np.frombuffer(raw, np.uint8).reshape(given)
    elements = tensor.contents.uint_contents
    if len(elements) != size:
        raise InvalidInput(tensor.name, f"shape {list(given)} needs {size} uint_contents, got {len(elements)}")
    values = np.array(elements, np.uint32)
    if values.max() > 255:
        raise InvalidInput(tensor.name, f"values must be at most 255, one is {values.max()}")
    return values.astype(np.uint8).reshape(given)


def _pictures(tensor: Any, raw: bytes | None) -> list[bytes]:
    if tensor.datatype != "BYTES":
        raise InvalidInput(tensor.name, f"datatype must be BYTES, is {tensor.datatype!r}")
    shape = list(tensor.shape)
    if len(shape) not in (1, 2) or shape[0] < 1 or shape[1:] not in ([], [1]):
        raise InvalidInput(tensor.name, f"shape must be [n] or [n, 1], is {shape}")
    pictures = list(tensor.contents.bytes_contents) if raw is None else list(_unpack_bytes(tensor.name, raw))
    if len(pictures) != shape[0]:
        raise InvalidInput(tensor.name, f"shape {shape} needs {shape[0]} elements, got {len(pictures)}")
    return pictures


def _unpack_bytes(name: str, raw: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(raw):
        start = place + 4
        if start > len(raw):
            raise InvalidInput(name, "ends inside the length of an element")
        (length,) = struct.unpack_from("<I", raw, place)
        place = start + length
        if place > len(raw):
            raise InvalidInput(name, f"an element of {length} bytes goes beyond the end")
        yield raw[start:place]
