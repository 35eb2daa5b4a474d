"""Mean Teacher for 3D segmentation.

Tarvainen and Valpola, "Mean teachers are better role models", arXiv 1703.01780, section 2; the settings in
`configs/method/mean_teacher.yaml` are those that the left-atrium literature uses (arXiv 1907.07034).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from medssl.methods.base import Dice, Follow, MakeNet, Method, MethodConfig, Pair, StepResult
from medssl.parts.gauges import gauges
from medssl.parts.losses import consistency, dice_ce
from medssl.parts.pseudo import likeliest, probabilities
from medssl.parts.sample import Progress, Sample, TrainBatch
from medssl.parts.schedules import normal, ramp_up, warmed_up


class MeanTeacher(Method):
    """Mean Teacher: `L = L_sup + w(t) mean (p_student - p_teacher)^2`, the second term on unlabelled patches.

    That term is the paper's consistency cost, which the paper also computes on labelled images. The student sees
    labelled and unlabelled patches in one forward pass. The teacher, an exponential moving average of the student, sees
    the unlabelled ones with input noise.
    """

    class Config(MethodConfig):
        consistency_weight: float = Field(0.1, ge=0)
        """Weight `w` of the consistency loss after the ramp-up."""
        ramp: float = Field(1.0, ge=0, le=1)
        """Length of the ramp-up, as a share of the run: `w` rises from 0.0067 times its value to the full value. 0: no
        ramp-up."""
        noise: float = Field(0.1, ge=0)
        """Standard deviation of the Gaussian noise added to the teacher's input, in units of the prepared grey levels.
        The noise is clipped at two standard deviations."""
        ema_decay: float = Field(0.99, ge=0, lt=1)
        """Decay of the teacher's moving average (EMA). At step t it is `1 - 1/(t + 1)` until it reaches this value, so
        that the teacher forgets its random start."""
        dice: Dice = "squared"

    config: Config

    def __init__(self, config: Config, make_net: MakeNet) -> None:
        super().__init__(config, make_net)
        self.pair = Pair(make_net)

    def step(self, batch: TrainBatch, progress: Progress, rng: torch.Generator) -> StepResult:
        labelled, unlabelled = batch.through(self.pair.student)
        taught, counts = self.pair.taught(self.noisy(batch.unlabelled, batch.seeds)), self.counts(batch, progress)
        weight = self.config.consistency_weight * ramp_up(progress, self.config.ramp)
        return StepResult(
            losses={
                "supervised": dice_ce(labelled, batch.label, batch.known, dice=self.config.dice),
                "consistency": weight * consistency(unlabelled, probabilities(taught), counts),
            },
            stats=gauges(
                batch.label, likeliest(taught), taught.shape[1], known=batch.known, weight=counts, student=unlabelled
            ),
        )

    def counts(self, batch: TrainBatch, progress: Progress) -> Tensor | None:
        """Weight of each unlabelled voxel, `(B, X, Y, Z)`; None if all have the same."""
        return None

    def noisy(self, image: Tensor, seeds: Sequence[int]) -> Tensor:
        """The image plus clipped Gaussian noise."""
        return image + self.config.noise * normal(image, seeds).clamp(-2, 2)

    def pseudo_label(self, image: Tensor) -> Sample:
        return Sample.of(image, likeliest(self.pair.taught(image)))

    def students(self) -> Sequence[nn.Module]:
        return [self.pair.student]

    def teachers(self) -> Sequence[nn.Module]:
        return [self.pair.teacher]

    def followers(self, progress: Progress) -> Sequence[Follow]:
        decay = warmed_up(self.config.ema_decay, progress.steps)
        return [Follow(self.pair.teacher, [self.pair.student], decay)]
