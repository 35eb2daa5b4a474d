"""What the scans of a run are like in a few numbers, and how another scan is unlike all of them."""

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
_FIX = "is it a scan of the kind that the run learned from? If not, its label map means nothing"


class Likeness(Settings):
    """Between which values the scans lie that a run learns from; no name, no scan."""

    spacing: tuple[Span, Span, Span]
    """Millimetres along the axes of the world, left-right first."""
    extent: tuple[Span, Span, Span]
    """Millimetres that the raw volumes span."""
    levels: tuple[Span, Span, Span] | None
    """The darkest, middle and brightest grey levels of the first channel; None where none were noted."""
    contrast: Span | None
    """Grey levels from the darkest to the brightest."""

    @classmethod
    def of(cls, looks: Sequence[Look]) -> Likeness | None:
        """Of these scans; None where they are too few to tell what is usual."""
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
        """All of it in a sentence."""
        spacing, extent = ("; ".join(f"{axis} {span}" for axis, span in zip(AXES, spans, strict=True))
                           for spans in (self.spacing, self.extent))  # fmt: skip
        grey = f" Grey levels from {self.levels[0]} to {self.levels[2]}." if self.levels else ""
        return f"Voxels of {spacing} mm; volumes of {extent} mm.{grey}"

    def oddities(self, look: Look) -> Iterator[Oddity]:
        """In what a scan is unlike these, by more than scanners differ."""
        if odd := _odd_axes(look.spacing, self.spacing, SPACING_FACTOR):
            yield Oddity("unlike_spacing", f"spacing {by(look.spacing)} mm, where the run's scans have {odd}", _FIX)
        if odd := _odd_axes(look.extent, self.extent, SIZE_FACTOR):
            size = by(round(mm) for mm in look.extent)
            yield Oddity("unlike_extent", f"it spans {size} mm, where the run's scans have {odd}", _FIX)
        if found := self._off_levels(look):
            yield Oddity("unlike_levels", found, _FIX)

    def _off_levels(self, look: Look) -> str:
        """Where grey levels have a unit they are compared as they are, elsewhere by their range alone."""
        if self.levels is None or self.contrast is None or not look.levels:
            return ""
        if min(self.levels[0].low, look.levels[0]) > UNIT_LOW:
            if self.contrast.holds(look.range, factor=RANGE_FACTOR):
                return ""
            return f"its grey levels span {look.range:.4g}, those of the run's scans {self.contrast}"
        for (name, place), span in zip(_LEVELS.items(), self.levels, strict=True):
            if not span.holds(look.levels[place], shift=UNIT_SHIFT):
                return f"its {name} grey level is {look.levels[place]:.4g}, the run's scans have {span}"
        return ""


def _odd_axes(values: Sequence[float], spans: Sequence[Span], factor: float) -> str:
    """What the scans have along the axes where a value is another."""
    along = zip(AXES, values, spans, strict=True)
    return ", ".join(f"{axis} {span} mm" for axis, value, span in along if not span.holds(value, factor=factor))


def _spans(table: ArrayLike) -> tuple[Span, Span, Span]:
    """Of three columns."""
    x, y, z = (Span.of(column) for column in np.asarray(table, float).T)
    return x, y, z
