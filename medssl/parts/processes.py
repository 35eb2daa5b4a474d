"""Sums over the processes that train together on several GPUs; with a single process they change nothing.

A loss that is a ratio of sums over the batch must use the sums over all processes; otherwise it differs from the loss
on one GPU. Gradients are averaged over processes afterwards, so the gradient of such a sum counts `count()` times in
each process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def count() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def total(local: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, the same in each of them and without a gradient."""
    if count() == 1:
        return local
    summed = local.clone()
    dist.all_reduce(summed)
    return summed
