"""Surfaces of masks, and the distances between them that all distance metrics share.

The surface of a mask is made of its voxels with a face neighbour outside the mask; beyond the border of
the array all is outside. Distances run between voxel centres, in a straight line also where the axes lean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Mask = NDArray[np.bool_]
Distances = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Prediction to reference, one distance per surface voxel of the prediction; and reference to prediction."""

_LEAF = 32  # a tree that is asked once only is faster with larger leaves than SciPy's 16


def surface(mask: Mask) -> Mask:
    """The surface voxels of a mask."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        before, kept = np.moveaxis(mask, axis, 0), np.moveaxis(inside, axis, 0)
        kept[1:] &= before[:-1]
        kept[:-1] &= before[1:]
        kept[[0, -1]] = False
    return mask & ~inside


def between(ours: Mask, theirs: Mask, spacing: Sequence[float] | NDArray[np.float64]) -> Distances:
    """Both directed sets of distances between two surfaces that each have a voxel.

    Each is exact, in the unit of `spacing`, and in the order of the voxels in memory (C). A tree over the surface
    voxels takes memory for them alone, however large the box around them is.

    Args:
        spacing: of each axis; or a matrix whose columns are the steps along the axes, which need not be perpendicular.
    """
    one, other = np.argwhere(ours), np.argwhere(theirs)
    steps = np.asarray(spacing, np.float64)
    return _directed(one, theirs[ours], other, steps), _directed(other, ours[theirs], one, steps)


def _placed(indices: NDArray[np.intp], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    return indices * steps if steps.ndim == 1 else indices @ steps.T


def _directed(
    points: NDArray[np.intp], shared: Mask, targets: NDArray[np.intp], steps: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`shared` marks points that are targets too, and need no search."""
    distances = np.zeros(len(points))
    apart = points[~shared]
    if len(apart):
        _, nearest = cKDTree(_placed(targets, steps), leafsize=_LEAF).query(_placed(apart, steps))
        # From whole steps, so that a distance does not depend on where in the volume it lies.
        ways = _placed(apart - targets[nearest], steps)
        distances[~shared] = np.sqrt((ways * ways).sum(axis=1))
    return distances
