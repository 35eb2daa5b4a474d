"""Cross pseudo supervision.

Chen et al., "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021, arXiv 2106.01226. Its
losses have the paper's names but no numbers, because its full text was not available. The settings in
`configs/method/cps.yaml` are those that SSL4MIS uses on medical volumes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from medssl.methods.base import Dice, MakeNet, Method, MethodConfig, StepResult, at_rest
from medssl.parts.gauges import gap, gauges
from medssl.parts.losses import cross_entropy, dice_ce
from medssl.parts.pseudo import likeliest
from medssl.parts.sample import Progress, Sample, TrainBatch
from medssl.parts.schedules import ramp_up


class CPS(Method):
    """Cross pseudo supervision: two networks that start differently, each trained on the other's predicted classes.

        L = L_sup(1) + L_sup(2) + w(t) [ CE(p_1, argmax p_2) + CE(p_2, argmax p_1) ]

    The first two terms are the paper's supervision loss. The last two are its cross pseudo supervision loss, here on
    unlabelled patches only, as in SSL4MIS; the paper uses labelled ones as well. No gradient passes through the argmax.
    There is no teacher and no threshold. The prediction is the mean of both networks; published results use one.
    """

    class Config(MethodConfig):
        cross_weight: float = Field(0.1, ge=0)
        """Weight `w` of the cross pseudo supervision after the ramp-up."""
        ramp: float = Field(1.0, ge=0, le=1)
        """Length of the ramp-up, as a share of the run: `w` rises from 0.0067 times its value to the full value. 0: no
        ramp-up."""
        dice: Dice = "squared"

    config: Config

    def __init__(self, config: Config, make_net: MakeNet) -> None:
        super().__init__(config, make_net)
        self.first, self.second = make_net(), make_net()

    def step(self, batch: TrainBatch, progress: Progress, rng: torch.Generator) -> StepResult:
        labelled_1, unlabelled_1 = batch.through(self.first)
        labelled_2, unlabelled_2 = batch.through(self.second)
        pseudo_1, pseudo_2 = likeliest(unlabelled_1), likeliest(unlabelled_2)
        weight = self.config.cross_weight * ramp_up(progress, self.config.ramp)
        stats = gauges(batch.label, torch.cat([pseudo_1, pseudo_2]), unlabelled_1.shape[1], known=batch.known)
        return StepResult(
            losses={
                "supervised_1": self.supervised(labelled_1, batch),
                "supervised_2": self.supervised(labelled_2, batch),
                "cross_1": weight * cross_entropy(unlabelled_1, pseudo_2),
                "cross_2": weight * cross_entropy(unlabelled_2, pseudo_1),
            },
            stats=stats | {"gap": gap(unlabelled_1, pseudo_2)},
        )

    def supervised(self, logits: Tensor, batch: TrainBatch) -> Tensor:
        """The supervision loss of one network, in Dice and cross-entropy."""
        return dice_ce(logits, batch.label, batch.known, dice=self.config.dice)

    def pseudo_label(self, image: Tensor) -> Sample:
        """The pseudo-labels for the first network, which are the classes that the second one predicts."""
        return Sample.of(image, likeliest(at_rest(self.second, image)))

    def students(self) -> Sequence[nn.Module]:
        return [self.first, self.second]
