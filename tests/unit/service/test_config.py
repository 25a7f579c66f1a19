"""Settings: the order of their sources, and errors that name the source and the key."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from service import config


def load(flags: list[str], environment: dict[str, str] | None = None) -> config.Settings:
    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    return config.load(vars(parser.parse_args(flags)), environment or {})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def test_flags_go_over_environment_over_file_over_defaults(file: Path) -> None:
    file.write_text("port = 1\nmetrics_port = 2\nmax_batch_size = 3\n")
    settings = load(["--config", str(file), "--port", "10"], {"CIFARSERVE_PORT": "20", "CIFARSERVE_METRICS_PORT": "30"})
    assert (settings.port, settings.metrics_port, settings.max_batch_size) == (10, 30, 3)
    assert settings.max_queue_images == config.Settings().max_queue_images


def test_a_file_gives_each_kind_of_value(file: Path) -> None:
    file.write_text('model_repository = "/srv/models"\ndrain_seconds = 5\nprovider = "cpu"\n')
    settings = load(["--config", str(file)])
    assert settings.model_repository == Path("/srv/models")
    assert settings.drain_seconds == 5.0
    assert isinstance(settings.drain_seconds, float)
    assert settings.provider == "cpu"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("batch_size = 3", "batch_size"),
        ('port = "many"', "port"),
        ("port = true", "port"),
        ("port = 70000", "port"),
        ("max_batch_size = 0", "max_batch_size"),
        ("drain_seconds = nan", "drain_seconds"),
        ('provider = "gpu"', "provider"),
        ("port = ", "settings.toml"),
    ],
)
def test_a_wrong_file_names_itself_and_the_key(file: Path, text: str, key: str) -> None:
    file.write_text(text)
    with pytest.raises(config.ConfigError) as caught:
        load(["--config", str(file)])
    assert str(file) in str(caught.value)
    assert key in str(caught.value)


def test_a_wrong_flag_or_variable_names_itself() -> None:
    with pytest.raises(config.ConfigError, match="--port: 'x' is not a whole number"):
        load(["--port", "x"])
    with pytest.raises(config.ConfigError, match="CIFARSERVE_PORT: 'x' is not a whole number"):
        load([], {"CIFARSERVE_PORT": "x"})


def test_a_file_that_was_named_must_be_there(file: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"settings\.toml"):
        load(["--config", str(file)])


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(config.ConfigError, match="max_images_per_request"):
        load(["--max-images-per-request", "10", "--max-queue-images", "5"])


def test_auto_is_taken_for_the_number_of_workers_alone(file: Path) -> None:
    assert load(["--workers", "auto"]).workers == 0
    assert load([], {"CIFARSERVE_WORKERS": "auto"}).workers == 0
    file.write_text('workers = "auto"\n')
    assert load(["--config", str(file)]).workers == 0
    with pytest.raises(config.ConfigError, match="--threads: 'auto' is not a whole number"):
        load(["--threads", "auto"])


def test_a_switch_that_is_on_has_a_flag_that_turns_it_off(file: Path) -> None:
    assert load([]).page
    assert not load(["--no-page"], {"CIFARSERVE_PAGE": "true"}).page
    assert not load(["--page", "false"]).page
    assert not load([], {"CIFARSERVE_PAGE": "false"}).page
    file.write_text("page = false\n")
    assert not load(["--config", str(file)]).page
    assert load(["--config", str(file), "--page"]).page


def test_settings_survive_json() -> None:
    settings = config.Settings(model_repository=Path("/srv/models"), load_model=("a", "b"), lame_duck_seconds=2.5)
    assert config.from_json(json.dumps(dataclasses.asdict(settings), default=str)) == settings
