"""All numbers of a case: each class cropped to its box, its surfaces and their distances worked out once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medssl.metrics import masks
from medssl.metrics.centreline import cldice
from medssl.metrics.conventions import CONVENTIONS, Plan, Units
from medssl.metrics.instances import match
from medssl.metrics.masks import Counts
from medssl.metrics.surfaces import Distances, Mask, between, surface
from medssl.metrics.table import ClassScore, names, status_of

if TYPE_CHECKING:
    from medssl.data.volume import Volume

LARGEST_LABEL = 2**16 - 1
"""Of a label map; FreeSurfer's go up to some 14,000."""
Box = tuple[slice, ...]


def score_case(
    case: str,
    prediction: Volume,
    reference: Volume,
    classes: Mapping[int, str],
    plan: Plan | None = None,
    *,
    threads: int = 1,
) -> dict[str, list[ClassScore]]:
    """Score classes of a case, named by label value, under each convention of the plan.

    The volumes lie on one grid; the reference gives the spacing. Beside the volumes, memory holds a plane, and
    the boxes and surfaces of as many classes as there are threads.

    Raises:
        ValueError: the volumes differ in shape, or hold labels below 0 or above `LARGEST_LABEL`.
    """
    plan = plan or Plan()
    found = survey(prediction.array, reference.array, list(classes))

    def score(label: int) -> dict[str, ClassScore]:
        counts, box = found[label]
        ours, theirs = (np.ascontiguousarray(volume.array[box] == label) for volume in (prediction, reference))
        return _score(case, classes[label], label, counts, (ours, theirs), reference.spacing, plan)

    # The time goes to the trees and to NumPy's loops, and both let other threads run.
    with ThreadPoolExecutor(threads) as pool:
        rows = list((pool.map if threads > 1 else map)(score, classes))
    return {convention: [row[convention] for row in rows] for convention in plan.conventions}


def survey(prediction: NDArray[Any], reference: NDArray[Any], labels: list[int]) -> dict[int, tuple[Counts, Box]]:
    """The voxels of each label and the box around them in both volumes, in one pass, a plane at a time."""
    if prediction.shape != reference.shape:
        raise ValueError(f"volumes must have one shape, got {prediction.shape} and {reference.shape}")
    order = np.argsort(reference.strides)[::-1]  # planes that lie together in memory
    ours, theirs = prediction.transpose(order), reference.transpose(order)
    size = len(labels) + 1
    index: NDArray[np.intp] = np.zeros(LARGEST_LABEL + 1, np.intp)  # every other label counts as the background
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
    return {
        label: (
            Counts(int(table[row].sum()), int(table[:, row].sum()), int(table[row, row])),
            tuple(_extent(seen[axis][row]) for axis in back),
        )
        for row, label in enumerate(labels, 1)
    }


def _checked(values: NDArray[Any]) -> NDArray[Any]:
    if len(values) and (values.min() < 0 or values.max() > LARGEST_LABEL):
        raise ValueError(f"labels must lie between 0 and {LARGEST_LABEL}")
    return values


def _extent(filled: NDArray[np.bool_]) -> slice:
    places = np.flatnonzero(filled)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def _score(
    case: str, name: str, label: int, counts: Counts, pair: tuple[Mask, Mask], spacing: tuple[float, ...], plan: Plan
) -> dict[str, ClassScore]:
    """One class under every convention."""
    status = status_of(counts.prediction > 0, counts.reference > 0)
    columns = plan.columns
    shared = {} if status == "absent" else _overlaps(counts, pair, name, math.prod(spacing), plan)
    by_units: dict[Units, dict[str, float | None]] = {}
    if status in ("missed", "invented"):
        shared |= {"nsd": 0.0, "boundary_iou": 0.0}
    elif status == "scored" and {"nsd", "boundary_iou", *names("distance")} & set(columns):
        ours, theirs = map(surface, pair)
        shared["boundary_iou"] = Counts.of(ours, theirs).iou
        for units in {plan.units_of(convention) for convention in plan.conventions}:
            distances = between(ours, theirs, spacing if units == "mm" else (1.0,) * len(spacing))
            by_units[units] = _distances(distances, plan.tolerance_of(name))
    return {
        convention: ClassScore(
            case, name, label, status, counts.prediction, counts.reference,
            CONVENTIONS[convention].read(status, shared | by_units.get(plan.units_of(convention), {}), columns),
        )
        for convention in plan.conventions
    }  # fmt: skip


def _overlaps(counts: Counts, pair: tuple[Mask, Mask], name: str, voxel: float, plan: Plan) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {
        "dice": counts.dice,
        "iou": counts.iou,
        "precision": counts.precision,
        "recall": counts.recall,
        "volume_difference": (counts.prediction - counts.reference) * voxel / 1000,
        "relative_volume": counts.relative_volume,
    }
    if name in plan.centreline and "cldice" in plan.columns:
        numbers["cldice"] = cldice(*pair)
    if name in plan.instances and set(names("instances")) & set(plan.columns):
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
