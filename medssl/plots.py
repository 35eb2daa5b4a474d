"""The plots of a report, each returned as a data URI of an SVG, to embed in an HTML page.

Nothing is read from disk, and pyplot is not used: figures are objects that are drawn, encoded and released. Names from
data are drawn as plain text, never as mathematics.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from medssl.palette import PALETTE
from medssl.statistics import Ranking

BINS = 40
"""Largest number of points of a smoothed curve."""
MOST_NUMBERED = 9
"""Largest number of classes with which the cells of a confusion matrix show their numbers."""

_STYLE = {
    "text.parse_math": False, "svg.hashsalt": "medssl", "font.size": 10.5, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": "#8a939b", "xtick.color": "#4a535b", "ytick.color": "#4a535b",
    "axes.labelcolor": "#4a535b", "axes.grid": True, "grid.color": "#e6e9ec", "axes.axisbelow": True,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One curve of a line plot; lines with the same label share an entry in the legend."""

    label: str
    colour: str
    style: str
    steps: Sequence[float]
    values: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None
    """Lower and upper edge of the shaded band around it."""


@dataclass(frozen=True)
class Curve:
    """A method's results against its number of labelled patients or cases."""

    label: str
    colour: str
    style: str
    points: Sequence[Point]


class Point(NamedTuple):
    """A mean, its interval if there is one, and the means of single runs."""

    labelled: int
    mean: float
    low: float | None
    high: float | None
    runs: Sequence[float]


def strip_plot(groups: Sequence[tuple[str, str, Sequence[float]]], axis: str) -> str:
    """Plot a box and every value of each group `(label, colour, values)`, from top to bottom."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 0.7 + 0.72 * len(groups)), layout="constrained")
        axes = figure.add_subplot()
        for y, (label, colour, values) in enumerate(groups):
            _draw_strip(axes, y, colour, values)
            text = label if values else f"{label}: not scored"
            axes.annotate(text, (0, y - 0.34), xycoords=("axes fraction", "data"), va="center", color="#20272d")
        axes.set_ylim(len(groups) - 0.6, -0.6)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis)
        return _svg(figure)


def line_plot(
    lines: Sequence[Line], axis: str, *, size: tuple[float, float] = (5.4, 3.2), legend: bool = True
) -> str:  # fmt: skip
    """Plot curves against the training step, with the legend below."""
    with mpl.rc_context(_STYLE):
        entries = {line.label: line for line in lines} if legend else {}
        figure = Figure(figsize=(size[0], size[1] + 0.23 * len(entries)), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            is_first = entries.pop(line.label, None) is not None
            marker = "o" if len(line.steps) <= 20 else ""
            if line.band is not None:
                axes.fill_between(line.steps, *line.band, color=line.colour, alpha=0.15, linewidth=0)
            axes.plot(line.steps, line.values, color=line.colour, linestyle=line.style, linewidth=1.5, alpha=0.85,
                      label=line.label if is_first else "_", marker=marker, markersize=3)  # fmt: skip
        axes.set_xlabel("training step")
        axes.set_ylabel(axis)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if legend:
            figure.legend(loc="outside lower left", frameon=False, handlelength=3, fontsize=10)
        return _svg(figure)


def label_curve(curves: Sequence[Curve], levels: Sequence[tuple[str, str, float]], axis: str) -> str:
    """Plot a metric against the number of labelled patients or cases, with a line per method.

    Args:
        levels: `(label, colour, value)` of methods that had all labels, drawn as horizontal lines.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 3.4 + 0.23 * (len(curves) + len(levels))), layout="constrained")
        axes = figure.add_subplot()
        counts = sorted({point.labelled for curve in curves for point in curve.points})
        is_wide = counts[-1] >= 6 * counts[0]
        for i, curve in enumerate(curves):
            _draw_curve(axes, curve, shift=(i - (len(curves) - 1) / 2) * 0.012, is_wide=is_wide, span=counts)
        for label, colour, value in levels:
            axes.axhline(value, color=colour, linestyle=(0, (6, 3)), linewidth=1.3, label=label)
        if is_wide:
            axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(counts))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
        axes.set_xlabel("labelled count")
        axes.set_ylabel(axis)
        figure.legend(loc="outside lower left", frameon=False, handlelength=3, fontsize=10)
        return _svg(figure)


