"""Cross-frequency collaborative training with a mean teacher.

"Cross-Frequency Collaborative Training Network and Dataset for Semi-supervised First Molar Root Canal Segmentation"
(CFC-Net), arXiv 2504.11856. No code was found and only the abstract was available, so this is an interpretation of it:
`configs/method/cfc_mt.yaml` lists what is certain, what is inferred and what is unknown. Bands that contain a share of
each other follow XNet v2 (Zhou et al., BIBM 2024).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from medssl.config import Settings
from medssl.methods.base import Dice, Follow, MakeNet, Method, MethodConfig, StepResult, at_rest
from medssl.parts.frequency import Kind, split_frequencies
from medssl.parts.gauges import gap, gauges
from medssl.parts.losses import consistency, dice_ce
from medssl.parts.pseudo import likeliest, probabilities
from medssl.parts.sample import Progress, Sample, TrainBatch
from medssl.parts.schedules import ramp_up, warmed_up
from medssl.parts.views import Band, Identity, Viewed


class Frequencies(Settings):
    """Where low frequencies end, at the same length along all axes in mm."""

    kind: Kind = "haar"
    """How images are split into low and high frequencies. `haar`: block means, for thin structures such as canals.
    `gauss`, `fft`: a smooth cutoff, for organs."""
    levels: PositiveInt = 1
    """For `haar`: number of times the finest axis is halved; blocks are `2^levels` voxels long there."""
    sigma: PositiveFloat = 1.5
    """For `gauss` and `fft`: standard deviation of the low-pass filter, in voxels of the finest axis."""
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Voxel spacing along each axis in mm. null: that of the prepared data; an axis that is null in
    `data.recipe.spacing` is then treated like the finest of the others. If that axis has thick slices, give the spacing
    here; otherwise they are treated as thin."""

    def on_grid(self, spacing: tuple[float, float, float]) -> Self:
        """Return these settings for prepared data of this spacing in mm."""
        return self.model_copy(update={"spacing": self.spacing or spacing})

    def split(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Split `(B, M, X, Y, Z)` into low and high frequencies, which sum to the image."""
        spacing = self.spacing or (1.0, 1.0, 1.0)
        return split_frequencies(image, self.kind, levels=self.levels, sigma=self.sigma * min(spacing), spacing=spacing)


@dataclass(frozen=True)
class Seen:
    """Logits `(B, C, X, Y, Z)` of one batch; those of the low-frequency student come first."""

    labelled: tuple[Tensor, Tensor]
    unlabelled: tuple[Tensor, Tensor]
    teacher: Tensor
    """Logits on the unlabelled patches, without a gradient."""


class CFCMT(Method):
    """CFC-MT: a low- and a high-frequency student, and a teacher that sees all frequencies and follows their mean.

    With `x_L = low + a high`, `x_H = high + b low`, the students' probabilities `p_L`, `p_H` and the teacher's `p`:

        L       = sum_s L_seg(s(x_s), y) + r(t) (w_cross L_cross + w_full L_full)
        L_cross = 1/2 (|p_L - sg p_H|^2 + |p_H - sg p_L|^2)         cross-frequency consistency
        L_full  = 1/2 (|p_L - p|^2 + |p_H - p|^2)                   full-frequency consistency

    `L_seg` is computed on labelled patches; the squares are averaged over voxels and classes of unlabelled ones; `sg`
    stops the gradient. After each step `teacher <- m teacher + (1 - m) (L + H) / 2`. The mean of two networks works as
    a network only while they stay close to each other, so all three start from the same weights.
    """

    class Config(MethodConfig):
        frequency: Frequencies = Frequencies()
        high_in_low: float = Field(0.2, ge=0, le=1)
        """Factor on the high frequencies in the input of the low-frequency student (a). 0: none of them; 1: the whole
        image."""
        low_in_high: float = Field(0.65, ge=0, le=1)
        """Factor on the low frequencies in the input of the high-frequency student (b). 0: none of them; 1: the whole
        image."""
        cross_weight: float = Field(1.0, ge=0)
        """Weight of the consistency between the two students after the ramp-up."""
        full_weight: float = Field(1.0, ge=0)
        """Weight of the consistency with the teacher, which sees all frequencies, after the ramp-up."""
        ramp: float = Field(0.4, ge=0, le=1)
        """Length of the ramp-up, as a share of the run: the weights of the losses on unlabelled patches rise from
        0.0067 times their values to the full values. 0: no ramp-up."""
        ema_decay: float = Field(0.99, ge=0, lt=1)
        """Decay of the teacher's moving average (EMA). At step t it is `1 - 1/(t + 1)` until it reaches this value."""
        dice: Dice = "squared"

        def on_grid(self, spacing: tuple[float, float, float]) -> Self:
            return self.model_copy(update={"frequency": self.frequency.on_grid(spacing)})

    config: Config

    def __init__(self, config: Config, make_net: MakeNet) -> None:
        super().__init__(config, make_net)
        split, start = config.frequency.split, make_net()
        self.low = Viewed(start, Band("low", split, config.high_in_low))
        self.high = Viewed(copy.deepcopy(start), Band("high", split, config.low_in_high))
        self.teacher = Viewed(copy.deepcopy(start), Identity()).requires_grad_(False).eval()

    def step(self, batch: TrainBatch, progress: Progress, rng: torch.Generator) -> StepResult:
        seen = self.look(batch)
        return StepResult(self.losses(seen, batch, progress), self.stats(seen, batch))

    def look(self, batch: TrainBatch) -> Seen:
        """Logits of students and teacher on a batch."""
        low, high = batch.through(self.low), batch.through(self.high)
        return Seen((low[0], high[0]), (low[1], high[1]), at_rest(self.teacher, batch.unlabelled))

    def losses(self, seen: Seen, batch: TrainBatch, progress: Progress) -> dict[str, Tensor]:
        """The terms of `L`."""
        config, ramp = self.config, ramp_up(progress, self.config.ramp)
        supervised = [dice_ce(logits, batch.label, batch.known, dice=config.dice) for logits in seen.labelled]
        (low, high), teacher = seen.unlabelled, probabilities(seen.teacher)
        cross = consistency(low, probabilities(high)) + consistency(high, probabilities(low))
        full = consistency(low, teacher) + consistency(high, teacher)
        return {
            "supervised_low": supervised[0],
            "supervised_high": supervised[1],
            "cross_frequency": config.cross_weight * ramp * cross / 2,
            "full_frequency": config.full_weight * ramp * full / 2,
        }

    def stats(self, seen: Seen, batch: TrainBatch) -> dict[str, Tensor]:
        """The teacher's gauges, with the mean gap to its students, and the gap between the students."""
        (low, high), taught = seen.unlabelled, likeliest(seen.teacher)
        return {
            **gauges(batch.label, taught, low.shape[1], known=batch.known),
            "gap": (gap(low, taught) + gap(high, taught)) / 2,
            "dissent": gap(low, likeliest(high)),
        }

    def pseudo_label(self, image: Tensor) -> Sample:
        return Sample.of(image, likeliest(at_rest(self.teacher, image)))

    def students(self) -> Sequence[nn.Module]:
        return [self.low, self.high]

    def teachers(self) -> Sequence[nn.Module]:
        return [self.teacher]

    def followers(self, progress: Progress) -> Sequence[Follow]:
        decay = warmed_up(self.config.ema_decay, progress.steps)
        return [Follow(self.teacher, [self.low, self.high], decay)]
