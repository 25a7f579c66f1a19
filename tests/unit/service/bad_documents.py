"""Property tests of everything that is read from outside: settings, config.toml, manifests, messages of both protocols.

What comes is taken, or refused by the one error that says so, with the place of what is wrong. test_bad_documents.py
runs them.
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from cifarserve.v1 import classifier_pb2
from hypothesis import example, given
from hypothesis import strategies as st
from inference import grpc_predict_v2_pb2

from service import config, model_config
from service.config import FIELDS, ConfigError, Settings
from service.manifest import Manifest, ManifestError, read_manifest
from tests.fuzz import mutate, targets

FOLDER = Path("version")
SEEDS = {name: targets.seeds(name) for name in targets.TARGETS}
(MANIFEST,) = (seed for seed in SEEDS["documents"] if seed.startswith(b"{"))
words = st.text(max_size=12) | st.sampled_from(["auto", "cpu", "true", "1", "-1", "1e400", "nan", "0.5", "a,b", ""])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
chances = st.integers(0, 2**32).map(random.Random)


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), words, max_size=4))
def test_any_text_for_any_setting_is_a_setting_or_named(given: dict[str, str]) -> None:
    variables = {config.ENVIRONMENT_PREFIX + name.upper(): text for name, text in given.items()}
    for flags, environment, named in ((given, {}, config.flag), ({}, variables, lambda name: name.upper())):
        try:
            settings = config.load(flags, environment)
        except ConfigError as error:
            assert any(named(name) in str(error) or name in str(error) for name in given)
        else:
            for name, limits in ((name, FIELDS[name].metadata) for name in given):
                value = getattr(settings, name)
                assert "least" not in limits or value >= limits["least"] or value == limits.get("auto", value)
                assert "most" not in limits or value <= limits["most"]
                assert "choices" not in limits or value in limits["choices"]


@given(st.sampled_from(sorted(FIELDS)), values)
def test_any_value_for_any_setting_is_of_its_type_or_named(name: str, value: object) -> None:
    try:
        checked = config.check_setting(name, value, name)
    except ConfigError as error:
        assert str(error).startswith(name)
    else:
        assert isinstance(checked, type(FIELDS[name].default))


KEYS = [field.name for field in dataclasses.fields(model_config.ModelConfig)] + [
    "versions", "traffic", "shadow", "provider", "precision", "threads", "buckets", "provider_options", "instances",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS) | words, values, max_size=3))
def test_any_document_is_the_configuration_of_a_model_or_a_config_error(document: dict[str, object]) -> None:
    try:
        found = model_config.parse(document, Settings(), "config.toml")
    except ConfigError as error:
        assert str(error).startswith("config.toml")
    else:
        assert found.compute_of(1).max_batch_size >= 1


@given(chances, st.integers(1, 6))
@example(random.Random(1443), 1)  # NaN where the server reads nothing: it was read, and could not be written
def test_a_changed_manifest_is_a_manifest_or_a_manifest_error(chance: random.Random, changes: int) -> None:
    document = json.loads(MANIFEST)
    for _ in range(changes):
        document = mutate.changed_json(document, chance)
    try:
        manifest = read_manifest(FOLDER, json.dumps(document).encode())
    except ManifestError as error:
        assert str(FOLDER) in str(error)
    else:
        assert read_manifest(FOLDER, manifest.to_json().encode()) == manifest
        for name in manifest.files:
            assert Path(name).name == name, "no file lies outside of the folder"


@given(st.binary(max_size=100) | st.text().map(str.encode))
def test_bytes_that_are_no_manifest_are_a_manifest_error(data: bytes) -> None:
    with pytest.raises(ManifestError):
        read_manifest(FOLDER, data)


def test_the_manifest_that_is_changed_is_a_good_one() -> None:
    assert isinstance(read_manifest(FOLDER, MANIFEST), Manifest)


@pytest.mark.parametrize("name", sorted(targets.MESSAGES))
@given(chances, st.integers(1, 10), st.data())
def test_a_message_of_any_content_is_taken_or_refused(
    name: str, chance: random.Random, changes: int, data: st.DataObject
) -> None:
    message = targets.MESSAGES[name]()
    message.ParseFromString(data.draw(st.sampled_from(SEEDS[name])))
    for _ in range(changes):
        mutate.change_message(message, chance)
    targets.TARGETS[name](message.SerializeToString())


def test_both_protocols_messages_are_among_them() -> None:
    assert {type(kind()) for kind in targets.MESSAGES.values()} == {
        classifier_pb2.ClassifyRequest,
        grpc_predict_v2_pb2.ModelInferRequest,
    }
