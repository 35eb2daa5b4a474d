"""Describe one case in a few numbers, taken while it is in memory; `outliers` compares them.

Axes are those of the world, left-right first, so that scans stored in another order compare. Grey levels are those of
a sample of the voxels of the first modality.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.data.cases import IGNORED
from medssl.data.grid import Turn
from medssl.data.volume import Volume

PERCENTILES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)
"""Percentiles of the grey levels in `Look.levels`."""
SAMPLED = 32
"""Voxels of the sample along each axis; more add little."""
FEW = 8
"""Most grey levels of an image that looks like a label map; scans have more."""


@dataclass(frozen=True)
class Look:
    """Shape, spacing and grey levels of a readable image."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    levels: tuple[float, ...]
    """Grey levels at `PERCENTILES`; empty for a constant image, or one with NaN or infinity."""
    texture: float
    """Mean step between neighbouring voxels of a slice, as a share of the range of grey levels."""
    is_identity: bool
    """Whether its affine is the identity."""

    @classmethod
    def of_grid(cls, volume: Volume, levels: tuple[float, ...] = (), texture: float = 0.0) -> Look:
        """Return the geometry of a volume, with what is known of its grey levels."""
        turn = Turn.to("RAS", volume.affine)
        x, y, z = (volume.shape[axis] for axis in turn.axes)
        is_identity = np.array_equal(volume.affine, np.eye(4))
        return cls((x, y, z), turn.apply_to_axes(volume.spacing), levels, texture, is_identity)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Look:
        """Read back what `asdict` gave, after a round trip through a file."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)

    @property
    def extent(self) -> tuple[float, float, float]:
        """Millimetres that the volume spans along each axis."""
        x, y, z = (n * mm for n, mm in zip(self.shape, self.spacing, strict=True))
        return x, y, z

    @property
    def range(self) -> float:
        """Difference between the highest and the lowest of `levels`."""
        return self.levels[-1] - self.levels[0] if self.levels else 0.0


@dataclass(frozen=True)
class Counts:
    """Voxels of a label map by value, and where they lie between the patient's left and right."""

    voxels: dict[int, int]
    sides: dict[int, float] = field(default_factory=dict)
    """Mean position of each value between the patient's left end of the volume (-0.5) and the right one (0.5). Empty if
    there are too many values to be classes."""
    ignored: int = 0
    """Voxels that nobody annotated; `voxels` does not count them."""

    def by_class(self, places: dict[int, int]) -> Counts:
        """Return the counts by class; several values may stand for one, and a value that stands for none is kept."""
        voxels: Counter[int] = Counter()
        ignored = 0
        moments: dict[int, float] = {}
        for value, count in self.voxels.items():
            if places.get(value) == IGNORED:
                ignored += count
                continue
            place = places.get(value, value)
            voxels[place] += count
            if value in self.sides:
                moments[place] = moments.get(place, 0.0) + count * self.sides[value]
        return Counts(dict(voxels), {place: moment / voxels[place] for place, moment in moments.items()}, ignored)


def look_at(image: Volume) -> Look:
    """Return the `Look` of an image `(X, Y, Z)` or `(X, Y, Z, M)`."""
    return Look.of_grid(image, *_grey(Turn.to("RAS", image.affine).apply(image.channels[0])))


def few_levels(image: Volume) -> list[int]:
    """Return the grey levels in a sample of an image if they are few and whole numbers; otherwise none."""
    seen = np.unique(_sample(image.array))
    return [int(level) for level in seen] if len(seen) <= FEW and (seen == np.rint(seen)).all() else []


def digest(array: NDArray[Any]) -> str:
    """Return a digest of voxels and shape, which does not depend on the name or the packing of the file."""
    if array.dtype == np.int32 and array.min() >= 0 and array.max() < 256:
        array = array.astype(np.uint8)  # a quarter of the bytes
    hashed = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    hashed.update(np.asfortranarray(array).T.data)  # volumes lie in this order, so nothing is copied
    return hashed.hexdigest()


def count_voxels(label: Volume) -> Counts:
    """Count the voxels of each value, slab by slab from left to right, which is faster than sorting all values."""
    array = label.array
    low, high = int(array.min()), int(array.max())
    if high - low >= 2**16:
        values, counts = np.unique(array, return_counts=True)
        return Counts(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    turn = Turn.to("RAS", label.affine)
    places = (np.arange(array.shape[turn.axes[0]]) + 0.5) / array.shape[turn.axes[0]] - 0.5
    total, moment = np.zeros(high - low + 1, np.int64), np.zeros(high - low + 1)
    for slab, place in zip(turn.apply(array), places, strict=True):
        counted = np.bincount((slab - low if low else slab).ravel(order="K"), minlength=len(total))
        total += counted
        moment += counted * place
    found = [int(offset) for offset in np.flatnonzero(total)]
    return Counts(
        {low + offset: int(total[offset]) for offset in found},
        {low + offset: float(moment[offset] / total[offset]) for offset in found},
    )


def _grey(array: NDArray[np.float32]) -> tuple[tuple[float, ...], float]:
    sample = _sample(array)
    if not np.isfinite(sample).all():
        return (), 0.0
    levels = tuple(float(level) for level in np.percentile(sample, PERCENTILES))
    span = levels[-1] - levels[0]
    if span <= 0:
        return (), 0.0
    middle = array[tuple(slice(max(0, (n - SAMPLED) // 2), (n + SAMPLED) // 2) for n in array.shape)]
    with np.errstate(invalid="ignore", over="ignore"):
        changes = [np.abs(np.diff(middle, axis=axis)).mean() for axis in (0, 1) if middle.shape[axis] > 1]
    texture = float(np.mean(changes)) / span if changes else 0.0
    return levels, texture if np.isfinite(texture) else 0.0


def _sample(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return array[tuple(slice(None, None, -(-n // SAMPLED)) for n in array.shape)]
