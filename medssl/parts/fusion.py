"""Fusion of several predictions into one, in which more certain predictions count more.

Predictions are class probabilities, stacked as `(V, B, C, X, Y, Z)`: V views or networks, all on the image's own axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from medssl.parts.pseudo import entropy


def fuse(
    probs: Tensor,
    uncertainty: Tensor,
    *,
    floor: float = 1e-3,
    most: float = 20.0,
    share: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mean of predictions, in which each voxel of each has weight `1 / (uncertainty + floor)`.

    Args:
        probs: `(V, B, C, X, Y, Z)`.
        uncertainty: `(V, B, X, Y, Z)`, at least 0; axes of length 1 are broadcast.
        floor: keeps the weight of a certain prediction finite.
        most: largest ratio between a prediction's weight and the smallest, before `share`.
        share: factor on the weight of each prediction, by default 1; 0 leaves a prediction out, and at least one must
            be above 0.

    Returns:
        Class probabilities `(B, C, X, Y, Z)`, and their certainty `(B, X, Y, Z)`: 1 if one class has probability 1, 0
        if all classes are equally likely. A single prediction is returned unchanged.
    """
    weight = 1 / (uncertainty + floor)
    share = [1.0] * len(probs) if share is None else share
    lightest = torch.stack([one for one, times in zip(weight, share, strict=True) if times > 0]).amin(0)
    weight = torch.minimum(weight, most * lightest)
    weight = torch.stack([one * times for one, times in zip(weight, share, strict=True)])
    weight = weight / weight.sum(0)
    fused = (weight.unsqueeze(2) * probs).sum(0)
    return fused, 1 - entropy(fused)


def others(stacked: Tensor, index: int) -> Tensor:
    """Remove the entry `index` from `(V, ...)`, which gives `(V - 1, ...)`."""
    return torch.cat([stacked[:index], stacked[index + 1 :]])


def mean_and_variance(passes: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of several passes through a network with active dropout.

    Args:
        passes: class probabilities `(B, C, X, Y, Z)` each; only one at a time is in memory.

    Returns:
        The mean, `(B, C, X, Y, Z)`, and the variance averaged over classes, `(B, X, Y, Z)`; 0 for one pass.

    Raises:
        ValueError: no passes.
    """
    count, mean, squares = 0, None, None
    for probs in passes:
        count += 1
        if mean is None or squares is None:
            mean, squares = probs.clone(), torch.zeros_like(probs)
            continue
        change = probs - mean
        mean += change / count
        squares += change * (probs - mean)
    if mean is None or squares is None:
        raise ValueError("a mean needs at least one pass")
    return mean, squares.mean(1) / count
