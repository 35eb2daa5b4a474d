"""What travels through a training step: the batch, a volume with its target, and how far the run is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TrainBatch:
    """Augmented patches on the training device."""

    image: Tensor
    """Labelled images, `(Bl, M, X, Y, Z)`."""
    label: Tensor
    """Their labels, `(Bl, X, Y, Z)`, integer classes."""
    unlabelled: Tensor
    """Unlabelled images, `(Bu, M, X, Y, Z)`; Bu is 0 where the method needs none, and nowhere else."""
    seeds: tuple[int, ...]
    """One per unlabelled image. What a method draws for a volume it draws from these, so that it is the same on
    however many devices a batch is spread; what it draws for a step it draws from the step's `rng`."""
    weak: Tensor | None = None
    """The unlabelled images, turned and bent alike, before their grey levels were changed; None where nothing did."""
    known: Tensor | None = None
    """Where someone annotated the labelled images, `(Bl, X, Y, Z)` bool; None: everywhere. Labels are 0 elsewhere,
    and no loss counts them there."""
    fine: tuple[bool, bool, bool] = (True, True, True)
    """Axes that are no stack of thick slices: what is blurred is blurred along these."""

    def weak_view(self) -> Tensor:
        """What an unlabelled patch is labelled from, `(Bu, M, X, Y, Z)`: `weak` where there is one."""
        return self.unlabelled if self.weak is None else self.weak

    def through(self, net: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of labelled and unlabelled images, `(Bl, C, X, Y, Z)` and `(Bu, C, X, Y, Z)`, in one forward pass."""
        logits = net(torch.cat([self.image, self.unlabelled]))
        labelled, unlabelled = logits.tensor_split([len(self.image)])
        return labelled, unlabelled

    def part(self, index: int, count: int) -> TrainBatch:
        """Every `count`-th sample from `index` on: halves of a batch stay paired as they were."""
        parts = (self.image[index::count], self.label[index::count], self.unlabelled[index::count])
        weak, known = (None if one is None else one[index::count] for one in (self.weak, self.known))
        return TrainBatch(*parts, self.seeds[index::count], weak, known, self.fine)


@dataclass(frozen=True)
class Progress:
    """Where a run is: step `iteration` of `total`, counted from 0."""

    iteration: int
    total: int
    before: int = 0
    """Steps of the runs that its first weights come from: teachers that have followed so long go on as they are."""

    def is_within(self, share: float) -> bool:
        """Whether the step is in the first part of the run; a thousandth of a step is a share's rounding."""
        return self.iteration < share * self.total - 1e-3

    @property
    def steps(self) -> int:
        """Steps so far, with those before the run."""
        return self.before + self.iteration

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self.iteration / self.total


@dataclass(frozen=True)
class Sample:
    """Volumes with a target and a voxel-wise trust in it.

    An expert's voxel weighs 1, a pseudo-labelled one its confidence, one that nobody knows 0. Where the
    target came from is forgotten on purpose: every loss just sums with the weight.
    """

    image: Tensor
    """`(B, M, X, Y, Z)`."""
    target: Tensor
    """`(B, X, Y, Z)`, integer classes."""
    weight: Tensor
    """`(B, X, Y, Z)`, at least 0."""

    @classmethod
    def of(cls, image: Tensor, target: Tensor, trust: float = 1.0, known: Tensor | None = None) -> Sample:
        """A sample whose voxels all have the same weight, or 0 where they are not `known`, `(B, X, Y, Z)`."""
        weight = torch.full_like(target, trust, dtype=image.dtype)
        return cls(image, target, weight if known is None else weight * known)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, which: slice) -> Sample:
        return Sample(self.image[which], self.target[which], self.weight[which])


def concat(*samples: Sample) -> Sample:
    """Samples one after the other along the batch axis."""
    return Sample(
        torch.cat([sample.image for sample in samples]),
        torch.cat([sample.target for sample in samples]),
        torch.cat([sample.weight for sample in samples]),
    )
