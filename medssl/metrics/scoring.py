"""Scoring of a case: all metrics of each class, which is cropped to its bounding box to save time and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medssl.metrics import masks
from medssl.metrics.centreline import cldice
from medssl.metrics.conventions import CONVENTIONS, Measures, Units
from medssl.metrics.instances import match
from medssl.metrics.masks import Overlap
from medssl.metrics.surfaces import Distances, Mask, between, surface
from medssl.metrics.table import ClassScore, names, status_of

if TYPE_CHECKING:
    from medssl.data.volume import Volume

LARGEST_LABEL = 2**16 - 1
"""Largest value of a label map that can be scored; FreeSurfer's go up to about 14,000."""
Box = tuple[slice, ...]


def score_case(
    case: str,
    prediction: Volume,
    reference: Volume,
    classes: Mapping[int, str],
    measures: Measures | None = None,
    *,
    regions: Mapping[str, Sequence[int]] | None = None,
    threads: int = 1,
) -> dict[str, list[ClassScore]]:
    """Score the classes and regions of a case under each convention of `measures`.

    Both volumes must lie on one grid; spacing and shear are taken from the reference. Besides the volumes, memory holds
    one plane, and the boxes and surfaces of as many classes as there are threads.

    Args:
        classes: name of each class by label value.
        regions: label values of each region by its name. Rows of regions follow those of the classes, with label
            numbers that continue theirs.

    Returns:
        By convention, a score for each class, then for each region.

    Raises:
        ValueError: the volumes differ in shape, or hold labels below 0 or above `LARGEST_LABEL`.
    """
    measures = measures or Measures()
    structures = [_Structure(name, label, (label,)) for label, name in classes.items()]
    for number, (name, values) in enumerate((regions or {}).items(), max(classes, default=0) + 1):
        structures.append(_Structure(name, number, tuple(values), is_region=True))
    steps = reference.steps
    found = survey(prediction.array, reference.array, [one.values for one in structures])

    def score(structure: _Structure, overlap: Overlap, box: Box) -> dict[str, ClassScore]:
        pair = structure.mask(prediction.array[box]), structure.mask(reference.array[box])
        return _score(case, structure, overlap, pair, steps, measures)

    # Most time is spent in SciPy's trees and NumPy's loops, which release the GIL.
    with ThreadPoolExecutor(threads) as pool:
        rows = list((pool.map if threads > 1 else map)(score, structures, *zip(*found, strict=True)))
    return {convention: [row[convention] for row in rows] for convention in measures.conventions}


@dataclass(frozen=True)
class _Structure:
    """A class or a region, which gets one row."""

    name: str
    label: int
    values: tuple[int, ...]
    is_region: bool = False

    def mask(self, array: NDArray[Any]) -> Mask:
        """Return the mask of its voxels in a label map."""
        return np.ascontiguousarray(reduce(np.logical_or, (array == value for value in self.values)))


