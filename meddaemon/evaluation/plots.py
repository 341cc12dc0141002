"""Pictures of a report as SVG, the same bytes for the same numbers (matplotlib)."""

import io
from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from meddaemon.evaluation.classification import ClassTable, GroupTable
from meddaemon.evaluation.detection import RATES, Froc
from meddaemon.evaluation.regression import NumberTable
from meddaemon.evaluation.segmentation import SegmentTable

_SETTINGS = {
    "svg.hashsalt": "meddaemon",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": False,
    # Names of models and findings are text, never a formula.
    "text.parse_math": False,
    "text.usetex": False,
}
_BLUE, _RED, _GREY = "#0072B2", "#D55E00", "#888888"
_MOST_NAMES = 40
"""Segments that one picture has room for."""


def roc(tables: Sequence[ClassTable]) -> str:
    """Draw the ROC curves of classes that have one."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle="--")
        for table in tables:
            x, y = zip(*table.roc, strict=True)
            axes.plot(x, y, linewidth=1.5, label=f"{table.name} (AUC {table.auc.value or 0:.3f})")
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
        axes.legend(loc="lower right", frameon=False)

    return _svg(draw, (5.0, 5.0))


def confusion(table: GroupTable) -> str:
    """Draw a confusion matrix: rows are the reference, columns the results."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        counts = np.array(table.matrix, dtype=float)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1)
        for row, line in enumerate(table.matrix):
            for column, count in enumerate(line):
                dark = shares[row, column] > 0.5
                axes.text(column + 0.5, row + 0.5, str(count), ha="center", va="center", color="white" if dark else "k")
        places = np.arange(len(table.labels)) + 0.5
        axes.set_xticks(places, table.labels, rotation=45, ha="right")
        axes.set_yticks(places, table.labels)
        axes.invert_yaxis()
        axes.set(xlabel="result", ylabel="reference", aspect="equal")

    side = 3.0 + 0.45 * len(table.labels)
    return _svg(draw, (side, side))


def overlap(tables: Sequence[SegmentTable]) -> str:
    """Draw the Dice coefficient of every case, and the mean of each segment with its interval."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        shown = tables[:_MOST_NAMES]
        for place, table in enumerate(shown):
            values = [each.dice for each in table.cases if each.dice is not None]
            # Spread out by rank, so that equal values can be told apart and pictures do not change.
            sides = place + (np.arange(len(values)) % 9 - 4) * 0.04
            axes.plot(values, sides, ".", color=_GREY, markersize=4)
            if table.dice.value is not None:
                if table.dice.low is not None and table.dice.high is not None:
                    axes.plot([table.dice.low, table.dice.high], [place, place], color=_BLUE, linewidth=2)
                axes.plot([table.dice.value], [place], "o", color=_BLUE, markersize=6)
        axes.set_yticks(range(len(shown)), [table.name for table in shown])
        axes.set(xlabel="Dice", xlim=(-0.02, 1.02), ylim=(len(shown) - 0.5, -0.5))
        axes.grid(axis="x", linewidth=0.4)

    return _svg(draw, (7.0, 1.2 + 0.35 * min(len(tables), _MOST_NAMES)))


def sizes(table: SegmentTable) -> str:
    """Draw how volumes or areas agree."""
    pairs = [(each.size, each.reference_size) for each in table.cases]
    lines = (table.bias.value, *(table.limits_of_agreement or ()))
    return _svg(lambda figure: _agreement(figure.add_subplot(), pairs, lines, table.unit, table.name), (5.5, 3.4))


def numbers(table: NumberTable) -> str:
    """Draw results over their reference, with the line on which both are equal, and how they agree."""
    pairs = [(each.value, each.reference) for each in table.cases]
    lines = (table.bias.value, table.lower_limit.value, table.upper_limit.value)

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
        found, expected = zip(*pairs, strict=True)
        ends = min(*found, *expected), max(*found, *expected)
        left.plot(ends, ends, color=_GREY, linewidth=0.8, linestyle="--")
        left.plot(expected, found, ".", color=_BLUE)
        left.set(xlabel=f"reference / {table.unit}", ylabel=f"result / {table.unit}", aspect="equal")
        _agreement(right, pairs, lines, table.unit, table.name)

    return _svg(draw, (9.0, 3.6))


def _agreement(
    axes: Axes, pairs: Sequence[tuple[float, float]], lines: Sequence[float | None], unit: str, title: str
) -> None:
    """Draw differences over means, with bias and limits of agreement (Bland and Altman 1986)."""
    axes.plot([sum(pair) / 2 for pair in pairs], [found - expected for found, expected in pairs], ".", color=_BLUE)
    for place, line in enumerate(lines):
        if line is not None:
            axes.axhline(line, color=_RED, linewidth=0.8 if place else 1.2, linestyle="--" if place else "-")
    axes.set(xlabel=f"mean of both / {unit}", ylabel=f"result - reference / {unit}", title=title)


def criterion(table: Froc) -> str:
    """Return a finding and what counts as a hit of it, in words."""
    return f"{table.name}, " + ("by centre" if table.iou is None else f"IoU from {table.iou:g}")


def froc(tables: Sequence[Froc]) -> str:
    """Draw the FROC curves of findings that have one."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for table in tables:
            x, y = zip(*table.curve, strict=True)
            # Right of its last point sensitivity stays as it is: the model reports nothing less sure.
            end = max(x[-1], RATES[-1])
            axes.step([*x, end], [*y, y[-1]], where="post", linewidth=1.5, label=criterion(table))
        axes.set_xscale("symlog", base=2, linthresh=RATES[0])
        axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
        axes.minorticks_off()
        axes.set(xlabel="false positives a case", ylabel="sensitivity", xlim=(0, RATES[-1]), ylim=(0, 1.02))
        axes.legend(loc="lower right", frameon=False)

    return _svg(draw, (6.0, 4.0))


def _svg(draw: Callable[[Figure], None], size: tuple[float, float]) -> str:
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # Inline in HTML there is no XML declaration and no document type.
    return text[text.index("<svg") :]
