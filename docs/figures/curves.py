"""The curves of docs/benchmarks.md: validation Dice of every method over its steps, out of benchmarks/results.

    python docs/figures/curves.py

A curve is the mean of a row's runs. Names stand at the curves' ends, as near as there is room.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from medssl.palette import STYLES, method_colours

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
FILE = RESULTS / "hippocampus-methods-curves.csv"
LOWEST, HIGHEST = 72.0, 86.0
"""Dice in percent; the first validations of some are below."""
LINE = 0.62
"""Height of a name, in these."""

Curves = dict[str, list[tuple[int, float]]]


def read(labelled: int) -> Curves:
    """Step and mean Dice in percent by row."""
    curves: Curves = defaultdict(list)
    with FILE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if int(row["labelled"]) == labelled:
                curves[row["row"]].append((int(row["step"]), 100 * float(row["mean"])))
    return curves


def draw(curves: Curves, path: Path) -> None:
    """Write the figure."""
    with mpl.rc_context({"svg.hashsalt": "medssl", "svg.fonttype": "none", "font.size": 9.5}):
        figure = Figure(figsize=(6.6, 4.0), layout="constrained")
        axes = figure.add_subplot()
        to_name = {"arrowstyle": "-", "color": "#c4cad0", "linewidth": 0.6, "relpos": (0, 0.5)}
        at, colours = HIGHEST, method_colours(curves)
        for number, (name, colour) in enumerate(colours.items()):
            style = STYLES[number // 7 % len(STYLES)]
            axes.plot(*zip(*curves[name], strict=True), color=colour, linestyle=style, linewidth=1.5)
        for name in sorted(curves, key=lambda name: -curves[name][-1][1]):
            step, value = curves[name][-1]
            at = min(value, at - LINE)
            axes.annotate(f"{name}  {value:.1f}", (step, value), (step * 1.05, at), va="center", annotation_clip=False,
                          color=colours[name], arrowprops=to_name)  # fmt: skip
        axes.set_ylim(LOWEST, HIGHEST)
        axes.set_xlabel("training step")
        axes.set_ylabel("validation Dice, %")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(color="#e6e9ec")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    for labelled in (4, 9):
        draw(read(labelled), RESULTS / f"hippocampus-curves-{labelled}.svg")
