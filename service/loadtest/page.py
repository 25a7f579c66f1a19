"""A load test on one page that needs nothing else: charts, what to change, and every figure in a table."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from service.loadtest import charts, report

STYLE = """
:root { color-scheme: light dark; --paper: #fafafa; --card: #fff; --ink: #1b1f24; --soft: #5b6470; --line: #d9dde3;
  --first: #1f5fd6; --second: #b4540a; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1c2026; --ink: #e8eaed; --soft: #9aa4b2;
  --line: #343b45; --first: #7aa7ff; --second: #f2a65a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 66rem;
  background: var(--paper); color: var(--ink); }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 0 0 .6rem; }
.soft, .small, figcaption { color: var(--soft); } .bad { color: var(--bad); }
.big { font-size: 1.2rem; margin: .8rem 0; } p.small { font-size: .85rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.2rem;
  margin: 1rem 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
.pair section { margin: 0; } .wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
th, td { text-align: right; padding: .3rem .55rem; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; } tr:last-child td { border-bottom: 0; } td.text { white-space: normal; text-align: left; }
.words th, .words td { text-align: left; } .noted td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } .knee td { font-weight: 600; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 13px; }
svg text.small { font-size: 11px; } .spark { width: 90px; }
.grid { stroke: var(--line); } .limit { stroke: var(--bad); stroke-dasharray: 2 4; }
.line { fill: none; stroke-width: 2; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; color: var(--soft); padding-left: 1rem; }
.key i { display: inline-block; width: 1.2em; height: 3px; margin-right: .4em; vertical-align: middle; }
"""
_COLUMNS = ("load", "images/s", "requests/s", "by the second", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "p99.99 ms",
            "errors", "client cores")  # fmt: skip
_SERVER = ("load", "images in a batch", "queue ms", "compute ms", "cores", "MiB")


def page(result: dict[str, Any], old: dict[str, Any] | None = None) -> str:
    """HTML of a result as `service.loadtest.command` writes it, and of an older one to compare with."""
    escaped = html.escape
    slo = result.get("slo")
    name = f"Load test of {escaped(result['target'])}"
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{name}</title><style>{STYLE}</style><main><h1>{name}</h1>",
        f"<p class='soft'>{escaped(result['what'])} · {escaped(result['when'])}</p>",
        f"<p class='big'>{escaped(report.sentence(result))}</p>",
    ]
    if slo:
        parts.append(f"<p class='big'>{escaped(slo['sentence'])}</p>")
    runs = [result, *([old] if old else [])]
    limit = slo["seconds"] if slo else report.USUAL_LIMIT
    key = "".join(
        f"<span><i style='background:{colour}'></i>{text}</span>"
        for colour, text in zip(charts.COLOURS, ("this run", "the older run"), strict=True)
    )
    parts += [
        "<div class='pair'><section><h2>Throughput against p99 latency</h2>",
        f"{charts.curve(runs, limit)}{f'<div class=key>{key}</div>' if old else ''}",
        "<p class='small'>Points: requests in flight; dashed: at a rate.</p></section>",
        f"<section><h2>Latency, to the tail</h2>{charts.tail(result['levels'])}</section></div>",
    ]
    if advice := report.advice(result):
        items = "".join(f"<li>{escaped(one)}</li>" for one in advice)
        parts.append(f"<section><h2>To get more</h2><ul>{items}</ul></section>")
    if old:
        parts.append(_comparison(report.compare(result, old), old))
    parts += [_table(result["levels"]), _errors(result["levels"]), _server(result["levels"])]
    parts.append(
        "<p class='small'>Latencies are from the time a request was to be sent (at a rate) or was sent (in flight), to "
        "within a 64th of themselves; rates are of what was answered OK after the warm-up. Load made by "
        f"{escaped(result['client'])}. The data: the JSON beside this page.</p></main></html>\n"
    )
    return "\n".join(parts)


def _table(levels: Sequence[dict[str, Any]]) -> str:
    best, rows = report.knee(levels), []
    for one in levels:
        times, errors = one["latency_seconds"], sum(one["errors"].values())
        client, limit = f"{one['client_cores']:.2f}", one["client_was_the_limit"]
        cells = [
            _cell(report.title(one)), _cell(f"{one['images_per_second']:,.0f}"),
            _cell(f"{one['requests_per_second']:,.0f}"), f"<td>{charts.spark(one['windows'])}</td>",
            *(_cell(_ms(times[name])) for name in ("p50", "p90", "p99", "p99.9", "p99.99")),
            _cell(f"{errors:,}", "bad" if errors else ""),
            _cell(f"{client} (the limit)" if limit else client, "bad" if limit else ""),
        ]  # fmt: skip
        kinds = ["knee"] if one is best and len(levels) > 1 else []
        kinds += ["noted"] if one["broken"] else []
        rows.append(f"<tr class='{' '.join(kinds)}'>{''.join(cells)}</tr>")
        if one["broken"]:
            rows.append(f"<tr><td class='text bad' colspan='{len(cells)}'>{html.escape(one['broken'])}</td></tr>")
    return _section("Every load", _COLUMNS, rows, "In bold: the knee." if len(levels) > 1 else "")


def _server(levels: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in levels:
        found = one["server"]
        cells = (
            report.title(one), _of(found, "images_in_a_batch", 1, 1), _of(found, "queue_seconds", 1e3, 2),
            _of(found, "compute_seconds", 1e3, 2), _of(found, "cores", 1, 2),
            _of(found, "resident_bytes", 1 / (1 << 20), 0),
        )  # fmt: skip
        rows += [f"<tr>{''.join(map(_cell, cells))}</tr>"] if found else []
    return _section("The server meanwhile", _SERVER, rows, "By its own metrics, means.") if rows else ""


def _errors(levels: Sequence[dict[str, Any]]) -> str:
    rows = [
        f"<tr>{_cell(report.title(one))}{_cell(code)}{_cell(f'{count:,}')}"
        f"{_cell(one['error_details'].get(code, ''), 'text')}</tr>"
        for one in levels
        for code, count in one["errors"].items()
    ]
    return _section("Errors", ("load", "code", "requests", "the first one said"), rows, kind="words") if rows else ""


def _comparison(found: Sequence[dict[str, Any]], old: dict[str, Any]) -> str:
    note = f"Against {old.get('target', 'a run')} of {old.get('when', 'an unknown time')}"
    if not found:
        return f"<section><h2>Compared</h2><p>{html.escape(note)}: the two runs have no load in common.</p></section>"
    rows = []
    for one in found:
        texts = (one["load"], f"{one['ratio']:.3f}", f"{one['low']:.3f} to {one['high']:.3f}")
        p99 = f"{one['p99']:.2f}" if one["p99"] else ""
        rows.append(f"<tr>{''.join(map(_cell, (*texts, p99)))}</tr>")
    heads = ("load", "requests/s, this over the older", "95% interval", "p99, this over the older")
    return _section("Compared", heads, rows, note)


def _section(title: str, heads: Sequence[str], rows: Sequence[str], note: str = "", kind: str = "") -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    table = f"<table class='{kind}'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    said = f"<p class='soft'>{html.escape(note)}</p>" if note else ""
    return f"<section><h2>{title}</h2>{said}<div class='wide'>{table}</div></section>"


def _cell(text: str, kind: str = "") -> str:
    return f"<td class='{kind}'>{html.escape(text)}</td>" if kind else f"<td>{html.escape(text)}</td>"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:,.2f}"


def _of(values: dict[str, float], name: str, factor: float, digits: int) -> str:
    return f"{values[name] * factor:,.{digits}f}" if name in values else ""
