"""Tensors of the Open Inference Protocol: requests to pixels or pictures, results to reply tensors.

Works on the protocol's messages by their field names and imports no generated code, so that it also takes those of
other packages (two packages that define the same messages cannot be loaded into one process).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.errors import InvalidInput, short
from service.images import Pixels
from service.runners import Floats

PIXELS_INPUT = "image"
PICTURES_INPUT = "image_bytes"
OUTPUTS = ("probabilities", "logits")
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1  # of a parameter
_WHOLE = re.compile(r"[-+]?[0-9]{1,19}", re.ASCII)


@dataclass(frozen=True)
class Wanted:
    """One requested output; `classes` is the parameter `classification`, 0 when all values are wanted."""

    name: str
    classes: int


def images_in(request: Any, shape: tuple[int, int, int]) -> int:
    """How many images a ModelInferRequest carries by the shape of its input, whose content is not yet looked at.

    Raises InvalidInput naming the input: not exactly one of `image` and `image_bytes`, wrong datatype or shape.
    """
    inputs = request.inputs
    if len(inputs) != 1 or inputs[0].name not in (PIXELS_INPUT, PICTURES_INPUT):
        first = f", the first is {short(inputs[0].name)}" if inputs else ""
        raise InvalidInput(
            "inputs", f"must be one tensor, {PIXELS_INPUT} or {PICTURES_INPUT}; got {len(inputs)}{first}"
        )
    tensor = inputs[0]
    if "shared_memory_region" in tensor.parameters:
        raise InvalidInput(tensor.name, "shared memory is not supported")
    datatype = "UINT8" if tensor.name == PIXELS_INPUT else "BYTES"
    if tensor.datatype != datatype:
        raise InvalidInput(tensor.name, f"datatype must be {datatype}, is {short(tensor.datatype)}")
    given = tuple(tensor.shape[:5])
    if tensor.name == PIXELS_INPUT:
        if len(given) != 4 or given[1:] != shape or given[0] < 1:
            wanted = f"[n, {', '.join(map(str, shape))}]"
            raise InvalidInput(tensor.name, f"shape must be {wanted}, is {short(list(given))}")
    elif len(given) not in (1, 2) or given[0] < 1 or given[1:] not in ((), (1,)):
        raise InvalidInput(tensor.name, f"shape must be [n] or [n, 1], is {short(list(given))}")
    return int(given[0])


def content(request: Any, count: int, shape: tuple[int, int, int]) -> Pixels | list[bytes]:
    """The images of a request in which images_in has found `count`: uint8 [n, height, width, channels] without a copy,
    or n encoded pictures. Raises InvalidInput: wrong length, or raw and typed contents mixed.
    """
    tensor = request.inputs[0]
    raw = _raw_contents(request, tensor)
    return _pixels(tensor, raw, (count, *shape)) if tensor.name == PIXELS_INPUT else _pictures(tensor, raw, count)


def read_images(request: Any, shape: tuple[int, int, int]) -> Pixels | list[bytes]:
    """images_in and content in one."""
    return content(request, images_in(request, shape), shape)


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
    if len(request.outputs) > len(OUTPUTS):
        raise InvalidInput("outputs", f"must be at most {len(OUTPUTS)}, are {len(request.outputs)}")
    wanted: list[Wanted] = []
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise InvalidInput("outputs", f"{short(output.name)} is not an output; there are {', '.join(OUTPUTS)}")
        if any(output.name == other.name for other in wanted):
            raise InvalidInput("outputs", f"{output.name} is asked for twice; ask for each output once")
        if "shared_memory_region" in output.parameters:
            raise InvalidInput(output.name, "shared memory is not supported")
        top = number(output.parameters, "classification", output.name) or 0
        if not 0 <= top <= classes:
            raise InvalidInput(output.name, f"classification must be from 0 to {classes}, is {top}")
        wanted.append(Wanted(output.name, top))
    return wanted


def number(parameters: Any, key: str, field: str) -> int | None:
    """The whole number of 64 bits under `key`, in whichever form a client sent it; None when it is absent.

    Raises InvalidInput.
    """
    if key not in parameters:
        return None
    parameter = parameters[key]
    choice = parameter.WhichOneof("parameter_choice")
    value: Any = getattr(parameter, choice) if choice else None
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        value = int(value)
    if type(value) in (int, float) and _LEAST <= value <= _MOST and value == int(value):
        return int(value)
    raise InvalidInput(field, f"parameter {key} must be a whole number, is {short(value)}")


def classification(values: Floats, labels: Sequence[str], order: Sequence[Sequence[int]]) -> npt.NDArray[np.object_]:
    """The strings `value:index:label` of the protocol's classification extension: object [n, k] of bytes."""
    suffixes = [f":{index}:{label}".encode() for index, label in enumerate(labels)]
    ranked = np.take_along_axis(values, np.asarray(order), axis=1).tolist()
    rows = [
        [b"%f%b" % (value, suffixes[index]) for value, index in zip(values, indices, strict=True)]
        for values, indices in zip(ranked, order, strict=True)
    ]
    return np.array(rows, np.object_)


