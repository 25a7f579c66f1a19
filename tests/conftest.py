from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

import service  # noqa: F401 - first, for what it sets before ONNX Runtime is imported

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# No test asserts absolute speed: a busy machine must not fail one. Each run tries the same examples, so that a failure
# is seen again; `pytest --hypothesis-profile explore` tries others, and prints how to repeat what it finds. What is
# found stays as an @example.
settings.register_profile(
    "project", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, print_blob=True
)
settings.register_profile("explore", parent=settings.get_profile("project"), derandomize=False, max_examples=1000)
settings.load_profile("project")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    from tests.browser import chromium

    with sync_playwright() as playwright:
        path = chromium(playwright)
        if path is None:
            pytest.skip("no Chromium on this machine: apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()
