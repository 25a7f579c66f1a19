"""Shadow traffic: the same images to another version, after the caller has its answer, and compared with it."""

from __future__ import annotations

import asyncio
import logging

import numpy as np

from service.errors import ServiceError
from service.images import Pixels
from service.manifest import Manifest
from service.runners import Floats
from service.serving import ServedModel

log = logging.getLogger(__name__)

# Labels in an error message: so many, and so many characters of each.
_MOST_LABELS, _LABEL_CHARACTERS = 4, 40


class Shadow:
    """Mirrors off the request path: whatever happens here, no caller waits for it or hears of it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def mirror(self, shadow: ServedModel, primary: ServedModel, images: Pixels, answer: Floats) -> None:
        """Start to compute `images` on `shadow`, to compare with `answer`, [n, classes], which the caller got.

        Sheds first: while anything waits for the primary, nothing is mirrored.
        """
        if primary.batcher.queued_images:
            shadow.metrics.shadow_shed(len(images))
            return
        task = asyncio.create_task(_compare(shadow, primary, images, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def end(self) -> None:
        """Give up what is being mirrored: nobody will read how it compares."""
        for task in self._tasks:
            task.cancel()


def unfit(shadow: Manifest, primary: Manifest) -> str:
    """Why answers of `shadow` cannot be compared with those of `primary`; an empty text when they can.

    Both need the same labels, in any order, and take images of the same shape.
    """
    names = f"{shadow.name}: version {shadow.version} cannot be the shadow of version {primary.version}"
    if shadow.image_shape != primary.image_shape:
        own, other = ("x".join(map(str, one.image_shape)) for one in (shadow, primary))
        return f"{names}: it takes images of {own}, the other of {other}. Name another shadow in config.toml"
    if odd := sorted(set(shadow.labels) ^ set(primary.labels)):
        some = ", ".join(repr(label[:_LABEL_CHARACTERS]) for label in odd[:_MOST_LABELS])
        more = f" and {len(odd) - _MOST_LABELS} more" if len(odd) > _MOST_LABELS else ""
        return f"{names}: only one of them has the labels {some}{more}. Name another shadow in config.toml"
    return ""


async def _compare(shadow: ServedModel, primary: ServedModel, images: Pixels, expected: Floats) -> None:
    try:
        with shadow.batcher.admit(len(images)) as admitted:
            found = (await admitted.compute(images)).probabilities
        if shadow.manifest.labels != primary.manifest.labels:
            found, expected = _by_label(shadow, found), _by_label(primary, expected)
        agreeing = int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
        shadow.metrics.shadowed(agreeing, (np.abs(found - expected).sum(axis=1) / 2).tolist())
    except ServiceError:
        shadow.metrics.shadow_shed(len(images))
    except Exception:
        log.exception("the shadow %s failed", shadow.title)
        shadow.metrics.shadow_shed(len(images))


def _by_label(model: ServedModel, probabilities: Floats) -> Floats:
    """Columns in the alphabetical order of the labels, so that versions with another order compare class by class."""
    return probabilities[:, np.argsort(model.manifest.labels)]
