"""RAIL: two groups of two students of different architecture, alternating.

"RAIL: Region-Aware Instructive Learning for Semi-Supervised Tooth Segmentation in CBCT", arXiv 2505.03538. The losses
are those of its released code, or follow the abstract where the two disagree. They have the paper's names but no
numbers, because its full text was not available.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from medssl.methods.base import Dice, Follow, MakeNet, Method, MethodConfig, Pair, StepResult
from medssl.parts import processes
from medssl.parts.gauges import gap, gauges, mean_trust
from medssl.parts.losses import consistency, cross_entropy, dice_ce, dice_loss, flatness
from medssl.parts.pseudo import likeliest, probabilities, sharpen
from medssl.parts.sample import Progress, Sample, TrainBatch
from medssl.parts.schedules import ramp_up, warmed_up


class RAIL(Method):
    """RAIL: each student learns from labels, from its group's teacher and from the best of all four students.

    `b` is the student with the lowest Dice loss on labelled patches. For every student `s` of the group whose turn it
    is, the terms of the loss are:

        supervised    CE + Dice
        disagreement  0.5 mean (p_s - y)^2 over voxels where s and b name different classes,
                      + 0.05 mean -log p_s(y) over those of them where s is wrong
        confidence    w_b (mean (p_s - sharp p_b)^2 + 0.1 mean CE(uniform, p_s) where s and b name different classes)
        teacher       w_t mean (p_s - sharp p_teacher)^2

    The last two are computed on unlabelled patches. The second is the paper's Disagreement-Focused Supervision (DFS),
    the third its Confidence-Aware Learning (CAL). `b` itself has no third term, and its second covers all voxels. A
    group's teacher follows its first student. In the first turn of each group, the second and third terms are absent.

    The paper segments one foreground class. For several classes, squares are averaged over classes (for two classes
    this is the same number) and masks compare the likeliest classes. Other departures:

    - Errors are voxels whose likeliest class is not the label. The released code takes a maximum over a spatial axis
      there, and a softmax over one in the second half of the disagreement term.
    - The teacher predicts once per step, in evaluation mode. Resting students predict in the same mode as the learning
      ones, without gradients.
    - `b` is chosen by the running mean of its loss, and stays until another is better by a margin. The released code
      takes the best of each batch, which changes in most steps with batches of one patch.
    - A group sees new patches in its turn. The released code keeps two epochs of patches, and each group sees all of
      them.
    - The trainer sets the learning rate.
    - `networks` changes the `network` section to get two architectures: plain and residual blocks stand for the paper's
      V-Net and its V-Net with a ResNet encoder.
    """

    class Config(MethodConfig):
        networks: tuple[dict[str, Any], dict[str, Any]] = ({"residual_units": 0}, {"residual_units": 2})
        """Architectures of the two students in a group, as changes to the `network` section."""
        turn: float = Field(1 / 41, gt=0, le=0.5)
        """Length of a turn, as a share of the run. The two groups learn in turns."""
        disagreement_weight: float = Field(0.5, ge=0)
        """Weight of the squared error in the disagreement term."""
        error_weight: float = Field(0.05, ge=0)
        """Weight of the cross-entropy in the disagreement term, over voxels where the student is wrong."""
        confidence_weight: float = Field(20.0, ge=0)
        """Weight `w_b` of the confidence term after the ramp-up."""
        flatness_weight: float = Field(0.1, ge=0)
        """Weight of the second part of the confidence term, which pulls predictions towards equal probabilities where a
        student disagrees with the best one."""
        teacher_weight: float = Field(10.0, ge=0)
        """Weight `w_t` of the consistency with the teacher after the ramp-up."""
        best_over: PositiveInt = 50
        """Steps in the running mean of each student's Dice loss by which the best student is chosen. With
        `train.accumulate` above 1, parts of a step are counted instead. 1: the current batch only, as in the released
        code."""
        best_margin: float = Field(0.005, ge=0)
        """How much lower another student's mean loss must be for that student to become the best."""
        ramp: float = Field(0.375, ge=0, le=1)
        """Length of the ramp-up, as a share of the run: `w_b` and `w_t` rise from 0.0067 times their values to the full
        values. 0: no ramp-up."""
        temperature: float = Field(0.1, gt=0)
        """Temperature for sharpening the predictions that serve as targets: `p^(1/temperature)`, normalised."""
        ema_decay: float = Field(0.999, ge=0, lt=1)
        """Decay of a teacher's moving average (EMA). At step k of its group it is `1 - 1/(k + 1)` until it reaches this
        value."""
        dice: Dice = "squared"

    config: Config

    def __init__(self, config: Config, make_net: MakeNet) -> None:
        super().__init__(config, make_net)
        self.groups = nn.ModuleList(Group(make_net, *config.networks) for _ in range(2))
        self.running: Tensor
        self.leader: Tensor
        self.looks: Tensor
        self.register_buffer("running", torch.zeros(4))  # mean losses of all students, first group first
        self.register_buffer("leader", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("looks", torch.zeros((), dtype=torch.int64))

    def step(self, batch: TrainBatch, progress: Progress, rng: torch.Generator) -> StepResult:
        turn, _ = self.turn(progress)
        learning, resting = self.group(turn), self.group(turn + 1)
        logits = [batch.through(student) for student in learning.students]
        if turn > 1:
            with torch.no_grad():
                logits += [batch.through(student) for student in resting.students]
        labelled, unlabelled = zip(*logits, strict=True)
        taught = learning.pair.taught(batch.unlabelled)

        rise, dice = ramp_up(progress, self.config.ramp), self.config.dice
        target = self.sharpened(taught)
        supervised = [2 * dice_ce(z, batch.label, batch.known, dice=dice) for z in labelled[:2]]
        guided = [self.config.teacher_weight * rise * consistency(z, target) for z in unlabelled[:2]]
        losses = {"supervised": torch.stack(supervised).sum(), "teacher": torch.stack(guided).sum()}
        pseudo, classes = likeliest(taught), taught.shape[1]
        stats = gauges(batch.label, pseudo, classes, known=batch.known, student=unlabelled[0])
        stats["dissent"] = gap(unlabelled[1], likeliest(unlabelled[0]))
        if turn > 1:
            best = self.best(turn, labelled, batch.label, batch.known)
            losses["disagreement"] = self.disagreement_loss(labelled, batch.label, best, batch.known)
            losses["confidence"] = self.config.confidence_weight * rise * self.confidence_loss(unlabelled, best)
            stats["contested"] = self.contested(labelled, best, batch.known)
        return StepResult(losses, stats)

    def group(self, turn: int) -> Group:
        """The group that learns in a turn."""
        return cast(Group, self.groups[turn % 2])

    def turn(self, progress: Progress) -> tuple[int, int]:
        """Return the number of the turn, and the number of steps that its group has made before this one."""
        length = max(1, round(self.config.turn * progress.total))
        turn, step = divmod(progress.iteration, length)
        return turn, turn // 2 * length + step

    @torch.no_grad()
    def best(self, turn: int, labelled: Sequence[Tensor], label: Tensor, known: Tensor | None = None) -> Tensor:
        """Update the running mean losses with this batch and return the best student's index in `labelled`, `(1,)`.

        The result is the same in all processes.

        Args:
            labelled: logits of all students, those of the learning group first.
        """
        config, own = self.config, 2 * (turn % 2)
        losses = torch.stack([dice_loss(z, label, known, form=config.dice) for z in labelled]).roll(own)
        share = 1 / (self.looks + 1).clamp_max(config.best_over)
        self.running += share * (processes.total(losses) / processes.count() - self.running)
        lowest = self.running.argmin(0, keepdim=True)
        takes_over = (self.running[lowest] < self.running[self.leader] - config.best_margin) | (self.looks == 0)
        self.leader.copy_(torch.where(takes_over, lowest, self.leader))
        self.looks += 1
        return (self.leader - own) % 4

    def disagreement_loss(
        self, labelled: Sequence[Tensor], label: Tensor, best: Tensor, known: Tensor | None = None
    ) -> Tensor:
        """The second term (DFS), summed over the first two students.

        Args:
            labelled: logits of all students, those of the learning group first.
            best: result of `best`.
            known: annotated voxels; see `TrainBatch.known`.
        """
        named = torch.stack([likeliest(z) for z in labelled])  # (S, B, X, Y, Z)
        truth = F.one_hot(label, labelled[0].shape[1]).movedim(-1, 1)  # (B, C, X, Y, Z)
        losses = []
        for number, logits in enumerate(labelled[:2]):
            region = (named[number] != named.index_select(0, best)[0]) | (best == number)
            if known is not None:
                region = region & known
            wrong = region & (named[number] != label)
            losses.append(
                self.config.disagreement_weight * consistency(logits, truth, region)
                + self.config.error_weight * cross_entropy(logits, label, wrong)
            )
        return torch.stack(losses).sum()

    @torch.no_grad()
    def contested(self, labelled: Sequence[Tensor], best: Tensor, known: Tensor | None = None) -> Tensor:
        """The gauge `contested`; for the arguments see `disagreement_loss`."""
        named = torch.stack([likeliest(z) for z in labelled])  # (S, B, X, Y, Z)
        differs = named[:2] != named.index_select(0, best)
        if known is None:
            return mean_trust(differs)
        return (differs & known).sum() / (2 * known.sum()).clamp_min(1)

    def confidence_loss(self, unlabelled: Sequence[Tensor], best: Tensor) -> Tensor:
        """The third term (CAL) with weight 1, summed over the first two students; see `disagreement_loss`."""
        told = torch.stack([z.detach() for z in unlabelled]).index_select(0, best)[0]
        target, named = self.sharpened(told), likeliest(told)
        losses = []
        for number, logits in enumerate(unlabelled[:2]):
            undecided = flatness(logits, likeliest(logits) != named)
            losses.append((best != number) * (consistency(logits, target) + self.config.flatness_weight * undecided))
        return torch.stack(losses).sum()

    def sharpened(self, logits: Tensor) -> Tensor:
        """Class probabilities, sharpened with the temperature."""
        return sharpen(probabilities(logits), self.config.temperature)

    def pseudo_label(self, image: Tensor) -> Sample:
        """The classes that the first group's teacher predicts."""
        return Sample.of(image, likeliest(self.group(0).pair.taught(image)))

    def students(self) -> Sequence[nn.Module]:
        return [student for turn in range(2) for student in self.group(turn).students]

    def teachers(self) -> Sequence[nn.Module]:
        return [self.group(turn).pair.teacher for turn in range(2)]

    def followers(self, progress: Progress) -> Sequence[Follow]:
        turn, steps = self.turn(progress)
        pair = self.group(turn).pair
        return [Follow(pair.teacher, [pair.student], warmed_up(self.config.ema_decay, progress.before + steps))]


class Group(nn.Module):
    """Two students of different architecture and a teacher that follows the first."""

    def __init__(self, make_net: MakeNet, first: dict[str, Any], second: dict[str, Any]) -> None:
        super().__init__()
        self.pair = Pair(make_net, **first)
        self.other = make_net(**second)

    @property
    def students(self) -> tuple[nn.Module, nn.Module]:
        return self.pair.student, self.other
