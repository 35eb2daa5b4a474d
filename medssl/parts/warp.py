"""Volumes moved about: exact flips and quarter turns, and voxels taken from places between those of the grid.

Places are positions in voxels, `(S, 3, X, Y, Z)` for S samples, within the volume. Nothing waits for the device, and a
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
"""Classes that are warped together; more need no more memory, only time."""
SLAB = 2**16
"""Voxels that a CPU interpolates at once, so that what they need stays in its cache."""


def turned(array: Tensor, flips: Sequence[int], turns: Sequence[tuple[int, int, int]]) -> Tensor:
    """Exact flips, then quarter turns, as one permutation and one flip; the last three axes are space.

    Args:
        array: `(..., X, Y, Z)`.
        flips: axes of space to mirror, 0 being X.
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
    """`(S, 3, X, Y, Z)`, the voxel position that each voxel is taken from, the nearest one inside the volume.

    Args:
        matrices: per sample `(3, 3)`, output position to input position about the centre; None is the identity.
        elastics: per sample `(3, P, P, P)`, how far each control point moves the input position, in voxels, or None.
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
    """Samples at other places, interpolated linearly; of labels the class with the largest interpolated share.

    Interpolated classes add up to one, so background is what the others leave and needs no plane of its own.

    Args:
        rows: S of `(K, X, Y, Z)` float; K may be 0.
        labels: S of `(X, Y, Z)` integer classes, or none.
        places: `(S, 3, X, Y, Z)`.
        values: the classes but background, rising.

    Returns:
        `(S, K, X, Y, Z)`, and `(S, X, Y, Z)` classes where there are labels.
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
    """Small arrays as float32 tensors on the device, in one copy that nobody waits for."""
    packed = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]).astype(np.float32))
    if device.type == "cuda":
        packed = packed.pin_memory()
    parts = torch.split(packed.to(device, non_blocking=True), [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _upsampled(control: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """`(S, 3, P, P, P)` control points to `(S, 3, X, Y, Z)`, axis by axis, the smallest products first."""
    x, y, z = bases
    lines = y @ (control @ z.T)  # (S, 3, P, Y, Z)
    return (x @ lines.flatten(3)).view(*lines.shape[:2], len(x), *lines.shape[3:])


@lru_cache(maxsize=16)
def _spline_basis(size: int) -> NDArray[np.float64]:
    """`(size, P)` weights of a uniform cubic B-spline's control points at the voxels of an axis; rows add up to 1."""
    intervals = CONTROL_POINTS - 3
    place = np.linspace(0, intervals, size)
    first = np.minimum(place.astype(int), intervals - 1)
    t = place - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    basis = np.zeros((size, CONTROL_POINTS))
    basis[np.arange(size)[:, None], first[:, None] + np.arange(4)] = weights
    return basis


def _sampled(planes: Tensor, places: Tensor) -> Tensor:
    """Planes `(S, K, X, Y, Z)` at `(S, 3, X, Y, Z)` places, linearly interpolated; on a CPU S is 1."""
    sizes = planes.shape[2:]
    if planes.device.type == "cpu":
        slabs = torch.split(places[0], max(1, SLAB // (sizes[1] * sizes[2])), 1)
        return torch.cat([_sampled_by_slices(planes[0], slab) for slab in slabs], 1)[None]
    grid = torch.stack([_relative(places[:, axis], sizes[axis]) for axis in (2, 1, 0)], -1)
    return F.grid_sample(planes, grid, padding_mode="border", align_corners=True)


def _sampled_by_slices(volume: Tensor, places: Tensor) -> Tensor:
    """A volume `(K, X, Y, Z)` at `(3, X', Y, Z)` places through two dimensions, to a thousandth of a voxel.

    On a CPU torch interpolates images several times as fast as volumes. So the slices, one below the other, make
    one tall image, which is read in the slice before each place and in the one after it.
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

    after = bilinear(before + 1)  # beyond the last slice it counts nothing
    return bilinear(before).lerp_(after, (x - before)[:, None]).movedim(1, 0)


def _relative(position: Tensor, size: int) -> Tensor:
    """Positions in [0, size - 1] as `grid_sample` counts them, in [-1, 1]."""
    return (position * (2 / max(size - 1, 1))).sub_(1)


def _empty_planes(places: Tensor, channels: int) -> Tensor:
    """`(S, K, X, Y, Z)` to be filled, one for each channel."""
    return places.new_empty(len(places), channels, *places.shape[2:])


def _fill_one_hot(planes: Tensor, label: Tensor, classes: Sequence[int]) -> None:
    """Write where a label `(S, X, Y, Z)` holds each class into float planes `(S, C, X, Y, Z)`."""
    for channel, value in enumerate(classes):
        torch.eq(label, value, out=planes[:, channel])


def _largest(shares: Iterable[tuple[int, Tensor]], rest: Tensor) -> Tensor:
    """The class with the largest share; background, class 0, has what the others leave, and wins ties.

    Shares come as `(S, X, Y, Z)` by rising class, as the result; `rest`, of the same shape, is written over. Several
    times as fast as `argmax` over a channel axis on a CPU, and no such axis is ever whole.
    """
    rest.fill_(1)
    best, winner = torch.zeros_like(rest), torch.zeros_like(rest, dtype=torch.int16)
    for value, share in shares:  # rising, so a later winner has the larger number
        torch.maximum(winner, (share > best).to(torch.int16).mul_(value), out=winner)
        torch.maximum(best, share, out=best)
        rest.sub_(share)
    return winner.mul_(best > rest)
