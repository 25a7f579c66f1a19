"""The training commands of `cifarserve`: train, evaluate, export, publish, retrain, reproduce.

Flags are parsed here, the work is done by `training.commands` and `training.reproduce`, which are imported when a
command runs: `--help` and the server must not wait for torch, nor need it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.terminal import plain_lines
from training.errors import TrainingError
from training.lineage import LINEAGE
from training.picture_files import DEFAULT_MAX_BROKEN
from training.recipes import RECIPES, Recipe

EXIT_CODES = """\
exit codes:
  0    done
  2    something given is wrong: a path, a flag, a checkpoint
  3    refused by a gate: the new version is not good enough to publish
  4    the exported model does not give PyTorch's answers
  130  stopped by Ctrl-C with a checkpoint (143: by SIGTERM); --resume goes on
"""
NETWORKS = """\
networks, each with a recipe of its name:
  tutorial, record   for CIFAR-10 and pictures like it
  sprint             the record network with GELU, as quick as it learns
  long, averaged     the record network in ten times as many passes, and from there (--start-from) the mean of the
                     weights over more: what is shipped
  scratch, simple    smaller ones, for comparison with published figures; simple takes MNIST too
  mnist              for grey digits of 28x28
  numpy              one convolution, computed forward and backward by NumPy (training/from_scratch)
What a convolution does to a picture, docs/images/filters.png shows with seven named filters: identity, three edge
kernels, sharpen, box blur, Gaussian blur. docs/training.md has it all.

