"""Tools for drawing phantoms: coordinates in millimetres, smooth random fields, and paint with soft edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]
Shape = tuple[int, int, int]
Field = tuple[float, float, float]
"""Extent of the drawn volume along x, y and z in millimetres."""


def coordinates(shape: Shape, field: Field) -> tuple[Array, Array, Array]:
    """Return x, y and z of every voxel centre in millimetres from the middle of the field, each of `shape`."""
    axes = [(np.arange(n) + 0.5) / n * length - length / 2 for n, length in zip(shape, field, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x, y, z


def turned(points: Sequence[Array], degrees: Sequence[float] | Array) -> tuple[Array, Array, Array]:
    """Return the coordinates along axes that are turned about x, y and z, in that order."""
    matrix = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    x, y, z = (sum(matrix[i, axis] * points[i] for i in range(3)) for axis in range(3))
    return x, y, z


def waves(rng: Generator, points: Sequence[Array], length: float) -> Array:
    """Return a smooth random field of standard deviation about 1, with bumps about `length` mm apart."""
    total = np.zeros(points[0].shape)
    for _ in range(8):
        direction = rng.normal(size=3)
        direction *= 2 * np.pi / (length * rng.uniform(0.7, 1.6) * np.linalg.norm(direction))
        phase = rng.uniform(-np.pi, np.pi)
        total += np.cos(sum(k * axis for k, axis in zip(direction, points, strict=True)) + phase)
    return total / 2


def paint(image: Array, distance: Array, value: Array | float, softness: float) -> None:
    """Paint `value` over the image where `distance` is positive; the edge is `softness` mm wide."""
    image += np.clip(0.5 + distance / softness, 0, 1) * (value - image)
