"""What a method is to the rest of the package.

A method owns its networks and turns a batch into losses. It does not move weights, log, save,
choose a device or draw from global random state; the trainer does the first four and hands it an `rng`.
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
    """Makes a method's networks, each initialised anew, as the `network` section of the settings says."""

    def __call__(self, **changes: Any) -> nn.Module:
        """A network from `(B, M, X, Y, Z)` to logits `(B, C, X, Y, Z)`.

        Args:
            changes: other values for some keys of the section.

        Raises:
            ConfigError: the section does not take them, or a patch does not fit the network.
        """


Dice = Annotated[
    DiceForm,
    Field(
        description="How the Dice loss sums: `squared` and `foreground` over the batch, the latter without background, "
        "`linear` over each volume by itself."
    ),
]
"""The key `dice` of a method's settings; its default is the method's."""


class MethodConfig(Settings):
    """The `method` section: its name, and the settings of the class that the name stands for."""

    name: str
    """Name of the method, one of those that `medssl methods` lists. It decides which other keys the section has."""

    @property
    def fewest_unlabelled(self) -> int:
        """How many unlabelled patches a step, or each part of one, needs."""
        return 1

    def on_grid(self, spacing: tuple[float, float, float]) -> Self:
        """These settings for images of this spacing in mm; most methods count in voxels, and theirs stay the same."""
        return self


@dataclass(frozen=True)
class StepResult:
    """What a step gives back."""

    losses: dict[str, Tensor]
    """Scalars, already weighted; the trainer adds them up."""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars that are only logged."""


@dataclass(frozen=True)
class Follow:
    """After the optimiser's step, `teacher` moves towards the mean of `students`."""

    teacher: nn.Module
    students: Sequence[nn.Module]
    decay: float
    """How much of the teacher survives; 0 copies the students."""


class Method(nn.Module):
    """Base of all methods."""

    Config: ClassVar[type[MethodConfig]]
    needs_unlabelled: ClassVar[bool] = True
    """Whether training is refused without unlabelled cases."""
    even_batch: ClassVar[bool] = False
    """Whether the method pairs halves of both batches, which must then be even and as large as each other."""

    def __init__(self, config: Any, make_net: MakeNet) -> None:
        super().__init__()
        self.config = config

    def equip(self, device: torch.device) -> None:
        """Load what training alone needs, before the first step; most methods need nothing beyond their networks."""

    def step(self, batch: TrainBatch, progress: Progress, rng: torch.Generator) -> StepResult:
        """Losses of one batch, a pure function of its arguments and the weights."""
        raise TypeError(f"{type(self).__name__} must define step")

    def pseudo_label(self, image: Tensor) -> Sample | None:
        """What a step would tell of unlabelled patches `(B, M, X, Y, Z)`, as they are before augmentation changed their
        grey levels; None from a method that makes none. Canaries are scored by it; by predictions where a class
        does not define it."""
        return None

    def students(self) -> Sequence[nn.Module]:
        """The networks that learn; each is an optimiser group of its own."""
        raise TypeError(f"{type(self).__name__} must define students")

    def helpers(self) -> Sequence[nn.Module]:
        """Networks that learn beside the students, each an optimiser group of its own, and do not predict."""
        return []

    def learners(self) -> list[nn.Module]:
        """All networks that learn."""
        return [*self.students(), *self.helpers()]

    def teachers(self) -> Sequence[nn.Module]:
        """The networks that follow; none for a method without teachers."""
        return []

    def followers(self, progress: Progress) -> Sequence[Follow]:
        """Who follows whom after this step."""
        return []

    def pretraining(self, progress: Progress) -> bool:
        """Whether this step belongs to a stage before unlabelled patches count: a setting `pretrain` is its share."""
        return progress.is_within(getattr(self.config, "pretrain", 0.0))

    def train(self, mode: bool = True) -> Self:
        """Put the students into a mode; teachers stay in evaluation mode whatever happens."""
        super().train(mode)
        for teacher in self.teachers():
            teacher.eval()
        return self


class Pair(nn.Module):
    """A student and the teacher that follows it; the teacher starts as a copy and takes no gradient."""

    def __init__(self, make_net: MakeNet, **changes: Any) -> None:
        super().__init__()
        self.student = make_net(**changes)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()

    def taught(self, image: Tensor, *, dropout: Sequence[int] | None = None) -> Tensor:
        """The teacher's logits, `(B, M, X, Y, Z)` to `(B, C, X, Y, Z)`; as `at_rest` gives them."""
        return at_rest(self.teacher, image, dropout=dropout)


def at_rest(net: nn.Module, image: Tensor, *, dropout: Sequence[int] | None = None) -> Tensor:
    """A network's logits in evaluation mode and without a trace for gradients; its own mode is as before afterwards.

    Args:
        dropout: one seed per volume, for a network whose dropout alone is live; by default it is off.
    """
    mode = net.training
    net.eval()
    with torch.inference_mode():
        logits = net(image) if dropout is None else with_dropout(net, image, dropout)
    net.train(mode)
    return cast(Tensor, logits).clone()  # a normal tensor again, which losses may save
