"""Uncertainty-aware Mean Teacher.

Yu et al., "Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation", MICCAI 2019,
arXiv 1907.07034. The formulas are those of the released code; they have no numbers, because the paper's full text was
not available.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from pydantic import Field, PositiveInt
from torch import Tensor

from medssl.errors import ConfigError
from medssl.methods.base import MakeNet
from medssl.methods.inside import dropout_layers
from medssl.methods.mean_teacher import MeanTeacher
from medssl.parts.pseudo import entropy, probabilities
from medssl.parts.sample import Progress, TrainBatch
from medssl.parts.schedules import mix, ramp_up


class UAMT(MeanTeacher):
    """Mean Teacher whose consistency counts only voxels of which the teacher is certain.

    The teacher predicts `passes` times, each time with new input noise and active dropout. A voxel counts if the
    entropy of the mean prediction (the paper's uncertainty) is below a threshold, which rises from slightly above 0.75
    times the entropy of a uniform prediction to that entropy. The target is one more prediction, with input noise.

    The released code keeps dropout active in the target as well, and uses log 2 for any number of classes.
    """

    class Config(MeanTeacher.Config):
        passes: PositiveInt = 8
        """Number of teacher predictions, each with dropout and its own input noise, from which uncertainty is
        computed."""
        threshold: float = Field(0.75, ge=0, le=1)
        """Initial limit on the entropy of the teacher's mean prediction, as a share of the largest possible entropy.
        Only voxels below the limit count. It rises to 1 at the end of the run."""

    config: Config

    def __init__(self, config: Config, make_net: MakeNet) -> None:
        super().__init__(config, make_net)
        if not dropout_layers(self.pair.teacher):
            raise ConfigError(
                "method uamt measures uncertainty by dropout, but the network has none; "
                "set network.dropout above 0, as configs/method/uamt.yaml does"
            )

    def counts(self, batch: TrainBatch, progress: Progress) -> Tensor:
        return (self.uncertainty(batch.unlabelled, batch.seeds) < self.highest(progress)).float()

    def uncertainty(self, image: Tensor, seeds: Sequence[int]) -> Tensor:
        """Entropy of the teacher's mean prediction, `(B, X, Y, Z)`, from 0 for a certain to 1 for a uniform one."""
        draws = ([mix(seed, number) for seed in seeds] for number in range(1, self.config.passes + 1))
        probs = (probabilities(self.pair.taught(self.noisy(image, drawn), dropout=drawn)) for drawn in draws)
        return entropy(reduce(Tensor.add_, probs) / self.config.passes)

    def highest(self, progress: Progress) -> float:
        """The entropy below which a voxel counts."""
        start = self.config.threshold
        return start + (1 - start) * ramp_up(progress, 1.0)
