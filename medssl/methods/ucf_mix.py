"""Cross-frequency collaborative training with the uncertainty-guided cross-frequency mix (UCF-Mix): the whole CFC-Net.

arXiv 2504.11856, of which only the abstract was at hand. It promises three things of the mix: pseudo-labels of high
confidence, frequencies brought together, structures left whole. This is the simplest rule with all three; how the
authors do it is not known, and `configs/method/ucf_mix.yaml` says so.
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
    """CFC-MT, and both students learn from patches whose frequencies are mixed block by block.

    With normalised entropies `u_L`, `u_H` of the students, averaged over blocks, and `K = [u_L <= u_H]`:

        q      = K p_L + (1 - K) p_H                  the surer student of each block
        x_hard = K x_H + (1 - K) x_L                  what that student did not see
        x_easy = K x_L + (1 - K) x_H                  what it saw

    `L_mix = sum_s L_seg(s(x_mixed), argmax q)` has each voxel count `1 - u(q)` times, and is as much smaller as the
    voxels are unsure on average, rather than averaged over sure ones. All bands are those of one volume in their
    places, so that no foreign anatomy comes in. The loss is `L + r(t) w_mix L_mix`, with the `L` of CFC-MT.
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
            logits = student.net(mixed.image)  # bands already
            losses[name] = weight * dice_ce(logits, mixed.target, mixed.weight, dice=self.config.dice)
        told = volumes("pseudo", mixed.target, low.shape[1], mixed.weight)
        return StepResult(losses, {**self.stats(seen, batch), **told, "selected": mean_trust(mixed.weight)})

    def pseudo_label(self, image: Tensor) -> Sample:
        """What students are told of the mix, whose bands are its image."""
        return self.mix(image, *(probabilities(at_rest(student, image)) for student in (self.low, self.high)))

    @torch.no_grad()
    def mix(self, image: Tensor, low: Tensor, high: Tensor) -> Sample:
        """Bands of `(B, M, X, Y, Z)` mixed, with the surer student's classes, trusted as far as it is sure.

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
        """Where the low student is at least as sure as the high one, `(B, 1, X, Y, Z)`, alike in a block."""
        spacing = self.config.frequency.spacing or (1.0, 1.0, 1.0)
        sides = [max(1, round(self.config.block * min(spacing) / mm)) for mm in spacing]
        unsure_low, unsure_high = (block_mean(entropy(probs).unsqueeze(1), sides) for probs in (low, high))
        return unsure_low <= unsure_high
