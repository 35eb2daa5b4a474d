"""How well two masks agree: overlap, and distances between their surfaces in millimetres.

Pure functions of boolean arrays, nothing read from disk. The convention is the one called `strict`:
a number that has no meaning is `None`, not 0 and not infinity, and the status says why. A class absent
from both volumes has no numbers; in one of them only, its overlap is 0 and its distances are undefined.

The surface of a mask is made of its voxels with a face neighbour outside the mask; beyond the border of
the array all is outside. Distances run between voxel centres, along axes taken to be perpendicular.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

if TYPE_CHECKING:
    from medssl.data.nifti import Volume

Mask = NDArray[np.bool_]
Status = Literal["scored", "absent", "missed", "invented"]

METRICS = ("dice", "iou", "hd95", "asd")
"""The numbers of a `ClassScore`, in the order in which tables show them."""


@dataclass(frozen=True)
class ClassScore:
    """One class of one case. A number is None where it is undefined."""

    case: str
    class_name: str
    label: int
    status: Status
    """`scored`: in both volumes; `absent`: in neither; `missed`: in the reference only; `invented`: in the
    prediction only."""
    dice: float | None
    """0 to 1; None when absent."""
    iou: float | None
    """0 to 1; None when absent."""
    hd95: float | None
    """Millimetres; None unless scored."""
    asd: float | None
    """Millimetres; None unless scored."""
    prediction_voxels: int
    reference_voxels: int


def score_case(case: str, prediction: Volume, reference: Volume, classes: Sequence[str]) -> list[ClassScore]:
    """Score every foreground class of a case; `classes` names the labels from 0, the background, upwards.

    The volumes lie on one grid; the reference gives the spacing.

    Raises:
        ValueError: the volumes differ in shape.
    """
    return [score_class(case, name, label, prediction, reference) for label, name in enumerate(classes) if label > 0]


def score_class(case: str, class_name: str, label: int, prediction: Volume, reference: Volume) -> ClassScore:
    """Score the voxels that hold `label`, as `score_case` does for each class."""
    ours: Mask = prediction.array == label
    theirs: Mask = reference.array == label
    distances = surface_distances(ours, theirs, reference.spacing)
    return ClassScore(
        case=case,
        class_name=class_name,
        label=label,
        status=_status(bool(ours.any()), bool(theirs.any())),
        dice=dice(ours, theirs),
        iou=iou(ours, theirs),
        hd95=None if distances is None else _larger_percentile(*distances),
        asd=None if distances is None else _pooled_mean(*distances),
        prediction_voxels=int(ours.sum()),
        reference_voxels=int(theirs.sum()),
    )


def dice(prediction: Mask, reference: Mask) -> float | None:
    """Twice the overlap over the sum of both sizes, 0 to 1; None when both masks are empty."""
    _check(prediction, reference)
    size = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / size if size else None


def iou(prediction: Mask, reference: Mask) -> float | None:
    """Overlap over union, 0 to 1; None when both masks are empty."""
    _check(prediction, reference)
    size = int((prediction | reference).sum())
    return int((prediction & reference).sum()) / size if size else None


def hd95(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> float | None:
    """The larger of the two directed 95th percentiles of surface distance, in mm; None when a mask is empty."""
    distances = surface_distances(prediction, reference, spacing)
    return None if distances is None else _larger_percentile(*distances)


def asd(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> float | None:
    """The mean over both directed sets of surface distances together, in mm; None when a mask is empty."""
    distances = surface_distances(prediction, reference, spacing)
    return None if distances is None else _pooled_mean(*distances)


def surface_distances(
    prediction: Mask, reference: Mask, spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """From each surface voxel of one mask to the nearest surface voxel of the other, in mm.

    Args:
        prediction: `(X, Y, Z)`.
        reference: the same shape.
        spacing: millimetres between neighbouring voxels along each axis.

    Returns:
        Prediction to reference, one distance per surface voxel of the prediction, and reference to
        prediction; None when either mask is empty.
    """
    _check(prediction, reference)
    if len(spacing) != prediction.ndim or not all(0 < side < np.inf for side in spacing):
        raise ValueError(f"spacing must hold {prediction.ndim} positive numbers of mm, got {tuple(spacing)}")
    if not prediction.any() or not reference.any():
        return None
    # No margin is needed: outside the box lies background or the end of the array, and both make a surface.
    box = _bounding_box(prediction | reference)
    ours, theirs = _surface(prediction[box]), _surface(reference[box])
    return _distance_to(theirs, spacing)[ours], _distance_to(ours, spacing)[theirs]


def _surface(mask: Mask) -> Mask:
    inside: Mask = ndimage.binary_erosion(mask)
    return mask & ~inside


def _distance_to(surface: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    return np.asarray(ndimage.distance_transform_edt(~surface, sampling=spacing), np.float64)


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box around the true voxels of a mask that has some."""
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def _larger_percentile(to_reference: NDArray[np.float64], to_prediction: NDArray[np.float64]) -> float:
    return max(float(np.percentile(to_reference, 95)), float(np.percentile(to_prediction, 95)))


def _pooled_mean(to_reference: NDArray[np.float64], to_prediction: NDArray[np.float64]) -> float:
    return float(np.concatenate([to_reference, to_prediction]).mean())


def _status(in_prediction: bool, in_reference: bool) -> Status:
    if in_prediction and in_reference:
        return "scored"
    if in_reference:
        return "missed"
    return "invented" if in_prediction else "absent"


def _check(prediction: Mask, reference: Mask) -> None:
    if prediction.dtype != bool or reference.dtype != bool:
        raise ValueError(f"masks must be boolean, got {prediction.dtype} and {reference.dtype}")
    if prediction.shape != reference.shape:
        raise ValueError(f"masks must have one shape, got {prediction.shape} and {reference.shape}")
