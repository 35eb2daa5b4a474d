"""How a raw volume becomes a prepared one, and how class probabilities go back.

`prepare` and `predict` share this file, so a network meets at inference what it met in training.
The steps are: turn the axes to one orientation, crop to the foreground by intensity, normalise,
resample. Images are resampled with a cubic spline (linear along a thick-slice axis); labels and
probabilities class by class with linear weights, the largest of which wins. `resize` instead takes the
nearest voxel for everything, as the 2D literature does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, model_validator
from scipy import ndimage

from medssl.config import Settings
from medssl.data.volume import Volume, by, spacing_of
from medssl.errors import DataError
from medssl.machine import available_memory

Triple = tuple[int, int, int]
NumberT = TypeVar("NumberT", bound=np.generic)
Side = Annotated[int, Field(ge=2)]

AIR_FRACTION = 0.02
"""Without a threshold, foreground is brighter than this share of the way from the minimum to the 99.5th percentile."""
SAMPLED = 2**20
"""About so many voxels, evenly spaced, tell that percentile; sorting all of a large volume takes as long as reading."""
THICK_SLICE_RATIO = 3.0
"""An axis is a thick-slice axis when its spacing exceeds the finest one this many times."""


class Intensity(Settings):
    """How grey levels become network input."""

    kind: Literal["zscore", "clip"] = "zscore"
    """`zscore`, for MRI: zero mean and unit variance in the foreground. `clip`, for CT and CBCT: a window to [0, 1]."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """`zscore`: grey levels are first clipped to these percentiles of the foreground."""
    window: tuple[float, float] | None = None
    """`clip`: the two grey levels that become 0 and 1, such as -1000 and 3000 HU."""

    @model_validator(mode="after")
    def _consistent(self) -> Intensity:
        if self.kind == "clip" and (self.window is None or self.window[0] >= self.window[1]):
            raise ValueError("`clip` needs `window: [low, high]` with low < high")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("`percentiles` must be two rising numbers between 0 and 100")
        return self


class Recipe(Settings):
    """The `data.recipe` section."""

    orientation: str = Field("RAS", pattern="^[RL][AP][SI]$")
    """Directions in which the prepared array's axes grow, left-right first."""
    spacing: tuple[PositiveFloat | None, PositiveFloat | None, PositiveFloat | None] = (None, None, None)
    """Millimetres between prepared voxels along each axis; null keeps the file's own."""
    resize: tuple[Side, Side] | None = None
    """Voxels of every slice along the first two axes, whatever its spacing; slices stay as many. Image, label and
    prediction take the nearest voxel, the corners staying corners, as the literature on 2D slices has it."""
    crop: bool = True
    """Crop to the bounding box of the foreground, found by intensity and never by label."""
    threshold: float | None = None
    """Grey level above which a voxel is foreground; null finds one per volume."""
    margin: int = Field(2, ge=0)
    """Voxels kept around the foreground's bounding box."""
    intensity: Intensity = Intensity()

    @model_validator(mode="after")
    def _one_size(self) -> Recipe:
        if self.resize is not None and self.spacing != (None, None, None):
            raise ValueError("`resize` needs `spacing: [null, null, null]`: a slice has one size")
        return self

    @property
    def nominal_spacing(self) -> tuple[float, float, float]:
        """Millimetres between prepared voxels; an axis where they differ by case counts as the finest other, or 1."""
        finest = min((mm for mm in self.spacing if mm is not None), default=1.0)
        x, y, z = (finest if mm is None else mm for mm in self.spacing)
        return x, y, z

    def apply(self, image: Volume, label: Volume | None = None) -> Prepared:
        """Prepare one case.

        Args:
            image: `(X, Y, Z)` or `(X, Y, Z, M)`.
            label: a class map on the same grid in the world; its axes may be stored in another order.

        Raises:
            DataError: the prepared image would be larger than memory; the label's axes run elsewhere.
        """
        turn = Turn.to(self.orientation, image.affine)
        channels = image.array[None] if image.array.ndim == 3 else np.moveaxis(image.array, -1, 0)
        # In memory as it is walked through from here on, which files seldom are: (M, x, y, z).
        oriented = np.ascontiguousarray([turn.apply(channel) for channel in channels])
        foreground = self._foreground(oriented)
        box = _bounding_box(foreground, self.margin) if self.crop else [(0, n) for n in foreground.shape]
        inside = tuple(slice(start, stop) for start, stop in box)

        spacing = turn.apply_to_axes(spacing_of(image.affine))
        cropped: Triple = tuple(stop - start for start, stop in box)  # type: ignore[assignment]
        target = _target_spacing(spacing, self.spacing)
        shape = _resampled_shape(cropped, spacing, target)
        if self.resize is not None:
            shape = (*self.resize, cropped[2])
            target = _corner_spacing(cropped, spacing, shape)
        grid = Grid(
            shape=image.shape,
            affine=image.affine.tolist(),
            axes=turn.axes,
            flips=turn.flips,
            start=tuple(start for start, _ in box),  # type: ignore[arg-type]
            cropped=cropped,
            cropped_spacing=spacing,
            prepared=shape,
            spacing=target,
            nearest=self.resize is not None,
        )
        _refuse_beyond_memory(image, len(oriented), grid)
        prepared_label = None
        if label is not None:
            turned = _turn_of(label, image, turn).apply(label.array)[inside]
            prepared_label = grid.resample_label(turned.astype(_class_type(turned.max()), order="C"))
        made = (grid.resample_image(self._normalise(channel[inside], foreground[inside])) for channel in oriented)
        if len(oriented) == 1:
            return Prepared(image=next(made)[None], label=prepared_label, grid=grid)
        prepared = np.empty((len(oriented), *shape), np.float32)
        for place, channel in zip(prepared, made, strict=True):  # one at a time: they may be large
            place[...] = channel
        return Prepared(image=prepared, label=prepared_label, grid=grid)

    def uncropped(self, shape: Triple, affine: NDArray[np.float64]) -> Triple:
        """Voxels of a prepared volume from which nothing was cropped: what it takes at most."""
        turn = Turn.to(self.orientation, affine)
        turned: Triple = tuple(shape[axis] for axis in turn.axes)  # type: ignore[assignment]
        if self.resize is not None:
            return (*self.resize, turned[2])
        spacing = turn.apply_to_axes(spacing_of(affine))
        return _resampled_shape(turned, spacing, _target_spacing(spacing, self.spacing))

    def undo(self, probs: NDArray[np.floating[Any]], grid: Grid) -> NDArray[np.unsignedinteger[Any]]:
        """The most likely class of each voxel on the image's own grid; background outside the crop.

        Args:
            probs: `(C, x, y, z)` on the prepared grid.
            grid: what `apply` returned for the image.
        """
        return grid.place(grid.largest(probs)[0])

    def undo_with_certainty(
        self, probs: NDArray[np.floating[Any]], grid: Grid
    ) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.floating[Any]]]:
        """What `undo` gives, and the interpolated probability of each voxel's class; 1 outside the crop."""
        classes, certainty = grid.largest(probs)
        return grid.place(classes), grid.place(certainty, outside=1)

    def _foreground(self, channels: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Voxels brighter than air in any channel; all of them where nothing is."""
        found = np.zeros(channels.shape[1:], bool)
        for channel in channels:
            threshold = self.threshold
            if threshold is None:
                sample = channel.reshape(-1)[:: 1 + channel.size // SAMPLED]
                low, high = float(channel.min()), float(np.percentile(sample, 99.5))
                threshold = low + AIR_FRACTION * (high - low)
            found |= channel > threshold
        return found if found.any() else np.ones_like(found)

    def _normalise(self, channel: NDArray[np.float32], foreground: NDArray[np.bool_]) -> NDArray[np.float32]:
        if self.intensity.window is not None and self.intensity.kind == "clip":
            low, high = self.intensity.window
            scaled: NDArray[np.float32] = np.clip(channel, low, high)
            scaled -= low
            scaled /= high - low
            return scaled
        inside = channel[foreground]
        low, high = np.percentile(inside, self.intensity.percentiles)
        mean, spread = _moments(np.clip(inside, low, high))
        normal = np.empty(channel.shape, np.float32)
        for slab, place in zip(channel, normal, strict=True):  # in float64, which would be large as a whole
            place[...] = (np.clip(slab, low, high) - mean) / spread
        return normal


def _moments(values: NDArray[np.float64]) -> tuple[np.float64, np.float64]:
    """Mean and standard deviation, or 1 where that is 0; `values` is used up."""
    mean = values.mean()
    values -= mean
    np.multiply(values, values, out=values)
    spread = np.sqrt(values.mean())
    return mean, spread if spread > 0 else np.float64(1)


@dataclass(frozen=True)
class Prepared:
    """A case in memory as the store holds it."""

    image: NDArray[np.float32]
    """`(M, x, y, z)`."""
    label: NDArray[np.unsignedinteger[Any]] | None
    """`(x, y, z)`, class indices, uint8 or uint16."""
    grid: Grid


@dataclass(frozen=True)
class Turn:
    """An exact change of axis order and direction."""

    axes: Triple
    """`axes[i]` is the stored axis that becomes axis i."""
    flips: tuple[bool, bool, bool]
    """Which of the new axes run backwards."""

    @classmethod
    def to(cls, orientation: str, affine: NDArray[np.float64]) -> Turn:
        """The turn after which the axes lie nearest to an orientation such as RAS."""
        directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        axes = max(itertools.permutations(range(3)), key=lambda p: sum(abs(directions[i, p[i]]) for i in range(3)))
        flips = [bool((directions[i, axes[i]] > 0) != (code in "RAS")) for i, code in enumerate(orientation)]
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """`(X, Y, Z)` as stored to the new axes; a view, not a copy."""
        return np.transpose(array, self.axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def undo(self, array: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `apply`."""
        array = array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        return np.transpose(array, np.argsort(self.axes))

    def apply_to_axes(self, values: tuple[float, float, float]) -> tuple[float, float, float]:
        """One number per stored axis to one per new axis."""
        return values[self.axes[0]], values[self.axes[1]], values[self.axes[2]]


@dataclass(frozen=True)
class Grid:
    """Where a prepared array lies in its raw volume; plain numbers, so it travels as JSON."""

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
    """Everything takes the nearest voxel, see `Recipe.resize`."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; `Grid.from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Grid:
        """What `to_json` gave, after a round trip through a file."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) and key != "affine" else value for key, value in values.items()
        }
        return cls(**plain)

    def resample_image(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Crop grid to prepared grid: cubic, and linear along thick slices, where splines would ring."""
        if self.nearest:
            return _nearest(array, self.prepared)
        thick = [s > THICK_SLICE_RATIO * min(self.cropped_spacing) for s in self.cropped_spacing]
        fine_shape: Triple = tuple(  # type: ignore[assignment]
            old if is_thick else new for old, new, is_thick in zip(array.shape, self.prepared, thick, strict=True)
        )
        array = _resample(array, fine_shape, self._steps(thick), order=3)
        return _resample(array, self.prepared, self._steps([not t for t in thick]), order=1)

    def resample_label(self, label: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.unsignedinteger[Any]]:
        """Crop grid to prepared grid, each class as a linear mask, the largest winning."""
        if self.cropped == self.prepared and self.cropped_spacing == self.spacing:
            return label
        if self.nearest:
            return _nearest(label, self.prepared)
        masks = ((int(value), label == value) for value in np.unique(label))
        return _largest(masks, self.prepared, self._steps(), label.dtype.type)[0]

    def largest(
        self, probs: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.floating[Any]]]:
        """Prepared grid to crop grid: the class with the largest interpolated probability, and that probability."""
        dtype = _class_type(len(probs) - 1)
        if self.cropped == self.prepared and self.cropped_spacing == self.spacing:
            return np.asarray(np.argmax(probs, axis=0), dtype), probs.max(0)
        if self.nearest:
            return _nearest(np.argmax(probs, axis=0).astype(dtype), self.cropped), _nearest(probs.max(0), self.cropped)
        back = [1 / step for step in self._steps()]
        return _largest(enumerate(probs), self.cropped, back, dtype)

    def place(self, array: NDArray[NumberT], outside: float = 0) -> NDArray[NumberT]:
        """An array of the crop grid on the raw volume's own grid, with a constant outside the crop."""
        whole = np.full(tuple(self.shape[axis] for axis in self.axes), outside, array.dtype)
        whole[tuple(slice(s, s + n) for s, n in zip(self.start, self.cropped, strict=True))] = array
        return Turn(self.axes, self.flips).undo(whole)

    def _steps(self, keep: list[bool] | None = None) -> list[float]:
        """Crop-grid voxels a prepared voxel spans along each axis; 1 along the axes to keep."""
        keep = keep or [False] * 3
        pairs = zip(self.cropped_spacing, self.spacing, keep, strict=True)
        return [1.0 if kept else new / old for old, new, kept in pairs]


def _refuse_beyond_memory(image: Volume, channels: int, grid: Grid) -> None:
    """Before anything is allocated: a wrong spacing can ask for any number of voxels."""
    needed, free = 4 * channels * math.prod(grid.prepared), available_memory()
    if free is not None and needed > free:
        raise DataError(
            f"{image.path}: {by(grid.cropped)} voxels at {by(grid.cropped_spacing)} mm would become "
            f"{by(grid.prepared)} at {by(grid.spacing)} mm, which take {needed / 2**30:.1f} GiB where "
            f"{free / 2**30:.1f} are free; is the spacing right? Mend it, or change data.recipe.spacing"
        )


def _resample(array: NDArray[np.float32], shape: Triple, steps: list[float], order: int) -> NDArray[np.float32]:
    """Sample `shape` points, `steps` apart, centred on the array; its edge continues outwards."""
    if array.shape == shape and steps == [1.0, 1.0, 1.0]:
        return array
    offset = [(old - 1) / 2 - step * (new - 1) / 2 for old, new, step in zip(array.shape, shape, steps, strict=True)]
    out: NDArray[np.float32] = ndimage.affine_transform(
        array, np.asarray(steps), offset, output_shape=shape, output=np.float32, order=order, mode="nearest"
    )
    return out


def _nearest(array: NDArray[NumberT], shape: Triple) -> NDArray[NumberT]:
    """The nearest of the array's voxels for each of `shape`, corners on corners."""
    factors = [new / old for new, old in zip(shape, array.shape, strict=True)]
    zoomed: NDArray[NumberT] = ndimage.zoom(array, factors, order=0, mode="nearest")
    return zoomed


def _class_type(highest: int) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if highest < 256 else np.uint16


def _largest(
    maps: Iterable[tuple[int, NDArray[Any]]], shape: Triple, steps: list[float], dtype: type[np.unsignedinteger[Any]]
) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.float32]]:
    """Resample `(value, map)` pairs one by one; the value of the largest, and what it held. Ties go to the first."""
    best = np.full(shape, -np.inf, np.float32)
    classes = np.zeros(shape, dtype)
    for value, weights in maps:
        resampled = _resample(np.asarray(weights, np.float32), shape, steps, order=1)
        better = resampled > best
        best[better] = resampled[better]
        classes[better] = value
    return classes, best


