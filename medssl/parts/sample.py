"""Data of a training step: the batch, volumes with targets and weights, and the progress of the run."""

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
    """One per unlabelled image, for random numbers that belong to a volume, so that they do not depend on the number
    of devices that share a batch. Random numbers that belong to a step come from the step's `rng`."""
    weak: Tensor | None = None
    """The unlabelled images with the same geometry, before their grey levels were changed; None if nothing changed
    them."""
    known: Tensor | None = None
    """Annotated voxels of the labelled images, `(Bl, X, Y, Z)` bool; None: all. Labels are 0 elsewhere and do not count
    in any loss."""
    fine: tuple[bool, bool, bool] = (True, True, True)
    """Axes along which slices are not thick; images are blurred along these only."""

    def weak_view(self) -> Tensor:
        """Return the images from which unlabelled patches are labelled, `(Bu, M, X, Y, Z)`: `weak` if there is one."""
        return self.unlabelled if self.weak is None else self.weak

    def through(self, net: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits of labelled and unlabelled images, `(Bl, C, X, Y, Z)` and `(Bu, C, X, Y, Z)`, from one pass."""
        logits = net(torch.cat([self.image, self.unlabelled]))
        labelled, unlabelled = logits.tensor_split([len(self.image)])
        return labelled, unlabelled

    def part(self, index: int, count: int) -> TrainBatch:
        """Return every `count`-th sample from `index` on, so that the halves of a batch stay paired."""
        parts = (self.image[index::count], self.label[index::count], self.unlabelled[index::count])
        weak, known = (None if one is None else one[index::count] for one in (self.weak, self.known))
        return TrainBatch(*parts, self.seeds[index::count], weak, known, self.fine)


@dataclass(frozen=True)
class Progress:
    """Progress of a run: step `iteration` of `total`, counted from 0."""

    iteration: int
    total: int
    before: int = 0
    """Steps of the earlier runs that the initial weights come from; they count in the warm-up of teachers."""

    def is_within(self, share: float) -> bool:
        """Whether the step is in the first `share` of the run, with a tolerance of a thousandth of a step."""
        return self.iteration < share * self.total - 1e-3

    @property
    def steps(self) -> int:
        """Number of steps so far, including those before the run."""
        return self.before + self.iteration

    @property
    def fraction(self) -> float:
        """Completed share of the run, in [0, 1]."""
        return self.iteration / self.total


@dataclass(frozen=True)
class Sample:
    """Volumes with targets and a weight for each voxel.

    An expert's label has weight 1, a pseudo-label its confidence, a voxel without annotation 0. The source of a target
    is not kept on purpose: losses use only the weight.
    """

    image: Tensor
    """`(B, M, X, Y, Z)`."""
    target: Tensor
    """`(B, X, Y, Z)`, integer classes."""
    weight: Tensor
    """`(B, X, Y, Z)`, at least 0."""

    @classmethod
    def of(cls, image: Tensor, target: Tensor, trust: float = 1.0, known: Tensor | None = None) -> Sample:
        """Make a sample whose voxels have the weight `trust`, or 0 where not `known`, `(B, X, Y, Z)` bool."""
        weight = torch.full_like(target, trust, dtype=image.dtype)
        return cls(image, target, weight if known is None else weight * known)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, which: slice) -> Sample:
        return Sample(self.image[which], self.target[which], self.weight[which])


def concat(*samples: Sample) -> Sample:
    """Concatenate samples along the batch axis."""
    return Sample(
        torch.cat([sample.image for sample in samples]),
        torch.cat([sample.target for sample in samples]),
        torch.cat([sample.weight for sample in samples]),
    )