def rank_plot(ranking: Ranking, colours: Mapping[str, str]) -> str:
    """Plot mean ranks and how often each method comes in which place.

    The bars of two methods overlap if their mean ranks differ by less than the critical difference.

    Args:
        colours: colour of each method in the ranking.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 1.0 + 0.62 * len(ranking.names)), layout="constrained")
        ranks, shares = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for y, (name, mean, places) in enumerate(
            zip(ranking.names, ranking.mean_ranks, ranking.places, strict=True)
        ):  # fmt: skip
            ranks.errorbar(mean, y, xerr=ranking.critical_difference / 2, fmt="o", color=colours[name], markersize=6,
                           linewidth=3, elinewidth=2)  # fmt: skip
            ranks.annotate(name, (0, y - 0.34), xycoords=("axes fraction", "data"), va="center", color="#20272d")
            _draw_places(shares, y, colours[name], [100 * share for share in places])
        ranks.set_ylim(len(ranking.names) - 0.6, -0.6)
        ranks.set_yticks([])
        ranks.spines["left"].set_visible(False)
        ranks.set_xlabel("mean rank over patients")
        shares.set_xlim(0, 100)
        shares.spines["left"].set_visible(False)
        shares.set_xlabel("resamples by place, %")
        return _svg(figure)


def calibration_plot(curves: Sequence[tuple[str, str, str, Sequence[float], Sequence[float]]]) -> str:
    """Plot the share of correct voxels against their probability, for each `(label, colour, style, sure, right)`."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 4.2 + 0.23 * len(curves)), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="#8a939b", linewidth=1, linestyle=(0, (2, 2)))
        for label, colour, style, certainty, right in curves:
            axes.plot(certainty, right, color=colour, linestyle=style, linewidth=1.5, marker="o", markersize=3.5,
                      label=label)  # fmt: skip
        lowest = min((c for curve in curves for c in (*curve[3], *curve[4])), default=0.0)
        axes.set_xlim(max(0, lowest - 0.05), 1.01)
        axes.set_ylim(max(0, lowest - 0.05), 1.01)
        axes.set_aspect("equal")
        axes.set_xlabel("probability of the predicted class")
        axes.set_ylabel("share of voxels predicted correctly")
        figure.legend(loc="outside lower left", frameon=False, handlelength=3, fontsize=10)
        return _svg(figure)


def confusion_matrix(shares: NDArray[np.float64], names: Sequence[str], colour: str) -> str:
    """Plot the percentage of each reference class (row) that was predicted as each class (column)."""
    count = len(names)
    side = min(7.5, 1.5 + 0.62 * count)
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side + 0.5, side), layout="constrained")
        axes = figure.add_subplot()
        shading = LinearSegmentedColormap.from_list("share", ["#ffffff", colour])
        axes.pcolormesh(shares, cmap=shading, vmin=0, vmax=1, edgecolors="#e6e9ec", linewidth=0.6)
        if count <= MOST_NUMBERED:
            for (row, column), share in np.ndenumerate(shares):
                axes.text(column + 0.5, row + 0.5, f"{100 * share:.0f}", ha="center", va="center", fontsize=9.5,
                          color="white" if share > 0.6 else "#20272d")  # fmt: skip
        axes.set_xticks(np.arange(count) + 0.5, names, rotation=90 if max(map(len, names)) > 4 else 0)
        axes.set_yticks(np.arange(count) + 0.5, names)
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_xlabel("predicted")
        axes.set_ylabel("reference")
        return _svg(figure)