def _turn_of(label: Volume, image: Volume, turn: Turn) -> Turn:
    """The image's turn, unless the label's axes are stored in another order or direction."""
    to_image = np.linalg.inv(image.affine[:3, :3]) @ label.affine[:3, :3]
    order = np.rint(to_image)  # image axes by label axes: -1, 0 or 1
    if sorted(np.abs(order).sum(0)) != [1, 1, 1] or sorted(np.abs(order).sum(1)) != [1, 1, 1]:
        raise DataError(f"{label.path}: the label's axes do not run along those of {image.path}; see `medssl check`")
    axes = [int(np.flatnonzero(order[axis])[0]) for axis in turn.axes]
    flips = [flip != (order[axis].sum() < 0) for axis, flip in zip(turn.axes, turn.flips, strict=True)]
    return Turn((axes[0], axes[1], axes[2]), (bool(flips[0]), bool(flips[1]), bool(flips[2])))


def _target_spacing(
    own: tuple[float, float, float], wanted: tuple[float | None, float | None, float | None]
) -> tuple[float, float, float]:
    """The wanted spacing, or the file's own where none is wanted or the two agree to 0.1 %."""
    x, y, z = (
        old if new is None or abs(new - old) <= 1e-3 * new else float(new) for old, new in zip(own, wanted, strict=True)
    )
    return x, y, z


def _corner_spacing(old: Triple, spacing: tuple[float, float, float], new: Triple) -> tuple[float, float, float]:
    """The spacing at which `new` voxels reach from the first to the last of `old` ones."""
    x, y, z = (s * max(a - 1, 1) / (b - 1) if a != b else s for a, s, b in zip(old, spacing, new, strict=True))
    return x, y, z


def _resampled_shape(shape: Triple, old: tuple[float, ...], new: tuple[float, ...]) -> Triple:
    x, y, z = (max(1, round(n * a / b)) for n, a, b in zip(shape, old, new, strict=True))
    return x, y, z


def _bounding_box(mask: NDArray[np.bool_], margin: int) -> list[tuple[int, int]]:
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append((max(0, int(hit[0]) - margin), min(mask.shape[axis], int(hit[-1]) + 1 + margin)))
    return box
