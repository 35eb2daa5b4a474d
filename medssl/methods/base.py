"""The interface between methods and the rest of the package.

A method owns its networks and turns a batch into losses. It does not update weights, log, save or choose a device; the
trainer does. Nor does it draw from the global random state: the trainer passes it a generator, `rng`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Protocol, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from medssl.config import Settings
from medssl.methods.inside import with_dropout
from medssl.parts.losses import DiceForm
from medssl.parts.sample import Progress, Sample, TrainBatch


class MakeNet(Protocol):
    """Function that makes the networks of a method from the `network` section of the settings."""

    def __call__(self, **changes: Any) -> nn.Module:
        """Return a newly initialised network from `(B, M, X, Y, Z)` to logits `(B, C, X, Y, Z)`.

        Args:
            changes: values that replace those of the section.

        Raises:
            ConfigError: a value does not fit the section, or a patch does not fit the network.
        """


Dice = Annotated[
    DiceForm,
    Field(
        description="How the Dice loss sums: `squared` and `foreground` over the batch, the latter without background, "
        "`linear` over each volume by itself."
    ),
]
"""Type of the setting `dice` of a method, which gives its own default."""


class MethodConfig(Settings):
    """The `method` section: its name, and the settings of the class that the name stands for."""

    name: str
    """Name of the method, one of those that `medssl methods` lists. It decides which other keys the section has."""

    @property
    def fewest_unlabelled(self) -> int:
        """Smallest number of unlabelled patches in a step, or in each part of a step."""
        return 1

    def on_grid(self, spacing: tuple[float, float, float]) -> Self:
        """Return these settings for images of this spacing in mm. Most methods count in voxels and change nothing."""
        return self


@dataclass(frozen=True)
class StepResult:
    """Losses and logged values of a step."""

    losses: dict[str, Tensor]
    """Weighted scalars; the trainer minimises their sum."""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars that are only logged."""


@dataclass(frozen=True)
class Follow:
    """Instruction to move `teacher` towards the mean of `students` after the optimiser's step."""

    teacher: nn.Module
    students: Sequence[nn.Module]
    decay: float
    """Weight of the teacher's old value in its moving average; 0 copies the students' mean."""


class Method(nn.Module):
    """Base class of all methods."""

    Config: ClassVar[type[MethodConfig]]
    needs_unlabelled: ClassVar[bool] = True
    """Whether the method needs unlabelled cases; training without them is then refused."""
    even_batch: ClassVar[bool] = False
    """Whether the method pairs the halves of both batches, which must then be even and of equal size."""

    def __init__(self, config: Any, make_net: MakeNet) -> None:
        super().__init__()
        self.config = config

    def equip(self, device: torch.device) -> None:
        """Load what only training needs, before the first step. Most methods need only their networks."""

    def step(self, batch: TrainBatch, progress: Progress, rng: torch.Generator) -> StepResult:
        """Return the losses of one batch, a pure function of the arguments and the weights."""
        raise TypeError(f"{type(self).__name__} must define step")

    def pseudo_label(self, image: Tensor) -> Sample | None:
        """Return the pseudo-labels that a step would make for unlabelled patches `(B, M, X, Y, Z)`, or None.

        The patches are those before augmentation changed their grey levels. Canaries are scored by these
        pseudo-labels, or by predictions for a class that does not define this method.
        """
        return None

    def students(self) -> Sequence[nn.Module]:
        """The networks that learn; each is a parameter group of the optimiser."""
        raise TypeError(f"{type(self).__name__} must define students")

    def helpers(self) -> Sequence[nn.Module]:
        """Networks that learn with the students but do not predict; each is a parameter group of the optimiser."""
        return []

    def learners(self) -> list[nn.Module]:
        """All networks that learn."""
        return [*self.students(), *self.helpers()]

    def teachers(self) -> Sequence[nn.Module]:
        """The networks that follow students; none for a method without teachers."""
        return []

    def followers(self, progress: Progress) -> Sequence[Follow]:
        """The updates of the teachers after this step."""
        return []

    def pretraining(self, progress: Progress) -> bool:
        """Whether this step is in a first stage without unlabelled patches, whose length is the setting `pretrain`."""
        return progress.is_within(getattr(self.config, "pretrain", 0.0))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the students; teachers always stay in evaluation mode."""
        super().train(mode)
        for teacher in self.teachers():
            teacher.eval()
        return self


class Pair(nn.Module):
    """A student and its teacher, which starts as a copy and has no gradient."""

    def __init__(self, make_net: MakeNet, **changes: Any) -> None:
        super().__init__()
        self.student = make_net(**changes)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()

    def taught(self, image: Tensor, *, dropout: Sequence[int] | None = None) -> Tensor:
        """The teacher's logits, `(B, M, X, Y, Z)` to `(B, C, X, Y, Z)`; see `at_rest`."""
        return at_rest(self.teacher, image, dropout=dropout)


def at_rest(net: nn.Module, image: Tensor, *, dropout: Sequence[int] | None = None) -> Tensor:
    """Return a network's logits in evaluation mode and without gradients; afterwards the network's mode is restored.

    Args:
        dropout: one seed per volume, to keep dropout, and nothing else, active; by default dropout is off.
    """
    mode = net.training
    net.eval()
    with torch.inference_mode():
        logits = net(image) if dropout is None else with_dropout(net, image, dropout)
    net.train(mode)
    return cast(Tensor, logits).clone()  # a normal tensor again, which losses may save
