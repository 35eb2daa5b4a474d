"""Copy-paste between volumes: one box cuts image, target and weight alike.

A box is a boolean `(X, Y, Z)` mask, true inside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medssl.parts.sample import Sample


def random_box(
    shape: Sequence[int], fraction: float, rng: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw a box at a uniformly random place; it can touch every face of the patch.

    Args:
        shape: `(X, Y, Z)` of the patch.
        fraction: side of the box as a share of the side of the patch, in (0, 1]; a side has at least one voxel.
        rng: a CPU generator.
        device: device of the box.

    Returns:
        `(X, Y, Z)` bool.
    """
    box = torch.zeros(tuple(shape), dtype=torch.bool, device=device)
    place = []
    for size in shape:
        side = max(1, int(size * fraction + 1e-6))
        start = int(torch.randint(size - side + 1, (), generator=rng))
        place.append(slice(start, start + side))
    box[tuple(place)] = True
    return box


def paste(inside: Sample, outside: Sample, box: Tensor) -> Sample:
    """Return `inside` within the box and `outside` around it: image, target and weight alike.

    Args:
        box: `(X, Y, Z)` bool, shared by the whole batch.
    """
    return Sample(
        torch.where(box, inside.image, outside.image),
        torch.where(box, inside.target, outside.target),
        torch.where(box, inside.weight, outside.weight),
    )
