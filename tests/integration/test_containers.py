"""The Dockerfile and the compose file, checked against the code and their own schemas: what a rename would break."""

from __future__ import annotations

import fnmatch
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from typing import Any

import yaml

from service import config, tracing
from service.cli import _parser
from tests.integration.server_process import ROOT

DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
FLAVOURS = {"cifarserve": ("", "-gpu"), "cifarserve-train": ("",)}
# Variables of the environment that are no settings of ours: OpenTelemetry's.
OTHERS = {tracing.ENDPOINT}


def instructions() -> list[tuple[str, str]]:
    """(instruction, the rest) of the Dockerfile, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#")))
    words = (line.split(maxsplit=1) for line in joined.splitlines() if line)
    return [(name, rest) for name, rest in words]


def of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def parses(arguments: list[str]) -> str:
    """The subcommand that the command line takes these arguments for; exits with 2 when it does not."""
    _parser().parse_args(arguments)
    return arguments[0]


def test_everything_that_is_copied_is_there_and_reaches_the_builder() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for rest in of("COPY"):
        words = [word for word in rest.split() if not word.startswith("--chown")]
        if words[0].startswith("--from="):
            continue
        for source in words[:-1]:
            assert (ROOT / source).exists(), source
            assert any(source == one or fnmatch.fnmatch(source, f"{one}/*") for one in kept), f"{source} is ignored"


def test_every_stage_builds_on_one_that_exists_and_the_last_one_serves() -> None:
    stages = ["${BASE}"]
    for rest in of("FROM"):
        base, _, name = rest.split()
        assert base in stages
        stages.append(name)
    assert stages[-1] == "serve"
    assert {re.findall(r"--from=(\S+)", rest)[0] for rest in of("COPY") if "--from" in rest} <= set(stages)


def test_requirements_are_hashed_and_named_as_the_makefile_makes_them() -> None:
    for rest in of("RUN"):
        for command in rest.split("&&"):
            installs = re.search(r"pip install", command)
            assert not installs or "--require-hashes" in command or "--no-deps" in command, command
    for name in ("bootstrap", "cpu", "gpu", "train"):
        lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        pins = [line for line in lines if line and not line.startswith((" ", "#"))]
        assert pins and all("==" in line and line.endswith("\\") for line in pins), name
        assert name in DOCKERFILE


def test_the_image_runs_as_a_numeric_user_with_known_settings_ports_and_a_health_check() -> None:
    assert of("USER") == ["65532:65532"]
    names = {name for rest in of("ENV") for name in re.findall(r"(CIFARSERVE_\w+)=", rest)}
    values = dict(re.findall(r"(CIFARSERVE_\w+)=(\S+)", " ".join(of("ENV"))))
    assert names and names == values.keys()
    settings = config.load({}, values)
    assert of("EXPOSE") == [f"{settings.port} {settings.metrics_port}"]
    assert settings.host == "0.0.0.0"
    (health,) = of("HEALTHCHECK")
    assert parses(yaml.safe_load(health.split("CMD")[1])[1:]) == "health"
    assert parses(yaml.safe_load(of("CMD")[-1])) == "serve"
    assert of("ENTRYPOINT") == ['["cifarserve"]']


def test_the_comments_at_the_top_name_arguments_targets_and_the_version_that_exist() -> None:
    arguments = {rest.split("=")[0] for rest in of("ARG")}
    stages = {rest.split()[-1] for rest in of("FROM")}
    commands = [shlex.split(line[1:]) for line in DOCKERFILE.splitlines() if line.startswith("#   docker build")]
    assert len(commands) == 3
    for command in commands:
        for flag, value in itertools.pairwise(command):
            assert flag != "--build-arg" or value.split("=")[0] in arguments
            assert flag != "--target" or value in stages
            assert flag != "-t" or value.split(":")[1].startswith(VERSION)


def test_compose_is_what_its_specification_allows() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec",
         ROOT / "deploy" / "compose" / "compose.yaml"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


def test_compose_names_settings_images_commands_and_files_that_exist() -> None:
    folder = ROOT / "deploy" / "compose"
    services: dict[str, Any] = COMPOSE["services"]
    for name, service in services.items():
        image, tag = service["image"].split(":")
        if "build" in service:
            assert (folder / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            assert tag in {VERSION + suffix for suffix in FLAVOURS[image]}
            own = {key: value for key, value in service.get("environment", {}).items() if key not in OTHERS}
            assert {key.removeprefix("CIFARSERVE_").lower() for key in own} <= config.FIELDS.keys(), name
            settings = config.load({}, own)
            grace = float(service.get("stop_grace_period", "10s").removesuffix("s"))
            assert name == "retrain" or grace >= settings.lame_duck_seconds + settings.drain_seconds + 5
            assert service["read_only"] and service["cap_drop"] == ["ALL"]
        if "command" in service and image.startswith("cifarserve"):
            parses(service["command"])
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (folder / source).exists(), f"{name}: {source}"
            elif not source.startswith("$"):
                assert source in COMPOSE["volumes"]
    ports = [port.split(":") for service in services.values() for port in service.get("ports", ())]
    assert len({host for *_, host, _ in ports}) == len(ports), "two services want one port of the host"
    assert {profile for service in services.values() for profile in service.get("profiles", ())} >= {"gpu", "retrain"}


def test_what_compose_mounts_into_prometheus_and_grafana_finds_each_other() -> None:
    folder = ROOT / "deploy" / "compose"
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    (targets,) = job["dns_sd_configs"]
    assert targets["port"] == config.Settings().metrics_port
    assert set(targets["names"]) <= COMPOSE["services"].keys()
    assert all((ROOT / "deploy" / "prometheus" / name).is_file() for name in prometheus["rule_files"])
    (source,) = yaml.safe_load((folder / "grafana/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((folder / "grafana/dashboards/cifarserve.yaml").read_text())["providers"]
    mounts = {volume.split(":")[1]: volume.split(":")[0] for volume in COMPOSE["services"]["grafana"]["volumes"]}
    dashboards = folder / mounts[provider["options"]["path"]]
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (dashboards / home.rsplit("/", 1)[1]).is_file()
