"""What tuning has measured on one page that needs nothing else: the outcome, every trial, the engine alone."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from service.loadtest.page import STYLE
from service.tune.candidates import Candidate, Curve
from service.tune.findings import Findings, machine, means
from service.tune.race import FINAL

WIDTH, LEFT, RIGHT, ROW = 760, 12, 14, 42
_HEIGHT, _BOTTOM, _AXIS = 340, 44, 70  # of the chart of the engine
_OWN_STYLE = """
:root { --present: #b45309; --other: #2563eb; --won: #15803d; }
@media (prefers-color-scheme: dark) { :root { --present: #f0a850; --other: #7aa2ff; --won: #5fd38a; } }
td.text, th.text { text-align: left; } tr.changed td { font-weight: 600; } tr.won { color: var(--won); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; } .wide { overflow-x: auto; }
.curve-0 { --c: #2563eb; } .curve-1 { --c: #b45309; } .curve-2 { --c: #15803d; }
.curve-3 { --c: #9333ea; } .curve-4 { --c: #be185d; } .curve-5 { --c: #0e7490; } .key { color: var(--c); }
@media (prefers-color-scheme: dark) { .curve-0 { --c: #7aa2ff; } .curve-1 { --c: #f0a850; } .curve-2 { --c: #5fd38a; }
.curve-3 { --c: #c99bff; } .curve-4 { --c: #ff8ab8; } .curve-5 { --c: #67d7ee; } }
"""
_COLOURS = 6
_DASHES = ("none", "6 3", "2 3", "10 3 2 3")


def page(found: Findings) -> str:
    title = html.escape(f"Tuning of {found.model}")
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{title}</title><style>{STYLE}{_OWN_STYLE}</style><h1>{title}</h1>",
        f"<p class='big'>{html.escape(found.sentence())}</p>",
        f"<p>{html.escape(found.goal.words())} · {html.escape(found.when)} · {html.escape(machine())} · ",
        f"{html.escape(found.software())}</p><pre>{html.escape(found.command)}</pre>",
        *([f"<p class='bad'>{html.escape(warning)}</p>"] if (warning := found.warning()) else []),
        _settings(found), _trials_chart(found), _trials_tables(found), _engine(found.engines.curves),
        _dropped(found.all_dropped()),
        "<p>Clients and server shared this machine: what the clients took, the server did not have. A gain is a score "
        "over that of the present settings in the same turn; its interval is Student's t on the logarithms of these "
        "ratios. Only finals decide; looks choose who comes there.</p></html>\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _settings(found: Findings) -> str:
    """The present settings beside those that are to be taken."""
    if found.now is None or found.verdict is None:
        return ""
    now, winner = vars(found.now), vars(found.verdict.winner)
    rows = []
    for name, value in now.items():
        changed = " class='changed'" if winner[name] != value else ""
        cells = "".join(f"<td class='text'>{html.escape(_shown(one))}</td>" for one in (value, winner[name]))
        rows.append(f"<tr{changed}><td>{name}</td>{cells}</tr>")
    head = "<th>setting</th><th class='text'>present</th><th class='text'>to take</th>"
    return f"<h2>Settings</h2>{_table(head, rows)}"


def _shown(value: object) -> str:
    return (", ".join(map(str, value)) or "the provider's own") if isinstance(value, tuple) else str(value)


def _trials_chart(found: Findings) -> str:
    """One row for each candidate, one dot for each trial: filled in the finals, hollow in a look before."""
    goal, rows = found.goal, [candidate for candidate, *_ in found.ranked()]
    slow = goal.kind == "latency"
    values = [_value(trial.result.score, slow) for trial in found.trials if trial.result.score]
    if not values:
        return "<h2>The whole server</h2><p class='bad'>Nothing was measured that reached the goal.</p>"
    most, height = max(values) * 1.05, ROW * len(rows) + 50
    unit = "ms, median of a request" if slow else "images/s" + (f" at {goal.objective}" if goal.objective else "")

    def x(value: float) -> float:
        return LEFT + value / most * (WIDTH - LEFT - RIGHT)

    marks = [f"<svg viewBox='0 0 {WIDTH} {height}' role='img' aria-label='results of each candidate'>"]
    for step in _ticks(most):
        marks.append(_line(x(step), x(step), 0, height - 44))
        marks.append(f"<text x='{x(step):.1f}' y='{height - 28}' text-anchor='middle'>{step:,g}</text>")
    marks.append(f"<text x='{(LEFT + WIDTH) / 2:.0f}' y='{height - 8}' text-anchor='middle'>{html.escape(unit)}</text>")
    for number, candidate in enumerate(rows):
        y, colour = ROW * number + 32, _colour(found, candidate)
        marks.append(f"<text x='{LEFT}' y='{y - 14}'>{html.escape(_name(found, candidate))}</text>")
        marks.append(_line(LEFT, WIDTH - RIGHT, y, y))
        for trial in found.trials:
            if trial.candidate == candidate:
                filled, place = colour if trial.stage == FINAL else "none", x(_value(trial.result.score, slow))
                said = f"{trial.stage}: {goal.show(trial.result.score)}, p99 {trial.result.p99 * 1e3:.2f} ms"
                marks.append(
                    f"<circle cx='{place:.1f}' cy='{y}' r='5' fill='{filled}' fill-opacity='.6' stroke='{colour}'>"
                    f"<title>{html.escape(said)}</title></circle>"
                )
    caption = (
        "Filled: finals, in turns. Hollow: looks before. Orange: the present settings; green: to be taken instead."
    )
    return f"<h2>The whole server</h2><figure>{''.join(marks)}</svg><figcaption>{caption}</figcaption></figure>"


def _colour(found: Findings, candidate: Candidate) -> str:
    if candidate == found.now:
        return "var(--present)"
    return "var(--won)" if found.verdict is not None and candidate == found.verdict.winner else "var(--other)"


def _value(score: float, slow: bool) -> float:
    return (1e3 / score if score else 0.0) if slow else score


def _name(found: Findings, candidate: Candidate) -> str:
    return f"{candidate}{' (present)' if candidate == found.now else ''}"


def _trials_tables(found: Findings) -> str:
    """What decides of each candidate, and all trials for who wants to see them."""
    gains = found.verdict.gains if found.verdict else {}
    summary, trials = [], []
    for candidate, results, stage in found.ranked():
        score, *others = means(results)
        gain = f"{gains[candidate]}" if candidate in gains else ""
        cells = [
            _name(found, candidate),
            found.goal.show(score),
            *_numbers(*others),
            f"{len(results)} in {stage}",
            gain,
        ]
        won = found.verdict is not None and candidate == found.verdict.winner
        summary.append(_row(cells, "won" if won else ""))
        for trial in found.trials:
            if trial.candidate == candidate:
                own = trial.result
                shown = _numbers(own.images_per_second, own.p50, own.p99)
                trials.append(_row([cells[0], found.goal.show(own.score), *shown, trial.stage, own.note]))
    heads = "".join(f"<th>{head}</th>" for head in ("settings", "result", "images/s", "p50 ms", "p99 ms", "of", ""))
    return f"{_table(heads, summary)}<details><summary>All trials</summary>{_table(heads, trials)}</details>"


def _numbers(images_per_second: float, p50: float, p99: float) -> tuple[str, str, str]:
    return f"{images_per_second:,.0f}", f"{p50 * 1e3:.2f}", f"{p99 * 1e3:.2f}"


def _row(cells: Iterable[str], kind: str = "") -> str:
    return f"<tr class='{kind}'>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _engine(curves: Sequence[Curve]) -> str:
    """Images/s of the engine alone against the size of its batches."""
    if not curves:
        return ""
    sizes = sorted({size for curve in curves for size in curve.seconds})
    most = max(curve.images_per_second(size) for curve in curves for size in curve.seconds) * 1.08
    widest = max(math.log2(sizes[-1]), 1.0)

    def x(size: int) -> float:
        return _AXIS + math.log2(size) / widest * (WIDTH - _AXIS - RIGHT)

    def y(speed: float) -> float:
        return _HEIGHT - _BOTTOM - speed / most * (_HEIGHT - _BOTTOM - 10)

    marks = [f"<svg viewBox='0 0 {WIDTH} {_HEIGHT}' role='img' aria-label='the engine alone, by size of the batch'>"]
    for step in _ticks(most):
        marks.append(_line(_AXIS, WIDTH, y(step), y(step)))
        marks.append(f"<text x='{_AXIS - 6}' y='{y(step) + 4:.1f}' text-anchor='end'>{step:,g}</text>")
    marks += [
        f"<text x='{x(size):.1f}' y='{_HEIGHT - _BOTTOM + 16}' text-anchor='middle'>{size}</text>"
        for size in sizes
        if size.bit_count() == 1
    ]
    marks.append(
        f"<text x='{WIDTH / 2:.0f}' y='{_HEIGHT - 6}' text-anchor='middle'>images in a batch, and images/s</text>"
    )
    arms = list(dict.fromkeys((curve.provider, curve.precision) for curve in curves))
    threads = sorted({curve.threads for curve in curves}, reverse=True)
    keys = []
    for curve in curves:
        name = f"curve-{arms.index((curve.provider, curve.precision)) % _COLOURS}"
        dash = _DASHES[threads.index(curve.threads) % len(_DASHES)]
        points = " ".join(f"{x(size):.1f},{y(curve.images_per_second(size)):.1f}" for size in sorted(curve.seconds))
        line = f"points='{points}' fill='none' stroke='var(--c)' stroke-width='2' stroke-dasharray='{dash}'"
        marks.append(f"<polyline class='{name}' {line}/>")
        sample = f"<line x1='0' x2='34' y1='6' y2='6' stroke='var(--c)' stroke-width='3' stroke-dasharray='{dash}'/>"
        keys.append(
            f"<li class='key {name}'><svg style='width:34px;height:12px' aria-hidden='true'>{sample}</svg> "
            f"{html.escape(str(curve))}</li>"
        )
    figure = f"<figure>{''.join(marks)}</svg><ul style='list-style:none'>{''.join(keys)}</ul></figure>"
    return f"<h2>The engine alone</h2>{figure}"


def _dropped(dropped: Sequence[tuple[str, str]]) -> str:
    rows = [f"<tr><td>{html.escape(what)}</td><td class='text'>{html.escape(why)}</td></tr>" for what, why in dropped]
    table = _table("<th>what</th><th class='text'>why</th>", rows)
    return f"<h2>Not taken further</h2>{table}" if rows else ""


def _table(head: str, rows: Iterable[str]) -> str:
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _line(x1: float, x2: float, y1: float, y2: float) -> str:
    return f"<line x1='{x1:.1f}' x2='{x2:.1f}' y1='{y1:.1f}' y2='{y2:.1f}' stroke='var(--line)'/>"


def _ticks(most: float) -> list[float]:
    """Some five round numbers from 0 up to `most`."""
    rough = most / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * digit for digit in (1, 2, 5, 10) if unit * digit >= rough)
    return [step * number for number in range(int(most / step) + 1)]
