"""A number that is not finite is refused, with its field, in every document that is read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service import config, model_config
from service.config import ConfigError, Settings
from service.documents import DocumentError, parse_json, parse_toml
from service.loadtest import report
from service.manifest import MANIFEST_FILE, ManifestError, read_manifest
from tests import colour_model

NOT_FINITE = ["NaN", "Infinity", "-Infinity", "1e400", "-1e999", "1" + "0" * 400]
HERE = "here-is-the-number"
DEEP = "[" * 100_000 + "]" * 100_000


def with_number(document: object, number: str) -> str:
    return json.dumps(document).replace(json.dumps(HERE), number)


@pytest.mark.parametrize("number", NOT_FINITE)
@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"a": {"b": [1, {"c": HERE}]}}, "a.b[1].c"),
        ([[HERE]], "[0][0]"),
        ({"a": True, "b": None, "c": 1e308, "d": "NaN", "e": HERE}, "e"),
        (HERE, "document"),
    ],
)
def test_the_first_number_that_is_not_finite_is_named(document: object, place: str, number: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_json(with_number(document, number))
    assert str(caught.value).startswith(f"{place}: must be a finite number, is ")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("number", ["nan", "+inf", "-inf", "1e400"])
def test_toml_is_held_to_the_same(number: str) -> None:
    with pytest.raises(DocumentError, match=r"^table\.list\[1\]: must be a finite number, is "):
        parse_toml(f"[table]\nlist = [1.5, {number}]\n")


@pytest.mark.parametrize(
    ("parse", "text"),
    [(parse_json, DEEP), (parse_json, "{"), (parse_json, b"\xff\xfe\x00"), (parse_json, "1" * 5000),
     (parse_toml, "a = " + DEEP), (parse_toml, "a = "), (parse_toml, "a = " + "1" * 5000)],
)  # fmt: skip
def test_what_does_not_parse_is_a_document_error(parse: Callable[[Any], object], text: object) -> None:
    with pytest.raises(DocumentError):
        parse(text)


def test_finite_documents_are_taken_as_they_are() -> None:
    document = {"a": [1, 1.5, -1e308, 2**64, True, None, "x", {"b": {}}], "": [[]]}
    assert parse_json(json.dumps(document)) == document


@pytest.mark.parametrize("number", NOT_FINITE)
@pytest.mark.parametrize(
    "place",
    ["evaluation.accuracy", "evaluation.ece", "recipe.rate", "parity[0].agreement", "baseline.edges[1]", "opset"],
)
def test_a_manifest_names_the_field(tmp_path: Path, place: str, number: str) -> None:
    folder = colour_model.publish(tmp_path)
    document = json.loads((folder / MANIFEST_FILE).read_text())
    document |= {"recipe": {"rate": 1}, "parity": [{"agreement": 1}], "baseline": {"edges": [0, 1]}}
    value: Any = document
    *path, last = [
        int(part) if part.isdigit() else part for part in place.replace("]", "").replace("[", ".").split(".")
    ]
    for part in path:
        value = value[part]
    value[last] = HERE
    (folder / MANIFEST_FILE).write_text(with_number(document, number))
    with pytest.raises(ManifestError) as caught:
        read_manifest(folder)
    assert f"{MANIFEST_FILE}: unreadable: {place}: must be a finite number, is " in str(caught.value)


def test_a_manifest_that_is_nested_too_deeply_is_a_manifest_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="nested too deeply"):
        read_manifest(tmp_path, DEEP.encode())


FLOATS = sorted(name for name, kind in config.TYPES.items() if kind is float)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "1" + "0" * 400])
@pytest.mark.parametrize("name", FLOATS)
def test_no_setting_is_anything_but_finite_from_any_source(tmp_path: Path, name: str, text: str) -> None:
    assert len(FLOATS) > 5
    (tmp_path / "cifarserve.toml").write_text(f"{name} = {text}\n")
    for flags, environment in (
        ({name: text}, {}),
        ({}, {config.ENVIRONMENT_PREFIX + name.upper(): text}),
        ({"config": tmp_path / "cifarserve.toml"}, {}),
    ):
        with pytest.raises(ConfigError) as caught:
            config.load(flags, environment)
        assert name in str(caught.value).lower().replace("-", "_")
    with pytest.raises(ConfigError, match=name):
        config.from_json(json.dumps({name: math.inf}))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 10**400])
@pytest.mark.parametrize("key", ["max_queue_delay", "target_latency", "shadow_share", "traffic"])
def test_no_key_of_a_models_configuration_is_anything_but_finite(key: str, number: float) -> None:
    """As in the parameters of a load over the network, which come as JSON."""
    with pytest.raises(ConfigError, match=key):
        model_config.parse({key: {"1": number} if key == "traffic" else number}, Settings(), "load")


def test_shares_whose_sum_is_not_finite_are_refused() -> None:
    with pytest.raises(ConfigError, match="traffic"):
        model_config.parse({"traffic": {"1": 1.5e308, "2": 1.5e308}}, Settings(), "load")


def test_a_models_file_that_is_not_finite_or_nested_too_deeply_is_a_config_error(tmp_path: Path) -> None:
    for text, said in (("[tuned]\nrate = nan\n", r"tuned\.rate: must be a finite number"), ("a = " + DEEP, "nested")):
        (tmp_path / "config.toml").write_text(text)
        with pytest.raises(ConfigError, match=said):
            model_config.read_model_config(tmp_path, Settings())
        with pytest.raises(ConfigError, match=said):
            model_config.write_pin(tmp_path, 1)
        (tmp_path / "server.toml").write_text(text)
        with pytest.raises(ConfigError, match=said):
            config.load({"config": tmp_path / "server.toml"}, {})


def test_a_result_of_a_load_test_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    level = {"concurrency": 1, "rate": None, "windows": [1.0, HERE], "latency_seconds": {"p99": 0.1}}
    (tmp_path / "result.json").write_text(with_number({"levels": [level]}, "NaN"))
    with pytest.raises(ValueError, match=r"levels\[0\]\.windows\[1\]: must be a finite number"):
        report.read(tmp_path / "result.json")
