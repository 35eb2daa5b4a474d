"""Voxel by voxel comparison of predictions with references: confusion between classes, and calibration.

Each process holds one case in memory at a time. Its reference is read once for all runs that predicted it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medssl.comparison import Row
from medssl.data.cases import IGNORED, DatasetConfig
from medssl.data.grid import aligned
from medssl.data.io import read_volume
from medssl.data.labels import read_classes, read_prediction
from medssl.data.volume import Source, Volume
from medssl.errors import DataError
from medssl.progress import mapper, tracked

BINS = 10
"""Number of bins of equal width from 0 to 1 in which certainty is compared with the share of correct voxels."""
_FEW = 40  # with fewer predictions, starting processes takes longer than it saves

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Confusion and calibration counts, summed over the voxels of any number of cases."""

    confusion: Counts
    """`(C, C)`: number of voxels by class of the reference (row) and of the prediction (column). Voxels that are
    background in both are not counted."""
    certainty: Counts
    """`(BINS, 3)`: number of voxels, sum of their certainty, number of correct voxels, inside the box around the
    foreground of both label maps."""
    cases: int
    unread: int = 0
    """Number of predictions left out because a file could not be read or did not match."""

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.confusion + other.confusion,
            self.certainty + other.certainty,
            self.cases + other.cases,
            self.unread + other.unread,
        )

    @property
    def shares(self) -> Counts:
        """`confusion` with each row divided by its sum; the row of a class that never occurs is 0."""
        shares: Counts = self.confusion / np.maximum(self.confusion.sum(1, keepdims=True), 1)
        return shares

    @property
    def curve(self) -> tuple[list[float], list[float]]:
        """Mean certainty and share of correct voxels of each bin that is not empty."""
        found = self.certainty[self.certainty[:, 0] > 0]
        return list(found[:, 1] / found[:, 0]), list(found[:, 2] / found[:, 0])

    @property
    def calibration_error(self) -> float | None:
        """The expected calibration error (ECE), from 0 to 1; None without certainties.

        It is the mean distance between certainty and share of correct voxels over bins, weighted by voxels.
        """
        voxels = self.certainty[:, 0].sum()
        return float(np.abs(self.certainty[:, 1] - self.certainty[:, 2]).sum() / voxels) if voxels else None


class _Files(NamedTuple):
    row: int
    prediction: Path
    uncertainty: Path | None


def agreements(rows: Sequence[Row], classes: int, *, workers: int = 2) -> list[Agreement]:
    """Compare the voxels of all cases of each row's scored runs, and return one sum for each row.

    Args:
        classes: number of classes, including background.
    """
    by_reference: dict[Source, list[_Files]] = defaultdict(list)
    data: dict[Source, DatasetConfig | None] = {}
    for i, row in enumerate(rows):
        for run in row.scored:
            assert run.scores is not None
            for prediction, reference in run.scores.files.values():
                by_reference[reference].append(_Files(i, prediction, run.uncertainty_of(prediction)))
                data[reference] = run.scores.data
    found = [_nothing(classes) for _ in rows]
    many = sum(map(len, by_reference.values())) >= _FEW
    with mapper(workers if many else 0) as apply:
        names = [source.path.name for source in by_reference]
        results = apply(_agreements_of_case, by_reference, by_reference.values(), repeat(classes), data.values())
        for of_case in tracked("compare voxels", names, results):
            for i, agreement in of_case:
                found[i] += agreement
    return found


def agreement(
    prediction: NDArray[np.integer[Any]],
    reference: NDArray[np.integer[Any]],
    certainty: NDArray[np.floating[Any]] | None,
    classes: int,
    known: NDArray[np.bool_] | None = None,
) -> Agreement:
    """Compare the voxels of one case.

    Certainty is counted only in the smallest box around the foreground of both label maps. Outside it is background of
    high certainty, which would hide everything else.

    Args:
        prediction: `(X, Y, Z)`, values from 0 to `classes` - 1.
        reference: `(X, Y, Z)`, the same values where `known`.
        certainty: `(X, Y, Z)`, predicted probability of the predicted class, from 0 to 1.
        classes: number of classes, including background.
        known: `(X, Y, Z)`, True at annotated voxels; other voxels are not counted. None: all voxels are annotated.
    """
    known = np.ones(reference.shape, bool) if known is None else known
    inside = known & ((prediction > 0) | (reference > 0))
    pairs = reference[inside].astype(np.int64) * classes + prediction[inside]
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.float64)
    bins = np.zeros((BINS, 3))
    if certainty is not None and inside.any():
        box = tuple(slice(where.min(), where.max() + 1) for where in np.nonzero(inside))
        sure, right = certainty[box][known[box]], (prediction[box] == reference[box])[known[box]]
        places = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
        bins = np.stack([np.bincount(places, weights=w, minlength=BINS) for w in (None, sure, right)], 1).astype(float)
    return Agreement(confusion, bins, 1)


def _nothing(classes: int, unread: int = 0) -> Agreement:
    return Agreement(np.zeros((classes, classes)), np.zeros((BINS, 3)), 0, unread)


def _agreements_of_case(
    reference: Source, files: Sequence[_Files], classes: int, data: DatasetConfig | None
) -> list[tuple[int, Agreement]]:
    try:
        theirs = read_classes(reference, data)
    except DataError:
        return [(each.row, _nothing(classes, unread=1)) for each in files]
    has_unknown = data is not None and bool(data.ignore)
    return [(each.row, _read_and_compare(each, theirs, has_unknown, classes)) for each in files]


def _read_and_compare(files: _Files, reference: Volume, has_unknown: bool, classes: int) -> Agreement:
    try:
        prediction = read_prediction(files.prediction)
        sure = None
        if files.uncertainty is not None and files.uncertainty.exists():
            sure = 1 - read_volume(files.uncertainty).array
    except DataError:
        return _nothing(classes, unread=1)
    ours, theirs = prediction.array, aligned(reference, prediction).array
    known = theirs != IGNORED if has_unknown else np.ones(theirs.shape, bool)
    highest = max(ours.max(initial=0), theirs.max(initial=0, where=known))
    if {ours.shape, ours.shape if sure is None else sure.shape} != {theirs.shape} or highest >= classes:
        return _nothing(classes, unread=1)
    return agreement(ours, theirs, sure, classes, known)
