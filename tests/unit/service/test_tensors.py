"""Tensors of the Open Inference Protocol, on the messages of tritonclient."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from service import tensors
from service.errors import InvalidInput

SHAPE = (2, 3, 3)
SIZE = 18


def pixels(count: int, raw: bytes | None = None) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest()
    request.inputs.add(name="image", datatype="UINT8", shape=[count, *SHAPE])
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


@given(st.integers(1, 5), st.data())
def test_raw_and_typed_pixels_are_the_same_pixels(count: int, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=count * SIZE, max_size=count * SIZE))
    typed = pixels(count)
    typed.inputs[0].contents.uint_contents.extend(raw)
    found = tensors.read_images(pixels(count, raw), SHAPE)
    assert isinstance(found, np.ndarray)
    assert found.tobytes() == raw
    np.testing.assert_array_equal(found, tensors.read_images(typed, SHAPE))


def test_raw_pixels_are_not_copied() -> None:
    request = pixels(1, bytes(range(SIZE)))
    found = tensors.read_images(request, SHAPE)
    assert isinstance(found, np.ndarray)
    assert not found.flags.owndata
    assert not found.flags.writeable


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=5))
def test_raw_and_typed_pictures_are_the_same_pictures(pictures: list[bytes]) -> None:
    request = service_pb2.ModelInferRequest()
    tensor = request.inputs.add(name="image_bytes", datatype="BYTES", shape=[len(pictures)])
    tensor.contents.bytes_contents.extend(pictures)
    assert tensors.read_images(request, SHAPE) == pictures
    tensor.ClearField("contents")
    packed = tensors.pack_bytes(np.array([*pictures, None], np.object_)[:-1])
    request.raw_input_contents.append(packed)
    assert tensors.read_images(request, SHAPE) == pictures


@given(st.binary(max_size=64), st.integers(-1, 4), st.sampled_from(["image", "image_bytes"]))
def test_arbitrary_raw_bytes_are_images_or_an_invalid_input(raw: bytes, count: int, name: str) -> None:
    request = service_pb2.ModelInferRequest(raw_input_contents=[raw])
    shape = [count, *SHAPE] if name == "image" else [count]
    request.inputs.add(name=name, datatype="UINT8" if name == "image" else "BYTES", shape=shape)
    try:
        assert len(tensors.read_images(request, SHAPE)) == count
    except InvalidInput as error:
        assert error.field == name


@given(st.binary(max_size=200))
def test_arbitrary_messages_are_images_or_an_invalid_input(data: bytes) -> None:
    request = service_pb2.ModelInferRequest()
    try:
        request.ParseFromString(data)
    except Exception:
        return
    assert isinstance(tensors.claimed_images(request), int)
    try:
        tensors.read_images(request, SHAPE)
        tensors.wanted_outputs(request, 5)
        tensors.number(request.parameters, "timeout", "parameters")
    except InvalidInput:
        pass


@pytest.mark.parametrize("packed", [b"\x01", struct.pack("<I", 5) + b"1234", struct.pack("<I", 0xFFFFFFFF)])
def test_a_length_beyond_the_end_is_refused(packed: bytes) -> None:
    request = service_pb2.ModelInferRequest(raw_input_contents=[packed])
    request.inputs.add(name="image_bytes", datatype="BYTES", shape=[1])
    with pytest.raises(InvalidInput, match="image_bytes"):
        tensors.read_images(request, SHAPE)


def test_a_number_may_come_in_any_form_that_is_whole() -> None:
    request = service_pb2.ModelInferRequest()
    for field, value in (("int64_param", 7), ("uint64_param", 7), ("double_param", 7.0), ("string_param", "7")):
        setattr(request.parameters["timeout"], field, value)
        assert tensors.number(request.parameters, "timeout", "parameters") == 7
    for field, value in (("double_param", 7.5), ("double_param", float("nan")), ("string_param", "soon")):
        setattr(request.parameters["timeout"], field, value)
        with pytest.raises(InvalidInput, match="timeout"):
            tensors.number(request.parameters, "timeout", "parameters")
    assert tensors.number(request.parameters, "priority", "parameters") is None


def test_classification_names_value_index_and_label() -> None:
    values = np.array([[0.25, 0.75]], np.float32)
    found = tensors.classification(values, ["cat", "dog"], [[1, 0]])
    assert found.tolist() == [[b"0.750000:1:dog", b"0.250000:0:cat"]]
