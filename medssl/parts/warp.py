"""Spatial transforms of volumes: exact flips and quarter turns, and interpolation at positions between voxels.

Places are positions in voxels within the volume, `(S, 3, X, Y, Z)` for S samples. Nothing waits for the device, and a
sample's result does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

CONTROL_POINTS = 6
"""Control points of an elastic deformation along an axis; the patch spans the middle three of their five intervals."""
CLASSES_AT_ONCE = 8
"""Number of classes that are warped together; more classes take more time, but no more memory."""
SLAB = 2**16
"""Number of voxels that a CPU interpolates at once, so that their data stay in its cache."""


def turned(array: Tensor, flips: Sequence[int], turns: Sequence[tuple[int, int, int]]) -> Tensor:
    """Apply exact flips, then quarter turns, as one permutation and one flip of the last three axes.

    Args:
        array: `(..., X, Y, Z)`.
        flips: axes to mirror; 0 is X.
        turns: `(axis, axis, quarter turns)`.
    """
    source, mirrored = [0, 1, 2], [axis in flips for axis in range(3)]
    for a, b, quarters in turns:
        if quarters in (1, 2):
            mirrored[b] = not mirrored[b]
        if quarters in (2, 3):
            mirrored[a] = not mirrored[a]
        if quarters in (1, 3):
            source[a], source[b] = source[b], source[a]
            mirrored[a], mirrored[b] = mirrored[b], mirrored[a]
    first = array.ndim - 3
    if source != [0, 1, 2]:
        array = array.permute(*range(first), *(first + axis for axis in source))
    if any(mirrored):
        array = array.flip([first + axis for axis in range(3) if mirrored[axis]])
    return array


def places_of(
    matrices: Sequence[NDArray[np.float64] | None],
    elastics: Sequence[NDArray[np.float64] | None],
    shape: Sequence[int],
    device: torch.device,
) -> Tensor:
    """Return the position from which each voxel is sampled, `(S, 3, X, Y, Z)`, clamped to the volume.

    Args:
        matrices: per sample `(3, 3)`, output position to input position about the centre; None is the identity.
        elastics: per sample `(3, P, P, P)`, displacement of the input position at each control point, in voxels, or
            None.
        shape: `(X, Y, Z)`.
    """
    offsets = [np.arange(n) - (n - 1) / 2 for n in shape]
    ramps = np.stack([np.eye(3) if matrix is None else matrix for matrix in matrices])[..., None]
    centre = np.array([[(n - 1) / 2] for n in shape])
    bent = {i: elastic for i, elastic in enumerate(elastics) if elastic is not None}
    control = np.array(list(bent.values())).reshape(-1, 3, *3 * [CONTROL_POINTS])
    packed = [ramps[:, :, 0] * offsets[0] + centre, ramps[:, :, 1] * offsets[1], ramps[:, :, 2] * offsets[2]]
    x, y, z, moves, *bases = uploaded([*packed, control, *map(_spline_basis, shape)], device)

    places = x[..., None, None] + y[..., None, :, None] + z[..., None, None, :]
    if bent:
        for i, move in zip(bent, _upsampled(moves, bases), strict=True):
            places[i].add_(move)
    for axis, size in enumerate(shape):
        places[:, axis].clamp_(0, size - 1)
    return places


def warp(
    rows: list[Tensor], labels: list[Tensor], places: Tensor, values: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """Sample volumes and labels at other places by linear interpolation; labels get the class with the largest share.

    The interpolated shares of all classes sum to 1, so the background's share is the rest and needs no plane.

    Args:
        rows: S tensors `(K, X, Y, Z)`, float; K may be 0.
        labels: S tensors `(X, Y, Z)`, integer classes, or an empty list.
        places: `(S, 3, X, Y, Z)`.
        values: the classes without the background, in increasing order.

    Returns:
        `(S, K, X, Y, Z)`, and classes `(S, X, Y, Z)`, or None without labels.
    """
    channels, label = len(rows[0]), torch.stack(labels) if labels else places.new_empty(0)
    classes = values if labels else []
    chunks = [classes[start : start + CLASSES_AT_ONCE] for start in range(0, len(classes), CLASSES_AT_ONCE)]
    first, *others = chunks or [[]]
    planes = _empty_planes(places, channels + len(first))
    _fill_one_hot(planes[:, channels:], label, first)
    for k, row in enumerate(rows):
        planes[k, :channels] = row
    planes = _sampled(planes, places)

    def shares() -> Iterable[tuple[int, Tensor]]:
        yield from zip(first, planes[:, channels:].detach().unbind(1), strict=True)
        for chunk in others:
            one_hot = _empty_planes(places, len(chunk))
            _fill_one_hot(one_hot, label, chunk)
            yield from zip(chunk, _sampled(one_hot, places).unbind(1), strict=True)

    return planes[:, :channels], _largest(shares(), _empty_planes(places, 1)[:, 0]) if labels else None


def uploaded(arrays: Sequence[NDArray[np.float64]], device: torch.device) -> list[Tensor]:
    """Copy small arrays to the device as float32 tensors, in a single asynchronous transfer."""
    packed = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]).astype(np.float32))
    if device.type == "cuda":
        packed = packed.pin_memory()
    parts = torch.split(packed.to(device, non_blocking=True), [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _upsampled(control: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """Upsample control points `(S, 3, P, P, P)` to `(S, 3, X, Y, Z)`, axis by axis, the smallest products first."""
    x, y, z = bases
    lines = y @ (control @ z.T)  # (S, 3, P, Y, Z)
    return (x @ lines.flatten(3)).view(*lines.shape[:2], len(x), *lines.shape[3:])


@lru_cache(maxsize=16)
def _spline_basis(size: int) -> NDArray[np.float64]:
    """Weights `(size, P)` of a uniform cubic B-spline's control points at the voxels of an axis; rows sum to 1."""
    intervals = CONTROL_POINTS - 3
    place = np.linspace(0, intervals, size)
    first = np.minimum(place.astype(int), intervals - 1)
    t = place - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    basis = np.zeros((size, CONTROL_POINTS))
    basis[np.arange(size)[:, None], first[:, None] + np.arange(4)] = weights
    return basis


