"""Surfaces of masks and the distances between them, from which all distance metrics are computed.

The surface of a mask consists of its voxels with a face neighbour outside the mask; everything beyond the border of
the array is outside. Distances are straight lines between voxel centres, also if the axes are not perpendicular.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Mask = NDArray[np.bool_]
Distances = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Distances from prediction to reference, one per surface voxel of the prediction; and from reference to prediction."""

_LEAF = 32  # for a single query, larger leaves than SciPy's 16 are faster


def surface(mask: Mask) -> Mask:
    """Return the mask of a mask's surface voxels."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        before, kept = np.moveaxis(mask, axis, 0), np.moveaxis(inside, axis, 0)
        kept[1:] &= before[:-1]
        kept[:-1] &= before[1:]
        kept[[0, -1]] = False
    return mask & ~inside


def between(ours: Mask, theirs: Mask, spacing: Sequence[float] | NDArray[np.float64]) -> Distances:
    """Return both directed sets of distances between two surfaces, neither of which may be empty.

    Distances are exact, in the unit of `spacing`, and in the order of the voxels in memory (C). They are found with a
    tree over the surface voxels, so the memory depends on their number and not on the box around them.

    Args:
        spacing: one number per axis, or a matrix whose columns are the steps along the axes, which need not be
            perpendicular.
    """
    one, other = np.argwhere(ours), np.argwhere(theirs)
    steps = np.asarray(spacing, np.float64)
    return _directed(one, theirs[ours], other, steps), _directed(other, ours[theirs], one, steps)


def _placed(indices: NDArray[np.intp], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    return indices * steps if steps.ndim == 1 else indices @ steps.T


def _directed(
    points: NDArray[np.intp], shared: Mask, targets: NDArray[np.intp], steps: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the distance of each point to the nearest target; it is 0 without a search where `shared` is true."""
    distances = np.zeros(len(points))
    apart = points[~shared]
    if len(apart):
        _, nearest = cKDTree(_placed(targets, steps), leafsize=_LEAF).query(_placed(apart, steps))
        # Computed from whole voxel steps, so that rounding does not depend on the position in the volume.
        ways = _placed(apart - targets[nearest], steps)
        distances[~shared] = np.sqrt((ways * ways).sum(axis=1))
    return distances
