"""FixMatch, and UniMatch's additions to it, for 3D segmentation.

Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020, arXiv
2001.07685; equation numbers are those of its section 2.2. Yang et al., "Revisiting Weak-to-Strong Consistency in
Semi-Supervised Semantic Segmentation" (UniMatch), CVPR 2023, arXiv 2208.09910. UniMatch's additions are those of its
released medical branch; they have its names but no numbers, because its full text was not available.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from medssl.errors import ConfigError
from medssl.methods.base import Dice, MakeNet, Method, MethodConfig, StepResult
from medssl.methods.inside import decoder_blocks, with_fewer_channels
from medssl.parts.gauges import gap, gauges
from medssl.parts.losses import cross_entropy, dice_ce, dice_loss, trusted
from medssl.parts.mix import paste, random_box
from medssl.parts.perturb import strong_view
from medssl.parts.sample import Progress, Sample, TrainBatch
from medssl.parts.schedules import mix


class FixMatch(Method):
    """FixMatch: the network's confident classes on a weak view are its targets on a strong view (eq. 4).

    The supervised loss (eq. 3) is Dice and cross-entropy on labelled patches as the trainer augments them, which can be
    stronger than the paper's weak augmentation.

    The weak view is the patch before the trainer changed its grey levels. A strong view has these changes and further
    changes of contrast and focus, on the same grid. UniMatch uses two strong views (its dual-stream perturbation), each
    of which may get a box of another unlabelled patch (`cutmix`), and one more pass of the weak view without some
    channels of the encoder (its feature perturbation, `feature_dropout`). There is no teacher: as in the released code,
    the student labels the weak view in training mode.
    """

    class Config(MethodConfig):
        threshold: float = Field(0.95, ge=0, lt=1)
        """Confidence threshold (tau): an unlabelled voxel counts if the probability of its likeliest class is at least
        this."""
        views: PositiveInt = 1
        """Number of strong views of each unlabelled patch."""
        strong_weight: float = Field(1.0, ge=0)
        """Weight of the loss on strong views, which is averaged over the views."""
        cutmix: float = Field(0.0, ge=0, le=1)
        """Probability that the patches of a strong view exchange a box with each other. Values above 0 need two
        unlabelled patches in each part of a step (`train.accumulate`, processes)."""
        feature_dropout: float = Field(0.0, ge=0, lt=1)
        """Share of the encoder's channels withheld from the decoder in an additional pass of the weak view. 0: no such
        pass."""
        feature_weight: float = Field(0.5, ge=0)
        """Weight of the loss on that additional pass."""
        loss: Literal["ce", "dice"] = "ce"
        """Loss on unlabelled patches. `ce`: cross-entropy of the confident voxels, divided by the number of all voxels.
        `dice`: Dice loss over the confident voxels."""
        dice: Dice = "squared"

        @property
        def fewest_unlabelled(self) -> int:
            return 2 if self.cutmix > 0 else 1

    config: Config

    def __init__(self, config: Config, make_net: MakeNet) -> None:
        super().__init__(config, make_net)
        self.student = make_net()
        if config.feature_dropout > 0 and not decoder_blocks(self.student):
            raise ConfigError("method.feature_dropout: must be 0 for this network, whose decoder blocks are not marked")

    def step(self, batch: TrainBatch, progress: Progress, rng: torch.Generator) -> StepResult:
        weak = self.pseudo_label(batch.weak_view())
        changed = replace(weak, image=batch.unlabelled)
        seeds = [[mix(seed, view) for seed in batch.seeds] for view in range(self.config.views)]
        strong = [self.strong(changed, each, rng, batch.fine) for each in seeds]
        logits = self.student(torch.cat([batch.image, *(view.image for view in strong)]))
        labelled, *by_view = logits.split([len(batch.image), *map(len, strong)])
        by_loss = [self.unsupervised(z, view) for z, view in zip(by_view, strong, strict=True)]
        losses = {
            "supervised": dice_ce(labelled, batch.label, batch.known, dice=self.config.dice),
            "strong": self.config.strong_weight * torch.stack(by_loss).mean(),
        }
        if self.config.feature_dropout > 0:
            fewer = with_fewer_channels(self.student, weak.image, self.config.feature_dropout, batch.seeds)
            losses["features"] = self.config.feature_weight * self.unsupervised(fewer, weak)
        stats = gauges(batch.label, weak.target, logits.shape[1], known=batch.known, weight=weak.weight)
        return StepResult(losses, {**stats, "gap": gap(by_view[0], strong[0].target)})

    @torch.no_grad()
    def pseudo_label(self, image: Tensor) -> Sample:
        """The likeliest classes, with weight 1 where their probability reaches the threshold and 0 elsewhere."""
        confidence, target = self.student(image).float().softmax(1).max(1)
        return Sample(image, target, (confidence >= self.config.threshold).to(image.dtype))

    def strong(
        self, patches: Sample, seeds: Sequence[int], rng: torch.Generator, fine: Sequence[bool] = (True, True, True)
    ) -> Sample:
        """Return a strong view of each patch, with the targets that belong to it.

        A box comes from the patch half a batch further on. Its side is `(1 - l)^(1/3)` of the patch's, with `l` from
        Beta(4, 4), drawn as the median of seven uniform numbers.
        """
        view = replace(patches, image=strong_view(patches.image, seeds, fine))
        exchanges, middle = float(torch.rand((), generator=rng)), float(torch.rand(7, generator=rng).median())
        if exchanges >= self.config.cutmix:
            return view
        box = random_box(view.image.shape[2:], (1 - middle) ** (1 / 3), rng, view.image.device)
        half = len(view) // 2
        other = Sample(view.image.roll(half, 0), view.target.roll(half, 0), view.weight.roll(half, 0))
        return paste(inside=other, outside=view, box=box)

    def unsupervised(self, logits: Tensor, sample: Sample) -> Tensor:
        """The loss on pseudo-labels of confident voxels; with `ce` that of eq. 4."""
        if self.config.loss == "dice":
            return dice_loss(logits, sample.target, sample.weight, self.config.dice)
        return trusted(sample.weight) * cross_entropy(logits, sample.target, sample.weight)

    def students(self) -> Sequence[nn.Module]:
        return [self.student]
