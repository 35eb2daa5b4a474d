"""Turn and resample voxel grids, and place a prepared array in its raw volume.

A turn changes the order and direction of axes; it is exact and moves no voxel in the world. Images are resampled with a
cubic spline (linear along a thick-slice axis); labels and probabilities class by class with linear weights, of which
the largest wins.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medssl.data.volume import Affine, Oddity, Volume, corners_of
from medssl.words import by

Triple = tuple[int, int, int]
Box = tuple[slice, slice, slice]
Map = tuple[int, Box, NDArray[np.float32]]
"""A value and its weights at the points of a box; 0 elsewhere."""
NumberT = TypeVar("NumberT", bound=np.generic)

STORED = "stored"
"""The orientation of arrays whose axes stay as they are in the file."""
_ALL: Box = (slice(None), slice(None), slice(None))
GRID_ERROR = 0.5
"""Largest shift in voxels; beyond it, a label voxel belongs to another image voxel than the one at its index."""
GRID_WARNING = 0.01
"""Shift in voxels that is not reported; rounding in float32 headers stays far below it."""
THICK_SLICE_RATIO = 3.0
"""An axis is a thick-slice axis if its spacing is more than this many times the finest one."""


@dataclass(frozen=True)
class Turn:
    """An exact change of axis order and direction."""

    axes: Triple
    """`axes[i]` is the stored axis that becomes axis i."""
    flips: tuple[bool, bool, bool]
    """Which of the new axes run backwards."""

    @classmethod
    def to(cls, orientation: str, affine: NDArray[np.float64]) -> Turn:
        """Return the turn that brings the axes nearest to an orientation such as RAS; `stored` changes nothing."""
        if orientation == STORED:
            return cls((0, 1, 2), (False, False, False))
        directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        axes = max(itertools.permutations(range(3)), key=lambda p: sum(abs(directions[i, p[i]]) for i in range(3)))
        flips = [bool((directions[i, axes[i]] > 0) != (code in "RAS")) for i, code in enumerate(orientation)]
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    @classmethod
    def onto(cls, like: Affine, affine: Affine) -> Turn | None:
        """Return the turn that brings the axes to those of another affine; None if they do not correspond."""
        order = np.rint(np.linalg.inv(like[:3, :3]) @ affine[:3, :3])  # (other axes, own axes): -1, 0 or 1
        if not all((np.abs(order).sum(axis) == 1).all() for axis in (0, 1)):
            return None
        axes, flips = np.abs(order).argmax(1).tolist(), (order.sum(1) < 0).tolist()
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn an array `(X, Y, Z)` or `(X, Y, Z, M)` as stored to the new axes; a view, not a copy."""
        turned = np.transpose(array, (*self.axes, *range(3, array.ndim)))
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def apply_to_volume(self, volume: Volume) -> Volume:
        """Turn a volume; every voxel stays where it was in the world."""
        back = np.zeros((4, 4))  # from a new index to the stored one
        back[3, 3] = 1
        for new, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            back[axis, new] = -1 if flip else 1
            back[axis, 3] = volume.shape[axis] - 1 if flip else 0
        return replace(volume, array=self.apply(volume.array), affine=volume.affine @ back)

    def undo(self, array: NDArray[Any]) -> NDArray[Any]:
        """Undo `apply`."""
        array = array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        return np.transpose(array, np.argsort(self.axes))

    def apply_to_axes(self, values: tuple[float, float, float]) -> tuple[float, float, float]:
        """Reorder one number per stored axis to one per new axis."""
        return values[self.axes[0]], values[self.axes[1]], values[self.axes[2]]


def aligned(volume: Volume, like: Volume) -> Volume:
    """Turn a volume to the axes of another one; unchanged if the axes do not correspond."""
    turn = Turn.onto(like.affine, volume.affine)
    return volume if turn is None else turn.apply_to_volume(volume)


