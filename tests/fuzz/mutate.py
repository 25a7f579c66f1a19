"""Changes to inputs that keep their form, so that what comes behind the parsers is reached: most changes of single
bytes of a message or a document give one that cannot be parsed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError, Message

# (input, most bytes, seed) -> input, as atheris.Setup takes it.
Mutator = Callable[[bytes, int, int], bytes]

_WORDS = (
    "image", "image_bytes", "UINT8", "BYTES", "FP32", "m", "probabilities", "logits", "classification", "timeout",
    "priority", "binary_data_size", "1", "fp32", "latest 2", "cpu", "model.onnx", "../model.onnx", "image/png", "",
)  # fmt: skip
_NUMBERS = (0, 1, -1, 2, 3, 8, 32, 3072, 3073, 255, 256, 65535, 1 << 31, (1 << 31) - 1, (1 << 63) - 1, -(1 << 63))
_AS_BYTES = 0.2  # of the inputs are changed as bytes all the same


def of_messages(kind: type[Message]) -> Mutator:
    """For serialised messages of this kind."""

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        message = kind()
        try:
            message.ParseFromString(data)
        except DecodeError:
            return changed_bytes(data, chance)[:most]
        if chance.random() < _AS_BYTES:
            return changed_bytes(data, chance)[:most]
        for _ in range(chance.randrange(1, 4)):
            change_message(message, chance)
        return message.SerializeToString()[:most]

    return mutator


def json_document(data: bytes, most: int, seed: int) -> bytes:
    """For documents in JSON; what is none is changed as bytes."""
    chance = random.Random(seed)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return changed_bytes(data, chance)[:most]
    if chance.random() < _AS_BYTES:
        return changed_bytes(data, chance)[:most]
    for _ in range(chance.randrange(1, 4)):
        document = changed_json(document, chance)
    return json.dumps(document).encode()[:most]


def changed_bytes(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, put in, taken out or repeated."""
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 5)):
        at, kind = chance.randrange(len(changed) + 1), chance.randrange(4)
        length = min(chance.choice((1, 1, 2, 4, 8, 64)), len(changed) - at)
        if kind == 0:
            changed[at : at + length] = chance.randbytes(length)
        elif kind == 1:
            changed[at:at] = chance.randbytes(chance.choice((1, 2, 4, 64)))
        elif kind == 2:
            del changed[at : at + length]
        else:
            changed[at:at] = changed[at : at + length]
    return bytes(changed)


def change_message(message: Any, chance: random.Random) -> None:
    """Set, change or remove one field, at any depth."""
    field = chance.choice(message.DESCRIPTOR.fields)
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = value[chance.choice(_WORDS)]
        if isinstance(entry, Message):
            change_message(entry, chance)
    elif field.is_repeated:
        if value and chance.random() < 0.3:
            del value[chance.randrange(len(value))]
        elif field.message_type is not None:
            one = chance.choice(value) if value and chance.random() < 0.8 else value.add()
            change_message(one, chance)
        elif value and chance.random() < 0.7:
            at = chance.randrange(len(value))
            value[at] = _scalar(field, value[at], chance)
        else:
            value.append(_scalar(field, field.default_value or None, chance))
    elif field.message_type is not None:
        change_message(value, chance)
    elif chance.random() < 0.1:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _scalar(field, value, chance))


def _scalar(field: Any, value: Any, chance: random.Random) -> Any:
    """Another value for a field of one number, text or string of bytes."""
    if field.type == field.TYPE_BYTES:
        return changed_bytes(value or b"", chance)
    if field.type == field.TYPE_STRING:
        return chance.choice(_WORDS)
    if field.type == field.TYPE_BOOL:
        return chance.random() < 0.5
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return chance.choice((0.0, -1.0, 1e300, float("nan"), float("inf"))) if field.type == field.TYPE_DOUBLE else 0.5
    number = chance.choice((*_NUMBERS, (value or 0) + 1, (value or 0) - 1))
    bits = 32 if field.type in (field.TYPE_INT32, field.TYPE_UINT32) else 64
    if field.type in (field.TYPE_UINT32, field.TYPE_UINT64):
        return number % (1 << bits)
    return (number + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


def changed_json(document: Any, chance: random.Random) -> Any:
    """`document` with one value replaced, removed or added, at any depth."""
    if isinstance(document, dict) and document and chance.random() < 0.9:
        key = chance.choice(sorted(document))
        rest = {name: value for name, value in document.items() if name != key}
        if chance.random() < 0.1:
            return rest
        return rest | {key: changed_json(document[key], chance)}
    if isinstance(document, list) and document and chance.random() < 0.9:
        at = chance.randrange(len(document))
        change = chance.choice(([], [document[at]] * 2, [changed_json(document[at], chance)]))
        return document[:at] + change + document[at + 1 :]
    other: tuple[Any, ...] = (None, [], {}, "", True, 0.5, -1, 10**20, float("nan"), [[]], {"a": 1})
    return chance.choice((*other, *_WORDS, *_NUMBERS))
