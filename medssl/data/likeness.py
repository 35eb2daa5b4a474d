"""Describe the scans of a run in a few numbers, and tell how another scan differs from all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from medssl.config import Settings
from medssl.data.looks import Look
from medssl.data.outliers import AXES, FEWEST, RANGE_FACTOR, SIZE_FACTOR, SPACING_FACTOR, UNIT_LOW, UNIT_SHIFT, Span
from medssl.data.volume import Oddity
from medssl.words import by

_LEVELS = {"darkest": 0, "middle": 3, "brightest": 6}
"""Places in `Look.levels`."""
_FIX = "check that it is a scan of the kind that the run was trained on; if not, its label map means nothing"


class Likeness(Settings):
    """Ranges of size and grey levels of the scans that a run learns from, without any name."""

    spacing: tuple[Span, Span, Span]
    """Millimetres along the axes of the world, left-right first."""
    extent: tuple[Span, Span, Span]
    """Millimetres that the raw volumes span."""
    levels: tuple[Span, Span, Span] | None
    """The darkest, middle and brightest grey levels of the first channel; None if too few are known."""
    contrast: Span | None
    """Difference between the brightest and the darkest grey level; None if too few are known."""

    @classmethod
    def of(cls, looks: Sequence[Look]) -> Likeness | None:
        """Return the ranges of these scans; None if they are too few to tell what is usual."""
        if len(looks) < FEWEST:
            return None
        grey = [look for look in looks if look.levels]
        levels = [[look.levels[place] for place in _LEVELS.values()] for look in grey]
        return cls(
            spacing=_spans([look.spacing for look in looks]),
            extent=_spans([look.extent for look in looks]),
            levels=_spans(levels) if len(grey) >= FEWEST else None,
            contrast=Span.of([look.range for look in grey]) if len(grey) >= FEWEST else None,
        )

    @property
    def words(self) -> str:
        """The ranges in words."""
        spacing, extent = ("; ".join(f"{axis} {span}" for axis, span in zip(AXES, spans, strict=True))
                           for spans in (self.spacing, self.extent))  # fmt: skip
        grey = f" Grey levels from {self.levels[0]} to {self.levels[2]}." if self.levels else ""
        return f"Voxels of {spacing} mm; volumes of {extent} mm.{grey}"

    def oddities(self, look: Look) -> Iterator[Oddity]:
        """Yield how a scan differs from these by more than scanners usually do."""
        if odd := _odd_axes(look.spacing, self.spacing, SPACING_FACTOR):
            yield Oddity("unlike_spacing", f"spacing {by(look.spacing)} mm, but the scans of the run have {odd}", _FIX)
        if odd := _odd_axes(look.extent, self.extent, SIZE_FACTOR):
            size = by(round(mm) for mm in look.extent)
            yield Oddity("unlike_extent", f"it spans {size} mm, but the scans of the run span {odd}", _FIX)
        if found := self._off_levels(look):
            yield Oddity("unlike_levels", found, _FIX)

    def _off_levels(self, look: Look) -> str:
        """Say how grey levels differ: with a unit (HU) they are compared themselves, otherwise only their range."""
        if self.levels is None or self.contrast is None or not look.levels:
            return ""
        if min(self.levels[0].low, look.levels[0]) > UNIT_LOW:
            if self.contrast.holds(look.range, factor=RANGE_FACTOR):
                return ""
            return f"its grey levels span {look.range:.4g}; those of the scans of the run span {self.contrast}"
        for (name, place), span in zip(_LEVELS.items(), self.levels, strict=True):
            if not span.holds(look.levels[place], shift=UNIT_SHIFT):
                return f"its {name} grey level is {look.levels[place]:.4g}; the scans of the run have {span}"
        return ""


def _odd_axes(values: Sequence[float], spans: Sequence[Span], factor: float) -> str:
    """Say what the scans have along the axes on which a value differs."""
    along = zip(AXES, values, spans, strict=True)
    return ", ".join(f"{span} mm {axis}" for axis, value, span in along if not span.holds(value, factor=factor))


def _spans(table: ArrayLike) -> tuple[Span, Span, Span]:
    """Return the ranges of three columns."""
    x, y, z = (Span.of(column) for column in np.asarray(table, float).T)
    return x, y, z