def shift_of(label: Volume, image: Volume) -> float | None:
    """Return the largest distance of a label corner from its image corner, in image voxels along an axis.

    None if the grids do not correspond: other shapes, spacings or directions.
    """
    label = aligned(label, image)
    if Turn.onto(image.affine, label.affine) is None or label.shape != image.shape:
        return None
    to_image = np.linalg.inv(image.affine) @ label.affine
    return float(np.abs(corners_of(image.shape) @ (to_image - np.eye(4)).T).max())


def off_grid(image: Volume, other: Volume, what: str) -> Oddity | None:
    """Report a label or channel (`what`) that is not on the grid of the image, whatever the order of its axes.

    The code is `grid` if voxels do not match, and `grid_shift` if they are slightly off. None if all is well.
    """
    shift = shift_of(other, image)
    if shift is not None and shift <= GRID_WARNING:
        return None
    if shift is not None and shift <= GRID_ERROR:
        found = f"the grid of the {what} is up to {shift:.3g} voxels off the grid of the image"
        return Oddity("grid_shift", found, "harmless if a tool rounded the header; the image's grid is used")
    first = f"image and {what} lie on different grids" + (f", up to {shift:.3g} voxels apart" if shift else "")
    if image.shape != other.shape and image.shape == other.shape[::-1]:
        first += f"; the axes of the {what} look transposed"
    found = "\n".join([first, f"image {_described(image)}", f"{what} {_described(other)}"])
    fix = f"resample the {what} onto the grid of the image; use nearest neighbour for a label"
    if image.shape == other.shape:
        fix = f"resample the {what} onto the grid of the image, or copy the image's header if only that is wrong"
    return Oddity("grid", found, fix)


def _described(volume: Volume) -> str:
    origin = ", ".join(f"{x:.4g}" for x in volume.affine[:3, 3])
    return f"{by(volume.shape)} at {by(volume.spacing)} mm, {volume.orientation} from ({origin})  {volume.path}"


@dataclass(frozen=True)
class Slab:
    """Class probabilities of a prepared array, or of a range of its rows along one axis."""

    probs: NDArray[np.floating[Any]]
    """`(C, x, y, z)`."""
    axis: int = 0
    start: int = 0
    """Index of the first row."""

    @property
    def stop(self) -> int:
        """Index after the last row."""
        return self.start + int(self.probs.shape[1 + self.axis])


