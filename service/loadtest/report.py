"""A load test on one page that needs nothing else: the curve of throughput against latency, its knee, and a table."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM = 760, 360, 64, 44
_COLOURS = ("var(--first)", "var(--second)")
# Of the ratio of two runs, by the t distribution for many windows: 1.96 standard errors.
_Z = 1.96

STYLE = """
:root { color-scheme: light dark; --first: #2563eb; --second: #b45309; --line: #8888; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --first: #7aa2ff; --second: #f0a850; --bad: #ff8a8a; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 12px; }
.bad { color: var(--bad); } .big { font-size: 1.3rem; } figure { margin: 1rem 0; }
"""


def knee(levels: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The level with the most throughput for its latency (L. Kleinrock's power): beyond it, waiting grows faster."""
    whole = [one for one in levels if one["images_per_second"] and one["latency_seconds"]["p99"]]
    return max(whole, key=lambda one: one["images_per_second"] / one["latency_seconds"]["p99"], default=None)


def ratio(new: Sequence[float], old: Sequence[float]) -> tuple[float, float, float]:
    """Mean of `new` over that of `old`, and the ends of its 95% confidence interval, from the spread of the windows.

    By the delta method on the logarithm; NaN ends with fewer than two windows in either.
    """
    means = statistics.fmean(new), statistics.fmean(old)
    found = means[0] / means[1]
    if min(len(new), len(old)) < 2:
        return found, math.nan, math.nan
    spread = math.sqrt(
        sum(statistics.variance(one) / len(one) / mean**2 for one, mean in zip((new, old), means, strict=True))
    )
    return found, found * math.exp(-_Z * spread), found * math.exp(_Z * spread)


def compare(new: dict[str, Any], old: dict[str, Any]) -> list[dict[str, Any]]:
    """The ratio of requests/s for each load that both runs have."""
    before = {(one["concurrency"], one["rate"]): one for one in old["levels"]}
    rows = []
    for one in new["levels"]:
        other = before.get((one["concurrency"], one["rate"]))
        if other is None or not one["windows"] or not other["windows"] or not any(other["windows"]):
            continue
        found, low, high = ratio(one["windows"], other["windows"])
        rows.append({"load": title(one), "ratio": round(found, 4), "low": round(low, 4), "high": round(high, 4)})
    return rows


def title(level: dict[str, Any]) -> str:
    return f"{level['rate']:g} requests/s" if level["rate"] else f"{level['concurrency']} in flight"


def sentence(result: dict[str, Any]) -> str:
    """What one wants to know, in a sentence."""
    levels = result["levels"]
    best = max(levels, key=lambda one: one["images_per_second"], default=None)
    if best is None or not best["images_per_second"]:
        return "No request was answered."
    said = f"At most {best['images_per_second']:,.0f} images/s ({title(best)})"
    if (at := knee(levels)) is not None:
        p99 = at["latency_seconds"]["p99"] * 1e3
        said += f"; the knee is at {at['images_per_second']:,.0f} images/s with p99 {p99:.1f} ms ({title(at)})"
    return said + "."


def page(result: dict[str, Any], old: dict[str, Any] | None = None) -> str:
    """HTML of a result as `service.loadtest.command` writes it, and of an older one to compare with."""
    escaped = html.escape
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>Load test of {escaped(result['target'])}</title><style>{STYLE}</style>",
        f"<h1>Load test of {escaped(result['target'])}</h1>",
        f"<p class='big'>{escaped(sentence(result))}</p>",
    ]
    if result.get("slo"):
        parts.append(f"<p class='big'>{escaped(result['slo']['sentence'])}</p>")
    parts.append(f"<p>{escaped(result['what'])} · {escaped(result['when'])}</p>")
    parts.append(f"<figure>{chart([result, *([old] if old else [])])}</figure>")
    parts.append(_table(result))
    if old:
        parts.append(_comparison(compare(result, old)))
    parts.append(_tail(result))
    return "\n".join([*parts, "</html>\n"])


