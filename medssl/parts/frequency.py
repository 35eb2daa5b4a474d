"""Splitting images into low and high frequencies that sum to the image, in float32 whatever the precision around.

A cutoff is a length in space, the same along all axes in millimetres. An axis whose samples are further apart than the
cutoff could tell has no high frequencies to give away and is left as it is.
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
"""Standard deviation in voxels below which a Gaussian is not sampled: its response falls to 1/e^2 beyond what an axis
can hold, half a cycle per voxel."""


def split_frequencies(
    image: Tensor,
    kind: Kind = "haar",
    *,
    levels: int = 1,
    sigma: float = 1.5,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Low and high frequencies of `(B, M, X, Y, Z)`, of its shape, in float32; they sum to the image.

    Beyond the faces of a volume its outermost voxels go on (for `haar`, the last blocks are smaller), so that nothing
    wraps around, sides may be odd or shorter than the filter, and a constant image has no high frequencies.

    Args:
        kind: `haar`: low is what the coarsest band of a 3D Haar wavelet transform gives back, the mean of each block of
            `2^levels` voxels; blocks start at the first voxel, so a patch cut elsewhere has other ones. `gauss`: low is
            smoothed by a Gaussian. `fft`: the same Gaussian, whole, as a product of Fourier transforms; the better
            choice for a large `sigma`.
        levels: `haar`: how often the finest axis is halved; a coarser one is halved less often. 0: low is the image.
        sigma: `gauss` and `fft`: standard deviation in mm. 0: low is the image.
        spacing: mm between voxels along each axis.
    """
    with torch.autocast(image.device.type, enabled=False):
        image = image.float()
        if kind == "haar":
            low = block_mean(image, [2**n for n in halvings(levels, spacing)])
        else:
            if kind not in ("gauss", "fft"):
                raise ValueError(f"frequencies are split by haar, gauss or fft, not by {kind!r}")
            widths = [sigma / mm for mm in spacing]
            widths = [width if width > FINEST else 0.0 for width in widths]
            low = smoothed(image, widths, REACH) if kind == "gauss" else _smoothed_by_fft(image, widths)
        return low, image - low


def halvings(levels: int, spacing: Sequence[float]) -> list[int]:
    """How often each axis is halved, so that blocks come near a cube in mm: `levels` times the finest one."""
    return [max(0, round(levels - math.log2(mm / min(spacing)))) for mm in spacing]


def block_mean(image: Tensor, sides: Sequence[int]) -> Tensor:
    """Each voxel's mean over its block of `sides` voxels, `(B, M, X, Y, Z)` to the same.

    Blocks start at the first voxel; the last one along an axis holds what is left.
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
