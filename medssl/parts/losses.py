"""Losses on logits, each voxel counted as often as its weight says.

All are computed in float32, whatever precision the network ran in.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

DiceForm = Literal["linear", "squared"]


def dice_ce(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, dice: DiceForm = "squared", eps: float = 1e-5
) -> Tensor:
    """Mean of soft Dice loss and cross-entropy, each counting a voxel `weight` times.

    `weight` is how a voxel's trust enters the loss: 1 for an expert's label, the pseudo-label's
    confidence for an unlabelled voxel, 0 to leave it out. A term that only looks inside a pasted
    box is this same function with the box as its weight.

    Args:
        logits: `(B, C, X, Y, Z)`, before the softmax.
        target: `(B, X, Y, Z)`, integer classes in `[0, C)`.
        weight: `(B, X, Y, Z)`, at least 0; `None` counts every voxel once.
        dice: see `dice_loss`.

    Returns:
        A scalar; 0 where every weight is 0. Background counts as a class.
    """
    return (cross_entropy(logits, target, weight, eps) + dice_loss(logits, target, weight, dice, eps)) / 2


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Weighted mean of `-log p` of the target class; 0 where every weight is 0. Shapes as `dice_ce`."""
    ce = F.cross_entropy(logits.float(), target, reduction="none")  # (B, X, Y, Z)
    if weight is None:
        return ce.mean()
    return (ce * weight).sum() / weight.sum().clamp_min(eps)


def dice_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, form: DiceForm = "squared", eps: float = 1e-5
) -> Tensor:
    """One minus soft Dice, averaged over all classes, background included. Shapes as `dice_ce`.

    Args:
        form: `squared` sums over batch and voxels with `p^2 + t^2` below the line; `linear` sums over the
            voxels of each volume apart with `p + t` below it, and averages over volumes.

    Returns:
        A scalar; an empty region or class counts as perfect, since both sums are then `eps`.
    """
    probs = logits.float().softmax(1)  # (B, C, X, Y, Z)
    onehot = F.one_hot(target, logits.shape[1]).movedim(-1, 1).to(probs.dtype)  # (B, C, X, Y, Z)
    counted = 1.0 if weight is None else weight.unsqueeze(1).to(probs.dtype)
    space = (0, 2, 3, 4) if form == "squared" else (2, 3, 4)
    power = 2 if form == "squared" else 1
    overlap = (counted * probs * onehot).sum(space)  # (C,) or (B, C)
    size = (counted * (probs**power + onehot)).sum(space)
    return 1 - ((2 * overlap + eps) / (size + eps)).mean()


def consistency(logits: Tensor, teacher_probs: Tensor) -> Tensor:
    """Mean squared difference of class probabilities over voxels and classes (Mean Teacher).

    Args:
        logits: the student's, `(B, C, X, Y, Z)`.
        teacher_probs: `(B, C, X, Y, Z)`, detached.
    """
    return torch.mean((logits.float().softmax(1) - teacher_probs) ** 2)