@dataclass(frozen=True)
class Grid:
    """The place of a prepared array in its raw volume, in plain numbers that can be stored as JSON."""

    shape: Triple
    affine: list[list[float]]
    axes: Triple
    flips: tuple[bool, bool, bool]
    start: Triple
    """First voxel of the crop, on the turned axes."""
    cropped: Triple
    cropped_spacing: tuple[float, float, float]
    prepared: Triple
    """Voxels of the prepared array."""
    spacing: tuple[float, float, float]
    """Millimetres between prepared voxels."""
    nearest: bool = False
    """Whether everything is resampled by nearest neighbour; see `Recipe.resize`."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `Grid.from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Grid:
        """Read back what `to_json` gave, after a round trip through a file."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) and key != "affine" else value for key, value in values.items()
        }
        return cls(**plain)

    def resample_image(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Resample an image from the crop grid to the prepared grid: cubic, but linear along thick-slice axes.

        Splines would ring there.
        """
        if self.nearest:
            return _nearest(array, self.prepared)
        thick = [s > THICK_SLICE_RATIO * min(self.cropped_spacing) for s in self.cropped_spacing]
        fine_shape: Triple = tuple(  # type: ignore[assignment]
            old if is_thick else new for old, new, is_thick in zip(array.shape, self.prepared, thick, strict=True)
        )
        array = _resample(array, fine_shape, self._steps(thick), order=3)
        return _resample(array, self.prepared, self._steps([not t for t in thick]), order=1)

    def resample_label(self, label: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.unsignedinteger[Any]]:
        """Resample a label from the crop grid to the prepared grid: a linear mask per class, the largest wins."""
        if self._is_as_cropped():
            return label
        if self.nearest:
            return _nearest(label, self.prepared)
        steps = self._steps()
        offset = _centred(label.shape, self.prepared, steps)
        masks = ((int(value), label == value) for value in np.unique(label))
        maps = ((value, *_linear_near(mask, mask, self.prepared, steps, offset)) for value, mask in masks)
        return _largest(maps, self.prepared, label.dtype.type)[0]

    def largest(self, slabs: Iterable[Slab]) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.floating[Any]]]:
        """Return the class with the largest interpolated probability on the crop grid, and that probability.

        Args:
            slabs: together the whole array; each one begins with the last row of the one before, so that every
                voxel between two rows is covered.
        """
        classes, certainty = np.zeros(self.cropped, np.uint8), np.zeros(self.cropped, np.float32)
        for slab in slabs:
            dtype = class_type(len(slab.probs) - 1)
            classes = classes.astype(dtype, copy=False)
            inside = self._reached(slab)
            if self._is_as_cropped():
                classes[inside], certainty[inside] = slab.probs.argmax(0), slab.probs.max(0)
            else:
                shape = classes[inside].shape
                classes[inside], certainty[inside] = _largest(self._contenders(slab), shape, dtype)
            del slab  # before the next one is made
        return classes, certainty

    def _contenders(self, slab: Slab) -> Iterator[Map]:
        """Yield `interpolated` for each class, only where the class may be the most likely one.

        The most likely class has at least the mean probability, and no interpolated value exceeds the voxels around it.
        """
        if self.nearest:
            yield from ((value, _ALL, found) for value, found in enumerate(self.interpolated(slab)))
            return
        least = (1 - 1e-5) * slab.probs.sum(0).min() / len(slab.probs)
        points = self._back(slab)
        for value, of_class in enumerate(slab.probs):
            yield value, *_linear_near(of_class, of_class >= least, *points)

    def interpolated(self, slab: Slab) -> Iterator[NDArray[np.float32]]:
        """Yield the probabilities on the crop grid, one class at a time because all together may be too large.

        For a slab of some rows, only the voxels of the crop between these rows.
        """
        shape, back, offset = self._back(slab)
        for of_class in slab.probs:
            if self.nearest:
                yield _nearest(np.asarray(of_class, np.float32), shape)
            else:
                yield _linear(of_class, shape, back, offset)

    def _back(self, slab: Slab) -> tuple[Triple, list[float], list[float]]:
        """Shape of the crop between the rows of a slab, and its steps and first position on the slab."""
        inside, back = self._reached(slab), [1 / step for step in self._steps()]
        shape = (inside[0].stop - inside[0].start, inside[1].stop - inside[1].start, inside[2].stop - inside[2].start)
        offset = _centred(self.prepared, self.cropped, back)
        offset[slab.axis] += back[slab.axis] * inside[slab.axis].start - slab.start
        return shape, back, offset

    def place(self, array: NDArray[NumberT], outside: float = 0) -> NDArray[NumberT]:
        """Place an array on the crop grid in the grid of the raw volume, with a constant outside the crop."""
        whole = np.full(tuple(self.shape[axis] for axis in self.axes), outside, array.dtype)
        whole[tuple(slice(s, s + n) for s, n in zip(self.start, self.cropped, strict=True))] = array
        return Turn(self.axes, self.flips).undo(whole)

    def _reached(self, slab: Slab) -> tuple[slice, slice, slice]:
        """The voxels of the crop between the rows of a slab; at the ends of the array also those beyond."""
        axis, reached = slab.axis, [slice(0, n) for n in self.cropped]
        step, rows = 1 / self._steps()[axis], self.prepared[axis]
        first = _centred(self.prepared, self.cropped, [step] * 3)[axis]
        at = np.clip(first + step * np.arange(self.cropped[axis]), 0, rows - 1)
        reached[axis] = slice(int(np.searchsorted(at, slab.start)), int(np.searchsorted(at, slab.stop - 1, "right")))
        return reached[0], reached[1], reached[2]

    def _is_as_cropped(self) -> bool:
        return self.cropped == self.prepared and self.cropped_spacing == self.spacing

    def _steps(self, keep: list[bool] | None = None) -> list[float]:
        """Crop-grid voxels that a prepared voxel spans along each axis; 1 along the axes to keep."""
        keep = keep or [False] * 3
        pairs = zip(self.cropped_spacing, self.spacing, keep, strict=True)
        return [1.0 if kept else new / old for old, new, kept in pairs]


def _resample(
    array: NDArray[np.float32], shape: Triple, steps: list[float], order: int, offset: list[float] | None = None
) -> NDArray[np.float32]:
    """Sample `shape` points `steps` apart, from `offset` or centred on the array; edge values continue outside."""
    offset = offset or _centred(array.shape, shape, steps)
    if array.shape == shape and steps == [1.0, 1.0, 1.0] and not any(offset):
        return array
    out: NDArray[np.float32] = ndimage.affine_transform(
        array, np.asarray(steps), offset, output_shape=shape, output=np.float32, order=order, mode="nearest"
    )
    return out


def _centred(old: tuple[int, ...], new: Triple, steps: list[float]) -> list[float]:
    """Position of the first of `new` points on an array of `old` points with the same centre."""
    return [(n - 1) / 2 - step * (m - 1) / 2 for n, m, step in zip(old, new, steps, strict=True)]


def _linear(
    array: NDArray[Any], shape: Triple, steps: list[float], offset: list[float] | None = None
) -> NDArray[np.float32]:
    return _resample(np.asarray(array, np.float32), shape, steps, order=1, offset=offset)


def _linear_near(
    array: NDArray[Any], mask: NDArray[np.bool_], shape: Triple, steps: list[float], offset: list[float]
) -> tuple[Box, NDArray[np.float32]]:
    """A box with all points within one voxel of the set voxels of `mask`, and the result of `_linear` there."""
    found = ndimage.find_objects(mask.view(np.uint8))
    if not found:
        return (slice(0), slice(0), slice(0)), np.zeros((0, 0, 0), np.float32)
    box: list[slice] = []
    part: list[slice] = []
    for side, old, new, step, first in zip(found[0], array.shape, shape, steps, offset, strict=True):
        at = np.clip(first + step * np.arange(new), 0, old - 1)
        reached = np.searchsorted(at, side.start - 1), np.searchsorted(at, side.stop, "right")
        box.append(slice(int(reached[0]), int(reached[1])))
        part.append(slice(max(0, side.start - 2), side.stop + 2))
    size = tuple(one.stop - one.start for one in box)
    there = [first + step * one.start - other.start
             for first, step, one, other in zip(offset, steps, box, part, strict=True)]  # fmt: skip
    return (box[0], box[1], box[2]), _linear(array[tuple(part)], size, steps, there)  # type: ignore[arg-type]


def _nearest(array: NDArray[NumberT], shape: Triple) -> NDArray[NumberT]:
    """Resample an array to `shape` by nearest neighbour, with corners aligned."""
    factors = [new / old for new, old in zip(shape, array.shape, strict=True)]
    zoomed: NDArray[NumberT] = ndimage.zoom(array, factors, order=0, mode="nearest")
    return zoomed


def class_type(highest: int) -> type[np.unsignedinteger[Any]]:
    """Return the smallest unsigned type that holds classes up to this one."""
    return np.uint8 if highest < 256 else np.uint16


def _largest(
    maps: Iterable[Map], shape: tuple[int, ...], dtype: type[np.unsignedinteger[Any]]
) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.float32]]:
    """At each point, the value of the map with the largest weight, and that weight. Ties go to the first."""
    classes, best = np.zeros(shape, dtype), np.zeros(shape, np.float32)
    for value, box, weights in maps:
        better = weights > best[box]
        best[box][better] = weights[better]
        classes[box][better] = value
    return classes, best
