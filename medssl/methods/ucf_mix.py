"""Cross-frequency collaborative training with the uncertainty-guided cross-frequency mix (UCF-Mix): the whole CFC-Net.

arXiv 2504.11856, of which only the abstract was available. According to it, the mix gives pseudo-labels of high
confidence, combines frequencies and leaves structures whole. This is the simplest rule that does all three. How the
authors do it is unknown; see `configs/method/ucf_mix.yaml`.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from medssl.methods.base import StepResult, at_rest
from medssl.methods.cfc_mt import CFCMT
from medssl.parts.frequency import block_mean
from medssl.parts.gauges import mean_trust, volumes
from medssl.parts.losses import dice_ce, trusted
from medssl.parts.pseudo import entropy, likeliest, probabilities
from medssl.parts.sample import Progress, Sample, TrainBatch
from medssl.parts.schedules import ramp_up


class UCFMix(CFCMT):
    """CFC-MT whose students also learn from patches whose frequencies are mixed block by block.

    With normalised entropies `u_L`, `u_H` of the students, averaged over blocks, and `K = [u_L <= u_H]`:

        q      = K p_L + (1 - K) p_H                  prediction of the more certain student
        x_hard = K x_H + (1 - K) x_L                  band that this student did not see
        x_easy = K x_L + (1 - K) x_H                  band that it saw

    In `L_mix = sum_s L_seg(s(x_mixed), argmax q)` each voxel has weight `1 - u(q)`, and the whole is multiplied by the
    mean of these weights, so that uncertain voxels teach little. All bands come from the same place of the same volume,
    so that no foreign anatomy is mixed in. The loss is `L + r(t) w_mix L_mix`, with the `L` of CFC-MT.
    """

    class Config(CFCMT.Config):
        mix_weight: float = Field(1.0, ge=0)
        """Weight of the loss on mixed patches after the ramp-up, whose length is `ramp`."""
        mixed: Literal["hard", "easy"] = "hard"
        """Input of the students in each block of a mixed patch. `hard`: the frequency band of the less certain student.
        `easy`: that of the more certain student."""
        block: PositiveInt = 8
        """Side of a block in voxels of the finest axis. Coarser axes have fewer voxels per block, so that blocks have
        about the same length in mm along all axes."""

    config: Config

    def step(self, batch: TrainBatch, progress: Progress, rng: torch.Generator) -> StepResult:
        seen = self.look(batch)
        low, high = (probabilities(logits) for logits in seen.unlabelled)
        mixed = self.mix(batch.unlabelled, low, high)
        weight = self.config.mix_weight * ramp_up(progress, self.config.ramp) * trusted(mixed.weight)
        losses = self.losses(seen, batch, progress)
        for name, student in {"mix_low": self.low, "mix_high": self.high}.items():
            logits = student.net(mixed.image)  # the image consists of bands already
            losses[name] = weight * dice_ce(logits, mixed.target, mixed.weight, dice=self.config.dice)
        told = volumes("pseudo", mixed.target, low.shape[1], mixed.weight)
        return StepResult(losses, {**self.stats(seen, batch), **told, "selected": mean_trust(mixed.weight)})

    def pseudo_label(self, image: Tensor) -> Sample:
        """The mixed patches with their pseudo-labels."""
        return self.mix(image, *(probabilities(at_rest(student, image)) for student in (self.low, self.high)))

    @torch.no_grad()
    def mix(self, image: Tensor, low: Tensor, high: Tensor) -> Sample:
        """Mix the bands of `(B, M, X, Y, Z)`; targets are the classes of the more certain student, weights `1 - u(q)`.

        Args:
            low, high: the students' probabilities, `(B, C, X, Y, Z)`.
        """
        low_is_surer = self.surer(low, high)
        own, other = self.low.view.apply(image), self.high.view.apply(image)
        if self.config.mixed == "hard":
            own, other = other, own
        target = torch.where(low_is_surer, low, high)
        return Sample(torch.where(low_is_surer, own, other), likeliest(target), 1 - entropy(target))

    def surer(self, low: Tensor, high: Tensor) -> Tensor:
        """Blocks where the low-frequency student is at least as certain as the other, `(B, 1, X, Y, Z)` bool."""
        spacing = self.config.frequency.spacing or (1.0, 1.0, 1.0)
        sides = [max(1, round(self.config.block * min(spacing) / mm)) for mm in spacing]
        unsure_low, unsure_high = (block_mean(entropy(probs).unsqueeze(1), sides) for probs in (low, high))
        return unsure_low <= unsure_high
