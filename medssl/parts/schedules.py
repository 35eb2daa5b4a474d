"""Numbers that depend on how far a run is, and the randomness of one step."""

from __future__ import annotations

import math

import torch

from medssl.parts.sample import Progress


def poly(progress: Progress, power: float = 0.9) -> float:
    """`(1 - t/T)^power`, the usual decay of the learning rate."""
    return float((1 - progress.fraction) ** power)


def ramp_up(progress: Progress, length: float) -> float:
    """Sigmoid ramp `exp(-5 (1 - x)^2)`, from 0.0067 to 1 over the first `length` (a fraction) of the run."""
    if length <= 0:
        return 1.0
    return math.exp(-5 * (1 - min(1.0, progress.fraction / length)) ** 2)


def generator(*seed: int) -> torch.Generator:
    """A CPU generator that is a function of its seeds, such as (run seed, iteration)."""
    mixed = 0
    for number in seed:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)
