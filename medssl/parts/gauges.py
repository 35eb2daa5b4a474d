"""Gauges: numbers that a training step logs about itself, with the same names for every method.

    prior/<class>   share of the annotated voxels that have this class
    pseudo/<class>  share of the pseudo-labelled voxels that have this class; should stay near the prior
    selected        mean weight of an unlabelled voxel; 1 where a method gives all the same
    gap             share of the unlabelled voxels where student and teacher predict different classes
    dissent         the same between two students
    contested       share of the annotated voxels where a student and the best student predict different classes (RAIL)
    removed         share of pseudo-labelled foreground that `largest_component` turned into background

All are detached scalars for `StepResult.stats`. Each takes a pass or two over the voxels; nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medssl.parts.pseudo import likeliest


def gauges(
    label: Tensor,
    pseudo: Tensor,
    classes: int,
    *,
    known: Tensor | None = None,
    weight: Tensor | None = None,
    student: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the gauges of a step in which a teacher labels unlabelled voxels.

    Args:
        label: classes of the labelled patches, `(Bl, X, Y, Z)`.
        pseudo: the teacher's classes, `(Bu, X, Y, Z)`; Bu may be 0.
        known: annotated voxels of `label`; see `TrainBatch.known`.
        weight: weight of each voxel of `pseudo`, of the same shape; None if all have the same.
        student: the student's logits on the same voxels, `(Bu, C, X, Y, Z)`; None leaves out the gap.
    """
    stats = volumes("prior", label, classes, known) | volumes("pseudo", pseudo, classes, weight)
    every = torch.full((), float(pseudo.numel() > 0), device=pseudo.device)
    stats["selected"] = every if weight is None else mean_trust(weight)
    if student is not None:
        stats["gap"] = gap(student, pseudo)
    return stats


@torch.no_grad()
def volumes(name: str, target: Tensor, classes: int, weight: Tensor | None = None) -> dict[str, Tensor]:
    """Return each class's share of the voxels with a weight above 0 as `name/0`, `name/1`, ...; 0 if there are none."""
    values = target.float() if weight is None else torch.where(weight > 0, target.float(), -1.0)
    counts = torch.histc(values, classes, 0, classes - 1)  # ignores the -1; bincount would wait for a GPU
    shares = counts / counts.sum().clamp_min(1)
    return {f"{name}/{value}": share for value, share in enumerate(shares.unbind())}


@torch.no_grad()
def mean_trust(weight: Tensor) -> Tensor:
    """Return the mean of voxel weights; 0 if there is no voxel."""
    return weight.float().sum() / max(1, weight.numel())


@torch.no_grad()
def removed(named: Tensor, kept: Tensor) -> Tensor:
    """Return the share of foreground voxels of `named`, `(B, X, Y, Z)`, whose class differs in `kept`; 0 if none."""
    return (named != kept).sum() / (named > 0).sum().clamp_min(1)


@torch.no_grad()
def gap(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the weighted share of voxels whose likeliest class is not the target; 0 if all weights are 0.

    Args:
        logits: `(B, C, X, Y, Z)`.
        target: `(B, X, Y, Z)`, integer classes.
        weight: of the same shape, or `(X, Y, Z)` for all volumes; None counts every voxel once.
    """
    differs = (likeliest(logits) != target).float()
    if weight is None:
        return mean_trust(differs)
    weight = weight.expand_as(differs)
    return (differs * weight).sum() / weight.sum().clamp_min(1e-5)
