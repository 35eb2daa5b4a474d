"""Order DICOM slices along their normal and compute the affine of the stack, or say why they do not form a volume.

A *slice* is a file, or a frame of a multi-frame file. Positions are millimetres in the LPS world of DICOM until the
affine is made. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl.data.volume import LPS_TO_RAS, Affine, Oddity
from medssl.errors import DataError
from medssl.words import FEW, by, how_many, some

SAME = 1e-3
"""Cosines, and shares of a spacing, that differ by less count as equal."""
OFF_GRID = 0.1
"""Largest distance of a slice from its place in an even stack, as a share of a step; beyond it is an error."""
ROUNDING = (0.02, 0.01)
"""Distance from that place, as a share of a step or in millimetres, that is not reported."""

SAME_PLACE = 0.01
"""Slices nearer to each other than this share of a pixel have the same position."""
ONE_IN_A_VOLUME = ("TemporalPositionIdentifier", "EchoNumbers")
"""Elements of the header that have one value in a volume."""
IN_ONE_PIECE = ("AcquisitionNumber", "EchoTime", "ImageType")
"""Elements that may have several values in a volume, each in consecutive slices."""
OF_TIME = ("TriggerTime", "AcquisitionTime")
"""Elements that may differ between any slices; they tell volumes apart that share positions."""
APART = (
    "put the files of each volume into a separate folder, or convert the series with dcm2niix and name one frame in "
    "a datalist, as in scan.nii.gz#0"
)

_Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Slice:
    """Position and size of a slice, in LPS millimetres."""

    name: str
    size: tuple[int, int]
    spacing: _Vector
    """`(2,)`: from column to column, from row to row."""
    axes: _Vector
    """`(2, 3)`: unit vectors along which columns and rows are counted."""
    position: _Vector
    """`(3,)`: of the first pixel."""
    said: Mapping[str, str] = field(default_factory=dict)
    """Values of ONE_IN_A_VOLUME, IN_ONE_PIECE and OF_TIME that the header has."""

    @property
    def normal(self) -> _Vector:
        normal = np.cross(*self.axes)
        return np.asarray(normal / np.linalg.norm(normal), np.float64)


def placed_slice(
    name: str, size: tuple[int, int], position: str, axes: str, between: str, said: Mapping[str, str] | None = None
) -> Slice | None:
    """Return a slice from the texts of its header (spacing of rows first); None if one of them is invalid."""
    place, directions, spacing = numbers_of(position, 3), numbers_of(axes, 6), numbers_of(between, 2)
    if place is None or directions is None or spacing is None or spacing.min() <= 0:
        return None
    directions = directions.reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > 10 * SAME:
        return None
    along = directions[0] / np.linalg.norm(directions[0])  # rounded texts: make unit vectors at right angles
    across = directions[1] - directions[1] @ along * along
    across /= np.linalg.norm(across)
    return Slice(name, size, spacing[::-1], np.stack([along, across]), place, said or {})


def stack(place: Path, slices: Sequence[Slice], depth: float) -> tuple[list[int], Affine, tuple[Oddity, ...]]:
    """Return the order of slices along their normal, the affine of the stack to RAS, and its oddities.

    Args:
        place: the folder or file that error messages name.
        depth: millimetres from slice to slice, used if there is only one.

    Raises:
        DataError: the slices do not form one evenly spaced volume.
    """
    _require_one_volume(place, slices)
    _require_same(place, slices, "direction", lambda one: one.axes, "is a localizer among them?")
    _require_same(place, slices, "size in pixels", lambda one: np.array(one.size, np.float64), share=0)
    _require_same(place, slices, "spacing in mm", lambda one: one.spacing)
    first = slices[0]
    heights = np.array([one.position @ first.normal for one in slices])
    order = [int(i) for i in np.argsort(heights, kind="stable")]
    _require_steps(place, [slices[i] for i in order], heights[order])
    positions = np.array([slices[i].position for i in order])
    step = first.normal * depth if len(slices) == 1 else (positions[-1] - positions[0]) / (len(slices) - 1)
    oddities = (
        *_uneven(place, [slices[i].name for i in order], positions, step),
        *_tilt(step, first.normal),
        *_in_turns([slices[i] for i in order]),
    )
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([*(first.axes * first.spacing[:, None]), step])
    affine[:3, 3] = positions[0]
    return order, LPS_TO_RAS @ affine, oddities


def _require_same(
    place: Path,
    slices: Sequence[Slice],
    what: str,
    value: Callable[[Slice], _Vector],
    hint: str = "",
    share: float = SAME,
) -> None:
    groups: list[tuple[_Vector, list[str]]] = []
    for one in slices:
        mine = value(one)
        for known, names in groups:
            if np.abs(mine - known).max() <= share * np.abs(known).max():
                names.append(one.name)
                break
        else:
            groups.append((mine, [one.name]))
    if len(groups) == 1:
        return
    groups.sort(key=lambda group: -len(group[1]))
    lines = [f"  {by(known.ravel())}: {some(names)}" for known, names in groups[:FEW]]
    advice = "move the slices that do not belong into another folder" + (f"; {hint}" if hint else "")
    raise DataError("\n".join([f"{place}: a series must have one {what}, found {len(groups)}", *lines, advice]))


def _require_one_volume(place: Path, slices: Sequence[Slice]) -> None:
    for name in ONE_IN_A_VOLUME:
        values = _values(slices, name)
        if len(values) > 1:
            raise DataError(
                f"{place}: a series must hold one volume, found {len(slices)} slices of {len(values)}, by {name} "
                f"({some(values)}); {APART}"
            )


def _values(slices: Sequence[Slice], name: str) -> list[str]:
    """The different values of an element in the headers."""
    return list(dict.fromkeys(one.said[name] for one in slices if name in one.said))


def _require_steps(place: Path, slices: Sequence[Slice], heights: _Vector) -> None:
    """Check that no two slices share a position and none is missing; `heights` ascend along the normal."""
    steps, names = np.diff(heights), [one.name for one in slices]
    if not len(steps):
        return
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])
    is_same = steps <= SAME_PLACE * slices[0].spacing.min()
    if is_same.any():
        pairs = [f"{names[i]} and {names[i + 1]}" for i in np.flatnonzero(is_same).tolist()]
        positions = len(slices) - len(pairs)
        raise DataError(
            f"{place}: slices share a position ({len(slices)} slices at {how_many(positions, 'position')}): "
            f"{some(pairs)}{_difference(slices, is_same)}; keep one of each if they are copies; if they are time "
            f"points, echoes or acquisitions, {APART}"
        )
    gaps = np.flatnonzero(steps > 1.5 * usual).tolist()
    if gaps:
        found = [f"a gap of {steps[i]:.4g} mm between {names[i]} and {names[i + 1]}" for i in gaps]
        raise DataError(
            f"{place}: {some(found)}, while slices lie {usual:.4g} mm apart; add the missing slices, or export "
            "the series again"
        )


def _difference(slices: Sequence[Slice], is_same: NDArray[np.bool_]) -> str:
    """Elements that may tell the volumes of a series apart; `is_same`: a slice lies where the one before it does."""
    most = int(np.bincount(np.cumsum(~is_same), minlength=1).max()) + 1
    differ = {name: _values(slices, name) for name in (*IN_ONE_PIECE, *OF_TIME)}
    found = [f"{name} ({some(values)})" for name, values in differ.items() if 1 < len(values) <= most]
    return f", which differ in {' and '.join(found)}" if found else ""


def _in_turns(slices: Sequence[Slice]) -> Iterator[Oddity]:
    """Report interleaved acquisitions; `slices` are in order."""
    for name in IN_ONE_PIECE:
        places = [[i for i, one in enumerate(slices) if one.said.get(name) == value] for value in _values(slices, name)]
        spans = [(found[0], found[-1]) for found in places if len(found) > 1]
        if any(max(a[0], b[0]) < min(a[1], b[1]) for a, b in combinations(spans, 2)):
            found = f"slices of several volumes by {name} ({some(_values(slices, name))}) are interleaved"
            fix = f"correct if one scan was acquired interleaved; look at the image. If not, {APART}"
            yield Oddity("taken_in_turns", found, fix)
            return


def _uneven(place: Path, names: Sequence[str], positions: _Vector, step: _Vector) -> tuple[Oddity, ...]:
    """Report how far slices lie from their places in an even stack between the first and the last one."""
    off = np.linalg.norm(positions - positions[0] - np.arange(len(names))[:, None] * step, axis=1)
    worst, length = int(off.argmax()), float(np.linalg.norm(step))
    found = f"{names[worst]} lies {off[worst]:.3g} mm from its place among slices {length:.4g} mm apart"
    if off[worst] > OFF_GRID * length:
        raise DataError(f"{place}: uneven slices: {found}; resample the series, for example with dcm2niix")
    share, millimetres = ROUNDING
    if off[worst] <= max(share * length, millimetres):
        return ()
    return (Oddity("uneven_slices", found, "harmless if this distance does not matter; slices are read as even"),)


def _tilt(step: _Vector, normal: _Vector) -> tuple[Oddity, ...]:
    """Report slices that shift in their plane from one to the next."""
    aside = float(np.linalg.norm(np.cross(step, normal)))
    if aside <= SAME * np.linalg.norm(step):
        return ()
    degrees = np.degrees(np.arctan2(aside, step @ normal))
    found = f"slices shift in their plane: the stack leans by {degrees:.3g} degrees, as with a tilted gantry"
    fix = "resample to a straight grid, as dcm2niix does; many tools, such as ITK, cannot represent a sheared grid"
    return (Oddity("gantry_tilt", found, fix),)


def numbers_of(text: str, count: int) -> _Vector | None:
    """Parse the numbers of a header text; None if they are not `count` finite numbers."""
    try:
        numbers = np.array([float(word) for word in text.split("\\")])
    except ValueError:
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None
