"""Groups of networks that label for each other, copy-paste beside whole patches, and optional frequency bands.

This project's own combination of parts of other methods: bidirectional copy-paste (BCP, arXiv 2305.00673); views that
label for each other, in which more certain ones count more (UMCT, arXiv 1811.12506); pseudo-labels from a weak view of
what students see in a strong one (FixMatch, arXiv 2001.07685); students on frequency bands under one teacher (CFC-Net,
arXiv 2504.11856); and groups that take turns (RAIL, arXiv 2505.03538). The measurements in docs/benchmarks.md decided
which of them are on by default.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medssl.methods.base import Dice, Follow, MakeNet, Method, MethodConfig, StepResult, at_rest
from medssl.methods.cfc_mt import Frequencies
from medssl.parts.fusion import fuse
from medssl.parts.gauges import gap, gauges, mean_trust, removed
from medssl.parts.losses import consistency, cross_entropy, dice_ce, trusted
from medssl.parts.mix import paste, random_box
from medssl.parts.pseudo import entropy, largest_component, likeliest, probabilities
from medssl.parts.sample import Progress, Sample, TrainBatch, concat
from medssl.parts.schedules import ramp_up, warmed_up
from medssl.parts.views import Band, Identity, View, Viewed


@dataclass(frozen=True)
class Said:
    """Predictions of all K teachers for unlabelled patches."""

    probs: Tensor
    """Class probabilities, `(K, B, C, X, Y, Z)`."""
    uncertainty: Tensor
    """Normalised entropy, `(K, B, X, Y, Z)`."""
    disputed: Tensor
    """Where the teachers predict different classes, `(B, X, Y, Z)` bool."""

    @classmethod
    def of(cls, probs: Tensor) -> Said:
        return cls(probs, entropy(probs), disputed(probs))


@dataclass(frozen=True)
class Told:
    """Targets for the students of a group on unlabelled patches, made from all teachers' predictions."""

    pseudo: Sample
    """Pseudo-labels with a weight for each voxel."""
    probs: Tensor
    """The combined class probabilities, `(B, C, X, Y, Z)`."""
    named: Tensor
    """The likeliest classes of `probs`, before `largest_component` is applied, `(B, X, Y, Z)`."""


@dataclass(frozen=True)
class Shown:
    """How a student sees the patches of a step."""

    view: View
    box: Tensor
    """Where patches are pasted, `(X, Y, Z)` bool. Each student of a group has its own box: the students start with the
    same weights, and would stay identical on the same patches."""


