"""Random perturbations of grey levels and features, each drawn from one seed per volume."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medssl.parts.grey import bent, blurred
from medssl.parts.schedules import generator

SHADED, BLURRED, BENT = 0.8, 0.5, 0.5
"""Probabilities that a strong view changes contrast and brightness, that it is blurred, and that its gamma changes."""


def strong_view(image: Tensor, seeds: Sequence[int], fine: Sequence[bool] = (True, True, True)) -> Tensor:
    """Return a strong view of each volume: changed grey levels and blur, but the same geometry, so targets stay valid.

    Contrast changes by up to a half, brightness by up to half a standard deviation; gamma is 0.5 to 2, Gaussian blur up
    to 2 voxels. These are the jitter and blur of 2D methods, with gamma in place of hue. There is no blur across thick
    slices, because it would remove what only one of them shows.

    Args:
        image: `(B, M, X, Y, Z)`.
        seeds: one per volume.
        fine: see `TrainBatch.fine`.

    Returns:
        A new tensor.
    """
    return torch.stack([_shaded(volume, seed, fine) for volume, seed in zip(image, seeds, strict=True)])


def _shaded(volume: Tensor, seed: int, fine: Sequence[bool]) -> Tensor:
    """One strong view, `(M, X, Y, Z)`. All numbers are drawn on the CPU, so nothing waits for the device."""
    chance, reach = torch.rand(2, 5, generator=generator(seed)).tolist()
    if chance[0] < BENT:
        volume = bent(volume, 4 ** (reach[0] - 0.5))
    if chance[1] < SHADED:
        mean, deviation = volume.mean((1, 2, 3), keepdim=True), volume.std((1, 2, 3), keepdim=True)
        volume = mean + (0.5 + reach[1]) * (volume - mean) + (reach[2] - 0.5) * deviation
    if chance[2] < BLURRED:
        volume = blurred(volume, 0.1 + 1.9 * reach[3], fine)
    return volume.clone()


def dropped(features: Tensor, rate: float, seeds: Sequence[int], *, channels: bool = False) -> Tensor:
    """Dropout with one seed per volume: set a random share of the features to 0 and scale up the others.

    Args:
        features: `(B, K, X, Y, Z)`.
        rate: share to drop, in [0, 1).
        seeds: one per volume.
        channels: drop whole channels instead of single values.
    """
    kept = torch.ones_like(features[:, :, :1, :1, :1] if channels else features)
    for volume, seed in zip(kept, seeds, strict=True):
        volume.bernoulli_(1 - rate, generator=torch.Generator(features.device).manual_seed(seed))
    return features * kept / (1 - rate)
