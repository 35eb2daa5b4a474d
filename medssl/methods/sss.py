"""Weak-to-strong consistency on features that several strong views agree on, with votes of a promptable network.

"SSS: Semi-Supervised SAM-2 with Efficient Prompting for Medical Imaging Segmentation", arXiv 2506.08949. Only its
abstract and README were available, so this method is in its style and cites no equations: `configs/method/sss.yaml`
lists what is certain, what is inferred and what is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from medssl.config import Settings
from medssl.errors import ConfigError
from medssl.methods.base import Dice, MakeNet, Method, MethodConfig, StepResult, at_rest
from medssl.methods.inside import decoder_blocks, with_agreeing_channels
from medssl.methods.promptable import PromptableBackbone, StandIn, answers, load_sam2, shown, vote
from medssl.parts import processes
from medssl.parts.gauges import gap, gauges
from medssl.parts.losses import dice_ce, trusted, voxel_mean
from medssl.parts.perturb import strong_view
from medssl.parts.prompts import FACTS, Prompt, describe, make_prompts
from medssl.parts.pseudo import likeliest, probabilities
from medssl.parts.sample import Progress, Sample, TrainBatch
from medssl.parts.schedules import generator, mix

REMEMBERED = 1024
"""Number of the latest components of labelled patches with which components of unlabelled ones are compared."""
OVERLAP = 0.5
"""Dice with the student's component that an answer must exceed to count."""


class Prompting(Settings):
    """Which components of a prediction become prompts."""

    axis: Literal[0, 1, 2] = 2
    """Axis (0 is X) across which volumes are cut into slices."""
    every: PositiveInt = 2
    """Slices from one that gets prompts to the next. The first one is drawn at random."""
    margin: int = Field(2, ge=0)
    """Voxels between a component and its box."""
    reliable: float = Field(0.8, ge=0, lt=1)
    """Mean probability that a component must exceed. A background point in a prompt must exceed it in the probability
    of background."""
    change: float = Field(0.5, ge=0, le=1)
    """Largest allowed change of a component's area between a slice and its neighbour, as a share of the larger area."""
    single: tuple[PositiveInt, ...] = ()
    """Classes that form one component, by position in `data.classes` (0 is the background). Only the largest component
    of such a class gets prompts."""


