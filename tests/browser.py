"""What tests of pages in a real Chromium have in common; the fixture `browser` is in conftest.py."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
from playwright.sync_api import Playwright

# Elements that stick out of the window or of their box, but for what lies in a box that can be scrolled.
OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter(each =>
    !each.closest('.scroll *') && !each.closest('svg *') && !each.matches('.unseen') && each.getClientRects().length &&
    (each.getBoundingClientRect().right > window.innerWidth + 0.5 || each.getBoundingClientRect().left < -0.5 ||
     (each.clientWidth && !each.matches('.scroll') && each.scrollWidth > each.clientWidth + 1)))
    .map(each => each.outerHTML.slice(0, 120))"""


def chromium(playwright: Playwright) -> str | None:
    """The machine's own, or else the one that playwright has fetched."""
    own = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return next(filter(None, own), None) or (
        path if Path(path := playwright.chromium.executable_path).is_file() else None
    )


def contrast(ink: str, ground: str) -> float:
    """WCAG's ratio of two colours `rgb(r, g, b)`; level AA wants 4.5 of text."""
    bright, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `rgb(r, g, b)`."""
    channels = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
