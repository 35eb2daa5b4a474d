"""Batched augmentation on the training device.

What is *drawn* for a sample is a function of (seed, n) alone, and what is *applied* is a function
of the draw: so a draw can be replayed on the image, its label and anything else on the same grid.
Geometry moves image and one-hot label on one grid; intensity touches the image only.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medssl.config import Settings
from medssl.data.recipe import THICK_SLICE_RATIO
from medssl.parts.schedules import generator

_PLANES = [(0, 1), (0, 2), (1, 2)]


class AugmentConfig(Settings):
    """The `augment` section; the same for every method of a comparison."""

    preset: Literal["none", "weak", "strong"] = "weak"
    """`weak`, as published: flips and quarter turns where the grid allows, slight contrast, brightness and
    noise. `strong` adds rotation, scaling, gamma, blur, low resolution and more noise."""
    flips: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)
    """Axes that may be mirrored; leave out those that would swap left and right classes."""


@dataclass(frozen=True)
class Draw:
    """What happens to one sample."""

    flips: tuple[int, ...]
    turns: tuple[tuple[int, int, int], ...]
    """`(axis, axis, quarter turns)`."""
    matrix: NDArray[np.float64] | None
    """`(3, 3)`, output position to input position in voxels about the centre; None leaves the grid alone."""
    contrast: float
    brightness: float
    gamma: float | None
    blur: float | None
    """Sigma in voxels."""
    zoom: float | None
    """Resolution to go down to and come back from, as a fraction."""
    noise: float
    noise_seed: int


class Augment:
    """Draws and applies what an `AugmentConfig` allows on a given patch."""

    def __init__(self, config: AugmentConfig, patch: Sequence[int], spacing: Sequence[float | None]) -> None:
        """
        Args:
            patch: `(X, Y, Z)` voxels; where two sides and spacings are equal, quarter turns keep the grid.
            spacing: millimetres per axis, None where it differs by case; those axes count as equally spaced.
        """
        self.config = config
        self.turnable = [(a, b) for a, b in _PLANES if patch[a] == patch[b] and spacing[a] == spacing[b]]
        known = [s for s in spacing if s is not None]
        self.spacing = np.array([min(known, default=1.0) if s is None else s for s in spacing])

    def draw(self, *seed: int) -> Draw:
        """The fate of one sample, a function of the seed."""
        rng = np.random.default_rng(seed)
        strong = self.config.preset == "strong"

        def maybe(chance: float, low: float, high: float) -> float | None:
            hit, value = rng.random() < chance, float(rng.uniform(low, high))
            return value if hit and strong else None

        flips = tuple(axis for axis in self.config.flips if rng.random() < 0.5)
        turns = tuple((a, b, int(rng.integers(4))) for a, b in self.turnable)
        reach = 0.25 if strong else 0.1
        return Draw(
            flips=flips,
            turns=turns,
            contrast=float(rng.uniform(1 - reach, 1 + reach)),
            brightness=float(rng.uniform(-reach, reach)),
            gamma=maybe(0.3, 0.7, 1.5),
            blur=maybe(0.2, 0.5, 1.0),
            zoom=maybe(0.2, 0.5, 1.0),
            noise=float(rng.uniform(0, 0.15 if strong and rng.random() < 0.3 else 0.05)),
            noise_seed=int(rng.integers(2**62)),
            matrix=_matrix(rng, self.spacing) if strong and rng.random() < 0.5 else None,
        )

    def apply(self, image: Tensor, draws: Sequence[Draw], label: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Augment a batch; new tensors come back.

        Args:
            image: `(B, M, X, Y, Z)` float.
            draws: one per sample.
            label: `(B, X, Y, Z)` integer classes on the same grid.
        """
        if self.config.preset == "none":
            return image, label
        image = torch.stack([_turn(x, d) for x, d in zip(image, draws, strict=True)])
        if label is not None:
            label = torch.stack([_turn(x, d) for x, d in zip(label, draws, strict=True)])
        image, label = _warp(image, label, draws)
        return torch.stack([_shade(x, d) for x, d in zip(image, draws, strict=True)]), label


