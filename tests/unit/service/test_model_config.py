"""config.toml of a model: what it may say, and what is refused by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.config import ConfigError, Settings
from service.model_config import ModelConfig, read_model_config, write_pin

SETTINGS = Settings(max_batch_size=48, threads=3)


def read(folder: Path, text: str) -> ModelConfig:
    (folder / "config.toml").write_text(text)
    return read_model_config(folder, SETTINGS)


def test_without_a_file_the_latest_version_is_served_with_the_servers_settings(tmp_path: Path) -> None:
    config = read_model_config(tmp_path, SETTINGS)
    assert str(config.versions) == "latest 1"
    assert (config.compute.max_batch_size, config.compute.threads, config.compute.instances) == (48, 3, 1)
    assert not config.traffic
    assert not config.shadow


@pytest.mark.parametrize(
    ("policy", "candidates", "enough"),
    [('"latest"', [5, 3, 1], 1), ('"latest 2"', [5, 3, 1], 2), ('"all"', [5, 3, 1], None), ("[3, 1]", [3, 1], None)],
)
def test_a_policy_chooses_from_the_versions_that_are_there(
    tmp_path: Path, policy: str, candidates: list[int], enough: int | None
) -> None:
    versions = read(tmp_path, f"versions = {policy}").versions
    assert versions.candidates([1, 3, 5]) == candidates
    assert [versions.enough(count) for count in (0, 1, 2)] == [enough is not None and n >= enough for n in (0, 1, 2)]


def test_the_providers_own_options_are_passed_on_as_text(tmp_path: Path) -> None:
    text = 'provider = "cuda"\nprovider_options = { use_tf32 = true, gpu_mem_limit = 1000000000, device_id = "1" }'
    assert read(tmp_path, text).compute.provider_options == {
        "use_tf32": "1", "gpu_mem_limit": "1000000000", "device_id": "1",
    }  # fmt: skip


def test_a_shadow_computes_in_the_background_on_one_thread(tmp_path: Path) -> None:
    config = read(tmp_path, "versions = [1]\nshadow = 2\ninstances = 2\n")
    assert (config.compute_of(1).threads, config.compute_of(1).instances, config.compute_of(1).in_background) == (
        3, 2, False,
    )  # fmt: skip
    assert (config.compute_of(2).threads, config.compute_of(2).instances, config.compute_of(2).in_background) == (
        1, 1, True,
    )  # fmt: skip
    assert config.extra_versions == (2,)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("version = 1", "version"),
        ('versions = "newest"', "versions"),
        ("versions = []", "versions"),
        ("versions = [0]", "versions"),
        ("versions = [1.5]", "versions"),
        ("buckets = 8", "buckets"),
        ("buckets = [8, 64]", "buckets"),
        ("buckets = [0]", "buckets"),
        ("provider_options = 5", "provider_options"),
        ('provider = "cuda"\nprovider_options = { use_tf32 = 1.5 }', "provider_options.use_tf32"),
        ("provider_options = { use_tf32 = 1 }", "provider_options: need a provider to be named"),
        ("traffic = 5", "traffic"),
        ("traffic = {}", "traffic"),
        ("traffic = { 1 = 0 }", "traffic"),
        ("traffic = { 1 = -1 }", "traffic.1"),
        ("traffic = { one = 1 }", "traffic"),
        ("traffic = { 1 = nan }", "traffic.1"),
        ("shadow = true", "shadow"),
        ("shadow_share = 2", "shadow_share"),
        ("shadow = 2\ntraffic = { 2 = 1 }", "shadow"),
        ("instances = 0", "instances"),
        ("cache_bytes = -1", "cache_bytes"),
        ("max_batch_size = 0", "max_batch_size"),
        ('provider = "gpu"', "provider"),
        ("threads = ", "Invalid value"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'config.toml'}: ")
    assert key in str(caught.value)


def test_a_pin_replaces_versions_traffic_and_shadow_and_keeps_the_rest(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        '# ours\nversions = "all"\ntraffic = { 1 = 1 }\nshadow = 2\nshadow_share = 0.5\ncache_bytes = 7\n'
    )
    write_pin(tmp_path, 3)
    config = read_model_config(tmp_path, SETTINGS)
    assert (str(config.versions), dict(config.traffic), config.shadow) == ("[3]", {}, 0)
    assert (config.shadow_share, config.cache_bytes) == (0.5, 7)
    assert "# ours" in (tmp_path / "config.toml").read_text()


def test_a_pin_is_refused_where_it_could_not_be_written_safely(tmp_path: Path) -> None:
    text = "versions = [\n  1,\n  2,\n]\n"
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match="on one line"):
        write_pin(tmp_path, 3)
    assert (tmp_path / "config.toml").read_text() == text
