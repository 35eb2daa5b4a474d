"""Losses on logits, with a weight for each voxel.

All are computed in float32, whatever precision the network ran in. Dice and cross-entropy share one softmax, and their
gradient is written out: with autograd they would cost half as much as a small network.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from medssl.parts import processes

DiceForm = Literal["linear", "squared", "foreground"]

EPS = 1e-5
"""Constant that keeps ratios over no voxels from being 0 / 0."""

_CACHED = 2**18
"""Number of logits that a CPU processes at once, so that its cache holds them a few times over."""


def dice_ce(logits: Tensor, target: Tensor, weight: Tensor | None = None, *, dice: DiceForm = "squared") -> Tensor:
    """Return the mean of soft Dice loss and cross-entropy, both weighted by voxel.

    Typical weights are 1 for an expert's label, the confidence for a pseudo-label, and 0 to leave a voxel out. For a
    loss inside a pasted box, pass the box as the weight; one call can score several boxes.

    Sums over the batch run over the batches of all processes that train together. An unweighted mean over voxels, or a
    mean over volumes, is taken in each process, because its average over processes is the same.

    Args:
        logits: `(B, C, X, Y, Z)`, before the softmax.
        target: `(B, X, Y, Z)`, integer classes in `[0, C)`.
        weight: `(B, X, Y, Z)`, at least 0; None counts every voxel once. `(R, B, X, Y, Z)` scores R regions
            separately. B may be 1 for a weight that all volumes share. It gets no gradient.
        dice: form of the Dice loss; see `dice_loss`.

    Raises:
        ValueError: shapes that do not fit, a target of floating-point numbers, or an unknown form.

    Returns:
        A scalar, or `(R,)` for regions; 0 where every weight is 0. The background counts as a class, except in Dice of
        the form `foreground`.
    """
    return _loss(logits, target, weight, dice, 0.5)


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the weighted mean of `-log p` of the target class; 0 where every weight is 0. Shapes as in `dice_ce`."""
    return _loss(logits, target, weight, None, 1.0)


def dice_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None, form: DiceForm = "squared") -> Tensor:
    """Return one minus soft Dice, averaged over classes. Shapes as in `dice_ce`.

    Args:
        form: `squared`: sums over batch and voxels, with `p^2 + t^2` in the denominator. `foreground`: the same,
            without the background in the mean. `linear`: sums over the voxels of each volume, with `p + t` in the
            denominator, averaged over volumes.

    Returns:
        A scalar, or `(R,)` for regions. An empty region or class counts as perfect, because its ratio is `EPS / EPS`.
    """
    return _loss(logits, target, weight, form, 0.0)


