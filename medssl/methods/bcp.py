"""Bidirectional copy-paste.

Bai et al., "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation", CVPR 2023,
arXiv 2305.00673. Equations have the names of the paper but no numbers, because its full text was not available. Where
its released code differs, a setting chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medssl.methods.base import Dice, Follow, MakeNet, Method, MethodConfig, Pair, StepResult
from medssl.parts.gauges import gap, gauges, removed
from medssl.parts.losses import cross_entropy, dice_ce, dice_loss, trusted
from medssl.parts.mix import paste, random_box
from medssl.parts.pseudo import largest_component, likeliest
from medssl.parts.sample import Progress, Sample, TrainBatch, concat


class BCP(Method):
    """Bidirectional copy-paste: labelled and unlabelled patches exchange a box; the teacher labels unlabelled voxels.

    Stage one pastes labelled patches into each other and trains only the student. Stage two, with labelled patches
    `i, j` and unlabelled patches `p, q`, pastes inward and outward (the mask is 1 outside the box):

        x_in  = x_j outside the box, x_p inside;    x_out = x_q outside, x_i inside

    The loss, `L_in + L_out`, scores the two sides of the box separately; the unlabelled side has weight `alpha`.

    Departures from the released code:

    - Stage one pastes in both directions, so that a step has as many pasted patches as labelled ones. The released code
      only pastes the second half of the batch into the first, which gives half as many.
    - Stage two continues from the last weights of stage one, with the optimiser's state. The released code starts it
      from the weights with the best validation score.
    - Boxes can touch every face of the patch. Those of the released code never touch the far faces.
    """

    class Config(MethodConfig):
        box: float = Field(2 / 3, gt=0, le=1)
        """Side of the pasted box as a share of the side of the patch (beta)."""
        alpha: float = Field(0.5, ge=0)
        """Weight of the unlabelled side of the box in the loss; the labelled side has weight 1."""
        weighting: Literal["region", "voxel"] = "region"
        """`region`: the loss is averaged over each side of the box separately, as in the released code. `voxel`: one
        average over all voxels, with weight `alpha` for pseudo-labelled ones; the paper can also be read this way."""
        pretrain: float = Field(2 / 17, ge=0, lt=1)
        """Length of stage one, as a share of the run. It pastes labelled patches into each other and uses no unlabelled
        ones."""
        pretrain_loss: Literal["whole", "sides"] = "whole"
        """Loss in stage one. `whole`: over whole patches, as in the released code for left atrium and pancreas.
        `sides`: over each side of the box separately, both with the same weight, as in the released code for ACDC."""
        ema_decay: float = Field(0.99, ge=0, lt=1)
        """Decay of the teacher's moving average (EMA) in stage two, constant. The teacher starts stage two as a copy of
        the student."""
        largest_component: bool = True
        """Keep only the largest component of each class in pseudo-labels. Set it to false for classes with several
        parts, such as teeth, vessels or lesions."""
        dice: Dice = "linear"

    config: Config
    even_batch = True

    def __init__(self, config: Config, make_net: MakeNet) -> None:
        super().__init__(config, make_net)
        self.pair = Pair(make_net)

    def step(self, batch: TrainBatch, progress: Progress, rng: torch.Generator) -> StepResult:
        labelled = Sample.of(batch.image, batch.label, known=batch.known)
        box = random_box(batch.image.shape[2:], self.config.box, rng, batch.image.device)
        if self.pretraining(progress):
            return self.pretrain_step(labelled, box, partly=batch.known is not None)

        said = self.pair.taught(batch.unlabelled)
        named = likeliest(said)
        pseudo = self.cleaned(batch.unlabelled, named, said.shape[1])
        i, j = labelled[: len(labelled) // 2], labelled[len(labelled) // 2 :]
        p, q = pseudo[: len(pseudo) // 2], pseudo[len(pseudo) // 2 :]
        inward = paste(inside=p, outside=j, box=box)
        outward = paste(inside=i, outside=q, box=box)
        logits = self.pair.student(torch.cat([inward.image, outward.image]))
        logits_in, logits_out = logits.split([len(inward), len(outward)])
        stats = gauges(batch.label, pseudo.target, logits.shape[1], known=batch.known, weight=pseudo.weight)
        if self.config.largest_component:
            stats["removed"] = removed(named, pseudo.target)
        stats["gap"] = (gap(logits_in, inward.target, box) + gap(logits_out, outward.target, ~box)) / 2
        return StepResult(
            losses={"in": self.mixed_loss(logits_in, inward, box), "out": self.mixed_loss(logits_out, outward, box)},
            stats=stats,
        )

    def pretrain_step(self, labelled: Sample, box: Tensor, *, partly: bool = False) -> StepResult:
        """Losses of stage one: each half of the labelled batch is pasted into the other.

        Args:
            partly: whether some voxels are not annotated.
        """
        half = len(labelled) // 2
        first, second = labelled[:half], labelled[half:]
        mixed = concat(paste(inside=first, outside=second, box=box), paste(inside=second, outside=first, box=box))
        logits = self.pair.student(mixed.image)
        if self.config.pretrain_loss == "sides":
            return StepResult({"pretrain": self.by_side(logits, mixed, box)})
        weight = mixed.weight if partly else None
        return StepResult({"pretrain": dice_ce(logits, mixed.target, weight, dice=self.config.dice)})

    def pseudo_label(self, image: Tensor) -> Sample:
        """The teacher's classes on unpasted patches, cleaned; each voxel has weight `alpha`."""
        said = self.pair.taught(image)
        return self.cleaned(image, likeliest(said), said.shape[1])

    def cleaned(self, image: Tensor, named: Tensor, classes: int) -> Sample:
        """Pseudo-labels from a teacher's classes `(B, X, Y, Z)`, of which the largest components are kept if set."""
        target = largest_component(named, classes) if self.config.largest_component else named
        return Sample.of(image, target, trust=self.config.alpha)

    def mixed_loss(self, logits: Tensor, mixed: Sample, box: Tensor) -> Tensor:
        """Cross-entropy and Dice of a pasted batch, whose weight is 1 or `alpha` by side, and 0 where not annotated."""
        if self.config.weighting == "voxel":
            ce = cross_entropy(logits, mixed.target, mixed.weight) * trusted(mixed.weight)
            return (ce + dice_loss(logits, mixed.target, mixed.weight, self.config.dice)) / 2
        return self.by_side(logits, mixed, box)

    def by_side(self, logits: Tensor, mixed: Sample, box: Tensor) -> Tensor:
        """Cross-entropy and Dice of a pasted batch, averaged over each side of the box separately."""
        sides = (torch.stack([box, ~box]).unsqueeze(1) & (mixed.weight > 0)).to(mixed.weight.dtype)  # (2, B, X, Y, Z)
        space = (1, 2, 3, 4)
        trust = (mixed.weight * sides).sum(space) / sides.sum(space).clamp_min(1)
        return (trust * dice_ce(logits, mixed.target, sides, dice=self.config.dice)).sum()

    def students(self) -> Sequence[nn.Module]:
        return [self.pair.student]

    def teachers(self) -> Sequence[nn.Module]:
        return [self.pair.teacher]

    def followers(self, progress: Progress) -> Sequence[Follow]:
        decay = 0.0 if self.pretraining(progress) else self.config.ema_decay
        return [Follow(self.pair.teacher, [self.pair.student], decay)]
