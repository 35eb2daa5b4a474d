"""Canaries: labelled cases kept out of training, on which the pseudo-labels of a method are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medssl.data.patches import TrainingData
from medssl.device import autocast
from medssl.errors import ConfigError
from medssl.run import RunConfig
from medssl.trainer import Trainer
from medssl.windows import by_windows


def canary_cases(config: RunConfig, data: TrainingData) -> list[str]:
    """Return the labelled cases that `train.canaries` keeps out of training, drawn with the run's seed."""
    order = np.random.default_rng((config.train.seed, 5)).permutation(len(data.split.labelled))
    return [data.split.labelled[place] for place in order[: config.train.canaries]]


def learned_cases(config: RunConfig, data: TrainingData, part: Literal["labelled", "unlabelled"]) -> list[str]:
    """Return the labelled or unlabelled cases to train on: all but those of the canaries' patients.

    Raises:
        ConfigError: no case is left.
    """
    held = {data.subject(id) for id in canary_cases(config, data)}
    cases: tuple[str, ...] = getattr(data.split, part)
    learned = [id for id in cases if data.subject(id) not in held]
    if not learned:
        raise ConfigError(
            f"train.canaries {config.train.canaries}: no {part} case is left to train on (in the split: {len(cases)}, "
            f"patients: {len({data.subject(id) for id in cases})}); lower train.canaries"
        )
    return learned


class PseudoLabels:
    """The pseudo-labels of a method in training for whole volumes, patch by patch; scored like a predictor."""

    def __init__(self, trainer: Trainer, config: RunConfig, classes: Sequence[str]) -> None:
        self.trainer, self.patch, self.classes = trainer, config.train.patch, tuple(classes)
        self.batch = config.window.batch

    def likeliest(self, image: NDArray[np.float32]) -> NDArray[np.integer[Any]]:
        """Return the most frequent pseudo-label of each voxel, `(M, x, y, z)` to `(x, y, z)`."""
        classes: NDArray[np.integer[Any]] = self.probabilities(image).argmax(0)
        return classes

    @torch.no_grad()
    def probabilities(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return one-hot pseudo-labels, averaged where patches overlap, `(M, x, y, z)` to `(C, x, y, z)`.

        Weights are ignored: a voxel that would count little or not at all in training counts like any other.
        """
        method, device = self.trainer.method, self.trainer.device
        mode = method.training
        method.eval()
        told = by_windows(
            image, self._told, device, patch=self.patch, batch=self.batch, overlap=[0.0] * 3, blend="constant"
        )
        method.train(mode)
        return told

    def _told(self, patches: Tensor) -> Tensor:
        with autocast(self.trainer.device, self.trainer.precision):
            sample = self.trainer.method.pseudo_label(patches)
        assert sample is not None
        return F.one_hot(sample.target.long(), len(self.classes)).movedim(-1, 1).float()
