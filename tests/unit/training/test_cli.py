"""The training commands' flags: help without torch, one line for whatever is wrong."""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli import main
from tests.integration.server_process import ENVIRONMENT
from training import cli
from training.recipes import RECIPES, Recipe

COMMANDS = ("train", "evaluate", "export", "publish", "retrain", "reproduce")


def without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`cifarserve` in a process where torch cannot be imported."""
    script = "import sys; sys.modules['torch'] = None; from service.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_torch(command: str) -> None:
    result = without_torch(command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"usage: cifarserve {command}" in result.stdout
    assert "stopped by Ctrl-C with a checkpoint" in result.stdout  # the exit codes


def test_the_help_of_train_names_the_networks_and_shows_where_the_filters_are_drawn() -> None:
    shown = without_torch("train", "--help").stdout
    assert all(name in shown.split("networks, each with a recipe of its name:")[1] for name in RECIPES)
    assert "docs/images/filters.png shows with seven named filters" in shown
    assert (Path(__file__).parents[3] / "docs/images/filters.png").is_file()


def test_the_general_help_lists_the_training_commands_without_torch() -> None:
    result = without_torch("--help")
    assert result.returncode == 0
    assert all(re.search(rf"^    {command}\s", result.stdout, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_without_torch_a_command_says_what_to_install(command: str) -> None:
    needed = () if command in ("train", "retrain", "reproduce") else ("--run", "run")
    result = without_torch(command, *needed)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"cifarserve {command}: ")
    assert "torch" in result.stderr
    assert result.stderr.endswith("training needs: pip install 'cifarserve[cpu,train]'\n")
    assert result.stderr.count("\n") == 1


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cifarserve")
    cli.add_subcommands(parser.add_subparsers())
    return parser


@pytest.mark.parametrize("command", ["train", "retrain"])
def test_every_hyperparameter_has_a_flag_and_is_the_recipes_own_without_it(
    parser: argparse.ArgumentParser, command: str
) -> None:
    flags = "--architecture a --image-shape 16x12x1 --epochs 2 --batch-size 3 --learning-rate 0.5 --crop-padding 1"
    flags += " --no-flip --validation-fraction 0.25 --seed 9"
    found = vars(parser.parse_args([command, *flags.split()]))
    expected = {
        "architecture": "a",
        "image_shape": (16, 12, 1),
        "epochs": 2,
        "batch_size": 3,
        "learning_rate": 0.5,
        "crop_padding": 1,
        "flip": False,
        "validation_fraction": 0.25,
        "seed": 9,
    }
    assert {name: found[name] for name in expected} == expected
    nothing_given = vars(parser.parse_args([command]))
    assert all(nothing_given[field.name] is None for field in dataclasses.fields(Recipe) if field.name != "name")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --image-shape 32x32", "argument --image-shape: invalid image shape value: '32x32'"),
        ("train --image-shape large", "argument --image-shape: invalid image shape value: 'large'"),
        ("train --epochs many", "argument --epochs: invalid int value: 'many'"),
        ("train --learning-rate fast", "argument --learning-rate: invalid float value: 'fast'"),
        ("train --device tpu", "argument --device: invalid choice: 'tpu'"),
        ("train --recipe vgg", "argument --recipe: invalid choice: 'vgg'"),
        ("train --flip=yes", "argument --flip/--no-flip: ignored explicit argument 'yes'"),
        ("evaluate", "the following arguments are required: --run"),
        ("export", "the following arguments are required: --run"),
        ("publish", "the following arguments are required: --run"),
        ("evaluate --run r --weights int4", "argument --weights: invalid choice: 'int4'"),
        ("retrain --min-accuracy 90", "argument --min-accuracy: must be between 0 and 1, is 90"),
        ("retrain --max-regression -0.1", "argument --max-regression: must be between 0 and 1, is -0.1"),
        ("retrain --max-regression nan", "argument --max-regression: must be between 0 and 1, is nan"),
    ],
)
def test_a_wrong_flag_is_named(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data nowhere", "nowhere: no such folder or archive"),
        ("--data empty", "empty: no pictures in it"),
        ("--resume", "--resume needs --run, the folder with the checkpoint"),
        ("--resume --run nowhere", "nowhere: no checkpoint there; `cifarserve train --run nowhere` makes one"),
        ("--data empty --epochs 0", "recipe: epochs must be at least 1, is 0"),
        ("--data empty --image-shape 4x4x3", "recipe: image_shape must be at least 8x8"),
        ("--data empty --learning-rate nan", "recipe: learning_rate must be above 0, is nan"),
        ("--data empty --learning-rate 1e400", "recipe: learning_rate must be a finite number, is inf"),
        ("--data empty --warm-up=-inf", "recipe: warm_up must be a finite number, is -inf"),
    ],
)
def test_what_is_given_wrongly_is_one_line_and_exit_code_2(
    tmp_path: Path,
    flags: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["train", "--device", "cpu", *flags.split()]) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"cifarserve train: {message}")
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]  # nothing is made before all is known to be right


def test_the_process_ends_with_that_code_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "train", "--data", "nowhere"]
    result = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "cifarserve train: nowhere: no such folder or archive\n"
