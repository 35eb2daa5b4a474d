"""Instances of a class: its connected components, and which of two masks belong together.

Voxels that touch by a face, an edge or a corner belong to one instance. Two instances are the same when they
overlap by more than half of their union, which no instance can do with two others.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medssl.metrics.surfaces import Mask

try:  # the extra `instances`: several times as fast, with the same components
    import cc3d
except ImportError:
    cc3d = None

SAME = 0.5
"""The IoU above which two instances are the same one."""


@dataclass(frozen=True)
class Instances:
    """How the instances of a prediction and a reference pair up."""

    prediction: int
    reference: int
    dice: tuple[float, ...]
    """Of each matched pair."""

    @property
    def f1(self) -> float | None:
        """Twice the matched instances over all instances of both; None without any."""
        total = self.prediction + self.reference
        return 2 * len(self.dice) / total if total else None

    @property
    def mean_dice(self) -> float | None:
        """Mean over matched pairs, missed and invented instances, the latter two with 0; None without any."""
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
    """Voxels numbered by instance from 1, 0 outside; and the number of instances."""
    if cc3d is not None:
        with suppress(RuntimeError):  # raised for a small box full of single voxels
            labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
            return labels, int(count)
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    return labels, int(count)
