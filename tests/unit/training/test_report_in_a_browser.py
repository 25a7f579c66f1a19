"""The report as Chromium shows it: light and dark, on a desk and on a phone."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Playwright, Request, sync_playwright

from tests.unit.training.conftest import FinishedRun
from tests.unit.training.reports import render, untrained
from training import architectures
from training.datasets import LabelledImages

SECTIONS = ("training", "classes", "confusion", "confidence", "mistakes", "inside", "layers", "parity", "origin")
LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "a ship of the line", "truck")
WIDTHS = (390, 1280)

# Elements that stick out of the window or of their box, but for what lies in a box that can be scrolled.
OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter(each =>
    !each.closest('.scroll *') && !each.closest('svg *') && each.getClientRects().length &&
    (each.getBoundingClientRect().right > window.innerWidth + 0.5 || each.getBoundingClientRect().left < -0.5 ||
     (each.clientWidth && !each.matches('.scroll') && each.scrollWidth > each.clientWidth + 1)))
    .map(each => each.outerHTML.slice(0, 120))"""
# Texts of charts that are cut off, since the browser's font is another than matplotlib's.
CUT = """() => [...document.querySelectorAll('svg text')].filter(text => {
    const [inner, outer] = [text, text.closest('svg')].map(each => each.getBoundingClientRect());
    return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1})
    .map(text => text.textContent)"""
COLOURS = """() => ['h2', '.note', 'section a, nav a', 'svg text'].map(each => document.querySelector(each))
    .map(each => getComputedStyle(each)).map(style => style.fill == 'rgb(0, 0, 0)' ? style.color : style.fill)
    .concat(getComputedStyle(document.querySelector('section')).backgroundColor)"""


def chromium(playwright: Playwright) -> str | None:
    """The machine's own, or else the one that playwright has fetched."""
    own = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return next(filter(None, own), None) or (
        path if Path(path := playwright.chromium.executable_path).is_file() else None
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        path = chromium(playwright)
        if path is None:
            pytest.skip("no Chromium on this machine: apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


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
    *inks, ground = (luminance(colour) for colour in page.evaluate(COLOURS))
    for ink in inks:
        bright, dark = max(ink, ground), min(ink, ground)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.2, level AA
    assert (ground < 0.2) == page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `rgb(r, g, b)`."""
    channels = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
