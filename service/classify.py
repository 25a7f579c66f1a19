"""`cifarserve classify`: what a server says that picture files show, as a table or as JSON."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from service import connection_flags
from service.classify_files import Choice, Failure, classify
from service.classify_flags import SHOWN
from service.client import AsyncClient, ClientError, Prediction
from service.connection import Options
from service.terminal import Console, fail, plain

_BAR = 20  # characters, of a probability of 1
_WIDE = 10_000  # columns of what is no terminal: nothing is folded there
_USAGE_ERROR = 2


def run(options: argparse.Namespace) -> int:
    """Exit status: 0 every file was classified; 1 at least one was not; 2 asked for wrongly."""
    try:
        connection = dataclasses.replace(connection_flags.read(options), timeout=options.timeout)
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}", _USAGE_ERROR)
    choice = Choice(options.model, options.version, options.top_k)
    outcomes, unanswered = asyncio.run(_ask(options.target, connection, options.images, choice))
    if options.top_k is None:
        outcomes = [one if isinstance(one, Failure) else _first(one) for one in outcomes]
    if options.json:
        print(json.dumps(list(map(_record, options.images, outcomes)), indent=2))  # noqa: T201
    elif not all(isinstance(one, Failure) for one in outcomes):
        _show(options.images, outcomes)
    sys.stdout.flush()
    return _report(options.target, options.images, outcomes, unanswered)


async def _ask(
    target: str, connection: Options, paths: Sequence[Path], choice: Choice
) -> tuple[list[Prediction | Failure], ClientError | None]:
    async with AsyncClient(target, connection) as client:
        return await classify(client, paths, choice, connection.max_message_bytes)


def _first(prediction: Prediction) -> Prediction:
    return dataclasses.replace(prediction, classes=prediction.classes[:SHOWN])


def _record(path: Path, outcome: Prediction | Failure) -> dict[str, Any]:
    if isinstance(outcome, Failure):
        return {"image": str(path), "model": None, "version": None, "classes": [], "error": outcome.reason}
    classes = [vars(one) for one in outcome.classes]
    return {"image": str(path), "model": outcome.model, "version": outcome.version, "classes": classes, "error": None}


def _show(paths: Sequence[Path], outcomes: Sequence[Prediction | Failure]) -> None:
    answered = [one for one in outcomes if not isinstance(one, Failure)]
    console = Console()
    if not console.is_terminal:
        console.width = _WIDE
    full = "#" if console.options.ascii_only else "█"
    title = ", ".join(dict.fromkeys(f"{one.model} version {one.version}" for one in answered))
    table = Table("image", "label", "probability", title=title)
    table.columns[0].overflow = table.columns[1].overflow = "fold"
    for path, outcome in zip(paths, outcomes, strict=True):
        if isinstance(outcome, Failure):
            table.add_row(plain(str(path)), "(not classified)", "")
        else:
            for rank, one in enumerate(outcome.classes):
                bar = full * round(_BAR * one.probability)
                name = plain(str(path)) if rank == 0 else ""
                table.add_row(name, plain(one.label), f"{one.probability:6.1%} {bar}")
        table.add_section()
    console.print(table)


def _report(
    target: str, paths: Sequence[Path], outcomes: Sequence[Prediction | Failure], error: ClientError | None
) -> int:
    """Name the files that failed, each with its reason; an `error` that is not theirs is said once."""
    failed = [(path, one) for path, one in zip(paths, outcomes, strict=True) if isinstance(one, Failure)]
    if not failed:
        return 0
    shared = str(error) if error else None
    for path, one in failed:
        if one.reason != shared:
            fail(f"{plain(str(path))}: {one.reason}")
    if shared:
        lost = sum(one.reason == shared for _, one in failed)
        fail(f"{target}: {shared}" + (f" ({lost} of {len(paths)} files are not classified)" if len(paths) > 1 else ""))
    return 1
