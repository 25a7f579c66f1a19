"""The tables and pictures of docs/benchmarks.md, from benchmarks/results.json."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.loadtest import charts, report

RESULTS = Path(__file__).resolve().parent / "results.json"
_STYLE = """<style>
svg { --ink: #1b1f24; --soft: #5b6470; --line: #d9dde3; --first: #1f5fd6; --second: #b4540a; --bad: #b42318;
  --paper: #fff; font: 13px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg { --ink: #e8eaed; --soft: #9aa4b2; --line: #343b45; --first: #7aa7ff;
  --second: #f2a65a; --bad: #ff8a80; --paper: #14171b; } }
text { fill: var(--soft); } text.small { font-size: 11px; } .grid { stroke: var(--line); }
.limit { stroke: var(--bad); stroke-dasharray: 2 4; } .line { fill: none; stroke-width: 2; }
</style><rect width='100%' height='100%' fill='var(--paper)'/>"""


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


def machine(result: dict[str, Any]) -> str:
    one = result["machine"]
    busy = (
        f" In the minute before, it had a load of {one['load_before']} on {one['cores']} cores from other work; if "
        "that went on, the figures are too low."
        if one["load_before"] > one["cores"] else ""
    )  # fmt: skip
    return (
        f"{one['processor']}, {one['cores']} cores, {one['threads']} threads for every engine, onnxruntime "
        f"{one['onnxruntime']}, model {one['model']}; medians of {one['rounds']} rounds of {one['seconds_each']:g} s "
        f"each, {one['when']}, {one['seconds'] / 60:.0f} minutes in all.{busy}\n"
    )


def serving(result: dict[str, Any]) -> str:
    """The engine alone, and the server for each shape."""
    rows = []
    loop = {one["precision"]: one["images_per_second"] for one in result["server"] if "batches of 64" in one["shape"]}
    for one in sorted(result["server"], key=lambda one: str(one["precision"])):
        times, server = one.get("latency_seconds", {}), one.get("server", {})
        at_a_rate = "requests/s" in one["shape"]
        rows.append([
            one["precision"], one["shape"], f"{one['images_per_second']:,.0f}",
            "" if at_a_rate else f"{one['images_per_second'] / loop[one['precision']]:.2f}",
            *(f"{times[name] * 1e3:.2f}" if times else "" for name in ("p50", "p99")),
            *(f"{server[name]:.1f}" if name in server else "" for name in ("images_in_a_batch", "cores")),
            f"{one['client_cores']:.2f}" if times else "", ", ".join(one.get("errors", {})),
        ])  # fmt: skip
    heads = ("precision", "shape", "images/s", "to the engine alone", "p50 ms", "p99 ms", "images in a batch",
             "server's cores", "client's cores", "errors")  # fmt: skip
    return _table(heads, rows)


def start(result: dict[str, Any]) -> str:
    """Start-up, memory, overload."""
    seconds, over = result["start"]["seconds"], result["overload"]
    peak = max(one["server"].get("resident_bytes", 0) for one in result["server"] if one.get("server"))
    p99 = [one["p99_ms_of_answered"] for one in over["rounds"] if one["p99_ms_of_answered"]]
    answered = f"{max(p99):,.0f} ms, of {over['patience_seconds'] * 1e3:,.0f} allowed" if p99 else ""
    rows = [
        ["from the command to ready", ", ".join(f"{one:.2f} s" for one in seconds)],
        ["memory when ready", f"{result['start']['mib']} MiB"],
        ["most memory in the loads above", f"{peak / (1 << 20):.0f} MiB"],
        [f"goodput at {over['times']:g} times the capacity", f"{over['goodput_of_capacity']:.0%} of the capacity"],
        ["p99 of what is answered then", answered],
    ]  # fmt: skip
    return _table(("what", "measured"), rows)


def peers(result: dict[str, Any]) -> str:
    """Images/s and p99 of each server, and ours over each."""
    if not result["peers"]:
        return "Not measured in this run.\n"
    rows, skipped = [], []
    mine = {one["precision"]: one for one in result["peers"] if "packages" not in one}
    for one in result["peers"]:
        if "levels" not in one:
            skipped.append(f"{one['title']}: {one.get('skipped', 'not run')}.")
            continue
        cells = [
            f"{level['images_per_second']:,.0f} ({level['latency_seconds']['p99'] * 1e3:,.1f})"
            + (
                ""
                if one is mine[one["precision"]]
                else f", {own['images_per_second'] / level['images_per_second']:.2f}"
            )
            + (f" {', '.join(level['errors'])}" if level["errors"] else "")
            for own, level in zip(mine[one["precision"]]["levels"], one["levels"], strict=True)
        ]
        name = one["title"] + (f" {one['packages'][0].partition('==')[2]}" if "packages" in one else "")
        rows.append([name, one["precision"], *cells, f"{one['mib']:.0f}", f"{one['ready_seconds']:.1f}"])
    heads = ("server", "precision", *map(_shape, next(iter(mine.values()))["levels"]), "memory, MiB", "ready in s")
    return _table(heads, rows) + "".join(f"\nSkipped: {reason}\n" for reason in skipped)


def curve_picture(result: dict[str, Any]) -> str:
    return _standalone(charts.curve([{"levels": result["curve"]}], report.USUAL_LIMIT))


def curve_sentence(result: dict[str, Any]) -> str:
    return report.sentence({"levels": result["curve"]}) + "\n"


def peers_picture(result: dict[str, Any]) -> str:
    """Bars of images/s in fp32, a group for each shape."""
    measured = [one for one in result["peers"] if "levels" in one and one["precision"] == "fp32"]
    width, bar, left = 760, 17, 250
    if not measured:
        return _standalone(f"<svg viewBox='0 0 {width} 30'><text x='8' y='20'>not measured in this run</text></svg>")
    marks, y = [], 8
    for index, shape in enumerate(map(_shape, measured[0]["levels"])):
        speeds = [one["levels"][index]["images_per_second"] for one in measured]
        marks.append(f"<text x='8' y='{y + 13}' style='fill: var(--ink)'>{shape}</text>")
        y += bar + 3
        for one, speed in zip(measured, speeds, strict=True):
            long = (width - left - 70) * speed / max(speeds)
            colour = "var(--first)" if one is measured[0] else "var(--second)"
            marks.append(f"<text x='{left - 8}' y='{y + 12}' text-anchor='end'>{html.escape(one['title'])}</text>")
            marks.append(f"<rect x='{left}' y='{y}' width='{long:.1f}' height='{bar - 3}' rx='2' fill='{colour}'/>")
            marks.append(f"<text x='{left + long + 6:.1f}' y='{y + 12}'>{speed:,.0f}</text>")
            y += bar
        y += 12
    return _standalone(
        f"<svg viewBox='0 0 {width} {y}' role='img' aria-label='images/s by server'>{''.join(marks)}</svg>"
    )


def _shape(level: dict[str, Any]) -> str:
    images = level["images_per_request"]
    return f"{images} image{'s' if images > 1 else ''}, {level['concurrency']} in flight"


def _standalone(svg: str) -> str:
    """A picture of a page as a file of its own, which follows light and dark by itself."""
    start, _, rest = svg.partition(">")
    named = start.replace("<svg", "<svg xmlns='http://www.w3.org/2000/svg'", 1)
    return f"{named}>{_STYLE}{rest}\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
