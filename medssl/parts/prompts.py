"""Prompts for a promptable network: a box and points for each component in a slice.

Slices are numbered along the last axis of a volume; positions in a slice are (row, column) along the first two axes.
Everything is computed on the CPU, in numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

NEGATIVES = 4
"""Number of background points in a prompt."""
FACTS = 5
"""Number of values that describe a component: number of voxels, centre (3) and mean intensity."""
TAILS = np.array([0.05, 0, 0, 0, 0])
"""For each of these values, the share of known components below the lower bound, and above the upper bound, of what is
plausible."""

_FULL = np.ones((3, 3, 3), bool)
_Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Prompt:
    """Prompt for a component of a class in a slice."""

    volume: int
    """Index of the volume in the batch."""
    plane: int
    """Number of the slice."""
    target: int
    """The class."""
    box: tuple[slice, slice]
    """Rows and columns around the component, with a margin."""
    points: NDArray[np.int64]
    """`(1 + NEGATIVES, 2)`: the innermost point of the component, then points in the background."""
    signs: NDArray[np.int64]
    """`(1 + NEGATIVES,)`: 1 for a point inside, 0 for one outside, -1 for one that does not count."""
    mask: NDArray[np.bool_]
    """The component itself, `(X, Y)`; it is not shown to the promptable network."""


def make_prompts(
    probs: _Array,
    image: _Array,
    *,
    volume: int = 0,
    start: int = 0,
    every: int = 2,
    margin: int = 2,
    reliable: float = 0.8,
    change: float = 0.5,
    single: Sequence[int] = (),
    known: _Array | None = None,
) -> list[Prompt]:
    """Return prompts for the components of a volume that are reliable and resemble known components.

    Args:
        probs: class probabilities, `(C, X, Y, Z)`; for a label they are 0 and 1.
        image: `(X, Y, Z)`.
        volume: index of the volume, which is written into the prompts.
        start: the first slice that gets prompts.
        every: slices from one that gets prompts to the next.
        margin: voxels between a component and its box.
        reliable: mean probability that a component must exceed, and probability of background that a background point
            must exceed.
        change: largest change of a component's area between a slice and its neighbour, as a share of the larger area.
        single: classes that form one component, of which only the largest gets prompts.
        known: components to compare with, see `describe`; None skips the comparison.
    """
    target, confidence = probs.argmax(0), probs.max(0)
    background = probs[0] > reliable
    found: list[Prompt] = []
    for value in range(1, len(probs)):
        numbers, count = ndimage.label(target == value, structure=_FULL)
        facts, trust = _facts(numbers, count, image), _means(numbers, count, confidence)
        believed = trust > reliable
        if known is not None:
            believed &= _plausible(facts, known[known[:, 0] == value, 1:])
        if value in single and count:
            believed &= np.arange(count) == facts[:, 0].argmax()
        for number in np.flatnonzero(believed):
            mask = numbers == number + 1
            for place in _steady_slices(mask, start, every, change):
                shape = _shape(mask[..., place], background[..., place], margin)
                found.append(Prompt(volume, place, value, *shape, mask[..., place]))
    return found


def describe(label: NDArray[np.integer[Any]], image: _Array, classes: int) -> NDArray[np.float64]:
    """Describe the components of a labelled volume, `(N, 1 + FACTS)`: the class of each, then its values.

    Args:
        label: `(X, Y, Z)`.
        image: `(X, Y, Z)`.
    """
    rows = [np.zeros((0, 1 + FACTS))]
    for value in range(1, classes):
        numbers, count = ndimage.label(label == value, structure=_FULL)
        rows.append(np.column_stack([np.full(count, value), _facts(numbers, count, image)]))
    return np.concatenate(rows)


def _facts(numbers: NDArray[np.integer[Any]], count: int, image: _Array) -> _Array:
    """Values that describe components numbered from 1, `(count, FACTS)`."""
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    centres = [_means(numbers, count, places) for places in np.ogrid[tuple(map(slice, numbers.shape))]]
    return np.stack([sizes, *centres, _means(numbers, count, image)], 1)


def _means(numbers: NDArray[np.integer[Any]], count: int, values: NDArray[Any]) -> _Array:
    """Mean of `values` over each component, `(count,)`."""
    which = numbers.ravel()
    sums = np.bincount(which, np.broadcast_to(values, numbers.shape).ravel(), minlength=count + 1)
    return sums[1:] / np.bincount(which, minlength=count + 1)[1:]


def _plausible(facts: _Array, known: _Array) -> NDArray[np.bool_]:
    """Which components are within the bounds of the known ones, `(N, FACTS)` each; none if there are no known ones."""
    if not len(known):
        return np.zeros(len(facts), bool)
    ordered = np.sort(known, 0)
    skipped = (TAILS * len(known)).astype(int)
    columns = np.arange(FACTS)
    low, high = ordered[skipped, columns], ordered[len(known) - 1 - skipped, columns]
    within: NDArray[np.bool_] = ((facts >= low) & (facts <= high)).all(1)
    return within


def _steady_slices(mask: NDArray[np.bool_], start: int, every: int, change: float) -> Iterator[int]:
    """Slices that get prompts: the component's area in them is close to that in those neighbours that contain it."""
    areas = mask.sum((0, 1))
    for place in range(start, len(areas), every):
        beside = areas[max(0, place - 1) : place + 2]
        beside = beside[beside > 0]
        if areas[place] and (abs(beside - areas[place]) <= change * np.maximum(beside, areas[place])).all():
            yield place


def _shape(
    mask: NDArray[np.bool_], background: NDArray[np.bool_], margin: int
) -> tuple[tuple[slice, slice], NDArray[np.int64], NDArray[np.int64]]:
    """Box, points and signs of the points for a component in a slice."""
    spans = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    box = tuple(slice(max(0, int(span[0]) - margin), int(span[-1]) + 1 + margin) for span in spans)
    rows, columns = (slice(s.start, min(s.stop, side)) for s, side in zip(box, mask.shape, strict=True))
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]  # outside the slice counts as outside
    inside = np.array(np.unravel_index(depth.argmax(), depth.shape))
    outside = np.argwhere(background[rows, columns]) + np.array([rows.start, columns.start])
    if not len(outside):
        return (rows, columns), np.tile(inside, (1 + NEGATIVES, 1)), np.array([1] + NEGATIVES * [-1])
    spread = np.linspace(0, len(outside) - 1, NEGATIVES).round().astype(int)
    return (rows, columns), np.stack([inside, *outside[spread]]), np.array([1] + NEGATIVES * [0])
