"""Splitting of images into low and high frequencies, which sum to the image. Always computed in float32.

A cutoff is a length in millimetres, the same along all axes. An axis whose spacing is too coarse for the cutoff is not
filtered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.parts.grey import extended, smoothed

Kind = Literal["haar", "gauss", "fft"]

REACH = 4
"""Standard deviations after which a Gaussian counts as zero."""
FINEST = 1 / math.pi
"""Standard deviation in voxels at or below which no Gaussian is applied: its response would fall to 1/e^2 only at one
cycle per voxel or more, while an axis holds at most half a cycle per voxel."""


def split_frequencies(
    image: Tensor,
    kind: Kind = "haar",
    *,
    levels: int = 1,
    sigma: float = 1.5,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Split `(B, M, X, Y, Z)` into low and high frequencies, float32 of the same shape, which sum to the image.

    Outside a volume its outermost voxels are repeated (for `haar`, the last blocks are smaller). So nothing wraps
    around, sides may be odd or shorter than the filter, and a constant image has no high frequencies.

    Args:
        kind: `haar`: low is the reconstruction from the coarsest band of a 3D Haar wavelet transform, which is the mean
            of each block of `2^levels` voxels per side; blocks start at the first voxel, so they depend on where a
            patch is cut. `gauss`: low is smoothed by a Gaussian. `fft`: the same Gaussian, not truncated, as a product
            of Fourier transforms; the better choice for a large `sigma`.
        levels: for `haar`: number of times the finest axis is halved; coarser axes are halved less often. 0: low is the
            image.
        sigma: for `gauss` and `fft`: standard deviation in mm. 0: low is the image.
        spacing: mm between voxels along each axis.

    Raises:
        ValueError: an unknown kind.
    """
    with torch.autocast(image.device.type, enabled=False):
        image = image.float()
        if kind == "haar":
            low = block_mean(image, [2**n for n in halvings(levels, spacing)])
        else:
            if kind not in ("gauss", "fft"):
                raise ValueError(f"kind must be haar, gauss or fft, got {kind!r}")
            widths = [sigma / mm for mm in spacing]
            widths = [width if width > FINEST else 0.0 for width in widths]
            low = smoothed(image, widths, REACH) if kind == "gauss" else _smoothed_by_fft(image, widths)
        return low, image - low


def halvings(levels: int, spacing: Sequence[float]) -> list[int]:
    """Number of times each axis is halved, `levels` for the finest, so that blocks are nearly cubes in mm."""
    return [max(0, round(levels - math.log2(mm / min(spacing)))) for mm in spacing]


def block_mean(image: Tensor, sides: Sequence[int]) -> Tensor:
    """Replace each voxel by the mean of its block of `sides` voxels, `(B, M, X, Y, Z)` to the same.

    Blocks start at the first voxel; the last one along an axis may be smaller.
    """
    if max(sides) == 1:
        return image
    sides = [min(side, size) for side, size in zip(sides, image.shape[2:], strict=True)]
    means = F.avg_pool3d(image, sides, ceil_mode=True, count_include_pad=False)
    for axis, side in enumerate(sides, start=2):
        means = means.repeat_interleave(side, axis, output_size=side * means.shape[axis])
        means = means.narrow(axis, 0, image.shape[axis])
    return means


def _smoothed_by_fft(image: Tensor, widths: Sequence[float]) -> Tensor:
    """`smoothed` in Fourier space: `exp(-2 (pi f s)^2)` along each axis, `f` in cycles per voxel."""
    shape, axes = image.shape, [axis for axis, width in enumerate(widths, start=2) if width > 0]
    if not axes:
        return image
    for axis in axes:
        image = extended(image, axis, math.ceil(REACH * widths[axis - 2]))
    spectrum = torch.fft.rfftn(image, dim=axes)
    for axis in axes:
        frequencies = torch.fft.rfftfreq if axis == axes[-1] else torch.fft.fftfreq
        f = frequencies(image.shape[axis], device=image.device)
        response = torch.exp(-2 * (math.pi * widths[axis - 2] * f) ** 2)
        spectrum = spectrum * response.view(-1, *[1] * (4 - axis))
    image = torch.fft.irfftn(spectrum, s=[image.shape[axis] for axis in axes], dim=axes)
    for axis in axes:
        image = image.narrow(axis, (image.shape[axis] - shape[axis]) // 2, shape[axis])
    return image
