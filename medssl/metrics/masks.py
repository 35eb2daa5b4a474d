"""Metrics of two masks: overlaps from voxel counts, distances from the directed distances between their surfaces.

These are pure functions. A number without a meaning, such as a distance to an empty mask or 0 / 0, is `None`, not 0 and
not infinity; `medssl.metrics.conventions` says what a convention puts in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medssl.metrics.surfaces import Distances, Mask, between, surface


@dataclass(frozen=True)
class Overlap:
    """Number of voxels of a class in the prediction, in the reference, and in both."""

    prediction: int
    reference: int
    both: int

    @classmethod
    def of(cls, prediction: Mask, reference: Mask) -> Overlap:
        """Count two masks of one shape."""
        return cls(int(prediction.sum()), int(reference.sum()), int((prediction & reference).sum()))

    @property
    def dice(self) -> float | None:
        """Twice the overlap over the sum of both sizes; None if both are empty."""
        return _ratio(2 * self.both, self.prediction + self.reference)

    @property
    def iou(self) -> float | None:
        """Overlap over union; None if both are empty."""
        return _ratio(self.both, self.prediction + self.reference - self.both)

    @property
    def precision(self) -> float | None:
        """The share of the prediction that lies in the reference; None if the prediction is empty."""
        return _ratio(self.both, self.prediction)

    @property
    def recall(self) -> float | None:
        """The share of the reference that lies in the prediction; None if the reference is empty."""
        return _ratio(self.both, self.reference)

    @property
    def relative_volume(self) -> float | None:
        """Size of the prediction minus that of the reference, in percent of the reference; None if that is empty."""
        return _ratio(100 * (self.prediction - self.reference), self.reference)


def dice(prediction: Mask, reference: Mask) -> float | None:
    """Return twice the overlap over the sum of both sizes, 0 to 1; None when both masks are empty."""
    _check(prediction, reference)
    return Overlap.of(prediction, reference).dice


def iou(prediction: Mask, reference: Mask) -> float | None:
    """Return overlap over union, 0 to 1; None when both masks are empty."""
    _check(prediction, reference)
    return Overlap.of(prediction, reference).iou


def hd95(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> float | None:
    """Return the larger of the two directed 95th percentiles of surface distance, in mm; None when a mask is empty."""
    distances = surface_distances(prediction, reference, spacing)
    return None if distances is None else hd95_max(distances)


def asd(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> float | None:
    """Return the mean over both directed sets of surface distances together, in mm; None when a mask is empty."""
    distances = surface_distances(prediction, reference, spacing)
    return None if distances is None else assd(distances)


def surface_distances(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> Distances | None:
    """Return the distances from each surface voxel of one mask to the nearest surface voxel of the other, in mm.

    Args:
        prediction: `(X, Y, Z)`.
        reference: the same shape.
        spacing: millimetres between neighbouring voxels along each axis.

    Returns:
        The distances from prediction to reference, one per surface voxel of the prediction, and those from reference
        to prediction; None when either mask is empty.

    Raises:
        ValueError: the masks are not boolean or differ in shape, or `spacing` is not one positive number per axis.
    """
    _check(prediction, reference)
    if len(spacing) != prediction.ndim or not all(0 < side < np.inf for side in spacing):
        raise ValueError(f"spacing must be {prediction.ndim} positive numbers in mm, got {tuple(spacing)}")
    if not prediction.any() or not reference.any():
        return None
    return between(surface(prediction), surface(reference), spacing)


# ---- metrics of both directed sets of distances


def hd95_max(distances: Distances) -> float:
    """Return the larger of the two directed 95th percentiles."""
    return max(float(np.percentile(directed, 95)) for directed in distances)


def hd95_pooled(distances: Distances) -> float:
    """Return the 95th percentile of both directed sets together."""
    return float(np.percentile(np.concatenate(distances), 95))


def hd(distances: Distances) -> float:
    """Return the largest distance."""
    return float(max(directed.max() for directed in distances))


def assd(distances: Distances) -> float:
    """Return the mean of both directed sets together."""
    return float(np.concatenate(distances).mean())


def asd_directed(distances: Distances) -> float:
    """Return the mean distance from the prediction to the reference, without the other direction."""
    return float(distances[0].mean())


def nsd(distances: Distances, tolerance: float) -> float:
    """Return the share of both surfaces that lies within the tolerance of the other one."""
    reach = tolerance * (1 + 1e-5)  # headers hold spacings as float32, so 0.3 mm may be read as 0.30000001
    near = sum(int((directed <= reach).sum()) for directed in distances)
    return near / sum(map(len, distances))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _check(prediction: Mask, reference: Mask) -> None:
    if prediction.dtype != bool or reference.dtype != bool:
        raise ValueError(f"masks must be boolean, got {prediction.dtype} and {reference.dtype}")
    if prediction.shape != reference.shape:
        raise ValueError(f"masks must have the same shape, got {prediction.shape} and {reference.shape}")
