"""What a training step tells about itself, under the same names for every method, so that curves compare.

    prior/<class>   share of the annotated voxels that have this class
    pseudo/<class>  share of the pseudo-labelled voxels that have this class; should stay near the prior
    selected        trust that an unlabelled voxel gets, on average; 1 where a method trusts all alike
    gap             share of the unlabelled voxels where student and teacher name different classes
    dissent         the same between two students of a method with several
    contested       share of the annotated voxels where a student and the best of all (RAIL) name different classes
    removed         share of pseudo-labelled foreground that `largest_component` made background

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
    """The gauges of a step whose teacher labels unlabelled voxels.

    Args:
        label: labelled patches' classes, `(Bl, X, Y, Z)`.
        pseudo: the teacher's classes, `(Bu, X, Y, Z)`; Bu may be 0.
        known: where the label is one, see `TrainBatch.known`.
        weight: trust in `pseudo`, of its shape, where it varies.
        student: the student's logits on the same voxels, `(Bu, C, X, Y, Z)`, where it saw them.
    """
    stats = volumes("prior", label, classes, known) | volumes("pseudo", pseudo, classes, weight)
    every = torch.full((), float(pseudo.numel() > 0), device=pseudo.device)
    stats["selected"] = every if weight is None else mean_trust(weight)
    if student is not None:
        stats["gap"] = gap(student, pseudo)
    return stats


@torch.no_grad()
def volumes(name: str, target: Tensor, classes: int, weight: Tensor | None = None) -> dict[str, Tensor]:
    """`name/0`, `name/1` ...: each class's share of the voxels, or of those with a weight above 0; 0 where none has."""
    values = target.float() if weight is None else torch.where(weight > 0, target.float(), -1.0)
    counts = torch.histc(values, classes, 0, classes - 1)  # passes over the -1; bincount would wait for a GPU
    shares = counts / counts.sum().clamp_min(1)
    return {f"{name}/{value}": share for value, share in enumerate(shares.unbind())}


@torch.no_grad()
def mean_trust(weight: Tensor) -> Tensor:
    """The mean of voxel weights; 0 where there is no voxel."""
    return weight.float().sum() / max(1, weight.numel())


@torch.no_grad()
def removed(named: Tensor, kept: Tensor) -> Tensor:
    """Share of the voxels named foreground, `(B, X, Y, Z)`, that are named otherwise in `kept`; 0 where none is."""
    return (named != kept).sum() / (named > 0).sum().clamp_min(1)


@torch.no_grad()
def gap(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Share of the voxels, each counted `weight` times, whose likeliest class is not the target; 0 where none counts.

    Args:
        logits: `(B, C, X, Y, Z)`.
        target: `(B, X, Y, Z)`, integer classes.
        weight: of the same shape, or one that all volumes share.
    """
    differs = (likeliest(logits) != target).float()
    if weight is None:
        return mean_trust(differs)
    weight = weight.expand_as(differs)
    return (differs * weight).sum() / weight.sum().clamp_min(1e-5)