"""

Subparsers = Any  # argparse's own class for this is private


def add_subcommands(subparsers: Subparsers) -> None:
    """Define the six commands. Each sets `func`, which takes the parsed arguments and returns the exit code."""
    train = _add(subparsers, "train", "train a network and leave a checkpoint in its run folder", NETWORKS + EXIT_CODES)
    _add_data_flags(train)
    _add_train_flags(train)
    evaluate = _add(subparsers, "evaluate", "round the weights, fit the temperature, measure on the test split")
    _add_run_flag(evaluate, required=True)
    _add_data_flags(evaluate)
    _add_evaluate_flags(evaluate)
    export = _add(subparsers, "export", "write model.onnx and compare it with PyTorch on the test split")
    _add_run_flag(export, required=True)
    _add_data_flags(export)
    _add_export_flags(export)
    publish = _add(subparsers, "publish", "put an exported model into the model repository as its next version")
    _add_run_flag(publish, required=True)
    _add_publish_flags(publish)
    retrain = _add(
        subparsers,
        "retrain",
        "train, evaluate, export, and publish if every gate is passed; --resume skips what is done",
    )
    _add_data_flags(retrain)
    _add_train_flags(retrain)
    _add_evaluate_flags(retrain)
    _add_export_flags(retrain)
    _add_publish_flags(retrain)
    _add_gate_flags(retrain)
    reproduce = _add(subparsers, "reproduce", "train all networks of the lineage and compare with published figures")
    _add_reproduce_flags(reproduce)


def _add(subparsers: Subparsers, name: str, summary: str, epilog: str = EXIT_CODES) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=functools.partial(_run, name))
    return parser


def _add_run_flag(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--run",
        type=Path,
        required=required,
        metavar="FOLDER",
        help="folder of the run" + ("" if required else "; runs/<recipe>-<time> if not given"),
    )


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="cifar10 (the original, downloaded; the default), or a folder or tar archive of pictures: "
        "<class>/<picture>, or train/<class>/<picture> and test/<class>/<picture>",
    )
    _add_download_flag(parser)


def _add_download_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--download-folder", type=Path, default=Path("data"), metavar="FOLDER", help="where cifar10 is kept (data)"
    )


def _add_train_flags(parser: argparse.ArgumentParser) -> None:
    _add_run_flag(parser, required=False)
    parser.add_argument(
        "--data-name", metavar="NAME", help="what the manifest calls the data; the name of the folder if not given"
    )
    _add_broken_flag(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --run")
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="FOLDER",
        help="begin with the weights that the run in this folder kept, instead of with random ones",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to train (auto)")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), help="arithmetic: auto takes bf16 where the hardware has it"
    )
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="hyperparameters to start from (tutorial)")
    recipe = parser.add_argument_group("hyperparameters", "each replaces the recipe's own value")
    for field in dataclasses.fields(Recipe):
        if "help" in field.metadata:
            recipe.add_argument("--" + field.name.replace("_", "-"), help=field.metadata["help"], **_flag(field.type))


def _add_broken_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-broken",
        type=_count_or_share,
        default=DEFAULT_MAX_BROKEN,
        metavar="LIMIT",
        help="broken pictures to leave out before the data is refused: a count (20) or a share (0.01, the default). "
        "They are listed, here and in the manifest",
    )


def _count_or_share(text: str) -> int | float:
    value = float(text) if "." in text else int(text)
    if value < 0 or (isinstance(value, float) and not value <= 1):
        raise argparse.ArgumentTypeError(f"must be a count, as 20, or a share from 0.0 to 1.0, is {text}")
    return value


_count_or_share.__name__ = "count or share"


def _flag(annotation: object) -> dict[str, Any]:
    """How argparse reads a field of Recipe; annotations are text there."""
    if annotation == "bool":
        return {"action": argparse.BooleanOptionalAction}
    kinds: dict[object, Callable[[str], object]] = {"int": int, "float": float, "str": str}
    return {"type": kinds.get(annotation, _image_shape), "metavar": "VALUE"}


def _image_shape(text: str) -> tuple[int, int, int]:
    height, width, channels = map(int, text.split("x"))
    return height, width, channels


_image_shape.__name__ = "image shape"  # argparse names it in its error message


def _add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        choices=("fp32", "int8"),
        default="int8",
        help="how the model file stores the weights (int8, the default: a quarter of the size). They are rounded "
        "before the model is evaluated, and it computes in fp32 all the same",
    )
    parser.add_argument(
        "--six-views", action="store_true",
        help="also measure accuracy by the mean answer to six views of each image, as some published figures are; it "
        "is reported apart and changes nothing",
    )  # fmt: skip


def _add_export_flags(parser: argparse.ArgumentParser) -> None:
    lower = ("int8", "fp16", "bf16")
    parser.add_argument(
        "--precisions",
        nargs="*",
        choices=lower,
        default=lower,
        help="what to offer beside fp32 (all three). Each is kept only if it gives fp32's answers on the test split: "
        "same top class for 99%%, accuracy down by at most 0.3 points, and by 1.5 in any class",
    )


def _add_publish_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="cifar10", help="name of the model in the repository (cifar10)")
    parser.add_argument(
        "--sign-key", type=Path, metavar="FILE", help="PEM file with an Ed25519 private key, to sign the version with"
    )
    parser.add_argument(
        "--models", type=Path, default=Path("models"), metavar="FOLDER", help="the model repository (models)"
    )


def _add_gate_flags(parser: argparse.ArgumentParser) -> None:
    for flag, default, text in (
        ("--min-accuracy", 0.0, "refuse below this test accuracy"),
        ("--max-regression", 0.01, "how far test accuracy may lie below the served version's, the highest there is"),
        ("--max-class-regression", 0.05, "how far the recall of any class may lie below the served version's"),
        ("--max-calibration-error", 0.1, "largest expected calibration error"),
    ):
        parser.add_argument(
            flag, type=_fraction, default=default, metavar="FRACTION", help=f"{text} (default: %(default)s)"
        )
    parser.add_argument(
        "--max-slowdown",
        type=_ratio,
        default=2.0,
        metavar="RATIO",
        help="how many times the served version's time an image may take on this machine (default: %(default)s)",
    )
    parser.add_argument(
        "--result",
        type=Path,
        metavar="FILE",
        help="where to write how it ended, as JSON, beside result.json in --run",
    )


def _add_reproduce_flags(parser: argparse.ArgumentParser) -> None:
    networks = sorted({entry.recipe for entry in LINEAGE})
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="for the networks of CIFAR-10: cifar10 (the original, downloaded), or a folder or tar archive of pictures",
    )
    parser.add_argument("--data-name", metavar="NAME", help="what the table calls these; else the folder's name")
    _add_download_flag(parser)
    parser.add_argument("--mnist", metavar="SOURCE", help="for those of MNIST: a folder or tar archive of pictures")
    parser.add_argument("--mnist-name", default="MNIST", metavar="NAME", help="what the table calls these (MNIST)")
    parser.add_argument("--only", nargs="+", choices=networks, default=networks, help="these networks (all)")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/lineage"),
        metavar="FOLDER",
        help="where each network gets its run folder, and the table is written (runs/lineage). Networks that are "
        "done there are not trained again",
    )
    _add_broken_flag(parser)
    _add_evaluate_flags(parser)


def _ratio(text: str) -> float:
    value = float(text)
    if not value > 0:  # not >, so that NaN fails too
        raise argparse.ArgumentTypeError(f"must be above 0, is {text}")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, is {text}")
    return value


def _run(command: str, arguments: argparse.Namespace) -> int:
    try:
        from training.commands import COMMANDS
        from training.reproduce import reproduce
    except ModuleNotFoundError as error:
        print(f"cifarserve {command}: {error}; training needs: pip install 'cifarserve[cpu,train]'", file=sys.stderr)
        return TrainingError.exit_code
    try:
        {**COMMANDS, "reproduce": reproduce}[command](arguments)
    except TrainingError as error:
        print(f"cifarserve {command}: {plain_lines(str(error))}", file=sys.stderr)
        return error.exit_code
    return 0