def chart(results: Sequence[dict[str, Any]]) -> str:
    """Images/s to the right, p99 in ms upwards on a logarithmic scale, one line for each result, knees ringed."""
    curves = [
        sorted(
            (one["images_per_second"], one["latency_seconds"]["p99"] * 1e3) for one in result["levels"]
            if one["images_per_second"] and one["latency_seconds"]["p99"]
        )
        for result in results
    ]  # fmt: skip
    points = [point for curve in curves for point in curve]
    if not points:
        return "<p class='bad'>There is nothing to draw: no request was answered.</p>"
    most = max(x for x, _ in points) * 1.08
    low, high = (math.log10(limit) for limit in (min(y for _, y in points) / 1.5, max(y for _, y in points) * 1.5))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / most * (WIDTH - LEFT - 10)
        return across, HEIGHT - BOTTOM - (math.log10(y) - low) / (high - low) * (HEIGHT - BOTTOM - 10)

    marks = [f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='p99 latency against images per second'>"]
    for decade in range(math.floor(low), math.ceil(high) + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0**decade
            if low <= math.log10(value) <= high:
                _, y = place(0, value)
                marks.append(f"<line x1='{LEFT}' x2='{WIDTH}' y1='{y:.1f}' y2='{y:.1f}' stroke='var(--line)'/>")
                marks.append(f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{value:g} ms</text>")
    for step in range(6):
        x, _ = place(most * step / 5, 10**low)
        text = f"{most * step / 5:,.0f}"
        marks.append(f"<text x='{x:.1f}' y='{HEIGHT - BOTTOM + 16}' text-anchor='middle'>{text}</text>")
    marks.append(f"<text x='{WIDTH / 2}' y='{HEIGHT - 6}' text-anchor='middle'>images/s, and p99 of a request</text>")
    for result, curve, colour in zip(results, curves, _COLOURS, strict=False):
        line = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in curve)
        marks.append(f"<polyline points='{line}' fill='none' stroke='{colour}' stroke-width='2'/>")
        for x, y in (place(*one) for one in curve):
            marks.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.5' fill='{colour}'/>")
        if (at := knee(result["levels"])) is not None:
            x, y = place(at["images_per_second"], at["latency_seconds"]["p99"] * 1e3)
            marks.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='9' fill='none' stroke='{colour}' stroke-width='2'/>")
            marks.append(f"<text x='{x:.1f}' y='{y - 14:.1f}' text-anchor='middle'>knee</text>")
    return "".join([*marks, "</svg>"])


def _table(result: dict[str, Any]) -> str:
    heads = (
        "load", "images/s", "requests/s", "p50 ms", "p99 ms", "p99.9 ms", "p99.99 ms", "errors", "batch", "queue ms",
        "server cores", "server MiB", "client core",
    )  # fmt: skip
    rows = []
    for one in result["levels"]:
        times, server = one["latency_seconds"], one["server"]
        errors = ", ".join(f"{count} {code}" for code, count in one["errors"].items())
        client = f"{one['client_cores']:.0%}" + (" (the limit)" if one["client_was_the_limit"] else "")
        cells = [
            title(one), f"{one['images_per_second']:,.0f}", f"{one['requests_per_second']:,.0f}",
            *(_ms(times[name]) for name in ("p50", "p99", "p99.9", "p99.99")), errors,
            _of(server, "images_in_a_batch", 1), _of(server, "queue_seconds", 1e3), _of(server, "cores", 1),
            _of(server, "resident_bytes", 1 / (1 << 20)), client,
        ]  # fmt: skip
        note = f"<td class='bad'>{html.escape(one['broken'])}</td>" if one["broken"] else ""
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + note + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _comparison(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "<p>The two runs have no load in common.</p>"
    cells = [
        (html.escape(row["load"]), f"{row['ratio']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}") for row in rows
    ]
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in cells]
    head = "<tr><th>load</th><th>requests/s, this over the older</th><th>95% interval</th></tr>"
    return f"<h2>Compared</h2><table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"


def _tail(result: dict[str, Any]) -> str:
    return (
        "<p>Latencies are from the time a request was to be sent (open loop) or was sent (closed loop). "
        f"{html.escape(result['client'])}. The data: the JSON beside this page.</p>"
    )


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:,.2f}"


def _of(values: dict[str, float], name: str, factor: float) -> str:
    return f"{values[name] * factor:,.1f}" if name in values else ""
