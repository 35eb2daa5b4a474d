"""Pseudo-labels from predictions, and measures of their certainty."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

_FULL = np.ones((3, 3, 3), bool)
_ROUNDS = 5
"""Rounds between two checks whether pointers still move; each check waits for the device."""
_JUMPS = 3
"""Number of times that a round halves chains of pointers."""


def likeliest(logits: Tensor) -> Tensor:
    """Return the likeliest class of each voxel, `(B, C, X, Y, Z)` to `(B, X, Y, Z)`.

    On a CPU, `argmax` takes fifteen times as long.
    """
    return logits.max(1).indices


def probabilities(logits: Tensor) -> Tensor:
    """Return class probabilities `(B, C, X, Y, Z)` for use as targets: in float32 and without a gradient."""
    return logits.detach().float().softmax(1)


def entropy(probs: Tensor) -> Tensor:
    """Return normalised entropies, `(..., C, X, Y, Z)` to `(..., X, Y, Z)`.

    The entropy is 0 if one class is certain and 1 if all are equally likely. Use it for weights, not for losses: its
    gradient is NaN where a probability is 0.
    """
    return cast(Tensor, torch.special.entr(probs)).sum(-4) / math.log(probs.shape[-4])


def sharpen(probs: Tensor, temperature: float) -> Tensor:
    """Raise class probabilities `(B, C, X, Y, Z)` to the power of `1 / temperature` and normalise them.

    A temperature of 1 changes nothing; towards 0 the likeliest class gets probability 1.
    """
    return torch.softmax(probs.log() / temperature, 1)


def largest_component(target: Tensor, classes: int) -> Tensor:
    """Keep the largest 26-connected component of each foreground class; the rest becomes background.

    Args:
        target: `(B, X, Y, Z)`, integer classes in `[0, classes)`.

    Returns:
        A new tensor of the same shape, type and device. An absent class stays absent. Of components of equal size, the
        first in memory order is kept.
    """
    return propagated_largest_component(target, classes) if target.is_cuda else _labelled(target, classes)


def _labelled(target: Tensor, classes: int) -> Tensor:
    """`largest_component` with SciPy, within the bounding box of each class."""
    volumes = target.detach().cpu().numpy()
    kept = np.zeros(volumes.shape, volumes.dtype)
    for volume, clean in zip(volumes, kept, strict=True):
        for value, box in enumerate(ndimage.find_objects(volume, classes - 1), start=1):
            if box is not None:
                components, _ = ndimage.label(volume[box] == value, structure=_FULL)
                sizes = np.bincount(components.ravel())[1:]
                clean[box][components == 1 + int(sizes.argmax())] = value
    return torch.from_numpy(kept).to(target.device)


def propagated_largest_component(target: Tensor, classes: int) -> Tensor:
    """`largest_component` with torch operations only, for all volumes and classes at once on the target's device.

    Every voxel points at a voxel of its component, at first itself. A round moves each pointer to the first voxel in
    memory order that a neighbour of the same class points at, moves the pointer of the voxel it pointed at likewise,
    and shortens chains of pointers. In the end all voxels of a component point at its first voxel.
    """
    if classes < 2:
        return torch.zeros_like(target)
    labels, voxels = target.flatten(1).long(), target[0].numel()  # (B, N)
    values = torch.arange(1, classes, device=target.device)
    inside = target.unsqueeze(1) == values.view(-1, 1, 1, 1)  # (B, C - 1, X, Y, Z)
    own = torch.arange(voxels, device=target.device).expand_as(labels)

    first, moving = own, True
    while moving:
        for _ in range(_ROUNDS):
            before, first = first, _round(first, own, labels, inside)
        moving = not torch.equal(before, first)

    sizes = torch.zeros_like(labels).scatter_add_(1, first, torch.ones_like(labels))
    rank = sizes * voxels - own  # above 0 at first voxels; larger for larger components, then for earlier ones
    best = torch.stack([torch.where(labels == value, rank, 0).amax(1) for value in range(1, classes)], 1)  # (B, C - 1)
    kept = (rank.gather(1, first) == best.gather(1, (labels - 1).clamp_min(0))) & (labels > 0)
    return torch.where(kept.view_as(target), target, 0)


def _round(first: Tensor, own: Tensor, labels: Tensor, inside: Tensor) -> Tensor:
    """Pointers `(B, N)` after one more round."""
    exact = torch.float32 if own.shape[1] <= 2**24 else torch.float64  # holds every index
    place = -first.to(exact)
    field = torch.where(inside, place.view_as(inside[:, :1]), -torch.inf)
    field = F.max_pool3d(field, 3, stride=1, padding=1).flatten(2)
    field = field.gather(1, (labels - 1).clamp_min(0).unsqueeze(1)).squeeze(1)
    near = -torch.where(labels > 0, field, place).long()
    told = torch.where(near < first, first, own)  # whose pointer moves as well; without a change, one's own
    first = torch.minimum(first.scatter_reduce(1, told, near, "amin"), near)
    for _ in range(_JUMPS):
        first = first.gather(1, first)
    return first