def _turn(array: Tensor, draw: Draw) -> Tensor:
    """Exact flips and quarter turns; the last three axes are space."""
    first = array.ndim - 3
    if draw.flips:
        array = array.flip([first + axis for axis in draw.flips])
    for a, b, quarters in draw.turns:
        array = torch.rot90(array, quarters, (first + a, first + b))
    return array


def _matrix(rng: np.random.Generator, spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """A random scaling and rotation in millimetres, as a change of voxel positions.

    Thick slices stay where they are: what lies between them was never seen, so it cannot be turned into view.
    """
    fine = spacing <= THICK_SLICE_RATIO * spacing.min()
    matrix = np.diag(np.where(fine, rng.uniform(0.85, 1.25), 1.0))
    for a, b in _PLANES:
        angle = np.deg2rad(rng.uniform(-15, 15)) if fine[a] and fine[b] else 0.0
        rotation = np.eye(3)
        rotation[a, a] = rotation[b, b] = np.cos(angle)
        rotation[a, b], rotation[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ rotation
    return np.asarray(np.diag(1 / spacing) @ matrix @ np.diag(spacing))


def _warp(image: Tensor, label: Tensor | None, draws: Sequence[Draw]) -> tuple[Tensor, Tensor | None]:
    """Move the warped samples; image linear, label by the largest linearly interpolated class."""
    which = [i for i, draw in enumerate(draws) if draw.matrix is not None]
    if not which:
        return image, label
    shape = image.shape[2:]
    half = np.array([(n - 1) / 2 for n in shape])
    half[half == 0] = 1.0
    matrices = []
    for i in which:
        # grid_sample works in [-1, 1] per axis with the axes in reverse order.
        scaled = (draws[i].matrix * half[None, :]) / half[:, None]  # type: ignore[operator]
        matrices.append(scaled[::-1, ::-1].copy())
    theta = torch.zeros(len(which), 3, 4, device=image.device)
    theta[:, :, :3] = torch.as_tensor(np.stack(matrices), dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of axes of one voxel, which stay where they are
        grid = F.affine_grid(theta, [len(which), 1, *shape], align_corners=True)
    image = image.clone()
    image[which] = F.grid_sample(image[which], grid, padding_mode="border", align_corners=True)
    if label is not None:
        classes = int(label.max()) + 1
        onehot = F.one_hot(label[which], classes).movedim(-1, 1).float()
        label = label.clone()
        label[which] = F.grid_sample(onehot, grid, padding_mode="border", align_corners=True).argmax(1)
    return image, label


def _shade(image: Tensor, draw: Draw) -> Tensor:
    """Intensity changes of one sample, `(M, X, Y, Z)`."""
    if draw.blur is not None:
        image = _blur(image, draw.blur)
    if draw.zoom is not None:
        small = [max(1, round(n * draw.zoom)) for n in image.shape[1:]]
        low = F.interpolate(image[None], size=small, mode="nearest")
        image = F.interpolate(low, size=image.shape[1:], mode="trilinear", align_corners=False)[0]
    if draw.gamma is not None:
        low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
        span = (high - low).clamp_min(1e-6)
        image = ((image - low) / span) ** draw.gamma * span + low
    mean = image.mean((1, 2, 3), keepdim=True)
    image = (image - mean) * draw.contrast + mean + draw.brightness
    noise = torch.randn(image.shape, generator=generator(draw.noise_seed))
    return image + draw.noise * noise.to(image)


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, axis by axis, edges continued."""
    radius = max(1, int(3 * sigma + 0.5))
    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    for axis in range(1, 4):
        moved = image.movedim(axis, -1)
        flat = F.pad(moved.reshape(-1, 1, moved.shape[-1]), (radius, radius), mode="replicate")
        image = F.conv1d(flat, kernel.view(1, 1, -1)).view(moved.shape).movedim(-1, axis)
    return image