def survey(
    prediction: NDArray[Any], reference: NDArray[Any], groups: Sequence[Sequence[int]]
) -> list[tuple[Overlap, Box]]:
    """Return the voxel counts of each group of labels, and the box around it in both volumes.

    It reads both volumes once, a plane at a time.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"volumes must have the same shape, got {prediction.shape} and {reference.shape}")
    order = np.argsort(reference.strides)[::-1]  # so that each plane is contiguous in memory
    ours, theirs = prediction.transpose(order), reference.transpose(order)
    labels = sorted({label for group in groups for label in group})
    size = len(labels) + 1
    index: NDArray[np.intp] = np.zeros(LARGEST_LABEL + 1, np.intp)  # all other labels count as background
    index[labels] = np.arange(1, size)
    pairs = np.zeros(size * size, np.int64)
    seen: list[NDArray[np.bool_]] = [np.zeros((size, side), bool) for side in ours.shape]
    for number, (plane, other) in enumerate(zip(ours, theirs, strict=True)):
        places = np.flatnonzero(plane | other)
        one, two = (index[_checked(side.ravel()[places])] for side in (plane, other))
        pairs += np.bincount(one * size + two, minlength=size * size)
        across = np.unravel_index(places, ours.shape[1:])
        for found in (one, two):
            seen[0][found, number] = True
            for along, where in zip(seen[1:], across, strict=True):
                along[found, where] = True
    table = pairs.reshape(size, size)
    back = np.argsort(order)
    surveyed = []
    for rows in ([int(index[label]) for label in group] for group in groups):
        overlap = Overlap(int(table[rows].sum()), int(table[:, rows].sum()), int(table[np.ix_(rows, rows)].sum()))
        surveyed.append((overlap, tuple(_extent(seen[axis][rows].any(0)) for axis in back)))
    return surveyed


def _checked(values: NDArray[Any]) -> NDArray[Any]:
    if len(values) and (values.min() < 0 or values.max() > LARGEST_LABEL):
        raise ValueError(
            f"labels must lie between 0 and {LARGEST_LABEL}, got values from {values.min()} to {values.max()}"
        )
    return values


def _extent(filled: NDArray[np.bool_]) -> slice:
    places = np.flatnonzero(filled)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def _score(
    case: str,
    what: _Structure,
    overlap: Overlap,
    pair: tuple[Mask, Mask],
    steps: NDArray[np.float64],
    measures: Measures,
) -> dict[str, ClassScore]:
    """Score one class or region under every convention."""
    status = status_of(overlap.prediction > 0, overlap.reference > 0)
    columns = measures.columns
    shared = {} if status == "absent" else _overlaps(overlap, pair, what.name, voxel_volume(steps), measures)
    by_units: dict[Units, dict[str, float | None]] = {}
    if status in ("missed", "invented"):
        shared |= {"nsd": 0.0, "boundary_iou": 0.0}
    elif status == "scored" and {"nsd", "boundary_iou", *names("distance")} & set(columns):
        ours, theirs = map(surface, pair)
        shared["boundary_iou"] = Overlap.of(ours, theirs).iou
        for units in {measures.units_of(convention) for convention in measures.conventions}:
            distances = between(ours, theirs, steps if units == "mm" else (1.0,) * len(steps))
            by_units[units] = _distances(distances, measures.tolerance_of(what.name))
    return {
        convention: ClassScore(
            case, what.name, what.label, status, overlap.prediction, overlap.reference,
            CONVENTIONS[convention].read(status, shared | by_units.get(measures.units_of(convention), {}), columns),
            what.is_region,
        )
        for convention in measures.conventions
    }  # fmt: skip


def voxel_volume(steps: NDArray[np.float64]) -> float:
    """Return the volume of a voxel in mm3, from the spacing or from the matrix of the steps along the axes."""
    return math.prod(steps.tolist()) if steps.ndim == 1 else abs(float(np.linalg.det(steps)))


def _overlaps(
    overlap: Overlap, pair: tuple[Mask, Mask], name: str, voxel: float, measures: Measures
) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {
        "dice": overlap.dice,
        "iou": overlap.iou,
        "precision": overlap.precision,
        "recall": overlap.recall,
        "volume_difference": (overlap.prediction - overlap.reference) * voxel / 1000,
        "relative_volume": overlap.relative_volume,
    }
    if name in measures.centreline and "cldice" in measures.columns:
        numbers["cldice"] = cldice(*pair)
    if name in measures.instances and set(names("instances")) & set(measures.columns):
        found = match(*pair)
        numbers |= {
            "instances_prediction": found.prediction,
            "instances_reference": found.reference,
            "instances_matched": len(found.dice),
            "instance_f1": found.f1,
            "instance_dice": found.mean_dice,
        }
    return numbers


def _distances(distances: Distances, tolerance: float) -> dict[str, float | None]:
    return {
        "hd95_max": masks.hd95_max(distances),
        "hd95_pooled": masks.hd95_pooled(distances),
        "hd": masks.hd(distances),
        "assd": masks.assd(distances),
        "asd_directed": masks.asd_directed(distances),
        "nsd": masks.nsd(distances, tolerance),
    }
