"""Patches and the network levels for each: spacing decides which axes are halved, and where kernels are flat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medssl.data.grid import Triple
from medssl.memory import SMALLEST_SIDE

SMALLEST_MAP = 4
"""Voxels that are left of an axis at the lowest level of the network."""
SAME = 2.0
"""Axes whose spacings differ by less than this factor are halved together, and kernels extend along all of them."""
WIDTHS = (32, 64, 128, 256, 320, 320)
"""Feature maps per level on a GPU, as in nnU-Net; more than 320 add weights and little else."""
LIGHT_WIDTHS = (16, 32, 64, 128)
"""Feature maps per level on a CPU."""
LARGEST_PATCH = 160**3
"""Most voxels of a patch on a GPU; a larger one slows steps more than it improves them."""
LARGEST_PATCH_CPU = 80_000
"""Most voxels of a patch on a CPU; with two cores, a step then takes a few seconds."""
SHRINK = 0.9
"""Factor from one candidate for the side of the patch to the next."""


@dataclass(frozen=True)
class Shape:
    """A patch and the levels of a network for it."""

    patch: Triple
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]

    @property
    def voxels(self) -> int:
        """Voxels of the patch."""
        return math.prod(self.patch)

    @property
    def stride(self) -> Triple:
        """Total stride of all levels, by axis."""
        return _triple(math.prod(axis) for axis in zip(*self.strides, strict=True))

    @property
    def bottom(self) -> Triple:
        """Size of the patch at the last level, in voxels."""
        return _triple(side // stride for side, stride in zip(self.patch, self.stride, strict=True))


def shapes(median: tuple[float, ...], spacing: tuple[float, float, float], *, on_cpu: bool = False) -> list[Shape]:
    """Return patches to choose from, each within the one before: cubes in millimetres, cut off at the median image.

    Args:
        median: size of the median image at the spacing, in voxels; fractions count.
    """
    most, levels = (LARGEST_PATCH_CPU, len(LIGHT_WIDTHS)) if on_cpu else (LARGEST_PATCH, len(WIDTHS))
    side = max(n * mm for n, mm in zip(median, spacing, strict=True))
    candidates: list[Shape] = []
    while True:
        sides = [min(n, side / mm) for n, mm in zip(median, spacing, strict=True)]
        shape = shape_for(sides, spacing, levels)
        if not candidates or _is_within(shape.patch, candidates[-1].patch):
            candidates.append(shape)
        if max(sides) <= SMALLEST_SIDE:
            break
        side *= SHRINK
    return [shape for shape in candidates if shape.voxels <= most] or candidates[-1:]


def _is_within(patch: Triple, other: Triple) -> bool:
    return patch != other and all(a <= b for a, b in zip(patch, other, strict=True))


def shape_for(sides: Sequence[float], spacing: Sequence[float], levels: int) -> Shape:
    """Return the patch nearest to `sides` that the strides of its network divide.

    An axis is halved until SMALLEST_MAP voxels are left; a coarse one only once the spacing of the others is close to
    its own, and until then kernels are flat along it.
    """
    size, mm, flat = list(sides), list(spacing), [True] * 3
    strides: list[Triple] = []
    kernels: list[Triple] = []
    while True:
        flat = [f and (n < 2 or step >= SAME * min(mm)) for f, n, step in zip(flat, size, mm, strict=True)]
        kernels.append(_triple(1 if f else 3 for f in flat))
        able = [axis for axis in range(3) if size[axis] >= 2 * SMALLEST_MAP]
        if len(kernels) == levels or (not able and len(strides) >= 2):  # networks have three levels or more
            break
        finest = min((mm[axis] for axis in able), default=0)
        stride = _triple(2 if axis in able and mm[axis] < SAME * finest else 1 for axis in range(3))
        strides.append(stride)
        size = [n / s for n, s in zip(size, stride, strict=True)]
        mm = [step * s for step, s in zip(mm, stride, strict=True)]
    total = [math.prod(axis) for axis in zip(*strides, strict=True)]
    patch = _triple(max(1, round(side / t)) * t for side, t in zip(sides, total, strict=True))
    return Shape(patch, tuple(strides), tuple(kernels))


def _triple(values: Any) -> Triple:
    x, y, z = values
    return x, y, z
