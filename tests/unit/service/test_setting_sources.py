"""Where settings are from: flag, environment, a model's config.toml, cifarserve.toml, default, in this order."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from service import config
from service.cli import main
from service.config import ConfigError, Settings
from service.model_config import ModelConfig, read_model_config
from tests import colour_model


def load(*flags: str, **environment: str) -> Settings:
    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    return config.load(vars(parser.parse_args(flags)), environment)


def configured(folder: Path, text: str, settings: Settings) -> ModelConfig:
    (folder / "config.toml").write_text(text)
    return read_model_config(folder, settings)


def test_a_flag_goes_before_a_variable_before_config_toml_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "cifarserve.toml"
    file.write_text('threads = 1\nprovider = "cpu"\nprecision = "fp32"\nmax_batch_size = 1\n')
    settings = load("--config", str(file), "--threads", "4", CIFARSERVE_THREADS="3", CIFARSERVE_PROVIDER="cuda")
    found = configured(tmp_path, 'threads = 2\nprovider = "openvino"\nprecision = "bf16"\n', settings)
    compute = found.compute
    assert (compute.threads, compute.provider, compute.max_batch_size) == (4, "cuda", 1)
    assert found.overruled["threads"].endswith("config.toml: threads: 2 is overruled by --threads 4")
    assert found.overruled["provider"].endswith('provider: "openvino" is overruled by CIFARSERVE_PROVIDER cuda')
    plain = configured(tmp_path, 'precision = "int8"\nthreads = 2\n', load("--config", str(file)))
    assert (plain.compute.precision, plain.compute.threads, plain.overruled) == ("int8", 2, {})


def test_a_value_that_both_say_is_not_called_overruled(tmp_path: Path) -> None:
    found = configured(tmp_path, 'provider = "cpu"\nbuckets = [4]\n', load("--provider", "cpu"))
    assert (found.compute.provider, found.compute.buckets, found.overruled) == ("cpu", (4,), {})


def test_a_default_said_by_a_flag_is_still_said(tmp_path: Path) -> None:
    assert configured(tmp_path, 'provider = "openvino"\n', load("--provider", "auto")).compute.provider == "auto"


def test_sources_survive_the_way_to_a_worker_and_changes_of_other_settings(tmp_path: Path) -> None:
    settings = load("--provider", "cpu", CIFARSERVE_THREADS="3")
    worker = config.from_json(json.dumps(dataclasses.asdict(dataclasses.replace(settings, port=0)), default=str))
    assert worker.sources == {"provider": "--provider", "threads": "CIFARSERVE_THREADS"}
    assert configured(tmp_path, 'provider = "cuda"\nthreads = 1', worker).compute.provider == "cpu"


@pytest.mark.parametrize("flags", [["--provider", "cpu"], ["--provider", "auto"]])
def test_what_was_said_for_another_provider_is_left_out_with_it(tmp_path: Path, flags: list[str]) -> None:
    text = 'provider = "openvino"\nprovider_options = { NUM_STREAMS = 2 }\nbuckets = [4, 8]\nthreads = 2\n'
    found = configured(tmp_path, text, load(*flags))
    assert (found.compute.provider_options, found.compute.buckets, found.compute.threads) == ({}, (), 2)
    assert found.overruled.keys() == {"provider", "provider_options", "buckets"}


def test_a_precision_is_left_out_only_where_the_other_provider_does_not_compute_in_it(tmp_path: Path) -> None:
    settings = load("--provider", "cpu")
    bf16 = configured(tmp_path, 'provider = "openvino"\nprecision = "bf16"\n', settings)
    assert (bf16.compute.precision, "precision" in bf16.overruled) == ("auto", True)
    assert configured(tmp_path, 'provider = "openvino"\nprecision = "fp32"\n', settings).compute.precision == "fp32"
    assert configured(tmp_path, 'precision = "bf16"\n', settings).compute.precision == "bf16"


def test_buckets_above_a_batch_size_that_overrules_are_left_out(tmp_path: Path) -> None:
    found = configured(tmp_path, "max_batch_size = 64\nbuckets = [8, 16, 64]\n", load("--max-batch-size", "16"))
    assert (found.compute.max_batch_size, found.compute.buckets) == (16, (8, 16))
    assert "left out above --max-batch-size 16" in found.overruled["buckets"]
    with pytest.raises(ConfigError, match=r"config\.toml: buckets"):  # nobody overruled it: it is wrong by itself
        configured(tmp_path, "max_batch_size = 16\nbuckets = [64]\n", load())


@pytest.mark.parametrize(
    ("name", "near"), [("CIFARSERVE_PROT", "CIFARSERVE_PORT"), ("CIFARSERVE_port", "CIFARSERVE_PORT"),
                       ("CIFARSERVE_MAX_BATCHSIZE", "CIFARSERVE_MAX_BATCH_SIZE"), ("CIFARSERVE_", "unset it")],
)  # fmt: skip
def test_an_unknown_variable_of_the_prefix_is_refused_with_the_nearest_name(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: there is no such setting; .*{near}"):
        load(**{name: "9001"})


def test_variables_of_others_are_nobodys_business() -> None:
    assert load(CIFAR="1", PORT="x", CIFARSERVER_PORT="7").port == 8001


INJECTED = {
    "CIFARSERVE_SERVICE_HOST": "10.0.0.1", "CIFARSERVE_SERVICE_PORT": "8001", "CIFARSERVE_SERVICE_PORT_GRPC": "8001",
    "CIFARSERVE_PORT": "tcp://10.0.0.1:8001", "CIFARSERVE_PORT_8001_TCP": "tcp://10.0.0.1:8001",
    "CIFARSERVE_PORT_8001_TCP_PROTO": "tcp", "CIFARSERVE_PORT_8001_TCP_PORT": "8001",
    "CIFARSERVE_PORT_8001_TCP_ADDR": "10.0.0.1",
    # Of a Service named cifarserve-metrics.
    "CIFARSERVE_METRICS_PORT": "tcp://[fd00::1]:8002", "CIFARSERVE_METRICS_SERVICE_HOST": "fd00::1",
    "CIFARSERVE_METRICS_PORT_8002_UDP": "udp://[fd00::1]:8002",
}  # fmt: skip


def test_what_kubernetes_injects_for_a_service_is_no_setting() -> None:
    settings = load(**INJECTED, CIFARSERVE_THREADS="3")
    assert (settings.port, settings.metrics_port, settings.threads) == (8001, 8002, 3)
    assert config.injected(INJECTED | {"CIFARSERVE_THREADS": "3"}) == sorted(INJECTED)


@pytest.mark.parametrize("command", [["serve"], ["health"], ["tune"], ["models", "verify"]])
def test_every_command_that_reads_settings_refuses_an_unknown_one(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    colour_model.publish(tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIFARSERVE_PROT", "9001")
    assert main(command) in (1, 2)
    assert "CIFARSERVE_PROT: there is no such setting; did you mean CIFARSERVE_PORT?" in capsys.readouterr().err


def test_each_setting_is_printed_with_value_and_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models" / "colours" / "1").mkdir(parents=True)
    (tmp_path / "models" / "others" / "1").mkdir(parents=True)
    own = tmp_path / "models" / "colours" / "config.toml"
    own.write_text('provider = "openvino"\nthreads = 2\ntraffic = { 1 = 1 }\n[tuned]\ngoal = "x"\n')
    (tmp_path / "models" / "others" / "config.toml").write_text("threds = 2\n")
    file = tmp_path / "own.toml"
    file.write_text("max_batch_size = 16\n")
    monkeypatch.setenv("CIFARSERVE_LOG_FORMAT", "json")
    flags = ["--config", str(file), "--model-repository", str(tmp_path / "models"), "--provider", "cpu", "--no-page"]
    assert main(["serve", "--print-settings", *flags]) == 0
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows.keys() >= config.FIELDS.keys()
    assert rows["provider"] == ["cpu", "--provider"]
    assert rows["page"] == ["false", "--page"]
    assert rows["log_format"] == ["json", "CIFARSERVE_LOG_FORMAT"]
    assert rows["max_batch_size"] == ["16", str(file)]
    assert rows["port"] == ["8001", "default"]
    assert rows["colours.threads"] == ["2", str(own)]
    assert rows["colours.provider"] == ["cpu", f'{own}: provider: "openvino" is overruled by --provider cpu']
    assert "colours.tuned" not in rows
    assert "threds: there is no such setting" in rows["others.config.toml"][1]
