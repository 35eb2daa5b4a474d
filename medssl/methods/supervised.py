"""The baseline: labelled patches only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from medssl.methods.base import Dice, MakeNet, Method, MethodConfig, StepResult
from medssl.parts.losses import dice_ce
from medssl.parts.sample import Progress, TrainBatch


class Supervised(Method):
    """The supervised baseline: `L = (CE + Dice) / 2` on labelled patches. Unlabelled patches are not used."""

    class Config(MethodConfig):
        dice: Dice = "squared"

    config: Config
    needs_unlabelled = False

    def __init__(self, config: Config, make_net: MakeNet) -> None:
        super().__init__(config, make_net)
        self.student = make_net()

    def step(self, batch: TrainBatch, progress: Progress, rng: torch.Generator) -> StepResult:
        logits = self.student(batch.image)
        return StepResult({"supervised": dice_ce(logits, batch.label, batch.known, dice=self.config.dice)})

    def students(self) -> Sequence[nn.Module]:
        return [self.student]
