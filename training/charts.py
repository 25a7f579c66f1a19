"""The report's charts: matplotlib figures as SVG to stand inside an HTML page, with the page's own colours and fonts.

Each is drawn in stand-in colours that become CSS variables afterwards, so that one file is readable on light and on
dark. Nothing of matplotlib's global state (pyplot, the current style) is used or changed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from training.evaluate import CALIBRATION_BINS
from training.predictions import Predictions

History = Sequence[dict[str, Any]]

# Colours that occur nowhere else, and the variables of report.css that take their place.
INK, MUTED, LINE = "#000101", "#000102", "#000103"
FIRST, SECOND = "#000104", "#000105"
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", FIRST: "first", SECOND: "second"}

STYLE: dict[Any, object] = {
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's font
    "font.family": "DejaVu Sans",  # for the measures; it comes with matplotlib
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
SIZE = (4.3, 2.9)  # inches of 72 points: a phone shows these at about their own size


def loss(history: History) -> Markup:
    """Training and validation loss by epoch."""

    def draw(axes: Axes) -> None:
        _curves(axes, history, "loss", "validation_loss")
        axes.set_title("Loss (cross entropy)", color=INK)

    last = history[-1]
    return _chart(draw, f"Loss by epoch: {last['loss']:.3f} in training, {last['validation_loss']:.3f} in validation")


def accuracy(history: History, best_epoch: int) -> Markup:
    """Training and validation accuracy by epoch; the epoch whose weights were taken is marked."""
    best = next(record for record in history if record["epoch"] == best_epoch)

    def draw(axes: Axes) -> None:
        _curves(axes, history, "accuracy", "validation_accuracy")
        axes.plot(best_epoch, best["validation_accuracy"], "o", color=SECOND, markersize=7)
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.set_title("Accuracy", color=INK)

    description = f"the best is epoch {best_epoch}, {best['validation_accuracy']:.2%} of the validation images right"
    return _chart(draw, f"Accuracy by epoch: {description}")


def learning_rate(epochs: npt.NDArray[np.floating], rates: npt.NDArray[np.floating]) -> Markup:
    """`rates` at the times `epochs`, both [n]."""

    def draw(axes: Axes) -> None:
        axes.plot(epochs, rates, color=FIRST)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("epoch")
        axes.set_title("Learning rate", color=INK)

    return _chart(draw, f"Learning rate over the epochs, at most {rates.max():g}")


def reliability(predictions: Predictions) -> Markup:
    """Accuracy by confidence, in the bins of the calibration error; on the diagonal confidence is what it says."""
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    index = np.clip(np.ceil(predictions.probability * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    images = np.bincount(index, minlength=CALIBRATION_BINS)
    filled = images > 0
    right = np.bincount(index, weights=predictions.right, minlength=CALIBRATION_BINS)[filled] / images[filled]
    confidence = np.bincount(index, weights=predictions.probability, minlength=CALIBRATION_BINS)[filled]

    def draw(axes: Axes) -> None:
        axes.bar(edges[:-1][filled], right, 1 / CALIBRATION_BINS, align="edge", color=FIRST, alpha=0.45, linewidth=0)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="honest")
        axes.plot(confidence / images[filled], right, "o", color=FIRST, markersize=5, label="this model")
        axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="confidence")
        _percentages(axes)
        axes.legend(loc="upper left")
        axes.set_title("Images right, by confidence", color=INK)

    return _chart(draw, "Reliability diagram: share of images right against the confidence of the prediction")


def confidence(predictions: Predictions) -> Markup:
    """How often which confidence is given, by right and wrong."""

    def draw(axes: Axes) -> None:
        right = predictions.right
        kinds = [predictions.probability[right], predictions.probability[~right]]
        axes.hist(
            kinds, bins=20, range=(0, 1), stacked=True, color=[FIRST, SECOND], label=["right", "wrong"], linewidth=0
        )
        axes.set(xlim=(0, 1), xlabel="confidence", ylabel="images (log)", yscale="log")
        axes.set_ylim(0.7, 6 * axes.get_ylim()[1])  # one image is seen, and the legend has room
        axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.legend(loc="upper left")
        axes.set_title("Images, by confidence", color=INK)

    return _chart(draw, "Histogram of the confidence of the predictions, right and wrong")


def _curves(axes: Axes, history: History, training: str, validation: str) -> None:
    epochs = [record["epoch"] for record in history]
    marker = "o" if len(epochs) == 1 else None  # a line needs two points
    for key, label, colour in ((training, "training", FIRST), (validation, "validation", SECOND)):
        axes.plot(epochs, [record[key] for record in history], marker=marker, color=colour, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.legend()


def _percentages(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, 0))


def _chart(draw: Callable[[Axes], None], description: str) -> Markup:
    """One pair of axes, filled by `draw`, as an <svg> that says `description` to those who cannot see it."""
    file = io.StringIO()
    # Names of clip paths must differ from chart to chart, and not from run to run.
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": description}):
        figure = Figure(figsize=SIZE)
        draw(figure.add_subplot())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return Markup(_inline(file.getvalue(), description))  # noqa: S704 (from matplotlib; the description is escaped)


def _inline(document: str, description: str) -> str:
    """From a stand-alone SVG document to an element of a page."""
    # A style sheet in an inline SVG would be one of the whole page.
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", document, flags=re.DOTALL)
    head, body = svg[svg.index("<svg") :].split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box is not None
    body = re.sub(r' id="[\w.]+_\d+"', "", body)  # no reference goes there, and each chart has the same
    body = re.sub(r" font-family: [^;]*;", "", body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg class="chart" role="img" aria-label="{escape(description)}" {view_box.group()}>{body}'