def pack_bytes(array: npt.NDArray[np.object_]) -> bytes:
    """BYTES in raw form: each element after its length, 4 bytes little-endian."""
    return b"".join(struct.pack("<I", len(element)) + element for element in array.ravel())


def _raw_contents(request: Any, tensor: Any) -> bytes | None:
    """The raw bytes of the only input, or None when it has typed contents."""
    if not request.raw_input_contents:
        return None
    if len(request.raw_input_contents) != len(request.inputs):
        raise InvalidInput(
            "raw_input_contents", f"{len(request.raw_input_contents)} entries for {len(request.inputs)} inputs"
        )
    if tensor.HasField("contents"):
        raise InvalidInput(tensor.name, "has contents although raw_input_contents is used")
    content: bytes = request.raw_input_contents[0]
    return content


def _pixels(tensor: Any, raw: bytes | None, shape: tuple[int, int, int, int]) -> Pixels:
    size = math.prod(shape)
    if raw is not None:
        if len(raw) != size:
            raise InvalidInput(tensor.name, f"shape {list(shape)} needs {size} bytes, got {len(raw)}")
        return np.frombuffer(raw, np.uint8).reshape(shape)
    elements = tensor.contents.uint_contents
    if len(elements) != size:
        raise InvalidInput(tensor.name, f"shape {list(shape)} needs {size} uint_contents, got {len(elements)}")
    try:
        raw = bytes(elements)
    except ValueError:
        raise InvalidInput(tensor.name, f"values must be at most 255, one is {max(elements)}") from None
    return np.frombuffer(raw, np.uint8).reshape(shape)


def _pictures(tensor: Any, raw: bytes | None, count: int) -> list[bytes]:
    if raw is not None:
        return _unpack_bytes(tensor.name, raw, count)
    pictures = tensor.contents.bytes_contents
    if len(pictures) != count:
        raise InvalidInput(tensor.name, f"shape needs {count} elements, got {len(pictures)}")
    return list(pictures)


def _unpack_bytes(name: str, raw: bytes, count: int) -> list[bytes]:
    """Exactly `count` elements, each after its length."""
    elements: list[bytes] = []
    place = 0
    while place < len(raw) and len(elements) < count:
        start = place + 4
        if start > len(raw):
            raise InvalidInput(name, "ends inside the length of an element")
        (length,) = struct.unpack_from("<I", raw, place)
        place = start + length
        if place > len(raw):
            raise InvalidInput(name, f"an element of {length} bytes goes beyond the end")
        elements.append(raw[start:place])
    if len(elements) < count:
        raise InvalidInput(name, f"shape needs {count} elements, got {len(elements)}")
    if place < len(raw):
        raise InvalidInput(name, f"shape needs {count} elements, got more: {len(raw) - place} bytes are left")
    return elements
