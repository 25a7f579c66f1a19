"""`cifarserve models`: what a server serves, and what can be done with the versions in a repository."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from service import connection_flags
from service.terminal import Console, plain_lines
from service.terminal import fail as _fail

REFUSED = 3  # by a gate, as the training commands


def add_models(commands: Any) -> None:
    """Define the command and its actions. Each sets `func`, which takes the parsed flags and returns the exit code."""
    models = commands.add_parser(
        "models", help="list what a server serves; verify, compare, roll back or promote versions"
    )
    models.add_argument("--target", default="localhost:8001", help="address of the server (default: %(default)s)")
    connection_flags.add(models)
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
    verify = actions.add_parser(
        "verify",
        help="check the files of published versions, and run their golden inputs as a server with these settings would",
    )
    verify.add_argument("name", nargs="?", help="the model, or name:version (default: all)")
    verify.add_argument(
        "--public-key",
        default="",
        help="PEM file with the Ed25519 key that they must be signed with (default: as in the settings)",
    )
    verify.set_defaults(func=_verify)
    sign = actions.add_parser("sign", help="sign a published version, for servers that ask for it")
    sign.add_argument("name", help="name:version")
    sign.add_argument("--key", type=Path, required=True, help="PEM file with an Ed25519 private key")
    sign.set_defaults(func=_sign)
    for action in (rollback, promote):
        action.add_argument("name", help="the model")
    for action in (rollback, promote, compare, verify, sign):
        action.add_argument("--models", type=Path, default=Path("models"), help="the repository (default: %(default)s)")


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


def _models(options: argparse.Namespace) -> int:
    from service.client import Client, ClientError

    try:
        with Client(options.target, connection_flags.read(options)) as client:
            models = client.models()
    except ClientError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}")
    table = Table("model", "version", "accuracy", "tested on", "computes on")
    for model in models:
        table.add_row(
            model.name, str(model.version), f"{model.evaluation.accuracy:.2%}", model.dataset,
            f"{model.provider}, {model.precision}",
        )  # fmt: skip
    Console().print(table)
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
    print(plain_lines(side_by_side.outcome(found)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from service import config, serving
    from service.folders import model_names, model_versions
    from service.model_config import read_model_config

    name, _, version = (options.name or "").partition(":")
    found = [
        (one, number)
        for one in sorted(model_names(options.models))
        for number in model_versions(options.models / one)
        if name in ("", one) and version in ("", str(number))
    ]
    if not found:
        return _fail(f"{options.models}: no {f'version {options.name}' if options.name else 'version of any model'}")
    try:
        settings = config.load({})
    except config.ConfigError as error:
        return _fail(str(error))
    if options.public_key:
        settings = dataclasses.replace(settings, model_public_key=options.public_key)
    status = 0
    for one, number in found:
        try:
            compute = read_model_config(options.models / one, settings).compute
            compute = dataclasses.replace(compute, instances=1, target_latency=0.0)
            loaded = serving.load(options.models / one / str(number), one, number, compute)
        except (serving.LoadError, config.ConfigError) as error:
            status = _fail(str(error))
            continue
        engine, passed = loaded.engines[0], ", ".join(loaded.manifest.compute_precisions)
        print(f"{one} version {number}: files as published, golden answers in {engine.precision} on {engine.provider}"
              f" (may compute in {passed})")  # fmt: skip
    return status


def _sign(options: argparse.Namespace) -> int:
    from service.manifest import MANIFEST_FILE, SIGNATURE_FILE, ManifestError, read_manifest, verify_files
    from service.signing import KeyFileError, signature

    name, _, version = options.name.partition(":")
    folder = options.models / name / version
    try:
        content = (folder / MANIFEST_FILE).read_bytes()
        verify_files(folder, read_manifest(folder, content))
        # In one rename: a server may be looking.
        temporary = folder.with_name(f".{version}-{SIGNATURE_FILE}")
        temporary.write_bytes(signature(content, options.key))
        temporary.replace(folder / SIGNATURE_FILE)
    except (ManifestError, KeyFileError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}")
    print(f"{name} version {version}: signed")
    return 0
