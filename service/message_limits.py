"""Looks through a message before it is parsed: what it consists of, so that none costs more than a useful one does.

A parser makes an object of some hundred bytes of each empty field, which takes two bytes on the wire. So a message of
the largest size could make millions, block the event loop for seconds and take gigabytes. Here the fields are counted
along the wire format, which makes no objects, and counting stops at the limit.

What is a submessage, a text or a packed list of numbers comes from the message's descriptor: a new field is covered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from service.errors import InvalidInput

# Bytes. A message of so many is within all limits, and is not looked through.
SMALL_MESSAGE = 16 << 10
MOST_TEXT = SMALL_MESSAGE
_LEAST_FIELD = 2
# Of numbers in lists, which are the pixels in typed contents: 8 bytes in memory for each, or more.
MOST_NUMBERS = 2 << 20
# Types in the wire format, and the sizes of those that have one.
_VARINT, _LENGTH = 0, 2
_SIZES = {1: 8, 5: 4}
_LONGEST_VARINT = 10


class MalformedMessage(ValueError):
    """The bytes are not in the wire format."""


class _Kind(Enum):
    MESSAGE, TEXT, NUMBERS, BYTES = range(4)


@dataclass
class Layout:
    """What a message's fields with a length are, by their numbers."""

    fields: dict[int, tuple[str, _Kind, Layout | None]] = field(default_factory=dict)


def most_fields(images: int) -> int:
    """Fields that a message with so many images may have, at all depths: an image takes five."""
    return SMALL_MESSAGE // _LEAST_FIELD + 8 * images


def layout(descriptor: Descriptor, known: dict[str, Layout] | None = None) -> Layout:
    known = {} if known is None else known
    if descriptor.full_name not in known:
        made = known[descriptor.full_name] = Layout()
        for one in descriptor.fields:
            if one.message_type is not None:
                made.fields[one.number] = one.name, _Kind.MESSAGE, layout(one.message_type, known)
            elif one.type == FieldDescriptor.TYPE_STRING:
                made.fields[one.number] = one.name, _Kind.TEXT, None
            elif one.type == FieldDescriptor.TYPE_BYTES:
                made.fields[one.number] = one.name, _Kind.BYTES, None
            elif one.is_repeated:
                made.fields[one.number] = one.name, _Kind.NUMBERS, None
    return known[descriptor.full_name]


def check(message: bytes, whole: Layout, most: int) -> None:
    """Raise InvalidInput, naming a field, when `message` has more than `most` fields, or texts or lists that are too
    long; MalformedMessage when it cannot be parsed.
    """
    try:
        _check(message, whole, most)
    except IndexError:
        raise MalformedMessage from None


def _check(message: bytes, whole: Layout, most: int) -> None:  # noqa: C901 - a call for each field would cost as much again
    place, end, inside, count, numbers = 0, len(message), whole, 0, 0
    outer: list[tuple[int, Layout, str]] = []  # the messages around the present one: their end, and its name in them
    while True:
        while place == end:
            if not outer:
                return
            end, inside, _ = outer.pop()
        # Most tags and lengths are one byte: a call for each would double what this costs.
        tag = message[place]
        place += 1
        if tag > 127:
            tag, place = _varint(message, place - 1)
        name, kind, nested = inside.fields.get(tag >> 3, _UNKNOWN)
        count += 1
        if count > most:
            raise _excess(outer, name, f"the message has more than {most} fields; send fewer or larger ones")
        if tag & 7 == _LENGTH:
            length = message[place]
            place += 1
            if length > 127:
                length, place = _varint(message, place - 1)
            if nested is not None and place + length <= end:
                outer.append((end, inside, name))
                end, inside = place + length, nested
                continue
            if kind is _Kind.NUMBERS:
                numbers += length
            if kind is not _Kind.BYTES and (problem := _problem(kind, length, numbers)):
                raise _excess(outer, name, problem)
            place += length
        else:
            place = _skip(message, tag & 7, place)
        if place > end:
            raise MalformedMessage


_UNKNOWN: tuple[str, _Kind, Layout | None] = "", _Kind.BYTES, None


def _problem(kind: _Kind, length: int, numbers: int) -> str:
    """What is wrong with a field of `length` bytes, with which the message has `numbers` bytes of numbers in lists."""
    if kind is _Kind.TEXT and length > MOST_TEXT:
        return f"must be at most {MOST_TEXT} bytes, is {length}"
    if kind is _Kind.NUMBERS and numbers > MOST_NUMBERS:
        return f"numbers must take at most {MOST_NUMBERS} bytes; send pixels in raw_input_contents"
    return ""


def _skip(message: bytes, wire: int, place: int) -> int:
    """The place behind a field without a length. Groups, which no protocol of ours has, are refused."""
    if wire == _VARINT:
        return _varint(message, place)[1]
    if wire not in _SIZES:
        raise MalformedMessage
    return place + _SIZES[wire]


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """The number at `place`, and the place behind it. Raises MalformedMessage, and IndexError at the end."""
    value = message[place]
    if value < 128:
        return value, place + 1
    value = 0
    for index in range(_LONGEST_VARINT):
        byte = message[place + index]
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, place + index + 1
    raise MalformedMessage


def _excess(outer: list[tuple[int, Layout, str]], name: str, problem: str) -> InvalidInput:
    """The error, which names the field from the outermost message on."""
    names = [*(one for _, _, one in outer), *([name] if name else [])]
    return InvalidInput(".".join(names) or "message", problem)
