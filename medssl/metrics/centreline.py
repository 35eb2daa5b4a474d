"""The centreline of a tubular mask, and how much of it another mask covers (clDice; Shit et al., CVPR 2021).

The mask is thinned from its six sides in turn, a layer at a time, down to curves one voxel wide (six directions:
Palágyi and Kuba 1998). A voxel is removed only if it is simple, that is, if removing it does not split, join, delete or
open any part (Bertrand and Malandain 1994), and if it is not the end of a curve. Voxels that are tested together have
coordinates of the same parity, so no two of them touch, and their order does not matter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medssl.metrics.surfaces import Mask

_OFFSETS = np.array([(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if x or y or z])
_STEPS = np.abs(_OFFSETS).sum(axis=1)
_FACES, _NEAR = _STEPS == 1, _STEPS < 3
_APART = np.abs(_OFFSETS[:, None] - _OFFSETS[None])
_TOUCHING = (_APART.max(axis=-1) <= 1).astype(np.float32)
"""Which of the 26 neighbours touch each other by a face, an edge or a corner."""
_ADJACENT = ((_APART.sum(axis=-1) <= 1) & _NEAR & _NEAR[:, None]).astype(np.float32)
"""Which of the 18 neighbours by face or edge share a face."""


def cldice(prediction: Mask, reference: Mask) -> float | None:
    """Return the clDice of two masks `(X, Y, Z)`: the harmonic mean of each centreline's share inside the other mask.

    It is from 0 to 1; 0 if one mask is empty, None if both are.
    """
    if not prediction.any() or not reference.any():
        return None if prediction.any() == reference.any() else 0.0
    ours, theirs = centreline(prediction), centreline(reference)
    precision, recall = reference[ours].mean(), prediction[theirs].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def centreline(mask: Mask) -> Mask:
    """Return the centreline of a mask `(X, Y, Z)`: curves one voxel wide that keep its parts, holes and branches."""
    padded = np.pad(mask, 1)
    flat = padded.ravel()
    offsets = _OFFSETS @ np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    voxels = np.flatnonzero(flat)
    parity = (np.stack(np.unravel_index(voxels, padded.shape)) % 2).T @ (4, 2, 1)
    while True:
        before = len(voxels)
        for side in offsets[_FACES]:
            border = flat[voxels] & ~flat[voxels + side]
            for field in range(8):
                some = voxels[border & (parity == field)]
                flat[some[_removable(flat[some[:, None] + offsets])]] = False
        left = flat[voxels]
        voxels, parity = voxels[left], parity[left]
        if len(voxels) == before:
            return padded[1:-1, 1:-1, 1:-1]


def _removable(around: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which voxels are simple and not ends of curves, from the 26 neighbours of each, `(N, 26)`."""
    one_part = _grown(around, around, _TOUCHING) == around
    outside = ~around & _NEAR
    one_outside = _grown(outside & _FACES, outside, _ADJACENT) | ~(outside & _FACES)
    return np.asarray((around.sum(axis=1) > 1) & one_part.all(axis=1) & one_outside.all(axis=1))


def _grown(seeds: NDArray[np.bool_], within: NDArray[np.bool_], links: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the part of `within` that is connected to the first seed of each row, `(N, 26)`."""
    grown = np.zeros_like(within)
    rows = np.flatnonzero(seeds.any(axis=1))
    grown[rows, seeds[rows].argmax(axis=1)] = True
    while True:
        wider = (grown.astype(np.float32) @ links > 0) & within
        if (wider == grown).all():
            return grown
        grown = wider