def histograms(groups: Sequence[tuple[str, Sequence[float]]], axis: str) -> str:
    """Plot a histogram over cases for each `(label, values)`, from top to bottom on one scale."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 0.6 + 1.1 * len(groups)), layout="constrained")
        every = np.concatenate([np.asarray(values, float) for _, values in groups])
        low, high = float(every.min()), float(every.max())
        margin = max(0.05 * (high - low), 0.02 * abs(high), 1e-6)
        edges = np.linspace(low - margin, high + margin, BINS + 1)
        for plot, (label, values), colour in zip(
            np.atleast_1d(figure.subplots(len(groups), 1, sharex=True)), groups, PALETTE, strict=False
        ):
            plot.hist(values, bins=edges, color=colour, alpha=0.85)
            plot.yaxis.set_major_locator(MaxNLocator(2, integer=True))
            plot.set_title(label, loc="left", fontsize=10, color="#20272d", pad=3)
        plot.set_xlabel(axis)
        figure.supylabel("cases", fontsize=10.5, color="#4a535b")
        return _svg(figure)


def level_plot(levels: Sequence[Sequence[float]], is_odd: Sequence[bool], axis: str) -> str:
    """Plot the grey levels of cases side by side, sorted by their median.

    Args:
        levels: five numbers of each case in rising order, the third of them the median.
        is_odd: cases to draw in another colour.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        table = np.asarray(levels, float)
        order = np.argsort(table[:, 2], kind="stable")
        colours = np.where(np.asarray(is_odd)[order], PALETTE[1], PALETTE[0])
        width = float(np.clip(160 / len(table), 0.6, 8))
        places = np.arange(len(table))
        axes.vlines(places, table[order, 0], table[order, 4], colors=colours, linewidth=width, alpha=0.3)
        axes.vlines(places, table[order, 1], table[order, 3], colors=colours, linewidth=width, alpha=0.75)
        axes.scatter(places, table[order, 2], s=max(3.0, min(24.0, 3 * width)), color="#20272d", linewidths=0, zorder=3)
        heights = np.abs(table[:, 4])
        if heights.max() > 20 * np.median(heights) > 0:
            axes.set_yscale("symlog", linthresh=float(np.median(heights)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("cases, sorted by median grey level")
        axes.set_ylabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return _svg(figure)


def smooth(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return steps and values averaged over at most `BINS` groups of neighbouring steps."""
    order = np.argsort(steps, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    return tuple([float(np.mean(np.asarray(x)[part])) for part in parts] for x in (steps, values))  # type: ignore[return-value]


def _draw_curve(axes: Any, curve: Curve, *, shift: float, is_wide: bool, span: Sequence[int]) -> None:
    """Draw a curve, shifted a little to the side so that the intervals of methods do not cover each other."""
    width = span[-1] - span[0]
    xs = [n * (1 + 2.5 * shift) if is_wide else n + shift * width for n in (point.labelled for point in curve.points)]
    axes.plot(xs, [point.mean for point in curve.points], color=curve.colour, linestyle=curve.style, linewidth=1.8,
              marker="o", markersize=5, label=curve.label)  # fmt: skip
    for x, point in zip(xs, curve.points, strict=True):
        if point.low is not None and point.high is not None:
            axes.plot([x, x], [point.low, point.high], color=curve.colour, linewidth=1.2, alpha=0.8)
        if len(point.runs) > 1:
            axes.scatter([x] * len(point.runs), point.runs, s=11, facecolor="white", edgecolor=curve.colour,
                         linewidths=0.9, zorder=3)  # fmt: skip


def _draw_strip(axes: Any, y: int, colour: str, values: Sequence[float]) -> None:
    if not values:
        return
    # Multiples of the golden ratio spread neighbours apart and need no random numbers.
    jitter = [(i * 0.618034 % 1 - 0.5) * 0.24 for i in range(len(values))]
    axes.scatter(values, [y + j for j in jitter], s=13, color=colour, alpha=0.55, linewidths=0)
    low, middle, high = np.percentile(values, [25, 50, 75])
    reach = 1.5 * (high - low)
    inner = [value for value in values if low - reach <= value <= high + reach]
    for end, edge in ((min(inner), low), (max(inner), high)):
        axes.plot([end, edge], [y, y], color=colour, linewidth=1.2)
    axes.broken_barh([(low, high - low)], (y - 0.17, 0.34), facecolor="none", edgecolor=colour, linewidth=1.4)
    axes.plot([middle, middle], [y - 0.17, y + 0.17], color="#20272d", linewidth=2)


def _draw_places(axes: Any, y: int, colour: str, shares: Sequence[float]) -> None:
    """Draw a bar divided by place, the first place darkest; parts that are wide enough show their place."""
    start = 0.0
    for place, share in enumerate(shares):
        alpha = 0.85 * (1 - place / len(shares))
        axes.barh(y, share, left=start, height=0.34, color=colour, alpha=alpha, linewidth=0)
        if share > 8:
            axes.text(start + share / 2, y, str(place + 1), ha="center", va="center", fontsize=9,
                      color="white" if alpha > 0.5 else "#20272d")  # fmt: skip
        start += share


def _svg(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
