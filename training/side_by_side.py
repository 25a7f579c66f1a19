"""What `cifarserve models compare` shows of a comparison: a table for people, a record for programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

from service.manifest import MODEL_FILE
from training.comparison import SIGNIFICANT, Comparison, Side

UNKNOWN = "-"


def record(comparison: Comparison) -> dict[str, Any]:
    """JSON types only. Shares are fractions, sizes bytes, times seconds; what a manifest does not say is None."""
    return {
        "images": comparison.images,
        "n": len(comparison.first.right),
        "first": _side(comparison.first),
        "second": _side(comparison.second),
        "mcnemar": {
            "only_first_right": comparison.test.only_first,
            "only_second_right": comparison.test.only_second,
            "p_value": comparison.test.p_value,
            "significant": comparison.test.p_value < SIGNIFICANT,
        },
        "verdict": comparison.verdict,
    }


def table(comparison: Comparison) -> Table:
    """One row for each figure, with the difference, second less first, where there is one."""
    first, second = _side(comparison.first), _side(comparison.second)
    shown = Table("", first["title"], second["title"], "difference")
    for side in (1, 2, 3):
        shown.columns[side].justify = "right"
    shown.add_row("accuracy", *_percents(first["accuracy"], second["accuracy"]))
    shown.add_row("95% interval", *(" to ".join(map(_percent, side["accuracy_interval"])) for side in (first, second)))
    for key, title in (("macro_f1", "F1 (macro)"), ("nll", "neg. log likelihood"), ("ece", "calibration error")):
        shown.add_row(title, *_numbers(first[key], second[key], ".4f"))
    shown.add_section()
    for label, recall in first["recall"].items():
        shown.add_row(f"recall {label}", *_percents(recall, second["recall"][label]))
    shown.add_section()
    shown.add_row("model file, MB", *_numbers(first["model_bytes"] / 1e6, second["model_bytes"] / 1e6, ".2f"))
    facts: tuple[tuple[str, Callable[[dict[str, Any]], object]], ...] = (
        ("precisions", lambda side: ", ".join(side["precisions"])),
        ("network", lambda side: side["architecture"]),
        ("trained on", lambda side: side["trained_on"]),
        ("training images", lambda side: side["training_images"]),
        ("training, s", lambda side: side["training_seconds"] and f"{side['training_seconds']:,.0f}"),
        ("published", lambda side: side["created"][:10]),
    )
    for title, fact in facts:
        shown.add_row(title, *(str(fact(side) or UNKNOWN) for side in (first, second)))
    return shown


def outcome(comparison: Comparison) -> str:
    """On what they were compared, the counts of McNemar's test, its p value, and the verdict."""
    first, second, test = comparison.first.version.title, comparison.second.version.title, comparison.test
    return (
        f"on {comparison.images}\n"
        f"only {first} right: {test.only_first:,} images; only {second} right: {test.only_second:,}; "
        f"McNemar's exact test: p = {test.p_value:.3g}\n"
        f"{comparison.verdict}"
    )


def _side(side: Side) -> dict[str, Any]:
    manifest, evaluation = side.version.manifest, side.evaluation
    history = manifest.recipe.get("history")
    return {
        "title": side.version.title,
        "name": manifest.name,
        "version": manifest.version,
        "created": manifest.created,
        "accuracy": evaluation["accuracy"],
        "accuracy_interval": list(side.interval),
        "macro_f1": evaluation.get("macro", {}).get("f1"),
        "nll": evaluation.get("nll"),
        "ece": evaluation.get("ece"),
        "recall": {scores["label"]: scores["recall"] for scores in evaluation.get("per_class", ())},
        "model_bytes": manifest.files[MODEL_FILE].size,
        "precisions": list(manifest.compute_precisions),
        "architecture": manifest.recipe.get("architecture"),
        "trained_on": manifest.dataset.get("name"),
        "training_images": manifest.dataset.get("splits", {}).get("train"),
        "training_seconds": sum(epoch["seconds"] for epoch in history) if history else None,
    }


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _percents(first: float, second: float) -> tuple[str, str, str]:
    return _percent(first), _percent(second), f"{100 * (second - first):+.2f}"


def _numbers(first: float | None, second: float | None, form: str) -> tuple[str, str, str]:
    shown = [UNKNOWN if value is None else format(value, form) for value in (first, second)]
    difference = "" if first is None or second is None else format(second - first, f"+{form}")
    return shown[0], shown[1], difference