class SSS(Method):
    """SSS: the student's classes on a weak view are its targets on strong views, from features that these agree on.

    With the student's probabilities `p` on the patch before the trainer changed its grey levels:

        L = L_seg(s(x), y) + w mean_v L_seg(s(x_v), argmax q; trust)
        q = (p + vote m) / (1 + vote) where an answer of the promptable network counts, else p
        trust = max q where that reaches the threshold, else 0

    `L_seg` on strong views is multiplied by the mean trust over all voxels, so that it is small if few voxels are
    trusted.

    `x_v` are strong views of the patch as the trainer augments it. In each block of the decoder, hence at each scale,
    the channels on which the views agree are amplified (`by_agreement`). A single image passes through the student
    unchanged; in this way it labels weak views, learns from labels and predicts. There is no teacher, because the paper
    has one stream: the student labels in evaluation mode.

    `m` is the answer of a promptable network. A component of `p` in a slice becomes a prompt, with a box and points, if
    it is reliable and plausible. Plausible components resemble those of labelled patches in volume, place and mean
    intensity, and keep about the same area from slice to slice. An answer whose Dice with the component is above 0.5
    counts, within the box. Places are relative to the patch, so they say less if patches are small. The promptable
    network sees the first modality.
    """

    class Config(MethodConfig):
        threshold: float = Field(0.95, ge=0, lt=1)
        """Confidence threshold: an unlabelled voxel counts if the probability of its likeliest class is at least this;
        that probability is its weight."""
        views: PositiveInt = 2
        """Number of strong views of each unlabelled patch."""
        strong_weight: float = Field(1.0, ge=0)
        """Weight of the loss on strong views, which is averaged over the views (w)."""
        enhancement: float = Field(2.0, ge=0)
        """How strongly decoder channels on which the strong views agree are amplified, and the others weakened. 0: not
        at all."""
        backbone: Literal["none", "stand_in", "sam2"] = "none"
        """Promptable network. `stand_in`: a small network that learns from the labelled patches during the run. `sam2`:
        a network of the SAM 2 family with the weights in `checkpoint`. `--memory` does not include this network in its
        estimate."""
        checkpoint: Path | None = None
        """For `sam2`: file with the weights."""
        architecture: str = "configs/sam2.1/sam2.1_hiera_s.yaml"
        """For `sam2`: name of the configuration in the `sam2` package that belongs to the weights."""
        vote: float = Field(0.5, ge=0, le=0.5)
        """Weight of the promptable network's answer; the student's prediction has weight 1."""
        prompts: Prompting = Prompting()
        dice: Dice = "squared"

    config: Config

    def __init__(self, config: Config, make_net: MakeNet) -> None:
        super().__init__(config, make_net)
        self.student = make_net()
        if config.enhancement > 0 and not decoder_blocks(self.student):
            raise ConfigError("method.enhancement: must be 0 for this network, whose decoder blocks are not marked")
        self.backbone: PromptableBackbone | None = StandIn() if config.backbone == "stand_in" else None
        self.known: Tensor
        if config.backbone != "none":
            self.register_buffer("known", torch.zeros(REMEMBERED, 1 + FACTS, dtype=torch.float64))

    def equip(self, device: torch.device) -> None:
        if self.config.backbone == "sam2":
            self.backbone = load_sam2(self.config.checkpoint, self.config.architecture, device)

    def step(self, batch: TrainBatch, progress: Progress, rng: torch.Generator) -> StepResult:
        probs = probabilities(at_rest(self.student, batch.weak_view()))
        losses: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        if self.backbone is not None:
            if isinstance(self.backbone, StandIn):
                losses["stand_in"] = self.lesson(self.backbone, batch, probs.shape[1], rng)
            self.remember(batch, probs.shape[1])
            probs, stats = self.heard(self.backbone, batch, probs)
        target, trust = self.trusted_classes(probs)
        labelled, by_view = self.student(batch.image), self.enhanced(batch)
        strong = [trusted(trust) * dice_ce(z, target, trust, dice=self.config.dice) for z in by_view]
        losses["supervised"] = dice_ce(labelled, batch.label, batch.known, dice=self.config.dice)
        losses["strong"] = self.config.strong_weight * torch.stack(strong).mean()
        stats |= gauges(batch.label, target, probs.shape[1], known=batch.known, weight=trust)
        return StepResult(losses, {**stats, "gap": gap(by_view[0], target)})

    def pseudo_label(self, image: Tensor) -> Sample:
        """The pseudo-labels without votes of the promptable network."""
        return Sample(image, *self.trusted_classes(probabilities(at_rest(self.student, image))))

    def trusted_classes(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest classes, and their probabilities where these reach the threshold, else 0."""
        confidence, target = probs.max(1)
        return target, torch.where(confidence >= self.config.threshold, confidence, 0)

    def enhanced(self, batch: TrainBatch) -> Sequence[Tensor]:
        """The student's logits on each strong view."""
        count = self.config.views
        seeds = [[mix(seed, view) for seed in batch.seeds] for view in range(count)]
        views = [strong_view(batch.unlabelled, each, batch.fine) for each in seeds]
        logits = with_agreeing_channels(self.student, torch.cat(views), count, self.config.enhancement)
        return logits.chunk(count)

    def lesson(self, backbone: StandIn, batch: TrainBatch, classes: int, rng: torch.Generator) -> Tensor:
        """Cross-entropy of the stand-in on components of the labels, over annotated voxels in the prompts' boxes."""
        images, labels = self.sliced(batch.image[:, 0]), self.sliced(batch.label)
        probs = F.one_hot(labels, classes).movedim(-1, 1).float()
        known = None if batch.known is None else self.sliced(batch.known)
        if known is not None:
            probs = probs * known.unsqueeze(1)  # not background either, so no points lie there
        starts = [first_slice(self.config.prompts.every, rng)] * len(images)
        prompts = self.prompts(images, probs, starts)
        logits = answers(backbone, images, prompts).float()
        boxes, own = (each.to(logits.device) for each in shown(prompts, logits.shape[1:]))
        if known is not None and prompts:
            boxes = boxes & torch.stack([known[one.volume, :, :, one.plane] for one in prompts])
        return voxel_mean(F.binary_cross_entropy_with_logits(logits, own.float(), reduction="none"), boxes)

    def remember(self, batch: TrainBatch, classes: int) -> None:
        """Add the components of labelled patches, from all processes, to the known ones."""
        volumes = zip(_array(self.sliced(batch.label)), _array(self.sliced(batch.image[:, 0])), strict=True)
        rows = torch.cat([torch.from_numpy(describe(label, image, classes)) for label, image in volumes])[:REMEMBERED]
        table = self.known.new_zeros(processes.count(), *self.known.shape)
        table[processes.rank(), : len(rows)] = rows.to(self.known)
        table = torch.cat([processes.total(table).flatten(0, 1), self.known])
        latest = (table[:, 0] == 0).int().argsort(stable=True)  # empty rows go last
        self.known.copy_(table[latest[:REMEMBERED]])

    def heard(self, backbone: PromptableBackbone, batch: TrainBatch, probs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Probabilities combined with the answers to prompts, and two gauges.

        `prompted` is the share of the student's foreground that is in prompted components, `heard` the share of prompts
        whose answer counts.
        """
        config, images, sliced = self.config, self.sliced(batch.unlabelled[:, 0]), self.sliced(probs)
        starts = [first_slice(config.prompts.every, generator(seed, config.views)) for seed in batch.seeds]
        prompts = self.prompts(images, sliced, starts, known=self.known)
        count = torch.zeros((), device=probs.device)
        if prompts:
            with torch.no_grad():
                answer = answers(backbone, images, prompts).float().sigmoid()
            voted, count = vote(sliced, prompts, answer, share=config.vote, overlap=OVERLAP)
            probs = voted.movedim(-1, config.prompts.axis - 3)
        foreground = (likeliest(sliced) > 0).sum()
        within = sum(int(prompt.mask.sum()) for prompt in prompts)
        return probs, {"prompted": within / foreground.clamp_min(1), "heard": count / max(1, len(prompts))}

    def prompts(
        self, images: Tensor, probs: Tensor, starts: Sequence[int], known: Tensor | None = None
    ) -> list[Prompt]:
        """Prompts for images `(B, X, Y, Z)` with probabilities `(B, C, X, Y, Z)`; slices lie along the last axis."""
        rules = self.config.prompts.model_dump(exclude={"axis"})
        rules["known"] = None if known is None else _array(known)
        volumes = enumerate(zip(_array(probs), _array(images), starts, strict=True))
        return [one for n, (p, x, start) in volumes for one in make_prompts(p, x, volume=n, start=start, **rules)]

    def sliced(self, volumes: Tensor) -> Tensor:
        """`(..., X, Y, Z)` with the axis across which volumes are cut into slices moved last."""
        return volumes.movedim(self.config.prompts.axis - 3, -1)

    def students(self) -> Sequence[nn.Module]:
        return [self.student]

    def helpers(self) -> Sequence[nn.Module]:
        return [self.backbone] if isinstance(self.backbone, nn.Module) else []


def first_slice(every: int, rng: torch.Generator) -> int:
    """Draw the first of the slices that get prompts, which are `every` slices apart."""
    return int(torch.randint(every, (), generator=rng))


def _array(tensor: Tensor) -> Any:
    """A tensor as a numpy array."""
    return tensor.detach().cpu().numpy()
