"""Colours and line styles of plots, and the range of grey levels that images show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

BASELINE_COLOUR = "#5c6670"
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F",
    "#003A5C", "#7A2E00", "#7CB342", "#6A2C57", "#B39DDB", "#00463A", "#20272D",
)  # fmt: skip
"""Colours of methods. Colour-blind readers can distinguish the first seven (after Okabe and Ito, without black and
yellow); the others, mostly darker ones, are for a table of all methods."""
CLASS_COLOURS = ("#56B4E9", "#E69F00", "#2FC38F", "#F08CC4", "#F0E442", "#9AA7FF", "#FF8A5B")
"""Colours of classes, bright enough for a line on a grey scan."""
STYLES = ("-", "--", ":", "-.")
"""Matplotlib's line styles for lines that share a colour."""


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """Return a colour for each method, in order of first appearance; `supervised`, the baseline, is grey."""
    others = [method for method in dict.fromkeys(methods) if method != "supervised"]
    return {"supervised": BASELINE_COLOUR} | {m: PALETTE[i % len(PALETTE)] for i, m in enumerate(others)}


def class_colour(label: int) -> str:
    """Return the colour of a foreground class on scans."""
    return CLASS_COLOURS[(label - 1) % len(CLASS_COLOURS)]


def grey_window(grey: NDArray[Any]) -> tuple[float, float]:
    """Return the grey levels that are shown as black and white: the 0.5th and 99.5th percentile of finite voxels."""
    finite = grey[np.isfinite(grey)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))