def consistency(logits: Tensor, teacher_probs: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of class probabilities over voxels and classes (Mean Teacher).

    Args:
        logits: the student's logits, `(B, C, X, Y, Z)`.
        teacher_probs: `(B, C, X, Y, Z)`, detached.
        weight: see `voxel_mean`.
    """
    return voxel_mean(torch.mean((logits.float().softmax(1) - teacher_probs) ** 2, 1), weight)


def soft_dice_loss(logits: Tensor, probs: Tensor) -> Tensor:
    """Return `dice_loss` of the form `squared` with class probabilities as targets; 0 if predictions equal them.

    Args:
        logits: `(B, C, X, Y, Z)`.
        probs: targets, `(B, C, X, Y, Z)`, detached.
    """
    ours, space = logits.float().softmax(1), (0, 2, 3, 4)
    overlap, size = _everywhere((ours * probs).sum(space)), _everywhere((ours**2 + probs**2).sum(space))
    return 1 - ((2 * overlap + EPS) / (size + EPS)).mean()


def flatness(logits: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the cross-entropy to equal probabilities of all classes, which is least for undecided networks (RAIL).

    Args:
        logits: `(B, C, X, Y, Z)`.
        weight: see `voxel_mean`.
    """
    return voxel_mean(-logits.float().log_softmax(1).mean(1), weight)


def voxel_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the weighted mean of `(B, X, Y, Z)` over the voxels of all processes.

    Args:
        weight: `(B, X, Y, Z)`, at least 0; None counts every voxel once. It gets no gradient.

    Returns:
        A scalar; 0 if every weight is 0.

    Raises:
        ValueError: `values` and `weight` differ in shape.
    """
    if weight is None:
        return values.mean()
    if weight.shape != values.shape:
        raise ValueError(f"weight must have the shape of values, {tuple(values.shape)}, got {tuple(weight.shape)}")
    return _everywhere((values * weight).sum()) / processes.total(weight.float().sum()).clamp_min(EPS)


def trusted(weight: Tensor, region: Tensor | None = None) -> Tensor:
    """Return the mean weight of a region's voxels, over all processes; 0 if it is empty.

    A weighted mean of losses, multiplied by this, is the weighted sum divided by the number of the region's voxels. So
    voxels with small weights teach little; in the weighted mean alone, they teach as much as those with large weights.

    Args:
        weight: `(B, X, Y, Z)`, at least 0.
        region: mask of the same shape, or one that all volumes share; None is everywhere.
    """
    if region is None:
        return processes.total(weight.mean()) / processes.count()
    inside = region.expand_as(weight)
    return processes.total((weight * inside).sum()) / processes.total(inside.sum()).clamp_min(1)


def _everywhere(local: Tensor) -> Tensor:
    """Sum over all processes. Its gradient counts `count()` times, because processes average theirs afterwards."""
    return processes.total(local.detach()) + processes.count() * (local - local.detach())


def _loss(logits: Tensor, target: Tensor, weight: Tensor | None, form: DiceForm | None, ce_share: float) -> Tensor:
    """Weighted sum of cross-entropy (`ce_share`) and Dice (the rest); `form` None leaves Dice out."""
    _check(logits, target, weight, form)
    target, regions = target.long(), weight
    if weight is not None:
        regions = weight.reshape(-1, *weight.shape[-4:]).expand(-1, len(logits), -1, -1, -1)
    losses = cast(Tensor, _VoxelLoss.apply(logits, target, regions, form, ce_share))  # type: ignore[no-untyped-call]
    return losses if weight is not None and weight.dim() == 5 else losses[0]


def _check(logits: Tensor, target: Tensor, weight: Tensor | None, form: DiceForm | None) -> None:
    batch, space = len(logits), logits.shape[2:]
    if logits.dim() != 5 or target.shape != (batch, *space) or target.is_floating_point():
        raise ValueError(
            f"logits must be (B, C, X, Y, Z) and target integers (B, X, Y, Z), got {tuple(logits.shape)} and "
            f"{tuple(target.shape)} of {target.dtype}"
        )
    if weight is not None and (
        weight.dim() not in (4, 5) or weight.shape[-3:] != space or weight.shape[-4] not in (1, batch)
    ):
        raise ValueError(
            f"weight must have the target's shape, {tuple(target.shape)}, or regions before it, "
            f"got {tuple(weight.shape)}"
        )
    if form is not None and form not in get_args(DiceForm):
        raise ValueError(f"the form of Dice must be one of {', '.join(get_args(DiceForm))}, got {form!r}")


class _VoxelLoss(torch.autograd.Function):
    """Cross-entropy and Dice of R regions, `(R,)`, from one softmax, with the gradient in closed form.

    Both losses are functions of weighted sums over voxels: of `-log p_t` and 1 for cross-entropy; of `p_c [t = c]`
    (overlap) and `p_c + [t = c]` or `p_c^2 + [t = c]` (size) for Dice. The forward pass also computes the derivatives
    of the losses by these sums, so that the backward pass needs only the probabilities and a few numbers.

    No sum is written as a matrix product, because these are rounded to TF32 on GPUs and to 16 bits under autocast.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        form: DiceForm | None,
        ce_share: float,
    ) -> Tensor:
        batch, classes = logits.shape[:2]
        regions = 1 if weight is None else len(weight)
        probs = torch.empty(logits.shape, dtype=torch.float32, device=logits.device).flatten(2)  # (B, C, N)
        ce = probs.new_zeros(2, regions, batch)
        dice = probs.new_zeros(2, regions, batch, classes)
        for part in _parts(logits):
            scores, labels, weights = logits[part].flatten(2), target[part].flatten(1), _weights(weight, part)
            torch.softmax(scores, 1, dtype=torch.float32, out=probs[part])
            if ce_share > 0:
                ce[:, :, part] = _ce_sums(scores, probs[part], labels, weights)
            if form is not None:
                dice[:, :, part] = _dice_sums(probs[part], labels, weights, form)

        # A sum over all processes counts `count()` times in the gradient, because processes average theirs afterwards.
        ce, ce_copies, dice_copies = ce.sum(2), 1, 1
        if form in ("squared", "foreground"):
            ce, dice = _over_processes(ce, dice.sum(2, keepdim=True))
            ce_copies = dice_copies = processes.count()
        elif weight is not None and ce_share > 0:
            (ce,) = _over_processes(ce)
            ce_copies = processes.count()

        normaliser, size = ce[1].clamp_min(EPS), dice[1] + EPS
        ratio = (2 * dice[0] + EPS) / size  # (R, B or 1, C)
        share = _class_shares(ratio, form)
        by_nll = ce_share * ce_copies / normaliser
        by_overlap = -2 * (1 - ce_share) * dice_copies * share / size
        ctx.save_for_backward(probs, target, weight, by_nll, by_overlap, -ratio * by_overlap / 2)
        ctx.form, ctx.shape, ctx.dtype = form, logits.shape, logits.dtype
        return ce_share * ce[0] / normaliser + (1 - ce_share) * (1 - (share * ratio).sum((1, 2)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        probs, target, weight, by_nll, by_overlap, by_size = ctx.saved_tensors
        by_nll, grad = by_nll * grad, grad.view(-1, 1, 1)
        by_overlap, by_size = ((grad * by).expand(-1, len(probs), -1) for by in (by_overlap, by_size))
        change = torch.empty(ctx.shape, dtype=ctx.dtype, device=probs.device)
        for part in _parts(probs):
            here, weights = probs[part], _weights(weight, part)
            onehot = _onehot(target[part].flatten(1), probs.shape[1])
            pull = _pull(by_nll, weights)
            out = change[part].flatten(2)
            if ctx.form is None:
                torch.mul(here - onehot, pull, out=out)
                continue
            slope = _dice_slope(here, onehot, weights, by_overlap[:, part], by_size[:, part], ctx.form)
            slope += pull - (slope * here).sum(1, keepdim=True)
            torch.sub(slope.mul_(here), onehot.mul_(pull), out=out)
        return change, None, None, None, None


def _class_shares(ratio: Tensor, form: DiceForm | None) -> Tensor:
    """Weight of each class in the mean of `(R, B, C)`, `(C,)`."""
    _, volumes, classes = ratio.shape
    share = ratio.new_ones(classes)
    if form == "foreground":
        share[0] = 0
        classes -= 1
    return share / (volumes * classes)


def _ce_sums(logits: Tensor, probs: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """`w * -log p_t` and `w` summed over voxels, `(2, R, B)`."""
    chosen = logits.gather(1, target.unsqueeze(1)).squeeze(1).float()  # (B, N)
    # Computed from the likeliest class, whose p cannot underflow; that of the target can.
    nll = logits.amax(1).float() - chosen - probs.amax(1).log()
    if weights is None:
        return torch.stack([nll.sum(-1), torch.full_like(nll[:, 0], nll.shape[1])]).unsqueeze(1)
    return torch.stack([_weighted_sums(nll.unsqueeze(1), weights).squeeze(-1), weights.sum(-1)])


def _dice_sums(probs: Tensor, target: Tensor, weights: Tensor | None, form: DiceForm) -> Tensor:
    """Overlaps and sizes of the classes, `(2, R, B, C)`."""
    onehot = _onehot(target, probs.shape[1])
    both = onehot + probs if form == "linear" else torch.addcmul(onehot, probs, probs)
    return torch.stack([_weighted_sums(onehot.mul_(probs), weights), _weighted_sums(both, weights)])


def _dice_slope(
    probs: Tensor, onehot: Tensor, weights: Tensor | None, by_overlap: Tensor, by_size: Tensor, form: DiceForm
) -> Tensor:
    """Derivative of Dice by each probability, `(B, C, N)`, from its derivatives by the sums, `(R, B, C)`."""
    slopes = []
    for region in range(len(by_overlap)):
        slope = onehot * by_overlap[region].unsqueeze(-1)
        if form == "linear":
            slope += by_size[region].unsqueeze(-1)
        else:
            slope.addcmul_(probs, by_size[region].unsqueeze(-1), value=2)
        slopes.append(slope if weights is None else slope.mul_(weights[region].unsqueeze(1)))
    return reduce(Tensor.add_, slopes)


def _parts(logits: Tensor) -> list[slice]:
    """The whole batch as one part; on a CPU, parts of whole volumes that fit its cache."""
    step = max(1, len(logits))
    if logits.device.type == "cpu":
        step = max(1, _CACHED * len(logits) // max(1, logits.numel()))
    return [slice(first, first + step) for first in range(0, len(logits), step)]


def _weights(weight: Tensor | None, part: slice) -> Tensor | None:
    """The weights of some volumes, `(R, B, N)`."""
    return None if weight is None else weight[:, part].flatten(2).float()


def _weighted_sums(values: Tensor, weights: Tensor | None) -> Tensor:
    """Sums over voxels for each region: `(B, K, N)` and `(R, B, N)` to `(R, B, K)`."""
    if weights is None:
        return values.sum(-1).unsqueeze(0)
    return torch.stack([(values * region.unsqueeze(1)).sum(-1) for region in weights])


def _pull(by_nll: Tensor, weights: Tensor | None) -> Tensor:
    """Derivative of cross-entropy by each voxel's `-log p_t`, to be broadcast to `(B, C, N)`."""
    if weights is None:
        return by_nll.view(1, 1, 1)
    return (by_nll.view(-1, 1, 1) * weights).sum(0).unsqueeze(1)


def _onehot(target: Tensor, classes: int) -> Tensor:
    """One-hot encoding `(B, C, N)` of classes `(B, N)`. Classes are compared as floats, which CPUs vectorise."""
    values = torch.arange(classes, dtype=torch.float32, device=target.device).unsqueeze(-1)
    onehot = torch.empty(len(target), classes, target.shape[1], device=target.device)
    return torch.eq(target.float().unsqueeze(1), values, out=onehot)


def _over_processes(*sums: Tensor) -> list[Tensor]:
    """Total of each sum over all processes, exchanged in one message."""
    packed = processes.total(torch.cat([one.flatten() for one in sums]))
    apart = torch.split(packed, [one.numel() for one in sums])
    return [part.view_as(one) for part, one in zip(apart, sums, strict=True)]
