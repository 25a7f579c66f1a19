"""The load test's charts, as SVG that takes its colours from the page: throughput against latency, and the tail."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from service.loadtest.histogram import Histogram
from service.loadtest.report import knee, title

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 540, 330, 66, 46, 14, 16
COLOURS = ("var(--first)", "var(--second)")
_TAIL = (50.0, 90.0, 99.0, 99.9, 99.99)


def curve(results: Sequence[dict[str, Any]], limit: float) -> str:
    """Images/s to the right, p99 upwards on a logarithmic scale; a line for each result, closed loops and open ones
    apart, each knee ringed, and a dashed line at `limit` seconds."""
    seen = [one for result in results for one in result["levels"] if _p99(one)]
    if not seen:
        return "<p class='bad'>There is nothing to draw: no request was answered.</p>"
    most = max(one["images_per_second"] for one in seen) * 1.1
    height, marks = _latencies([_p99(one) for one in seen] + [limit * 1e3])

    def across(images: float) -> float:
        return float(LEFT + images / most * (WIDTH - LEFT - RIGHT))

    for value in _steps(most):
        marks.append(_text(across(value), HEIGHT - BOTTOM + 18, f"{value:,.0f}", "middle"))
    marks.append(_text((LEFT + WIDTH) / 2, HEIGHT - 6, "images/s", "middle"))
    y = height(limit * 1e3)
    marks.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' class='limit'/>")
    marks.append(_text(LEFT + 6, y - 5, f"{limit * 1e3:g} ms", "start"))
    for result, colour in zip(results, COLOURS, strict=False):
        best = knee(result["levels"])
        for key, dashes in (("concurrency", ""), ("rate", "4 3")):
            levels = [one for one in result["levels"] if one[key] and _p99(one)]
            levels.sort(key=itemgetter(key))
            points = [(across(one["images_per_second"]), height(_p99(one))) for one in levels]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            if len(points) > 1:
                marks.append(f"<polyline points='{line}' class='line' stroke='{colour}' stroke-dasharray='{dashes}'/>")
            for one, (x, y) in zip(levels, points, strict=True):
                said = html.escape(f"{title(one)}: {one['images_per_second']:,.0f} images/s, p99 {_p99(one):.2f} ms")
                marks.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{colour}'><title>{said}</title></circle>")
                if one["concurrency"]:
                    marks.append(_text(x, y + 18, str(one["concurrency"]), "middle", "small"))
                if one is best and len(result["levels"]) > 1:
                    marks.append(
                        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='9' fill='none' stroke='{colour}' class='line'/>"
                    )
                    marks.append(_text(x, y - 14, "knee", "middle"))
    return _svg("p99 latency of a request against images per second", marks)


def tail(levels: Sequence[dict[str, Any]]) -> str:
    """Latency at each percentile: a line for each level, to the last percentile that its count can tell."""
    seen = [one for one in levels if one["histogram"]]
    if not seen:
        return ""
    lines = [list(_percentiles(Histogram.from_record(one["histogram"]))) for one in seen]
    height, marks = _latencies([value for line in lines for _, value in line])
    last = _nines(_TAIL[-1])

    def across(share: float) -> float:
        return LEFT + _nines(share) / last * (WIDTH - LEFT - RIGHT - 20)

    for share in _TAIL:
        x = across(share)
        marks.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{TOP}' y2='{HEIGHT - BOTTOM}' class='grid'/>")
        marks.append(_text(x, HEIGHT - BOTTOM + 18, f"{share:g}%", "middle"))
    marks.append(_text((LEFT + WIDTH) / 2, HEIGHT - 6, "share of the requests that took no longer", "middle"))
    for number, (one, line) in enumerate(zip(seen, lines, strict=True)):
        points = " ".join(f"{across(share):.1f},{height(value):.1f}" for share, value in line)
        said, colour = html.escape(title(one)), shade(number, len(seen))
        marks.append(f"<polyline points='{points}' class='line' stroke='{colour}'><title>{said}</title></polyline>")
    keys = [
        f"<span><i style='background:{shade(number, len(seen))}'></i>{html.escape(title(one))}</span>"
        for number, one in enumerate(seen)
    ]
    return _svg("latency by percentile", marks) + f"<div class='key'>{''.join(keys)}</div>"


def spark(windows: Sequence[float]) -> str:
    """Requests/s by the second, from 0 upwards, a few letters wide."""
    if len(windows) < 2 or not max(windows):
        return ""
    step = 86 / (len(windows) - 1)
    points = " ".join(f"{2 + index * step:.1f},{20 - 17 * one / max(windows):.1f}" for index, one in enumerate(windows))
    return (
        "<svg class='spark' viewBox='0 0 90 22' role='img' aria-label='requests per second over time'>"
        f"<polyline points='{points}' class='line' stroke='var(--first)'/></svg>"
    )


def shade(number: int, count: int) -> str:
    """From the first colour to the second."""
    share = round(100 * number / max(1, count - 1))
    return f"color-mix(in oklab, var(--second) {share}%, var(--first))"


def _p99(level: dict[str, Any]) -> float:
    """In ms; 0 when nothing was answered."""
    return (level["latency_seconds"]["p99"] or 0.0) * 1e3


def _nines(share: float) -> float:
    """0 at 0%, 1 at 90%, 2 at 99%, 3 at 99.9%."""
    return -math.log10(1 - share / 100)


def _percentiles(histogram: Histogram) -> Iterator[tuple[float, float]]:
    """(percentile, ms), evenly on the scale of `_nines`."""
    last = min(_nines(_TAIL[-1]), math.log10(max(10, histogram.total)))
    for step in range(61):
        share = 100 * (1 - 10 ** (-last * step / 60))
        yield share, max(1e-3, histogram.percentile(share) * 1e3)


def _latencies(values: Sequence[float]) -> tuple[Callable[[float], float], list[str]]:
    """Where a latency in ms stands on a logarithmic axis that holds `values`, and the axis itself."""
    low, high = math.log10(min(values) / 1.3), math.log10(max(values) * 1.5)

    def height(value: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(value) - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    digits = (1, 2, 5) if high - low < 3 else (1,)
    marks = []
    for decade in range(math.floor(low), math.ceil(high) + 1):
        for digit in digits:
            value = digit * 10.0**decade
            if low <= math.log10(value) <= high:
                y = height(value)
                marks.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' class='grid'/>")
                marks.append(_text(LEFT - 8, y + 4, f"{value:g} ms", "end"))
    return height, marks


def _steps(most: float) -> list[float]:
    """Four to eight round numbers from 0 to `most`."""
    rough = most / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = next(digit * unit for digit in (1, 2, 5, 10) if digit * unit >= rough)
    return [step * number for number in range(int(most / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' class='{kind}'>{html.escape(text)}</text>"


def _svg(label: str, marks: Sequence[str]) -> str:
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{label}'>{''.join(marks)}</svg>"
