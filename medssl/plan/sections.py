"""The sections of a plan, each from what a dataset is like: spacing, recipe, flips, network, training."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.cases import PATIENT_FIRST, DatasetConfig
from medssl.data.fingerprint import AIR, BODY, Fingerprint
from medssl.data.grid import STORED, THICK_SLICE_RATIO, Triple
from medssl.errors import ConfigError
from medssl.plan.choices import Choice, Choices
from medssl.plan.shapes import LIGHT_WIDTHS, WIDTHS, Shape
from medssl.run import RunConfig
from medssl.trainer import TrainConfig
from medssl.words import by, how_many


def plan_spacing(facts: Fingerprint) -> tuple[tuple[float, float, float], str]:
    """The spacing to prepare with, and why: the median, and the 10th percentile along thick slices."""
    spacings = facts.spacings
    spacing, why = np.median(spacings, 0), f"the median of {how_many(len(spacings), 'case')}"
    coarse = int(np.argmax(spacing))
    finer = np.delete(spacing, coarse).max()
    if spacing[coarse] > THICK_SLICE_RATIO * finer:
        why += f"; along {'xyz'[coarse]} slices are thick, and the 10th percentile loses less of the thinner ones"
        spacing[coarse] = max(np.percentile(spacings[:, coarse], 10), finer)
    low, high = spacings.min(0), spacings.max(0)
    if (high > low * 1.001).any():
        why += f" (they go from {by(_digits(low))} to {by(_digits(high))})"
    x, y, z = _digits(spacing)
    return (x, y, z), why


def data_section(
    facts: Fingerprint, dataset: DatasetConfig, spacing: tuple[float, ...], why: str, *, as_stored: bool = False
) -> Choices:
    """What the dataset is called and made of, as given; its recipe, with the spacing of `plan_spacing` and why."""
    kept = dataset.model_dump(
        mode="json", exclude_unset=True, exclude={"name", "channels", "classes", "subject", "recipe"}
    )
    subject = None if dataset.subject is None else dataset.subject.model_dump(mode="json", exclude_unset=True)
    orientation = Choice("RAS", "axes grow to the right, the front and up, so that flips have a meaning")
    if as_stored:
        orientation = Choice(STORED, "thick slices lie across one axis of the files, and across several of the body")
    recipe: Choices = {
        "orientation": orientation,
        "spacing": Choice(list(spacing), why),
        "crop": Choice(True, "to the foreground by grey levels; no label is looked at"),
        **_intensity(facts, dataset),
    }
    who = "every case counts as a patient of its own; if some share one, say how to tell: {pattern: '(patient\\d+)'}"
    if subject is not None:
        who = "how to tell who a case is of"
    elif facts.namesakes is not None:
        subject = {"pattern": PATIENT_FIRST}
        who = f"{' and '.join(facts.namesakes)} look like one patient; null makes each case a patient of its own"
    elif facts.patients < facts.cases:
        who = f"the dataset itself names its patients: {facts.cases} cases of {how_many(facts.patients, 'patient')}"
    return {
        "name": Choice(dataset.name),
        "channels": Choice(_channels(facts, dataset), how_many(facts.channels, "channel") + " in every image"),
        "classes": Choice(list(dataset.classes), "in the order of label values"),
        **{key: Choice(value, "as given") for key, value in kept.items()},
        **_sides(dataset),
        "subject": Choice(subject, who),
        "recipe": recipe,
    }


def _sides(dataset: DatasetConfig) -> Choices:
    """The pairs that names tell of, where they are not given."""
    if dataset.sides is not None or not dataset.likely_sides:
        return {}
    pairs = [list(pair) for pair in dataset.likely_sides]
    why = "mirror images of each other, by their names or FDI numbers; add others, or [] if they are none"
    return {"sides": Choice(pairs, why)}


def _channels(facts: Fingerprint, dataset: DatasetConfig) -> list[str]:
    """The names that were given or declared, or a guess."""
    if "channels" in dataset.model_fields_set:
        if len(dataset.channels) != facts.channels:
            raise ConfigError(f"data.channels: names {', '.join(dataset.channels)}, and each image holds "
                              f"{how_many(facts.channels, 'channel')}")  # fmt: skip
        return list(dataset.channels)
    guesses = ["CT" if hounsfield else "MRI" for hounsfield in facts.hounsfield]
    return guesses if len(guesses) == 1 else [f"{guess} {number}" for number, guess in enumerate(guesses, start=1)]


def _intensity(facts: Fingerprint, dataset: DatasetConfig) -> Choices:
    units = facts.hounsfield
    zscore: dict[str, Any] = {"kind": "zscore", "percentiles": [0.5, 99.5]}
    by_case = "grey levels have no unit, as in MRI: each case by its own foreground"
    by_unit = (
        f"Hounsfield units, as in CT: from air to the 99.9th percentile of the foreground, "
        f"a median of {how_many(len(facts.images), 'case')}, upwards to a hundred"
    )
    if not any(units):
        named = [name for name in dataset.channels if re.fullmatch("(cb)?ct", name.lower())]
        hint = ""
        if named:
            hint = (f"; {', '.join(named)}: where levels are Hounsfield units, though none as low as air, kind: clip "
                    "with a window of them may suit better")  # fmt: skip
        intensity = Choice(zscore, by_case + hint)
        if not facts.nonzero:
            return {"intensity": intensity}
        return {
            "threshold": Choice("nonzero", "the background is 0, brighter than the darkest tissue"),
            "intensity": intensity,
        }
    if all(units):
        return {
            "threshold": Choice(BODY, "Hounsfield units; above it is no air"),
            "intensity": Choice(_window(facts, range(facts.channels)), by_unit),
        }
    rules = [_window(facts, [number]) if is_unit else zscore for number, is_unit in enumerate(units)]
    return {
        "threshold": Choice([BODY if is_unit else None for is_unit in units], "by channel; above it is no air, which "
                            "null finds in each volume"),
        "intensity": Choice(rules, f"by channel. {by_unit}; else {by_case}"),
    }  # fmt: skip


def _window(facts: Fingerprint, channels: Sequence[int]) -> dict[str, Any]:
    """From air to what is bright in these channels."""
    brightest = [image.channels[number].p99_9 for image in facts.images for number in channels]
    high = 100 * math.ceil(float(np.median(brightest)) / 100)
    return {"kind": "clip", "window": [AIR, float(max(high, 0))]}


def augment_section(spacing: Sequence[float], dataset: DatasetConfig) -> Choices:
    """How much a patch is changed, and the axes that may be mirrored, from the spacing in millimetres."""
    thick = [axis for axis in range(3) if spacing[axis] > THICK_SLICE_RATIO * min(spacing)]
    flips = [axis for axis in range(3) if axis not in thick]
    why = f"not along {'xyz'[thick[0]]}, where slices are thick" if thick else "all axes have like spacing"
    pairs = dataset.likely_sides if dataset.sides is None else dataset.sides
    if dataset.teeth:
        flips = [axis for axis in flips if axis == 0 and pairs]
        why = "upside down, an upper tooth is no lower one"
        why += "" if flips else ", nor a left one a right one in a mirror"
    for one, other in pairs[:1]:
        why += f"; a mirrored {one} is a {other}, as data.sides has it"
    strong = "rotation, scaling, elastic deformation and grey levels: few labels gain by it with every method"
    return {"preset": Choice("strong", strong), "flips": Choice(flips, why)}


def network_section(shape: Shape, vram: float) -> Choices:
    """The network that belongs to a patch; a light one without a GPU, where `vram` is 0."""
    levels = len(shape.kernels)
    strides = [_short(stride) for stride in shape.strides]
    bottom = f"down to {by(shape.bottom)} voxels, by {by(shape.stride)}"
    bottom += "; a coarse axis waits for the others" if 1 in shape.kernels[0] else ""
    if not vram:
        return {
            "name": Choice("unet", "light: it starts at half resolution, for a CPU"),
            "channels": Choice(list(LIGHT_WIDTHS[:levels]), f"{levels} levels"),
            "strides": Choice(strides, bottom),
        }
    kernels = [_short(kernel) for kernel in shape.kernels]
    flat = "1 along an axis that is still coarse" if any(1 in k for k in shape.kernels) else "no axis is coarse"
    return {
        "name": Choice("dynunet", "full resolution is kept"),
        "channels": Choice(list(WIDTHS[:levels]), f"{levels} levels"),
        "strides": Choice(strides, bottom),
        "kernels": Choice(kernels if len(set(shape.kernels)) > 1 else kernels[:1], flat),
    }


def optimiser(vram: float) -> dict[str, Any]:
    """How long and how fast to learn: the defaults, or few and quick steps on a CPU."""
    if vram:
        return {key: TrainConfig.model_fields[key].default for key in ("iterations", "optimizer", "lr")}
    return {"iterations": 2000, "optimizer": "adamw", "lr": 0.003}


def train_section(
    facts: Fingerprint, shape: Shape, median: Sequence[float], run: RunConfig, method: Path, vram: float
) -> Choices:
    """Patch, batch and schedule of a run that fits.

    Args:
        median: voxels of the median image at the planned spacing.
        method: the file that the batch comes from.
        vram: GiB that the patch fits into; 0 for a CPU.
    """
    train = run.train
    share = shape.voxels / math.prod(median)
    limit = f"the largest that fits {vram:g} GiB" if vram else "small enough for a CPU"
    if all(side >= n - t for side, n, t in zip(shape.patch, median, shape.stride, strict=True)):
        limit = "the whole of it"
    whole = by(round(n) for n in median)
    theirs = f"as in {method}, which wins where it comes last"
    rare = min(facts.classes[1:], key=lambda one: one.share, default=None)
    few = f"; the rarest, {rare.name}, is {100 * rare.share:.3g} % of voxels" if rare else ""
    centred = "the patch sees less than half of an image, so a third is centred on a class"
    weights = "how often each class is that one; rare ones then come as often as common ones, and in Dice count as much"
    schedule = optimiser(vram)
    speed = "usual in the literature" if vram else "few and quick ones, for a CPU"
    parts = "the whole batch fits at once" if train.accumulate == 1 else "one part after the other, so that they fit"
    return {
        "patch": Choice(list(shape.patch), f"the median image has {whole} voxels at this spacing; {limit}"),
        "labelled_batch": Choice(train.labelled_batch, theirs),
        "unlabelled_batch": Choice(train.unlabelled_batch, theirs),
        "accumulate": Choice(train.accumulate, f"parts of a batch; {parts}"),
        "foreground": Choice(0.33, centred + few) if share < 0.5 else Choice(0.0, "the patch sees most of an image"),
        "class_weights": Choice([1.0] * (len(run.data.classes) - 1), weights),
        **{key: Choice(value, speed) for key, value in schedule.items()},
    }


def _short(triple: Triple) -> int | list[int]:
    return triple[0] if len(set(triple)) == 1 else list(triple)


def _digits(values: Sequence[float] | np.ndarray[Any, Any]) -> list[float]:
    """Four digits: closer than the tolerance within which a spacing is a file's own."""
    return [float(f"{value:.4g}") for value in values]
