"""Making pseudo-labels out of a teacher's prediction."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

_FULL = np.ones((3, 3, 3), bool)


def largest_component(target: Tensor, classes: int) -> Tensor:
    """Keep each foreground class's largest 26-connected component; the rest becomes background.

    Args:
        target: `(B, X, Y, Z)`, integer classes in `[0, classes)`.

    Returns:
        A new tensor of the same shape, type and device; an absent class stays absent, ties keep
        the component met first.
    """
    volumes = target.detach().cpu().numpy()
    kept = np.zeros_like(volumes)
    for volume, clean in zip(volumes, kept, strict=True):
        for value in range(1, classes):
            components, count = ndimage.label(volume == value, structure=_FULL)
            if count:
                sizes = np.bincount(components.ravel())[1:]
                clean[components == 1 + int(sizes.argmax())] = value
    return torch.from_numpy(kept).to(target.device)
