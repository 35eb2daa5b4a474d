"""Prepare raw volumes, and bring class probabilities back to the grid of the raw volume.

`prepare` and `predict` share this file, so a network sees the same input at inference as in training. The steps are:
turn the axes to one orientation, crop to the foreground by intensity, normalise, and resample as `grid` says. With
`resize`, everything is resampled by nearest neighbour instead, as in the literature on 2D slices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Discriminator, Field, PositiveFloat, Tag, model_validator

from medssl.config import Settings
from medssl.data.grid import STORED, Grid, Slab, Triple, Turn, class_type
from medssl.data.volume import Volume, spacing_of
from medssl.errors import DataError
from medssl.machine import available_memory
from medssl.words import by, gib

Side = Annotated[int, Field(ge=2)]
Threshold = float | Literal["nonzero"] | None

AIR_FRACTION = 0.02
"""Without a threshold, foreground starts at this share of the way from the minimum to the 99.5th percentile."""
DARKEST = -200.0
"""Normalised grey levels stay above this; air in Hounsfield units is below."""
SAMPLED = 2**20
"""Number of voxels from which that percentile is taken; sorting all voxels would take as long as reading."""


class Intensity(Settings):
    """How grey levels become network input."""

    kind: Literal["zscore", "clip"] = "zscore"
    """Normalisation of grey levels. `zscore`, for MRI: zero mean and unit variance over the foreground. `clip`, for CT
    and CBCT: clip to `window` and scale to [0, 1]."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """For `zscore`: percentiles of the foreground to which grey levels are clipped first."""
    window: tuple[float, float] | None = None
    """For `clip`, which needs it: the two grey levels that become 0 and 1, such as -1000 and 3000 HU."""

    @model_validator(mode="after")
    def _consistent(self) -> Intensity:
        if self.kind == "clip" and (self.window is None or self.window[0] >= self.window[1]):
            raise ValueError("`clip` needs `window: [low, high]` with low < high")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("`percentiles` must be two rising numbers between 0 and 100")
        return self


T = TypeVar("T")
OneOrEach = Annotated[
    Annotated[T, Tag("one")] | Annotated[tuple[T, ...], Tag("each")],
    Discriminator(lambda value: "each" if isinstance(value, list | tuple) else "one"),
]
"""One value for all channels, or a list with one for each; told apart before validation, so errors appear once."""


class Recipe(Settings):
    """The `data.recipe` section."""

    orientation: str = Field("RAS", pattern=f"^([RL][AP][SI]|{STORED})$")
    """Directions in which the axes of the prepared array increase, the left-right axis first. `stored`: keep the axes
    of the file. Use it for thick slices whose plane differs from case to case, such as short-axis stacks of the heart.
    Which side is left may then differ from case to case."""
    spacing: tuple[PositiveFloat | None, PositiveFloat | None, PositiveFloat | None] = (None, None, None)
    """Voxel spacing after preparation along each axis, in mm. null: keep the spacing of the file along that axis."""
    resize: tuple[Side, Side] | None = None
    """Size of every slice in voxels along the first two axes, whatever its spacing; the number of slices stays the
    same. Image, label and prediction are resampled by nearest neighbour with corners aligned, as in the literature on
    2D slices. null: resample by `spacing`."""
    crop: bool = True
    """Crop to the bounding box of the foreground. The foreground is found by intensity, never from labels."""
    threshold: OneOrEach[Threshold] = None
    """Grey level above which a voxel is foreground. null: found for each volume. `nonzero`: all voxels other than 0,
    for scans whose background was set to 0, such as skull-stripped MRI that is already normalised. A list, such as
    `[-500, null]`, has one entry per channel; a voxel is foreground if it is in any channel."""
    margin: int = Field(2, ge=0)
    """Voxels kept on each side of the foreground's bounding box."""
    intensity: OneOrEach[Intensity] = Intensity()
    """Rule for grey levels. One section applies to all channels; a list has one for each channel, for example for CT
    with PET: `[{kind: clip, window: [-1000, 1000]}, {kind: zscore}]`."""

    @model_validator(mode="after")
    def _one_size(self) -> Recipe:
        if self.resize is not None and self.spacing != (None, None, None):
            raise ValueError("`resize` needs `spacing: [null, null, null]`: a slice has one size")
        return self

    @property
    def nominal_spacing(self) -> tuple[float, float, float]:
        """Millimetres between prepared voxels; an axis that keeps its own spacing takes the finest other, or 1."""
        finest = min((mm for mm in self.spacing if mm is not None), default=1.0)
        x, y, z = (finest if mm is None else mm for mm in self.spacing)
        return x, y, z

    def intensities(self, channels: int) -> tuple[Intensity, ...]:
        """Return the intensity rule of each channel."""
        return self.intensity if isinstance(self.intensity, tuple) else (self.intensity,) * channels

    def thresholds(self, channels: int) -> tuple[Threshold, ...]:
        """Return the threshold of each channel."""
        return self.threshold if isinstance(self.threshold, tuple) else (self.threshold,) * channels

    def apply(self, image: Volume, label: Volume | None = None) -> Prepared:
        """Prepare one case.

        Args:
            image: `(X, Y, Z)` or `(X, Y, Z, M)`.
            label: a class map on the same grid in the world; its axes may be stored in another order.

        Raises:
            DataError: the prepared image would not fit into memory, or the axes of the label do not correspond.
        """
        turn = Turn.to(self.orientation, image.affine)
        # (M, x, y, z), contiguous in memory for the steps below.
        oriented = np.ascontiguousarray([turn.apply(channel) for channel in image.channels])
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
            onto_image = Turn.onto(image.affine, label.affine)
            if onto_image is None:
                raise DataError(
                    f"{label.path}: the label's axes do not run along those of {image.path}; see `medssl check`"
                )
            turned = turn.apply(onto_image.apply(label.array))[inside]
            prepared_label = grid.resample_label(turned.astype(class_type(turned.max()), order="C"))
        made = (
            grid.resample_image(_normalise(channel[inside], foreground[inside], rule))
            for channel, rule in zip(oriented, self.intensities(len(oriented)), strict=True)
        )
        if len(oriented) == 1:
            return Prepared(image=next(made)[None], label=prepared_label, grid=grid)
        prepared = np.empty((len(oriented), *shape), np.float32)
        for place, channel in zip(prepared, made, strict=True):  # one at a time: they may be large
            place[...] = channel
        return Prepared(image=prepared, label=prepared_label, grid=grid)

    def uncropped(self, shape: Triple, affine: NDArray[np.float64]) -> Triple:
        """Return the shape of a prepared volume without any crop, which is the largest one possible."""
        turn = Turn.to(self.orientation, affine)
        turned: Triple = tuple(shape[axis] for axis in turn.axes)  # type: ignore[assignment]
        if self.resize is not None:
            return (*self.resize, turned[2])
        spacing = turn.apply_to_axes(spacing_of(affine))
        return _resampled_shape(turned, spacing, _target_spacing(spacing, self.spacing))

    def undo(self, slabs: Iterable[Slab], grid: Grid) -> NDArray[np.unsignedinteger[Any]]:
        """Return the most likely class of each voxel on the grid of the image; background outside the crop.

        Args:
            slabs: probabilities on the prepared grid; see `Grid.largest`.
            grid: what `apply` returned for the image.
        """
        return grid.place(grid.largest(slabs)[0])

    def undo_with_certainty(
        self, slabs: Iterable[Slab], grid: Grid
    ) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.floating[Any]]]:
        """Return the result of `undo`, and the interpolated probability of each voxel's class; 1 outside the crop."""
        classes, certainty = grid.largest(slabs)
        return grid.place(classes), grid.place(certainty, outside=1)

    def undo_by_class(self, probs: NDArray[np.floating[Any]], grid: Grid) -> Iterator[NDArray[np.float32]]:
        """Yield the interpolated probabilities of one class after the other, of which `undo` takes the largest.

        Outside the crop, the probability of the background is 1.
        """
        for place, of_class in enumerate(grid.interpolated(Slab(probs))):
            yield grid.place(of_class, outside=float(place == 0))

    def _foreground(self, channels: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Voxels brighter than the threshold, or not 0, in any channel; all voxels if there are none."""
        found = np.zeros(channels.shape[1:], bool)
        for channel, threshold in zip(channels, self.thresholds(len(channels)), strict=True):
            if threshold == "nonzero":
                found |= channel != 0
            else:
                found |= channel > (_air(channel) if threshold is None else threshold)
        return found if found.any() else np.ones_like(found)


def _normalise(channel: NDArray[np.float32], foreground: NDArray[np.bool_], rule: Intensity) -> NDArray[np.float32]:
    if rule.window is not None and rule.kind == "clip":
        low, high = rule.window
        scaled: NDArray[np.float32] = np.clip(channel, low, high)
        scaled -= low
        scaled /= high - low
        return scaled
    inside = channel[foreground]
    low, high = np.percentile(inside, rule.percentiles)
    mean, spread = _moments(np.clip(inside, low, high))
    normal = np.empty(channel.shape, np.float32)
    for slab, place in zip(channel, normal, strict=True):  # float64, slab by slab to save memory
        place[...] = (np.clip(slab, low, high) - mean) / spread
    return normal


def _air(channel: NDArray[np.float32]) -> float:
    """The grey level above which a voxel is foreground, by AIR_FRACTION."""
    sample = channel.reshape(-1)[:: 1 + channel.size // SAMPLED]
    low, high = float(channel.min()), float(np.percentile(sample, 99.5))
    return low + AIR_FRACTION * (high - low)


def zero_is_background(channels: Sequence[NDArray[np.float32]]) -> bool:
    """Whether 0 is the background of a case: it fills the corners and a tenth of all channels, and is no air in some.

    Then `threshold: nonzero` finds the foreground, and null takes all voxels as foreground. Images in Hounsfield units,
    in which 0 is water and air is far below, do not count.
    """
    return all(
        not channel[np.ix_(*([0, -1] for _ in channel.shape))].any()  # first: it seldom needs a look at the rest
        and channel.min() > DARKEST
        and np.count_nonzero(channel) < 0.9 * channel.size
        for channel in channels
    ) and any(_air(channel) < 0 for channel in channels)


def _moments(values: NDArray[np.float64]) -> tuple[np.float64, np.float64]:
    """Mean and standard deviation, or 1 if that is 0; `values` is overwritten."""
    mean = values.mean()
    values -= mean
    np.multiply(values, values, out=values)
    spread = np.sqrt(values.mean())
    return mean, spread if spread > 0 else np.float64(1)


@dataclass(frozen=True)
class Prepared:
    """A prepared case in memory."""

    image: NDArray[np.float32]
    """`(M, x, y, z)`."""
    label: NDArray[np.unsignedinteger[Any]] | None
    """`(x, y, z)`, class indices, uint8 or uint16."""
    grid: Grid


def _refuse_beyond_memory(image: Volume, channels: int, grid: Grid) -> None:
    """Stop before memory is allocated; a wrong spacing can ask for any number of voxels."""
    needed, free = 4 * channels * math.prod(grid.prepared), available_memory()
    if free is not None and needed > free:
        raise DataError(
            f"{image.path}: {by(grid.cropped)} voxels at {by(grid.cropped_spacing)} mm would become "
            f"{by(grid.prepared)} at {by(grid.spacing)} mm and need {gib(needed)}, but only "
            f"{gib(free)} are free. Correct the spacing in the header if it is wrong, or change data.recipe.spacing"
        )


def _target_spacing(
    own: tuple[float, float, float], wanted: tuple[float | None, float | None, float | None]
) -> tuple[float, float, float]:
    """The wanted spacing, or that of the file if none is wanted or the two agree to 0.1 %."""
    x, y, z = (
        old if new is None or abs(new - old) <= 1e-3 * new else float(new) for old, new in zip(own, wanted, strict=True)
    )
    return x, y, z


def _corner_spacing(old: Triple, spacing: tuple[float, float, float], new: Triple) -> tuple[float, float, float]:
    """The spacing at which `new` voxels span from the first to the last of `old` voxels."""
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
