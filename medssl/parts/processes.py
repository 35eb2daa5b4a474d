"""Sums over the processes of a training on several GPUs; where there is one process, nothing happens.

A loss that divides sums over the batch by each other must do so with the sums of all processes, or it would be another
loss than on one GPU. Gradients are averaged over processes afterwards, so each process's own share counts
`count()` times.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def total(local: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on each of them; no gradient passes."""
    if count() == 1:
        return local
    summed = local.clone()
    dist.all_reduce(summed)
    return summed