def _sampled(planes: Tensor, places: Tensor) -> Tensor:
    """Sample planes `(S, K, X, Y, Z)` at places `(S, 3, X, Y, Z)` with linear interpolation; on a CPU, S must be 1."""
    sizes = planes.shape[2:]
    if planes.device.type == "cpu":
        slabs = torch.split(places[0], max(1, SLAB // (sizes[1] * sizes[2])), 1)
        return torch.cat([_sampled_by_slices(planes[0], slab) for slab in slabs], 1)[None]
    grid = torch.stack([_relative(places[:, axis], sizes[axis]) for axis in (2, 1, 0)], -1)
    return F.grid_sample(planes, grid, padding_mode="border", align_corners=True)


def _sampled_by_slices(volume: Tensor, places: Tensor) -> Tensor:
    """Sample a volume `(K, X, Y, Z)` at places `(3, X', Y, Z)` with 2D interpolation, exact to a thousandth of a voxel.

    On a CPU, torch interpolates images several times as fast as volumes. The slices are stacked into one tall image,
    which is sampled in the slice before and in the slice after each place.
    """
    channels, x_size, y_size, z_size = volume.shape
    x, y, z = places
    before = x.floor()
    tall = volume.reshape(channels, -1, z_size).expand(len(x), -1, -1, -1)  # a slice of the result for each thread
    column = _relative(z, z_size)

    def bilinear(slices: Tensor) -> Tensor:
        row = _relative(torch.add(y, slices, alpha=y_size), x_size * y_size)
        grid = torch.stack([column, row]).movedim(0, -1)
        return F.grid_sample(tall, grid, padding_mode="border", align_corners=True)  # (X', K, Y, Z)

    after = bilinear(before + 1)  # beyond the last slice its weight is 0
    return bilinear(before).lerp_(after, (x - before)[:, None]).movedim(1, 0)


def _relative(position: Tensor, size: int) -> Tensor:
    """Convert positions in [0, size - 1] to the coordinates of `grid_sample`, in [-1, 1]."""
    return (position * (2 / max(size - 1, 1))).sub_(1)


def _empty_planes(places: Tensor, channels: int) -> Tensor:
    """Uninitialised planes `(S, K, X, Y, Z)`, K being the number of channels."""
    return places.new_empty(len(places), channels, *places.shape[2:])


def _fill_one_hot(planes: Tensor, label: Tensor, classes: Sequence[int]) -> None:
    """Write the one-hot encoding of a label `(S, X, Y, Z)` into float planes `(S, C, X, Y, Z)`."""
    for channel, value in enumerate(classes):
        torch.eq(label, value, out=planes[:, channel])


def _largest(shares: Iterable[tuple[int, Tensor]], rest: Tensor) -> Tensor:
    """Class with the largest share, `(S, X, Y, Z)`; the background, class 0, has the rest of the shares and wins ties.

    Shares are `(S, X, Y, Z)` each, by increasing class; `rest`, of the same shape, is overwritten. On a CPU this is
    several times as fast as `argmax` over a channel axis, and such an axis is never in memory as a whole.
    """
    rest.fill_(1)
    best, winner = torch.zeros_like(rest), torch.zeros_like(rest, dtype=torch.int16)
    for value, share in shares:  # increasing, so a later winner has the larger number
        torch.maximum(winner, (share > best).to(torch.int16).mul_(value), out=winner)
        torch.maximum(best, share, out=best)
        rest.sub_(share)
    return winner.mul_(best > rest)
