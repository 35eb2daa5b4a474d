"""Which colour and line stands for what, and which grey levels are shown. Nothing is drawn here."""

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
"""The first seven are told apart by colour-blind readers (after Okabe and Ito, without black and yellow); the others,
mostly darker ones, are for a table of all methods."""
CLASS_COLOURS = ("#56B4E9", "#E69F00", "#2FC38F", "#F08CC4", "#F0E442", "#9AA7FF", "#FF8A5B")
"""Bright enough for a line on a grey scan."""
STYLES = ("-", "--", ":", "-.")
"""Of lines that share a colour, as matplotlib names them."""


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """One colour per method, in order of first appearance; `supervised` is the grey baseline."""
    others = [method for method in dict.fromkeys(methods) if method != "supervised"]
    return {"supervised": BASELINE_COLOUR} | {m: PALETTE[i % len(PALETTE)] for i, m in enumerate(others)}


def class_colour(label: int) -> str:
    """The colour of a foreground class on scans."""
    return CLASS_COLOURS[(label - 1) % len(CLASS_COLOURS)]


def grey_window(grey: NDArray[Any]) -> tuple[float, float]:
    """The grey levels that are shown black and white: the 0.5th and 99.5th percentile of what is finite."""
    finite = grey[np.isfinite(grey)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))
