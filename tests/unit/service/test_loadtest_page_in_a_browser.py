"""The load test's page as Chromium shows it: light and dark, on a desk and on a phone, for a run with troubles."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Request, sync_playwright

from service.loadtest.measure import Level
from service.loadtest.page import page

CUT = """() => [...document.querySelectorAll('svg text')].filter(text => {
    const [inner, outer] = [text, text.closest('svg')].map(each => each.getBoundingClientRect());
    return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.top < outer.top - 1})
    .map(text => text.textContent)"""
COLOURS = """() => ['body', 'section', '.small', 'svg text', '.bad'].map(each => document.querySelector(each))
    .map(each => getComputedStyle(each)).map(style => [style.color, style.fill, style.backgroundColor])"""


def result() -> dict[str, object]:
    levels = []
    for concurrency, milliseconds in ((1, 1.2), (16, 9.0), (64, 80.0), (256, 900.0)):
        level = Level(concurrency, 0.0, 1, seconds=2.0, windows=[100.0, 90.0, 120.0])
        for number in range(500):
            level.latencies.add(milliseconds * (1 + number / 100) / 1e3)
        level.server = {"images_in_a_batch": 5.2, "queue_seconds": 0.01, "compute_seconds": 0.005, "cores": 1.8}
        levels.append(level)
    levels[-1].errors["RESOURCE_EXHAUSTED"] = 12
    levels[-1].details["RESOURCE_EXHAUSTED"] = "the queue is full " * 8
    levels[-1].broken = "a client process ended with status 3"
    records = [level.to_record() for level in levels]
    target = "a-long-host-name.example.internal:8001,another-one.example.internal:8001"
    return {"target": target, "what": "model m", "when": "2026", "client": "c", "levels": records, "slo": None}


def luminance(colour: str) -> float:
    """Relative, of sRGB (WCAG 2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_it_fits_is_readable_and_asks_for_nothing(tmp_path: Path) -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    path = tmp_path / "load.html"
    path.write_text(page(result(), result()))
    asked: set[str] = set()

    def note(request: Request) -> None:
        asked.add(request.url)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        for scheme in ("light", "dark"):
            for width in (390, 1280):
                view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                view.on("request", note)
                view.goto(path.as_uri())
                assert view.evaluate("document.documentElement.scrollWidth") <= width
                assert view.evaluate(CUT) == []
                assert view.locator("h2").all_inner_texts() == [
                    "Throughput against p99 latency", "Latency, to the tail", "To get more", "Compared", "Every load",
                    "Errors", "The server meanwhile",
                ]  # fmt: skip
                body, section, small, text, bad = view.evaluate(COLOURS)
                assert (luminance(body[2]) > 0.5) == (scheme == "light")
                for colour, ground in ((body[0], body), (small[0], section), (text[1], section), (bad[0], section)):
                    assert contrast(colour, ground[2]) >= 4.5
        browser.close()
    assert asked == {path.as_uri()}
