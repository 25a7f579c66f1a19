"""The command line: `cifarserve serve | classify | models | health | loadtest | tune`, and the training commands."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from service import process_start

if TYPE_CHECKING:
    from service.config import Settings

log = logging.getLogger(__name__)

USAGE_ERROR = 2  # as argparse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 it failed, 2 it was asked for wrongly, 3 a gate refused.

    Without `arguments`, it is the command of this process, whose streams and signals are made ready.
    """
    if arguments is not None:
        return _run(arguments)
    arguments = sys.argv[1:]
    process_start.begin(serving=arguments[:1] == ["serve"])
    try:
        return _run(arguments)
    finally:
        sys.stdout.flush()  # here, where what cannot be written is the exit status still


def _run(arguments: Sequence[str]) -> int:
    from service import terminal

    terminal.replace_unencodable()
    try:
        options = _parser().parse_args(arguments)
        status: int = options.func(options)
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    from service import config, connection_flags
    from service.classify_flags import add_classify
    from service.loadtest.flags import add_loadtest
    from service.models_cli import add_models
    from service.tune.flags import add_tune

    parser = argparse.ArgumentParser(prog="cifarserve", description="An image-classification service, whole.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve the models of a repository over gRPC")
    config.add_flags(serve)
    serve.add_argument(
        "--print-settings", action="store_true", help="print each setting with its value and source, and serve nothing"
    )
    serve.set_defaults(func=_serve)

    add_classify(commands)
    add_models(commands)

    health = commands.add_parser("health", help="ask a server's health service; exit status 0: serving, 1: not")
    health.add_argument("--target", help="address of the server (default: localhost, and the port in the settings)")
    health.add_argument("--service", default="", help="name to ask for: a model, or a service (default: the whole)")
    health.add_argument("--timeout", type=float, default=3.0, help="seconds to wait (default: %(default)s)")
    connection_flags.add(health, token=False)
    health.set_defaults(func=_health)

    add_loadtest(commands)
    add_tune(commands)

    from training.cli import add_subcommands

    add_subcommands(commands)
    return parser


def _serve(options: argparse.Namespace) -> int:
    from service import config, logs, security

    try:
        settings = config.load(vars(options))
        if options.print_settings:
            return _print_settings(settings)
        logs.configure(settings.log_level, settings.log_format)
        if ignored := config.injected(os.environ):
            log.info("not settings, but of Kubernetes for a Service, and ignored: %s", ", ".join(ignored))
        security.require_safe(settings)
        security.certificates(settings)
        security.guard(settings, lambda *_: None)
    except config.ConfigError as error:
        return _fail(str(error), USAGE_ERROR)
    output = process_start.output_alone()
    import asyncio

    from service import serve, workers
    from service.errors import StartError

    settings = dataclasses.replace(settings, workers=workers.count(settings))
    try:
        serve.run(settings, lambda started: print(serve.announcement(settings, started), file=output, flush=True))
    except StartError as error:
        return workers.leave(_fail(str(error)))
    except asyncio.CancelledError:
        return workers.leave(_fail("stopped by a second signal; calls that were not done are lost"))
    return workers.leave(0)


def _print_settings(settings: Settings) -> int:
    from service import shown_settings

    for line in shown_settings.lines(settings):
        print(line)
    return 0


def _health(options: argparse.Namespace) -> int:
    from service import config, connection_flags, health

    try:
        target = options.target or f"localhost:{config.load({}).port}"
    except config.ConfigError as error:
        return _fail(str(error), USAGE_ERROR)
    try:
        credentials = connection_flags.read(options).credentials()
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}", USAGE_ERROR)
    state = health.check(target, options.service, options.timeout, credentials)
    if state != "SERVING":
        return _fail(f"{target}: {state}")
    print(state)
    return 0


def _fail(message: str, status: int = 1) -> int:
    from service.terminal import fail

    return fail(message, status)


if __name__ == "__main__":
    sys.exit(main())
