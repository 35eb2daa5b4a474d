"""Several predictions made into one, the surer ones counting more.

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
    """The mean of predictions, each voxel of each counting `1 / (uncertainty + floor)` times.

    Args:
        probs: `(V, B, C, X, Y, Z)`.
        uncertainty: `(V, B, X, Y, Z)`, at least 0; axes of length 1 stand for all of theirs.
        floor: keeps a prediction that is sure of itself from being infinitely heavy.
        most: how many times heavier than the lightest a prediction can be.
        share: how often each prediction counts besides; 0 leaves one out, but not all. Once by default.

    Returns:
        Class probabilities `(B, C, X, Y, Z)`, and how little they leave open, `(B, X, Y, Z)`: 1 for a certain class,
        0 for equal chances. A single prediction comes back as it is.
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
    """`(V, ...)` without its entry `index`, `(V - 1, ...)`."""
    return torch.cat([stacked[:index], stacked[index + 1 :]])


def mean_and_variance(passes: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Of several passes through a network with live dropout: what they say, and how much they differ.

    Args:
        passes: class probabilities `(B, C, X, Y, Z)` each; one at a time is in memory.

    Returns:
        Their mean, `(B, C, X, Y, Z)`, and their variance averaged over classes, `(B, X, Y, Z)`; 0 for one pass.
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
