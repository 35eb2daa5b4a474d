"""Instances of a class, which are its connected components, and how those of two masks are paired.

Voxels that touch by a face, an edge or a corner belong to one instance. Two instances are paired if they overlap by
more than half of their union, which no instance can do with two others.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medssl.metrics.surfaces import Mask

try:  # optional, from the extra `instances`: several times as fast, with the same components
    import cc3d
except ImportError:
    cc3d = None

SAME = 0.5
"""IoU above which two instances are paired."""


@dataclass(frozen=True)
class Instances:
    """Numbers of instances in a prediction and a reference, and the Dice of each matched pair."""

    prediction: int
    reference: int
    dice: tuple[float, ...]
    """Dice of each matched pair."""

    @property
    def f1(self) -> float | None:
        """Twice the number of matched pairs over the number of instances in both masks; None if there are none."""
        total = self.prediction + self.reference
        return 2 * len(self.dice) / total if total else None

    @property
    def mean_dice(self) -> float | None:
        """Mean Dice of matched pairs, where missed and invented instances count as 0; None if there are none."""
        total = self.prediction + self.reference - len(self.dice)
        return sum(self.dice) / total if total else None


def match(prediction: Mask, reference: Mask) -> Instances:
    """Pair the instances of two masks `(X, Y, Z)`."""
    (ours, most), (theirs, many) = components(prediction), components(reference)
    sizes, others = (np.bincount(labels.ravel(), minlength=n + 1) for labels, n in [(ours, most), (theirs, many)])
    both = (ours > 0) & (theirs > 0)
    pairs, overlap = np.unique(ours[both].astype(np.int64) * (many + 1) + theirs[both], return_counts=True)
    total = sizes[pairs // (many + 1)] + others[pairs % (many + 1)]
    same = overlap > SAME * (total - overlap)
    return Instances(most, many, tuple((2 * overlap[same] / total[same]).tolist()))


def components(mask: Mask) -> tuple[NDArray[np.integer], int]:
    """Return an array that numbers voxels by instance, from 1 and 0 outside, and the number of instances."""
    if cc3d is not None:
        with suppress(RuntimeError):  # cc3d raises it for a small box full of single voxels
            labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
            return labels, int(count)
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    return labels, int(count)
