"""Uncertainty-aware multi-view co-training.

Xia et al., "3D Semi-Supervised Learning with Uncertainty-Aware Multi-View Co-Training", WACV 2020, arXiv 1811.12506,
and the longer "Uncertainty-aware multi-view co-training for semi-supervised medical image segmentation and domain
adaptation", arXiv 2006.16806. No code was released. The losses are those of a summary of the second paper; they have
names but no numbers, because neither full text was available.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from medssl.errors import ConfigError
from medssl.methods.base import MakeNet, Method, MethodConfig, StepResult, at_rest
from medssl.methods.inside import dropout_layers
from medssl.parts.fusion import fuse, mean_and_variance, others
from medssl.parts.gauges import gap, gauges
from medssl.parts.losses import dice_loss, soft_dice_loss
from medssl.parts.pseudo import entropy, likeliest, probabilities
from medssl.parts.sample import Progress, Sample, TrainBatch
from medssl.parts.schedules import mix


class UMCT(Method):
    """UMCT: networks that see a volume along different axes label unlabelled patches for each other.

    Each network takes the axes in a different order, and the kernels of its finest levels are one voxel thick along the
    last, so that each sees a volume differently. Predictions `p_v` are returned on the volume's axes. In stage one,
    every network learns from labels only. In stage two, for V views with uncertainties `U_v`,

        L = sum_v Dice(p_v, y) + w sum_v Dice(p_v, q_v),    q_v = sum_{u != v} p_u / U_u  /  sum_{u != v} 1 / U_u

    The second term, the co-training loss, is computed on unlabelled patches and without gradients through `q_v`, the
    papers' uncertainty-weighted label fusion. `U` is the variance of K passes with active dropout, and `p_u` in `q_v`
    is their mean. With two views, `q_v` is the prediction of the other view.

    What the sources leave open is a setting: whether `U` is one number per patch or per voxel, how many levels have
    flat kernels, and how far one view can outweigh another. The published networks start from 2D weights and are
    trained one after the other in stage one. Here they start from random weights and share the patches in both stages.
    The trainer's learning rate decays over both stages.
    """

    class Config(MethodConfig):
        views: tuple[tuple[int, int, int], ...] = Field(((0, 1, 2), (0, 2, 1), (1, 2, 0)), min_length=2, max_length=6)
        """Order in which the network of each view takes the image axes (0 is X); one network per view. It replaces
        `network.axes`."""
        flat_levels: int = Field(2, ge=0)
        """Number of levels, from the finest, whose kernels are one voxel thick along a view's last axis. Deeper levels
        keep full kernels; otherwise no view would see along its last axis. It replaces `network.flat_levels`; 0: full
        kernels at all levels."""
        pretrain: float = Field(0.8, ge=0, lt=1)
        """Length of stage one, which uses labels only, as a share of the run."""
        cotraining_weight: float = Field(0.2, ge=0)
        """Weight `w` of the co-training loss in stage two."""
        uncertainty: Literal["dropout", "entropy"] = "dropout"
        """How a view's uncertainty is measured. `dropout`: variance of `passes` predictions with dropout. `entropy`:
        entropy of one prediction without dropout; with ten `passes` a tenth of the cost, but not the published
        method."""
        passes: PositiveInt = 10
        """Number of predictions with dropout (K) whose variance is the uncertainty."""
        scope: Literal["sample", "voxel"] = "sample"
        """`sample`: a view's uncertainty is averaged over the patch. `voxel`: each voxel has its own."""
        floor: float = Field(1e-3, gt=0)
        """Constant added to each uncertainty; the weight of a prediction is the inverse of the sum. The default suits
        the variances of `dropout`; entropies are larger, use 0.05 with `entropy`."""
        most: float = Field(20.0, ge=1)
        """Largest ratio between the weights of two views in the mean of their predictions."""

    config: Config

    def __init__(self, config: Config, make_net: MakeNet) -> None:
        super().__init__(config, make_net)
        self.nets = nn.ModuleList(make_net(axes=axes, flat_levels=config.flat_levels) for axes in config.views)
        if config.uncertainty == "dropout" and not dropout_layers(self.nets):
            raise ConfigError(
                "method umct measures uncertainty by dropout, but the network has none; set network.dropout above 0, "
                "as configs/method/umct.yaml does, or use method.uncertainty: entropy"
            )

    def step(self, batch: TrainBatch, progress: Progress, rng: torch.Generator) -> StepResult:
        if self.pretraining(progress):
            return StepResult({"supervised": self.supervised_loss([net(batch.image) for net in self.nets], batch)})
        targets = self.targets(*self.opinions(batch.unlabelled, batch.seeds))
        labelled, unlabelled = zip(*map(batch.through, self.nets), strict=True)
        told = torch.stack([soft_dice_loss(z, q) for z, q in zip(unlabelled, targets, strict=True)])
        pseudo, classes = [likeliest(q) for q in targets], targets.shape[2]
        stats = gauges(batch.label, torch.cat(pseudo), classes, known=batch.known)
        stats["gap"] = torch.stack([gap(z, named) for z, named in zip(unlabelled, pseudo, strict=True)]).mean()
        return StepResult(
            losses={
                "supervised": self.supervised_loss(labelled, batch),
                "cotraining": self.config.cotraining_weight * told.sum(),
            },
            stats=stats | {"dissent": gap(unlabelled[1], likeliest(unlabelled[0]))},
        )

    def supervised_loss(self, logits: Sequence[Tensor], batch: TrainBatch) -> Tensor:
        """Dice loss on labelled patches, summed over the views."""
        return torch.stack([dice_loss(z, batch.label, batch.known) for z in logits]).sum()

    def opinions(self, image: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Probabilities `(V, B, C, X, Y, Z)` and uncertainties `(V, B, X, Y, Z)` of all views for `(B, M, X, Y, Z)`.

        With `scope: sample`, the last three axes of the uncertainties have length 1.
        """
        found = [self.opinion(net, image, [mix(seed, view) for seed in seeds]) for view, net in enumerate(self.nets)]
        probs, uncertainty = (torch.stack(each) for each in zip(*found, strict=True))
        if self.config.scope == "sample":
            uncertainty = uncertainty.mean((2, 3, 4), keepdim=True)
        return probs, uncertainty

    def opinion(self, net: nn.Module, image: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Probabilities and uncertainty of one view."""
        if self.config.uncertainty == "entropy":
            probs = probabilities(at_rest(net, image))
            return probs, entropy(probs)
        draws = ([mix(seed, number) for seed in seeds] for number in range(self.config.passes))
        return mean_and_variance(probabilities(at_rest(net, image, dropout=drawn)) for drawn in draws)

    def targets(self, probs: Tensor, uncertainty: Tensor) -> Tensor:
        """The fused labels `q_v` for each view, `(V, B, C, X, Y, Z)`; the arguments are results of `opinions`."""
        floor, most = self.config.floor, self.config.most
        views = range(len(probs))
        return torch.stack([fuse(others(probs, v), others(uncertainty, v), floor=floor, most=most)[0] for v in views])

    def pseudo_label(self, image: Tensor) -> Sample:
        """The pseudo-labels for the first view."""
        return Sample.of(image, likeliest(self.targets(*self.opinions(image, range(len(image))))[0]))

    def students(self) -> Sequence[nn.Module]:
        return list(self.nets)
