"""What is sent: noise in the shape that the server asks for, pictures as pixels or as files, or bodies as they are."""

from __future__ import annotations

import mimetypes
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cifarserve.v1 import classifier_pb2

from service.loadtest.plan import LoadTestError, Shape, Tensor, open_inference

# Different messages in rotation, so that no cache answers, and few enough to be kept in memory.
MESSAGES, MOST_BYTES = 64, 64 << 20
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
# Of the Open Inference Protocol. BYTES is left out: what a text should say cannot be made up.
_TYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip


def pictures_in(folder: Path) -> list[Path]:
    """The pictures under `folder`, in a fixed order. Raises LoadTestError when there are none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    if not found:
        raise LoadTestError(f"{folder}: no pictures ({', '.join(sorted(PICTURES))})")
    return found


def make_messages(
    protocol: str, shape: Shape, images: int, pictures: Sequence[Path] = (), *, encoded: bool = False
) -> list[bytes]:
    """Different messages of `images` each: noise in the model's own shape, or `pictures`, as pixels or as they are.

    Raises LoadTestError.
    """
    if encoded and not pictures:
        raise LoadTestError("--encoded needs --pictures")
    if encoded and protocol == "infer":
        raise LoadTestError("--encoded is for the classify protocol, and http")
    image = shape.inputs[0]
    if pictures and not (len(shape.inputs) == 1 and image.is_image()):
        found = ", ".join(map(str, shape.inputs))
        raise LoadTestError(f"model {shape.model}: takes {found}; pictures can be sent as UINT8 [n, height, width, 3]")
    if encoded:
        return [_encoded(shape.model, some) for some in _turns(pictures, images, MOST_BYTES)]
    if pictures:
        size = int(np.prod(image.shape[1:])) * images
        rows = [_read(some, image) for some in _turns(pictures, images, MOST_BYTES, size)]
        return [_classify(shape.model, one) if protocol == "classify" else _infer(shape, [one]) for one in rows]
    generator = np.random.default_rng(0)
    sizes = [_size(tensor, images) for tensor in shape.inputs]
    types = [_type(tensor, shape.model) for tensor in shape.inputs]
    count = sum(int(np.prod(size)) * np.dtype(kind).itemsize for size, kind in zip(sizes, types, strict=True))
    made = []
    for _ in range(max(1, min(MESSAGES, MOST_BYTES // count))):
        arrays = [_noise(generator, size, kind) for size, kind in zip(sizes, types, strict=True)]
        made.append(_classify(shape.model, arrays[0]) if protocol == "classify" else _infer(shape, arrays))
    return made


def http_bodies(bodies: Sequence[Path]) -> tuple[list[bytes], str]:
    """The files' contents, and the content type that their names stand for. Raises LoadTestError."""
    kinds = {mimetypes.guess_type(path.name)[0] or "application/octet-stream" for path in bodies}
    if len(kinds) > 1:
        raise LoadTestError(f"files of one content type are sent, and not of {', '.join(sorted(kinds))}")
    try:
        return [path.read_bytes() for path in bodies], kinds.pop()
    except OSError as error:
        raise LoadTestError(f"a body cannot be read: {error}") from None


def _turns(pictures: Sequence[Path], images: int, most: int, size: int = 0) -> Iterator[list[Path]]:
    """The pictures in turns, `images` at a time, until every one has had its turn or `most` bytes are full."""
    used = 0
    for number in range(max(MESSAGES, -(-len(pictures) // images))):
        some = [pictures[(number * images + index) % len(pictures)] for index in range(images)]
        used += size or sum(path.stat().st_size for path in some)
        if number and used > most:
            return
        yield some


def _size(tensor: Tensor, images: int) -> tuple[int, ...]:
    """The tensor's shape with `images` in its first place. Raises LoadTestError when another size is left open."""
    first, *others = tensor.shape or (-1,)
    if any(size < 1 for size in others):
        raise LoadTestError(f"{tensor}: more than its first size is left open, so that nothing fitting can be made up")
    if first not in (-1, images):
        raise LoadTestError(f"{tensor}: takes {first} at a time; give --images {first}")
    return (images, *others)


def _type(tensor: Tensor, model: str) -> Any:
    if tensor.datatype not in _TYPES:
        raise LoadTestError(f"model {model}: takes {tensor}; what can be made up is {', '.join(_TYPES)}")
    return _TYPES[tensor.datatype]


def _noise(generator: np.random.Generator, size: tuple[int, ...], kind: Any) -> Any:
    """All values of a byte, small numbers of the others."""
    if np.issubdtype(kind, np.floating):
        return generator.random(size).astype(kind)
    most = {np.bool_: 2, np.uint8: 256}.get(kind, 100)
    return generator.integers(0, most, size).astype(kind)


def _read(paths: Sequence[Path], image: Tensor) -> Any:
    from service.images import ImageError, decode

    _, height, width, channels = image.shape
    try:
        return np.stack([decode(path.read_bytes(), (height, width, channels)) for path in paths])
    except (ImageError, OSError) as error:
        raise LoadTestError(f"a picture cannot be read: {error}") from None


def _encoded(model: str, paths: Sequence[Path]) -> bytes:
    try:
        content = [classifier_pb2.Image(encoded=path.read_bytes()) for path in paths]
    except OSError as error:
        raise LoadTestError(f"a picture cannot be read: {error}") from None
    return bytes(classifier_pb2.ClassifyRequest(model=model, images=content).SerializeToString())


def _classify(model: str, pixels: Any) -> bytes:
    _, height, width, _ = pixels.shape
    colours = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
    content = [
        classifier_pb2.Image(
            raw=classifier_pb2.RawImage(rgb=np.ascontiguousarray(one).tobytes(), width=width, height=height)
        )
        for one in colours
    ]
    return bytes(classifier_pb2.ClassifyRequest(model=model, images=content).SerializeToString())


def _infer(shape: Shape, arrays: Sequence[Any]) -> bytes:
    request = open_inference().ModelInferRequest(model_name=shape.model)
    for tensor, array in zip(shape.inputs, arrays, strict=True):
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return bytes(request.SerializeToString())


def write_messages(path: Path, messages: Sequence[bytes]) -> None:
    path.write_bytes(b"".join(struct.pack("<I", len(message)) + message for message in messages))


def read_messages(path: Path) -> Iterator[bytes]:
    data, place = path.read_bytes(), 0
    while place < len(data):
        (size,) = struct.unpack_from("<I", data, place)
        yield data[place + 4 : place + 4 + size]
        place += 4 + size
