"""Weighting of features by how far several views of the same volume agree on them."""

from __future__ import annotations

import torch
from torch import Tensor


def by_agreement(features: Tensor, views: int, strength: float) -> Tensor:
    """Amplify the channels on which the views of a volume agree, and weaken the others.

    For the channels of a volume, with means over voxels and views:

        consensus  F = mean_v f_v
        deviation  d = mean |f_v - F| / mean |f_v|        0 where the views agree, below 2
        gate       g = K exp(-strength d) / sum exp(-strength d)

    The K gates of a volume are 1 on average, which keeps the scale of the features, and have no gradient. Nothing
    changes with a single view, or if the views agree equally on all channels.

    Args:
        features: `(V B, K, X, Y, Z)`, all B volumes in the first view, then in the second, and so on.
        views: V.
        strength: at least 0; 0 changes nothing.
    """
    by_view = features.reshape(views, -1, *features.shape[1:])  # (V, B, K, X, Y, Z)
    with torch.no_grad():
        seen, space = by_view.float(), (0, 3, 4, 5)
        size = seen.abs().mean(space).clamp_min(torch.finfo(seen.dtype).tiny)
        deviation = (seen - seen.mean(0)).abs().mean(space) / size  # (B, K)
        gate = features.shape[1] * torch.softmax(-strength * deviation, 1)
    weighed: Tensor = by_view * gate.to(features.dtype)[..., None, None, None]
    return weighed.flatten(0, 1)
