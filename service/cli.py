"""The command line: `cifarserve serve | classify | models | health | train | evaluate | export | publish | retrain`."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from service.config import Settings
    from service.workers import Started

USAGE_ERROR = 2  # as argparse
REFUSED = 3  # by a gate, as the training commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 it failed, 2 it was asked for wrongly, 3 a gate refused."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.func(options)
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    from service import config

    parser = argparse.ArgumentParser(prog="cifarserve", description="An image-classification service, whole.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve the models of a repository over gRPC")
    config.add_flags(serve)
    serve.set_defaults(func=_serve)

    classify = commands.add_parser("classify", help="ask a server what pictures show")
    classify.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="JPEG, PNG, WebP, BMP or GIF file")
    classify.add_argument("--target", default="localhost:8001", help="address of the server (default: %(default)s)")
    classify.add_argument("--model", default="", help="name of the model (default: the only one)")
    classify.add_argument("--version", type=int, default=0, help="version of the model (default: the highest)")
    classify.add_argument("--top-k", type=int, default=3, help="classes to show for each (default: %(default)s)")
    classify.add_argument("--timeout", type=float, default=10.0, help="seconds to wait (default: %(default)s)")
    classify.add_argument("--json", action="store_true", help="print JSON instead of a table")
    classify.set_defaults(func=_classify)

    models = commands.add_parser("models", help="list what a server serves; compare, roll back or promote versions")
    models.add_argument("--target", default="localhost:8001", help="address of the server (default: %(default)s)")
    models.set_defaults(func=_models)
    actions = models.add_subparsers(title="actions", metavar="ACTION")
    rollback = actions.add_parser("rollback", help="serve the version before, by a line in the model's config.toml")
    rollback.add_argument("--to", type=int, metavar="VERSION", help="version to serve (default: the one before)")
    rollback.set_defaults(func=_rollback)
    promote = actions.add_parser("promote", help="serve the shadow version, if it agrees with the one that is served")
    _add_gates(promote)
    promote.set_defaults(func=_promote)
    compare = actions.add_parser("compare", help="two published versions side by side, with a test of the difference")
    _add_comparison(compare)
    compare.set_defaults(func=_compare)
    for action in (rollback, promote):
        action.add_argument("name", help="the model")
    for action in (rollback, promote, compare):
        action.add_argument("--models", type=Path, default=Path("models"), help="the repository (default: %(default)s)")

    health = commands.add_parser("health", help="ask a server's health service; exit status 0: serving, 1: not")
    health.add_argument("--target", help="address of the server (default: localhost, and the port in the settings)")
    health.add_argument("--service", default="", help="name to ask for: a model, or a service (default: the whole)")
    health.add_argument("--timeout", type=float, default=3.0, help="seconds to wait (default: %(default)s)")
    health.set_defaults(func=_health)

    from training.cli import add_subcommands

    add_subcommands(commands)
    return parser


def _add_gates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics", default="http://localhost:8002/metrics", help="the server's metrics (default: %(default)s)"
    )
    parser.add_argument("--min-images", type=int, default=1000, help="images compared (default: %(default)s)")
    parser.add_argument(
        "--min-agreement", type=float, default=0.98, help="share with the same best class (default: %(default)s)"
    )
    parser.add_argument(
        "--max-distance", type=float, default=0.05,
        help="mean total variation between the probabilities (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-compute-ratio", type=float, default=0.0,
        help="engine seconds an image, shadow to primary (default: not asked: the shadow has one background thread)",
    )  # fmt: skip


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    for side in ("first", "second"):
        parser.add_argument(side, metavar="VERSION", help="a version of --name, or name:version")
    parser.add_argument(
        "--name", default="cifar10", help="model of the versions given by number (default: %(default)s)"
    )
    parser.add_argument(
        "--data", metavar="SOURCE",
        help="run both on the test split of cifar10, or of a folder or tar archive of pictures (default: their "
        "published answers, if both were evaluated on the same images)",
    )  # fmt: skip
    parser.add_argument(
        "--download-folder", type=Path, default=Path("data"), help="where cifar10 is kept (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _serve(options: argparse.Namespace) -> int:
    from service import config, logs, workers
    from service.errors import StartError

    try:
        settings = config.load(vars(options))
    except config.ConfigError as error:
        return _fail(str(error), USAGE_ERROR)
    logs.configure(settings.log_level, settings.log_format)
    settings = dataclasses.replace(settings, workers=workers.count(settings))

    def announce(started: workers.Started) -> None:
        for model in started.models:
            print(f"serving {model}")
        print(f"gRPC     {settings.host}:{started.port}")
        print(f"metrics  http://{settings.host}:{started.metrics_port}/metrics")
        print(f"try      cifarserve classify --target {settings.host}:{started.port} PICTURE", flush=True)

    try:
        if settings.workers > 1:
            asyncio.run(workers.supervise(settings, announce))
        else:
            _serve_here(settings, announce)
    except StartError as error:
        return _fail(str(error))
    except asyncio.CancelledError:
        return _fail("stopped by a second signal; calls that were not done are lost")
    return 0


def _serve_here(settings: Settings, announce: Callable[[Started], None]) -> None:
    """In this process; onnxruntime is imported here, so that a supervisor of workers is without it."""
    from service.errors import StartError
    from service.server import Server, serve
    from service.serving import LoadError
    from service.tracing import TracingError
    from service.workers import Started

    def started(server: Server) -> None:
        models = [model.description for model in server.repository.models()]
        announce(Started(server.port, server.metrics_port, models))

    try:
        serve(settings, started)
    except (LoadError, TracingError) as error:
        raise StartError(str(error)) from error


def _classify(options: argparse.Namespace) -> int:
    from service.client import Client, ClientError

    choice = {"model": options.model, "version": options.version, "top_k": options.top_k, "timeout": options.timeout}
    try:
        with Client(options.target) as client:
            predictions = client.classify(options.images, **choice)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}", USAGE_ERROR)
    except ClientError as error:
        return _fail(_with_file_names(error, options.images))
    if options.json:
        records = [
            {
                "image": str(path),
                "model": prediction.model,
                "version": prediction.version,
                "classes": [vars(one) for one in prediction.classes],
            }
            for path, prediction in zip(options.images, predictions, strict=True)
        ]
        print(json.dumps(records, indent=2))
        return 0
    table = Table("image", "label", "probability", title=f"{predictions[0].model} version {predictions[0].version}")
    for path, prediction in zip(options.images, predictions, strict=True):
        for rank, one in enumerate(prediction.classes):
            bar = "█" * round(20 * one.probability)
            table.add_row(path.name if rank == 0 else "", one.label, f"{one.probability:6.1%} {bar}")
        table.add_section()
    Console().print(table)
    return 0


def _with_file_names(error: Exception, paths: Sequence[Path]) -> str:
    """The message with images[2] replaced by the file that it was."""
    message = str(error)
    for index, path in enumerate(paths):
        message = message.replace(f"images[{index}].encoded", str(path))
    return message


def _models(options: argparse.Namespace) -> int:
    from service.client import Client, ClientError

    try:
        with Client(options.target) as client:
            models = client.models()
    except ClientError as error:
        return _fail(str(error))
    table = Table("model", "version", "accuracy", "tested on", "computes on")
    for model in models:
        table.add_row(
            model.name, str(model.version), f"{model.evaluation.accuracy:.2%}", model.dataset,
            f"{model.provider}, {model.precision}",
        )  # fmt: skip
    Console().print(table)
    return 0


def _health(options: argparse.Namespace) -> int:
    from service import config, health

    try:
        target = options.target or f"localhost:{config.load({}).port}"
    except config.ConfigError as error:
        return _fail(str(error), USAGE_ERROR)
    state = health.check(target, options.service, options.timeout)
    if state != "SERVING":
        return _fail(f"{target}: {state}")
    print(state)
    return 0


def _rollback(options: argparse.Namespace) -> int:
    from service import promotion
    from service.config import ConfigError

    try:
        version = promotion.rollback(options.models, options.name, options.to)
    except (promotion.PromotionError, ConfigError, OSError) as error:
        return _fail(str(error))
    print(f"{options.name}: version {version} is pinned; a polling server takes it up, another on SIGHUP")
    return 0


def _promote(options: argparse.Namespace) -> int:
    from service import promotion
    from service.config import ConfigError

    gates = promotion.Gates(options.min_images, options.min_agreement, options.max_distance, options.max_compute_ratio)
    try:
        version, evidence = promotion.promote(options.models, options.name, options.metrics, gates)
    except promotion.PromotionRefused as error:
        return _fail(str(error), REFUSED)
    except (promotion.PromotionError, ConfigError, OSError) as error:
        return _fail(str(error))
    print(f"{options.name}: version {version} is promoted: {evidence}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from training import comparison, side_by_side
    from training.errors import TrainingError

    try:
        first, second = (
            comparison.find(options.models, options.name, text) for text in (options.first, options.second)
        )
        found = comparison.compare(first, second, options.data, options.download_folder)
    except TrainingError as error:
        return _fail(str(error), error.exit_code)
    if options.json:
        print(json.dumps(side_by_side.record(found), indent=2))
        return 0
    Console().print(side_by_side.table(found))
    print(side_by_side.outcome(found))
    return 0


def _fail(message: str, status: int = 1) -> int:
    print(f"cifarserve: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
