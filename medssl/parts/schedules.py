"""Numbers that depend on how far a run is, and the randomness of one step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medssl.parts.sample import Progress


def poly(progress: Progress) -> float:
    """`(1 - t/T)^0.9`, the usual decay of the learning rate."""
    return math.pow(max(0.0, 1 - progress.fraction), 0.9)


def ramp_up(progress: Progress, length: float) -> float:
    """Sigmoid ramp `exp(-5 (1 - x)^2)`, from 0.0067 to 1 over the first `length` (a fraction) of the run."""
    if length <= 0:
        return 1.0
    return math.exp(-5 * (1 - min(1.0, progress.fraction / length)) ** 2)


def warmed_up(decay: float, step: int) -> float:
    """An EMA decay reached from 0 as `1 - 1/(step + 1)`: a teacher is the mean of its students so far, until then."""
    return min(1 - 1 / (step + 1), decay)


def generator(*seed: int) -> torch.Generator:
    """A CPU generator that is a function of its seeds, such as (run seed, iteration)."""
    return torch.Generator().manual_seed(mix(*seed))


def mix(*seed: int) -> int:
    """One seed, in [0, 2^63), out of several."""
    mixed = 0
    for number in seed:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return mixed


def normal(image: Tensor, seeds: Sequence[int]) -> Tensor:
    """Standard normal noise of the shape `(B, ...)` and on the device of an image, each volume's from its own seed."""
    noise = torch.empty_like(image)
    for volume, seed in zip(noise, seeds, strict=True):
        volume.normal_(generator=torch.Generator(image.device).manual_seed(seed))
    return noise
