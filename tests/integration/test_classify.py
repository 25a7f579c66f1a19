"""The typed API over a real socket: what goes in, and what comes back."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from cifarserve.v1 import classifier_pb2 as pb
from cifarserve.v1 import classifier_pb2_grpc as pb_grpc
from PIL import Image

from service.client import AsyncClient, Client, ClientError, Prediction
from tests import colour_model
from tests.integration.server_process import ServerProcess, cli, serving


def encode(pixels: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def probabilities(prediction: Prediction) -> np.ndarray:
    """In the order of the labels."""
    by_index = {one.index: one.probability for one in prediction.classes}
    return np.array([by_index[index] for index in range(len(colour_model.LABELS))])


@pytest.mark.parametrize("size", [colour_model.SIZE, 300])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_picture_of_any_format_and_size_is_classified(client: Client, form: str, size: int) -> None:
    pictures = [encode(colour_model.plain(colour, size), form) for colour in ((250, 5, 5), (5, 250, 5), (5, 5, 250))]
    assert [one.best.label for one in client.classify(pictures)] == ["red", "green", "blue"]


def test_a_reply_names_model_version_and_id_and_orders_classes_by_probability(server: ServerProcess) -> None:
    image = colour_model.plain((40, 130, 90))
    request = pb.ClassifyRequest(id="my id", top_k=5, images=[pb.Image(encoded=encode(image))])
    with grpc.insecure_channel(server.target) as channel:
        reply = pb_grpc.ClassifierStub(channel).Classify(request)
    assert (reply.id, reply.model, reply.version) == ("my id", "colours", 1)
    (prediction,) = reply.predictions
    found = [one.probability for one in prediction.classes]
    assert found == sorted(found, reverse=True)
    assert sum(found) == pytest.approx(1, abs=1e-6)
    assert [one.label for one in prediction.classes] == [colour_model.LABELS[one.index] for one in prediction.classes]
    expected = colour_model.expected(image[None])[0]
    assert found == pytest.approx(sorted(expected, reverse=True), abs=1e-5)


def test_top_k_bounds_the_classes_and_defaults_to_five_or_all(client: Client) -> None:
    image = colour_model.plain((250, 5, 5))
    assert len(client.classify([image], top_k=2)[0].classes) == 2
    assert len(client.classify([image])[0].classes) == 5


def test_a_model_and_version_can_be_named(client: Client) -> None:
    image = colour_model.plain((250, 5, 5))
    prediction = client.classify([image], model="colours", version=1)[0]
    assert (prediction.model, prediction.version) == ("colours", 1)


def test_the_models_tell_what_they_are(client: Client) -> None:
    (listed,) = client.models()
    assert listed == client.model("colours", 1) == client.model()
    assert (listed.name, listed.version, tuple(listed.labels)) == ("colours", 1, colour_model.LABELS)
    assert (listed.height, listed.width, listed.channels) == (colour_model.SIZE, colour_model.SIZE, 3)
    assert listed.provider.endswith("ExecutionProvider")
    assert listed.precision == "fp32"
    assert (listed.evaluation.accuracy, listed.evaluation.images) == (0.9, 100)


def test_paths_bytes_pil_images_and_arrays_are_the_same_to_the_client(client: Client, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    path = tmp_path / "picture.png"
    path.write_bytes(encode(pixels))
    forms = [path, str(path), path.read_bytes(), Image.open(path), pixels]
    answers = [probabilities(one) for one in client.classify(forms)]
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


def test_hundreds_of_requests_in_flight_each_get_their_own_answer(server: ServerProcess) -> None:
    images = colour_model.distinct(600)

    async def ask() -> list[list[Prediction]]:
        async with AsyncClient(server.target) as client:
            return await asyncio.gather(*(client.classify([image], timeout=60) for image in images))

    found = np.stack([probabilities(answer[0]) for answer in asyncio.run(ask())])
    np.testing.assert_allclose(found, colour_model.expected(images), atol=1e-5)
    assert server.metric("cifarserve_batch_images_bucket", le="1.0") < server.metric("cifarserve_batch_images_count"), (
        "requests in flight together must share batches"
    )


def test_a_request_larger_than_a_batch_comes_back_whole_and_in_order(server: ServerProcess) -> None:
    images = colour_model.distinct(600).reshape(4, 150, colour_model.SIZE, colour_model.SIZE, 3)

    async def ask() -> list[list[Prediction]]:
        async with AsyncClient(server.target) as client:
            return await asyncio.gather(*(client.classify(list(part), timeout=60) for part in images))

    for part, answer in zip(images, asyncio.run(ask()), strict=True):
        found = np.stack([probabilities(one) for one in answer])
        np.testing.assert_allclose(found, colour_model.expected(part), atol=1e-5)


def test_a_stream_answers_in_order_with_the_ids_of_its_requests(server: ServerProcess) -> None:
    images = colour_model.distinct(500)
    # Every third request carries more images, so that later ones could overtake it.
    counts = [20 if number % 3 == 0 else 1 for number in range(200)]
    requests = [
        pb.ClassifyRequest(
            id=str(number),
            top_k=5,
            images=[pb.Image(encoded=encode(images[(number + offset) % 500])) for offset in range(count)],
        )
        for number, count in enumerate(counts)
    ]
    with grpc.insecure_channel(server.target) as channel:
        replies = list(pb_grpc.ClassifierStub(channel).ClassifyStream(iter(requests), timeout=60))
    assert [reply.id for reply in replies] == [request.id for request in requests]
    for number, (reply, count) in enumerate(zip(replies, counts, strict=True)):
        expected = colour_model.expected(images[[(number + offset) % 500 for offset in range(count)]])
        found = [prediction.classes[0].probability for prediction in reply.predictions]
        np.testing.assert_allclose(found, expected.max(axis=1), atol=1e-5)


def test_a_stream_faster_than_the_model_is_held_back_and_not_shed(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models, work=2)
    images = list(colour_model.distinct(50))
    with serving(models, tmp_path / "log", "--max-queue-images", 400) as server, Client(server.target) as client:
        answers = list(client.classify_stream([images] * 60))
        assert server.metric("cifarserve_dropped_images_total") == 0
    assert len(answers) == 60


def test_a_bad_request_in_a_stream_is_answered_in_its_place_and_the_stream_goes_on(server: ServerProcess) -> None:
    good = pb.Image(encoded=encode(colour_model.plain((250, 5, 5))))
    requests = [
        pb.ClassifyRequest(id="a", images=[good]),
        pb.ClassifyRequest(id="b", images=[good, pb.Image(encoded=b"no picture")]),
        pb.ClassifyRequest(id="c", images=[good], model="other"),
        pb.ClassifyRequest(id="d", images=[good]),
    ]
    with grpc.insecure_channel(server.target) as channel:
        replies = list(pb_grpc.ClassifierStub(channel).ClassifyStream(iter(requests), timeout=60))
    assert [reply.id for reply in replies] == ["a", "b", "c", "d"]
    codes = [reply.error.code for reply in replies]
    assert codes == [0, grpc.StatusCode.INVALID_ARGUMENT.value[0], grpc.StatusCode.NOT_FOUND.value[0], 0]
    assert "images[1].encoded" in replies[1].error.message


def test_the_clients_stream_and_the_asynchronous_client_agree_with_the_plain_one(server: ServerProcess) -> None:
    images = list(colour_model.distinct(30))
    batches = [images[start : start + 10] for start in range(0, 30, 10)]

    async def ask() -> list[Prediction]:
        async def source() -> AsyncIterator[list[np.ndarray]]:
            for batch in batches:
                yield batch

        async with AsyncClient(server.target) as client:
            return [one async for answer in client.classify_stream(source()) for one in answer]

    with Client(server.target) as client:
        plain = client.classify(images)
        assert [one for answer in client.classify_stream(batches) for one in answer] == plain
    assert asyncio.run(ask()) == plain


def test_an_error_in_the_clients_stream_is_raised_with_its_field(client: Client) -> None:
    with pytest.raises(ClientError) as caught:
        list(client.classify_stream([[b"no picture"]]))
    assert list(caught.value.fields) == ["images[0].encoded"]


def test_classify_prints_a_table_and_json(server: ServerProcess, tmp_path: Path) -> None:
    for name, colour in (("first.png", (250, 5, 5)), ("second.png", (5, 5, 250))):
        (tmp_path / name).write_bytes(encode(colour_model.plain(colour, 50)))
    pictures = [tmp_path / "first.png", tmp_path / "second.png"]
    table = cli("classify", *pictures, "--target", server.target)
    assert table.returncode == 0, table.stderr
    assert all(word in table.stdout for word in ("first.png", "second.png", "red", "blue", "colours version 1"))
    records = json.loads(cli("classify", *pictures, "--target", server.target, "--json", "--top-k", 1).stdout)
    assert [record["classes"][0]["label"] for record in records] == ["red", "blue"]


def test_the_servers_process_never_imports_torch(server: ServerProcess) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert "libtorch" not in maps
