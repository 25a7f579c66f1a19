"""The report as Chromium shows it: light and dark, on a desk and on a phone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Request

from tests.browser import OVERFLOWING, contrast, luminance
from tests.unit.training.conftest import FinishedRun
from tests.unit.training.reports import render, untrained
from training import architectures
from training.datasets import LabelledImages

SECTIONS = ("training", "classes", "confusion", "confidence", "mistakes", "inside", "layers", "parity", "origin")
LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "a ship of the line", "truck")
WIDTHS = (390, 1280)

# Texts of charts that are cut off, since the browser's font is another than matplotlib's.
CUT = """() => [...document.querySelectorAll('svg text')].filter(text => {
    const [inner, outer] = [text, text.closest('svg')].map(each => each.getBoundingClientRect());
    return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1})
    .map(text => text.textContent)"""
COLOURS = """() => ['h2', '.note', 'section a, nav a', 'svg text'].map(each => document.querySelector(each))
    .map(each => getComputedStyle(each)).map(style => style.fill == 'rgb(0, 0, 0)' ? style.color : style.fill)
    .concat(getComputedStyle(document.querySelector('section')).backgroundColor)"""


@pytest.fixture(scope="module")
def report(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the record network on ten classes, one of them with a long name, before it has learnt anything."""
    generator = np.random.default_rng(0)
    test = LabelledImages(generator.integers(0, 256, (60, 32, 32, 3), np.uint8), np.arange(60) % len(LABELS))
    model = untrained(finished_run.model, test, architectures.build("record", (32, 32, 3), len(LABELS)), LABELS)
    first = dataclasses.asdict(finished_run.export.parity[0])
    parity = [first, *(first | {"precision": precision} for precision in ("fp16", "bf16", "int8"))]
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(model, test, parity=parity, files={"model.onnx": {"size": 1_995_417}}))
    return path


@pytest.fixture(params=[(scheme, width) for scheme in ("light", "dark") for width in WIDTHS], ids=str)
def page(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[Page]:
    """The report, open; it fails the test afterwards that anything was asked for, or went wrong in the console."""
    scheme, width = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked: list[str] = []
    wrong: list[str] = []

    def note(each: Request) -> None:
        if not each.url.startswith("data:"):
            asked.append(each.url)

    page.on("request", note)
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(report.as_uri(), wait_until="load")
    yield page
    page.close()
    assert asked == [report.as_uri()]
    assert wrong == []


def test_every_section_is_seen_and_no_text_sticks_out(page: Page) -> None:
    for name in SECTIONS:
        section = page.locator(f"section#{name}")
        assert section.is_visible()
        box = section.bounding_box()
        assert box is not None
        assert box["height"] > 100
        assert page.locator(f"nav a[href='#{name}']").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(CUT) == []


def test_pictures_are_shown_and_text_stands_out_from_its_ground(page: Page) -> None:
    assert page.locator("img").count() > 50
    assert page.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
    *inks, ground = page.evaluate(COLOURS)
    assert all(contrast(ink, ground) >= 4.5 for ink in inks)  # WCAG 2.2, level AA
    assert (luminance(ground) < 0.2) == page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
