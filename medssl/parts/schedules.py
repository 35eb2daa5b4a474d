"""Schedules over a run, and seeded random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medssl.parts.sample import Progress


def poly(progress: Progress) -> float:
    """Return `(1 - t/T)^0.9`, the usual decay of the learning rate."""
    return math.pow(max(0.0, 1 - progress.fraction), 0.9)


def ramp_up(progress: Progress, length: float) -> float:
    """Return the sigmoid ramp `exp(-5 (1 - x)^2)`, from 0.0067 to 1 over the first `length` (a share) of the run."""
    if length <= 0:
        return 1.0
    return math.exp(-5 * (1 - min(1.0, progress.fraction / length)) ** 2)


def warmed_up(decay: float, step: int) -> float:
    """Return an EMA decay that rises from 0 as `1 - 1/(step + 1)` up to `decay`.

    During the rise, a teacher is the mean of all its students so far.
    """
    return min(1 - 1 / (step + 1), decay)


def generator(*seed: int) -> torch.Generator:
    """Return a CPU generator for the given seeds, such as (run seed, iteration)."""
    return torch.Generator().manual_seed(mix(*seed))


def mix(*seed: int) -> int:
    """Combine several seeds into one, in [0, 2^63)."""
    mixed = 0
    for number in seed:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return mixed


def normal(image: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return standard normal noise with the shape `(B, ...)` and device of an image; each volume has its own seed."""
    noise = torch.empty_like(image)
    for volume, seed in zip(noise, seeds, strict=True):
        volume.normal_(generator=torch.Generator(image.device).manual_seed(seed))
    return noise