class Combined(Method):
    """Copy-paste whose unlabelled voxels are labelled by the combined prediction of all groups' teachers.

    Each group has its own initial weights and may have its own order of the axes. It has a student for each band and a
    teacher that follows the students' mean. Teachers see the unlabelled patches before their grey levels were changed,
    students see them after. In a step, with the teachers' predictions `p_k` and normalised entropies `U_k`:

        q    = sum_k r_k c_k p_k / sum_k r_k c_k,    c_k = 1 / (U_k + floor),  r_k = `own` for the group's own, else 1
        w    = 1 - entropy q, times `disputed` where teachers predict different classes
        L_s  = S(p_s, y) + alpha w CE(p_s, argmax q) + r(t) w (w_full |p_s - q|^2 + w_cross |p_s - sg p_s'|^2)

    for each student `s` of a learning group, where `s'` are the other students of its group and `sg` stops the
    gradient. `S` is Dice and cross-entropy over whole labelled patches, and over the labelled side of pasted ones,
    separately as in BCP. The other terms are sums over unlabelled voxels with weights `w`, divided by the number of
    these voxels, so that uncertain voxels teach little. BCP's students learn from pasted patches only and never see a
    whole one. Where `largest_component` removed a component, `argmax q` is background and `q` is unchanged.

    In stage one, students learn from labelled patches, whole and pasted into each other. All networks of a group take
    the students' mean after each step, because the mean works as a teacher only while the students stay close.

    Settings reduce it to other methods. One group of one student, pasted patches only, and Dice on pseudo-labels of
    equal weight give BCP. Without copy-paste and with `alpha: 0` it is Mean Teacher, or CFC-MT with
    `bands: [low, high]`. With `own: 0`, only other groups label, as in UMCT.
    """

    class Config(MethodConfig):
        axes: tuple[tuple[int, int, int], ...] = Field(((0, 1, 2), (0, 1, 2)), min_length=1)
        """For each group, the order in which its networks take the image axes (0 is X). It replaces `network.axes`. Use
        different orders only for data of equal spacing. With thick slices use the same order for all groups; they then
        differ by their random start."""
        bands: tuple[Literal["full", "low", "high", "either"], ...] = Field(("full",), min_length=1)
        """Frequencies that each student of a group sees. `either`: low or high, drawn at each step, and all frequencies
        at inference. As control experiments, compare `[low, high]` with `[full, full]`, and `[either]` with `[full]`.
        Two `full` students differ only through copy-paste or dropout."""
        frequency: Frequencies = Frequencies()
        high_in_low: float = Field(0.2, ge=0, le=1)
        """Factor on the high frequencies in the input of a `low` student. 0: none of them; 1: the whole image."""
        low_in_high: float = Field(0.65, ge=0, le=1)
        """Factor on the low frequencies in the input of a `high` student. 0: none of them; 1: the whole image."""
        filtered: Literal["before", "after", "unlabelled", "consistency"] = "before"
        """Where images are reduced to a band. `before`: before pasting, which keeps the faces of the box out of the
        high band. `after`: after pasting. `unlabelled`: before pasting, unlabelled images only. `consistency`: only for
        the consistency losses, for which students see the unlabelled patches a second time, whole and filtered."""
        full_band: float = Field(0.2, ge=0, le=1)
        """Share of steps in which all students see all frequencies, so that they do not drift too far apart."""
        teachers: Literal["group", "student"] = "group"
        """`group`: one teacher per group, which follows the mean of its students and sees all frequencies. `student`:
        one teacher per student, which sees the same band."""
        turn: int = Field(0, ge=0)
        """Length of a turn in steps; the groups learn in turns. 0: all groups learn in each step."""
        own: float = Field(0.5, ge=0, le=1)
        """Weight of a group's own teachers in its pseudo-labels; teachers of other groups have weight 1. 0 needs at
        least two groups."""
        scope: Literal["voxel", "sample"] = "voxel"
        """`voxel`: a teacher's uncertainty is that of each voxel. `sample`: it is averaged over the patch."""
        floor: float = Field(1e-3, gt=0)
        """Constant added to each uncertainty; the weight of a prediction is the inverse of the sum. Uncertainties are
        normalised entropies, from 0 to 1. With the default, a teacher that is certain but wrong can outweigh another by
        up to `most`; 0.05 limits this. The results in docs/benchmarks.md use the default."""
        most: float = Field(20.0, ge=1)
        """Largest ratio between the weights of two teachers, before `own` is applied."""
        trust: Literal["certainty", "alike"] = "certainty"
        """Weight of a pseudo-labelled voxel. `certainty`: 1 minus the normalised entropy of the teachers' combined
        prediction. `alike`: 1. In both cases `disputed` applies."""
        disputed: float = Field(0.5, ge=0, le=1)
        """Factor on the weight of voxels where teachers predict different classes."""
        largest_component: bool = True
        """Keep only the largest component of each class in pseudo-labels. Set it to false for classes with several
        parts, such as teeth, vessels or lesions."""
        teachers_see: Literal["weak", "strong"] = "weak"
        """Unlabelled patches that teachers label. `weak`: before augmentation changes their grey levels. `strong`: as
        the students see them."""
        copy_paste: bool = True
        """Paste labelled and unlabelled patches into each other. false: students see whole labelled and whole
        unlabelled patches, twice as many as pasted ones."""
        whole: bool = True
        """With copy-paste, show students the whole labelled patches too, so that unpasted images are not new to them at
        inference. Twice as many patches."""
        box: float = Field(2 / 3, gt=0, le=1)
        """Side of the pasted box as a share of the side of the patch."""
        alpha: float = Field(0.5, ge=0)
        """Weight of the loss on pseudo-labels."""
        pseudo: Literal["dice_ce", "ce"] = "ce"
        """Loss on pseudo-labels: cross-entropy (`ce`), or Dice and cross-entropy (`dice_ce`). Dice rewards too large a
        foreground where a network is uncertain, and a teacher that follows it passes this on; cross-entropy does
        not."""
        full_weight: float = Field(1.0, ge=0)
        """Weight of the consistency with the teachers' probabilities after the ramp-up."""
        cross_weight: float = Field(0.5, ge=0)
        """Weight of the consistency between the students of a group after the ramp-up."""
        ramp: float = Field(0.4, ge=0, le=1)
        """Length of the ramp-up, as a share of the run: `full_weight` and `cross_weight` rise from 0.0067 times their
        values to the full values. 0: no ramp-up."""
        pretrain: float = Field(2 / 17, ge=0, lt=1)
        """Length of stage one, which uses labels only, as a share of the run."""
        ema_decay: float = Field(0.99, ge=0, lt=1)
        """Decay of a teacher's moving average (EMA) in stage two, constant. Without stage one (`pretrain: 0`), it is `1
        - 1/(k + 1)` at step k of the group until it reaches this value."""
        dice: Dice = "squared"

        @model_validator(mode="after")
        def _labelled_by_someone(self) -> Self:
            if self.own == 0 and len(self.axes) == 1:
                raise ValueError(
                    "own: 0 leaves pseudo-labels to other groups, but axes has one group only; "
                    "add a group, or set own above 0"
                )
            return self

        def on_grid(self, spacing: tuple[float, float, float]) -> Self:
            return self.model_copy(update={"frequency": self.frequency.on_grid(spacing)})

    config: Config
    even_batch = True

    def __init__(self, config: Config, make_net: MakeNet) -> None:
        super().__init__(config, make_net)
        split = config.frequency.split
        self.bands: dict[str, View] = {
            "full": Identity(),
            "low": Band("low", split, config.high_in_low),
            "high": Band("high", split, config.low_in_high),
        }
        views = [self.bands.get(band, Identity()) for band in config.bands]
        each = config.teachers == "student"
        self.groups = nn.ModuleList(Group(make_net(axes=axes), views, each) for axes in config.axes)

    def step(self, batch: TrainBatch, progress: Progress, rng: torch.Generator) -> StepResult:
        labelled = Sample.of(batch.image, batch.label, known=batch.known)
        shown = self.drawn(batch.image, rng)
        if self.pretraining(progress):
            return self.pretrain_step(self.turn(progress), labelled, shown, partly=batch.known is not None)

        weak = batch.weak_view() if self.config.teachers_see == "weak" else batch.unlabelled
        said = self.said(weak)
        rise, image = ramp_up(progress, self.config.ramp), batch.unlabelled
        results = [self.group_step(n, labelled, image, said, shown, rise) for n in self.turn(progress)]
        losses = {name: torch.stack([one.losses[name] for one in results]).sum() for name in results[0].losses}
        stats = {name: torch.stack([one.stats[name] for one in results]).mean(0) for name in results[0].stats}
        return StepResult(losses, stats)

    def drawn(self, image: Tensor, rng: torch.Generator) -> list[Shown]:
        """Draw how each student of a group sees this step's patches, which have the shape of `(B, M, X, Y, Z)`."""

        def box() -> Tensor:
            return random_box(image.shape[2:], self.config.box, rng, image.device)

        first, (full, which) = box(), torch.rand(2, generator=rng).tolist()
        either = "low" if which < 0.5 else "high"
        names = ["full" if full < self.config.full_band else band for band in self.config.bands]
        views = [self.bands[either if name == "either" else name] for name in names]
        return [Shown(view, box() if number else first) for number, view in enumerate(views)]

    def turn(self, progress: Progress) -> Sequence[int]:
        """The numbers of the groups that learn in a step."""
        count = len(self.groups)
        return [progress.iteration // self.config.turn % count] if self.config.turn else range(count)

    def steps(self, progress: Progress) -> int:
        """Number of steps that the group whose turn it is has made before this one, if there is no stage one."""
        if not self.config.turn:
            return progress.iteration
        turns, step = divmod(progress.iteration, self.config.turn)
        return turns // len(self.groups) * self.config.turn + step

    def pretrain_step(
        self, turn: Sequence[int], labelled: Sample, shown: Sequence[Shown], *, partly: bool = False
    ) -> StepResult:
        """Losses of stage one: students on labelled patches, whole and pasted into each other.

        Args:
            partly: whether some voxels are not annotated.
        """
        losses = []
        for number in turn:
            for student, each in zip(self.group(number).students, shown, strict=True):
                parts, logits = self.look(student.net, each, labelled, None)
                seen = concat(*parts)
                losses.append(dice_ce(logits, seen.target, seen.weight if partly else None, dice=self.config.dice))
        return StepResult({"pretrain": torch.stack(losses).sum()})

    def group_step(
        self,
        number: int,
        labelled: Sample,
        image: Tensor,
        said: Said,
        shown: Sequence[Shown],
        rise: float,
    ) -> StepResult:
        """Losses of one group, summed over its students.

        Args:
            image: unlabelled patches as students see them, `(B, M, X, Y, Z)`.
            said: predictions of all teachers for these.
            shown: how each student sees the patches.
            rise: value of the ramp-up, from 0 to 1.
        """
        config, told = self.config, self.told(number, image, said)
        again = config.filtered == "consistency"
        unlabelled, where, sides = [], [], []
        for student, each in zip(self.group(number).students, shown, strict=True):
            parts, logits = self.look(student.net, each, labelled, told.pseudo)
            foreign = [each.box, ~each.box] if config.copy_paste else [torch.ones_like(each.box)]
            masks = [torch.zeros_like(each.box)] * (len(parts) - len(foreign)) + foreign
            sizes = [len(part) for part in parts]
            for part, mask, seen in zip(parts, masks, torch.split(logits, sizes), strict=True):
                sides.append(self.sides(seen, part, mask))
            # In the order of `image`: logits on the pasted patches, or on the unlabelled ones seen a second time.
            unlabelled.append(student.net(each.view.apply(image)) if again else logits[-len(image) :])
            pasted = torch.cat([mask.expand(len(image) // len(foreign), -1, -1, -1) for mask in foreign])
            where.append(torch.ones_like(pasted) if again else pasted)
        labelled_side, pseudo_side = torch.stack(sides).sum(0)
        losses = {"labelled": labelled_side, "pseudo": config.alpha * pseudo_side}
        losses |= self.consistencies(unlabelled, told, where, rise)
        return StepResult(losses, self.stats(labelled, unlabelled, told, where, said))

    def pseudo_label(self, image: Tensor) -> Sample:
        """The pseudo-labels for the first group."""
        return self.told(0, image, self.said(image)).pseudo

    def said(self, image: Tensor) -> Said:
        """Predictions of all teachers for patches `(B, M, X, Y, Z)`."""
        return Said.of(torch.stack([probabilities(at_rest(net, image)) for net in self.teachers()]))

    def sides(self, logits: Tensor, part: Sample, foreign: Tensor) -> Tensor:
        """Loss on expert labels, and loss on pseudo-labels, `(2,)`.

        Args:
            foreign: where `part` has pseudo-labels, `(X, Y, Z)` bool.
        """
        regions = part.weight * torch.stack([~foreign, foreign]).unsqueeze(1)  # (2, B, X, Y, Z)
        if self.config.pseudo == "dice_ce":
            labelled, told = dice_ce(logits, part.target, regions, dice=self.config.dice)
        else:
            labelled = dice_ce(logits, part.target, regions[0], dice=self.config.dice)
            told = cross_entropy(logits, part.target, regions[1])
        return torch.stack([labelled, told * trusted(part.weight, foreign)])

    def told(self, number: int, image: Tensor, said: Said) -> Told:
        """Targets for the students of a group on unlabelled patches; for the arguments see `group_step`."""
        config, each, probs, uncertainty = self.config, len(self.group(number).teachers), said.probs, said.uncertainty
        if config.scope == "sample":
            uncertainty = uncertainty.mean((2, 3, 4), keepdim=True)
        share = [config.own if teacher // each == number else 1.0 for teacher in range(len(probs))]
        fused, certainty = fuse(probs, uncertainty, floor=config.floor, most=config.most, share=share)
        named, trust = likeliest(fused), certainty if config.trust == "certainty" else torch.ones_like(certainty)
        target = largest_component(named, fused.shape[1]) if config.largest_component else named
        return Told(Sample(image, target, torch.where(said.disputed, config.disputed * trust, trust)), fused, named)

    def look(
        self, net: nn.Module, shown: Shown, labelled: Sample, pseudo: Sample | None
    ) -> tuple[list[Sample], Tensor]:
        """The patches that a student learns from, and its logits on all of them, `(B, C, X, Y, Z)`."""
        filtered, view = self.config.filtered, shown.view
        if filtered == "before":
            labelled = replace(labelled, image=view.apply(labelled.image))
        if filtered in ("before", "unlabelled") and pseudo is not None:
            pseudo = replace(pseudo, image=view.apply(pseudo.image))
        parts = self.parts(labelled, pseudo, shown.box)
        image = torch.cat([part.image for part in parts])
        return parts, net(view.apply(image) if filtered == "after" else image)

    def parts(self, labelled: Sample, pseudo: Sample | None, box: Tensor) -> list[Sample]:
        """Whole labelled patches, if set, then patches pasted with unlabelled ones, or in stage one with each other."""
        config = self.config
        if not config.copy_paste:
            return [labelled] if pseudo is None else [labelled, pseudo]
        whole = [labelled] if config.whole else []
        i, j = labelled[: len(labelled) // 2], labelled[len(labelled) // 2 :]
        if pseudo is None:
            return [*whole, paste(inside=i, outside=j, box=box), paste(inside=j, outside=i, box=box)]
        p, q = pseudo[: len(pseudo) // 2], pseudo[len(pseudo) // 2 :]
        return [*whole, paste(inside=p, outside=j, box=box), paste(inside=i, outside=q, box=box)]

    def consistencies(
        self, seen: Sequence[Tensor], told: Told, where: Sequence[Tensor], rise: float
    ) -> dict[str, Tensor]:
        """Consistency with the teachers and, between several students, on the unlabelled voxels that both saw.

        Args:
            seen: each student's logits, `(B, C, X, Y, Z)`.
            where: the unlabelled voxels in these, `(B, X, Y, Z)`.
        """

        def squares(logits: Tensor, probs: Tensor, where: Tensor) -> Tensor:
            trust = told.pseudo.weight
            return trusted(trust, where) * consistency(logits, probs, trust * where)

        full = torch.stack([squares(logits, told.probs, here) for logits, here in zip(seen, where, strict=True)]).sum()
        losses = {"full": self.config.full_weight * rise * full}
        if len(seen) > 1:
            pairs = itertools.permutations(range(len(seen)), 2)
            cross = [squares(seen[a], probabilities(seen[b]), where[a] & where[b]) for a, b in pairs]
            losses["cross"] = self.config.cross_weight * rise * torch.stack(cross).sum() / (len(seen) - 1)
        return losses

    def stats(
        self, labelled: Sample, seen: Sequence[Tensor], told: Told, where: Sequence[Tensor], said: Said
    ) -> dict[str, Tensor]:
        """Gauges of a group, and the share of voxels for which teachers predict different classes."""
        pseudo = told.pseudo
        stats = gauges(
            labelled.target, pseudo.target, said.probs.shape[2], known=labelled.weight > 0, weight=pseudo.weight
        )
        if self.config.largest_component:
            stats["removed"] = removed(told.named, pseudo.target)
        stats["gap"] = gap(seen[0], pseudo.target, where[0])
        if len(seen) > 1:
            stats["dissent"] = gap(seen[1], likeliest(seen[0]), where[0] & where[1])
        return stats | {"disputed": mean_trust(said.disputed)}

    def group(self, number: int) -> Group:
        """A group by its number."""
        return cast(Group, self.groups[number])

    def students(self) -> Sequence[Viewed]:
        return [student for number in range(len(self.groups)) for student in self.group(number).students]

    def teachers(self) -> Sequence[Viewed]:
        return [teacher for number in range(len(self.groups)) for teacher in self.group(number).teachers]

    def followers(self, progress: Progress) -> Sequence[Follow]:
        if self.pretraining(progress):
            return [follow for number in self.turn(progress) for follow in self.group(number).united()]
        decay = self.config.ema_decay
        if not self.config.pretrain:
            decay = warmed_up(decay, progress.before + self.steps(progress))
        return [follow for number in self.turn(progress) for follow in self.group(number).followers(decay)]


class Group(nn.Module):
    """Students that start with the same weights and see different bands, with one teacher for all or one for each."""

    def __init__(self, start: nn.Module, views: Sequence[View], each: bool) -> None:
        super().__init__()
        students = [Viewed(copy.deepcopy(start), view) for view in views]
        teachers = [Viewed(copy.deepcopy(start), view) for view in (views if each else [Identity()])]
        self.each, self._students, self._teachers = each, nn.ModuleList(students), nn.ModuleList(teachers)
        self._teachers.requires_grad_(False).eval()

    @property
    def students(self) -> list[Viewed]:
        return cast(list[Viewed], list(self._students))

    @property
    def teachers(self) -> list[Viewed]:
        return cast(list[Viewed], list(self._teachers))

    def followers(self, decay: float) -> list[Follow]:
        """Let each teacher follow its own student, or the only teacher the students' mean."""
        followed = [[student] for student in self.students] if self.each else [self.students]
        return [Follow(teacher, them, decay) for teacher, them in zip(self.teachers, followed, strict=True)]

    def united(self) -> list[Follow]:
        """Set all networks to the students' mean; the students receive it from the first teacher."""
        first, *rest = self.teachers
        return [Follow(first, self.students, 0.0), *(Follow(net, [first], 0.0) for net in (*rest, *self.students))]


def disputed(probs: Tensor) -> Tensor:
    """Where the likeliest classes of predictions `(K, B, C, X, Y, Z)` differ, `(B, X, Y, Z)` bool."""
    named = probs.max(2).indices
    return (named != named[0]).any(0)
