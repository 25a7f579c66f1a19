"""The page in Chromium: pictures dropped, chosen and taken, live figures, errors, keyboard, light and dark."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, FileChooser, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from service import images
from service.client import Client, Options
from tests import colour_model
from tests.browser import OVERFLOWING, contrast, luminance
from tests.integration.page_server import REPORT, png, publish, striped
from tests.integration.server_process import ServerProcess, serving
from tests.integration.test_page_over_http import pixels_of

TOKEN = "a-token-of-the-tests"
LABELS = ("<b>red</b>", "green & blue", "blue<script>alert(1)</script>", "dark", "bright")
RED, GREEN = LABELS[:2]
# Chromium itself notes every answer of 400 and above; the page shows why.
REFUSED = "Failed to load resource"
DROP = """([content, name, type]) => {
    const files = new DataTransfer();
    files.items.add(new File([Uint8Array.from(atob(content), each => each.charCodeAt())], name, { type }));
    const options = { dataTransfer: files, bubbles: true, cancelable: true };
    for (const kind of ['dragenter', 'dragover', 'drop'])
        document.getElementById('drop').dispatchEvent(new DragEvent(kind, options));
}"""
# Text and what lies behind it, of everything that shows text of its own.
COLOURS = """() => [...document.querySelectorAll('body *')]
    .filter(each => each.getClientRects().length && !each.closest('.unseen') &&
        [...each.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim()))
    .map(each => {
        let behind = each;
        while (behind && getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
        return [each.textContent.trim().slice(0, 40), getComputedStyle(each).color, getComputedStyle(behind ?? document.body).backgroundColor];
    })"""  # noqa: E501
Open = Callable[..., Page]
expect.set_options(timeout=60_000)  # a busy machine must not fail a test


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("page")
    publish(folder / "models", labels=LABELS)
    publish(folder / "models", version=2, scale=0.5, labels=LABELS)
    (folder / "models" / "colours" / "config.toml").write_text('versions = "all"\n')
    with serving(folder / "models", folder / "log", "--max-message-bytes", 300_000) as server:
        yield server


@pytest.fixture
def models(models: Path) -> Path:
    publish(models)
    return models


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens a server's page; afterwards the test fails for anything in the console, but for what it has expected."""
    pages: list[tuple[Page, list[str], str | None]] = []

    def open_page(server: ServerProcess, expected: str | None = None, **options: Any) -> Page:
        page = browser.new_page(**options)
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        pages.append((page, wrong, expected))
        page.goto(server.metrics_url.removesuffix("metrics"))
        expect(page.locator("#state")).to_have_text("serving")
        return page

    yield open_page
    for page, wrong, expected in pages:
        page.close()
        assert [text for text in wrong if expected is None or expected not in text] == []


def drop(page: Page, content: bytes, name: str = "picture.png", kind: str = "image/png") -> None:
    page.evaluate(DROP, [base64.b64encode(content).decode(), name, kind])


def test_a_dropped_picture_is_answered_and_shown_as_the_model_sees_it(page_server: ServerProcess, opened: Open) -> None:
    page = opened(page_server)
    expect(page.locator("#lead")).to_have_text("2 versions are served.")
    page.select_option("#model", "colours:2")
    drop(page, png(striped()))
    expect(page.locator("#verdict")).to_have_text(RED)
    seen = images.decode(png(striped()), (colour_model.SIZE, colour_model.SIZE, 3))
    assert np.array_equal(pixels_of(page.locator("#seen").get_attribute("src") or ""), seen)
    (expected,) = colour_model.expected(seen[None], scale=0.5)
    order = np.argsort(-expected)
    expect(page.locator("#bars .label")).to_have_text([LABELS[index] for index in order])
    expect(page.locator("#bars .number")).to_have_text([f"{100 * expected[index]:.1f}%" for index in order])
    widths = page.locator("#bars .fill").evaluate_all("all => all.map(each => parseFloat(each.style.width))")
    assert widths == pytest.approx(100 * expected[order], abs=0.01)
    expect(page.locator("#by")).to_contain_text("colours version 2")
    expect(page.get_by_role("status")).to_have_text(
        f"{RED}, {100 * expected[order[0]]:.1f}%; then {LABELS[order[1]]}, {100 * expected[order[1]]:.1f}%"
    )
    assert page.evaluate("[...document.images].every(each => !each.src || each.naturalWidth > 0)")


def test_a_file_that_is_no_picture_or_too_large_says_so_and_the_next_is_answered(
    page_server: ServerProcess, opened: Open
) -> None:
    page = opened(page_server, expected=REFUSED)
    alert = page.get_by_role("alert")
    drop(page, b"no picture", "notes.txt", "text/plain")
    expect(alert).to_contain_text("this file is not a picture in a known format")
    drop(page, png(striped()))
    expect(page.locator("#verdict")).to_have_text(RED)
    expect(alert).to_have_text("")
    drop(page, bytes(300_001), "large.png")
    expect(alert).to_have_text("large.png is 293 KiB, this server takes up to 293 KiB")
    expect(page.locator("#found")).to_be_hidden()


def _chooser_by_key(page: Page) -> FileChooser:
    """Headless Chromium now and then opens none for the first press on a busy machine; either key is to do."""
    for key in ("Enter", "Space", "Enter"):
        try:
            with page.expect_file_chooser(timeout=8_000) as chooser:
                page.keyboard.press(key)
        except PlaywrightTimeout:
            continue
        return chooser.value
    raise AssertionError("Enter opens no file chooser")


def test_everything_can_be_done_with_the_keyboard(page_server: ServerProcess, opened: Open) -> None:
    page = opened(page_server)
    expect(page.get_by_role("button", name="Sample picture 1 of")).to_be_visible()
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.id"))
        assert page.evaluate(
            """() => [document.activeElement, document.activeElement.closest('.drop')].some(each =>
                each && parseFloat(getComputedStyle(each).outlineWidth) >= 2 && getComputedStyle(each).outlineStyle !== 'none')"""  # noqa: E501
        ), f"no one sees that {seen[-1]} has the focus"
        if seen[-1] == "Choose a picture":
            _chooser_by_key(page).set_files({"name": "a.png", "mimeType": "image/png", "buffer": png(striped())})
            expect(page.locator("#verdict")).to_have_text(RED)
        if seen[-1].startswith("Sample picture"):
            page.evaluate("document.getElementById('verdict').textContent = ''")
            page.keyboard.press("Enter")
            expect(page.locator("#verdict")).not_to_have_text("")
            break
    else:
        raise AssertionError(f"the keyboard reaches only {seen}")
    assert "Choose a picture" in seen


def test_a_pasted_picture_is_answered(page_server: ServerProcess, opened: Open) -> None:
    page = opened(page_server)
    page.evaluate(
        """content => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([Uint8Array.from(atob(content), each => each.charCodeAt())], '', { type: 'image/png' }));
            document.dispatchEvent(new ClipboardEvent('paste', { clipboardData }));
        }""",  # noqa: E501
        base64.b64encode(png(striped())).decode(),
    )
    expect(page.locator("#verdict")).to_have_text(RED)


def test_live_figures_are_those_of_the_metrics(page_server: ServerProcess, opened: Open) -> None:
    page = opened(page_server)
    charts = page.locator("#charts > div")
    pictures = [colour_model.plain((0, 255, 0))] * 3
    with Client(page_server.target, Options(timeout=30)) as client, ThreadPoolExecutor(1) as load:
        stop: list[bool] = []

        def send() -> None:
            while not stop:
                client.classify(pictures)

        sending = load.submit(send)
        try:
            expect(charts.nth(2).locator(".value")).to_have_text("3 on average")
            rate = float(charts.nth(0).locator(".value span").first.inner_text().replace(",", ""))
            assert rate > 0
            for text in ("p50", "p99", "s"):
                expect(charts.nth(1).locator(".value")).to_contain_text(text)
            expect(charts.nth(3).locator(".value")).to_contain_text("of 2,048 that may wait")  # of two versions
            label = charts.nth(0).get_by_role("img").get_attribute("aria-label") or ""
            assert label.startswith("Requests answered a second, last 3 minutes: now ")
            assert charts.nth(1).locator("path").count() >= 2
        finally:
            stop.append(True)
            sending.result()
    row = page.locator("#rows tr").first
    expect(row).to_contain_text("ready")
    expect(row).to_contain_text(re.compile("ExecutionProvider, fp32"))
    expect(row).to_contain_text("90.00%")
    expect(row).to_contain_text("100 of plain colours")
    expect(row).to_contain_text(", ".join(LABELS))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_readable_in_light_and_dark_on_a_desk_and_a_phone(
    page_server: ServerProcess, opened: Open, scheme: str, width: int
) -> None:
    page = opened(page_server, color_scheme=scheme, viewport={"width": width, "height": 900})
    drop(page, png(striped()))
    expect(page.locator("#verdict")).to_have_text(RED)
    expect(page.locator("#rows tr")).to_have_count(2)
    page.evaluate("document.getElementById('problem').textContent = 'as an error would stand here'")
    for text, ink, ground in page.evaluate(COLOURS):
        assert contrast(ink, ground) >= 4.5, (text, ink, ground)  # WCAG 2.2, level AA
        assert (luminance(ground) < 0.3) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(OVERFLOWING) == []


def test_a_report_opens_and_runs_no_script(page_server: ServerProcess, opened: Open) -> None:
    page = opened(page_server, expected="Blocked script execution")
    link = page.get_by_role("link", name="Report of colours version 1")
    expect(link).to_be_visible()
    link.click()
    expect(page.get_by_role("heading")).to_have_text("How it was tested")
    assert page.title() == "report"


def test_where_a_token_is_needed_it_is_asked_for(models: Path, tmp_path: Path, opened: Open) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    with serving(models, tmp_path / "log", "--token-file", tmp_path / "tokens") as server:
        page = opened(server, expected=REFUSED)
        expect(page.locator("#rows tr")).to_contain_text("colours 1")  # as the metrics say to everybody
        field, alert = page.get_by_label("Token of this server"), page.get_by_role("alert")
        drop(page, png(striped()))
        expect(alert).to_contain_text("a token is needed")
        expect(field).to_be_focused()
        field.fill("another-token-of-the-tests")
        page.keyboard.press("Enter")
        expect(alert).to_contain_text("the token is not known here")
        field.fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#lead")).to_contain_text("90.00% right on 100 images")
        expect(alert).to_have_text("")
        drop(page, png(striped()))
        expect(page.locator("#verdict")).to_have_text("red")
        with page.expect_download() as download:
            page.get_by_role("link", name="Report of colours version 1").click()
        assert download.value.suggested_filename == "colours-1-report.html"
        assert download.value.path().read_text() == REPORT
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        page.close()  # before the server goes


def test_where_calls_are_not_safe_it_shows_the_metrics_and_says_why(models: Path, tmp_path: Path, opened: Open) -> None:
    with serving(models, tmp_path / "log", "--metrics-host", "0.0.0.0") as server:
        server.metrics_url = server.metrics_url.replace("0.0.0.0", "127.0.0.1")
        page = opened(server)
        expect(page.locator("#closed")).to_contain_text("gRPC is for this machine alone")
        expect(page.locator("#drop")).to_be_hidden()
        expect(page.locator("#rows tr")).to_contain_text(re.compile("ExecutionProvider, fp32"))
        page.close()  # before the server goes


def test_with_several_workers_and_when_the_server_is_gone(models: Path, tmp_path: Path, opened: Open) -> None:
    with serving(models, tmp_path / "log", "--workers", 2, "--threads", 1) as server:
        page = opened(server, expected="Failed to load resource: net::ERR_CONNECTION_REFUSED")
        for colour, label in (((255, 0, 0), "red"), ((0, 255, 0), "green"), ((0, 0, 255), "blue")):
            drop(page, png(colour_model.plain(colour, 50)))
            expect(page.locator("#verdict")).to_have_text(label)
        expect(page.locator("#rows tr")).to_contain_text("colours 1")
        server.terminate()
        assert server.wait() == 0
        expect(page.locator("#state")).to_have_text("does not answer")
        drop(page, png(striped()))
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
