"""The sections of a plan, each chosen from a dataset's fingerprint: spacing, recipe, flips, network, training."""

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
    """Return the spacing to prepare with, and why: the median, but the 10th percentile across thick slices."""
    spacings = facts.spacings
    spacing, why = np.median(spacings, 0), f"the median of {how_many(len(spacings), 'case')}"
    coarse = int(np.argmax(spacing))
    finer = np.delete(spacing, coarse).max()
    if spacing[coarse] > THICK_SLICE_RATIO * finer:
        why += f"; slices are thick along {'xyz'[coarse]}, where the 10th percentile loses less of the thinner ones"
        spacing[coarse] = max(np.percentile(spacings[:, coarse], 10), finer)
    low, high = spacings.min(0), spacings.max(0)
    if (high > low * 1.001).any():
        why += f" (spacings range from {by(_digits(low))} to {by(_digits(high))})"
    x, y, z = _digits(spacing)
    return (x, y, z), why


def data_section(
    facts: Fingerprint, dataset: DatasetConfig, spacing: tuple[float, ...], why: str, *, as_stored: bool = False
) -> Choices:
    """Return the `data` section: names as given, and a recipe with the spacing of `plan_spacing` and its reason."""
    kept = dataset.model_dump(
        mode="json", exclude_unset=True, exclude={"name", "channels", "classes", "subject", "recipe"}
    )
    subject = None if dataset.subject is None else dataset.subject.model_dump(mode="json", exclude_unset=True)
    orientation = Choice("RAS", "axes point right, to the front and up, so that flips have a meaning")
    if as_stored:
        orientation = Choice(STORED, "slices are thick along one axis of the files, but along several of the body")
    recipe: Choices = {
        "orientation": orientation,
        "spacing": Choice(list(spacing), why),
        "crop": Choice(True, "to the foreground by grey levels; labels are not used"),
        **_intensity(facts, dataset),
    }
    who = "every case counts as a patient of its own; if some share one, set a pattern, as {pattern: '(patient\\d+)'}"
    if subject is not None:
        who = "how to find the patient of a case"
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
    """Return the pairs of sides that names suggest, if none are given."""
    if dataset.sides is not None or not dataset.likely_sides:
        return {}
    pairs = [list(pair) for pair in dataset.likely_sides]
    why = "mirror images of each other, by their names or FDI numbers; add others, or set [] if they are not"
    return {"sides": Choice(pairs, why)}


def _channels(facts: Fingerprint, dataset: DatasetConfig) -> list[str]:
    """Return the names that were given or declared, otherwise a guess."""
    if "channels" in dataset.model_fields_set:
        if len(dataset.channels) != facts.channels:
            raise ConfigError(f"data.channels: names {', '.join(dataset.channels)}, but each image has "
                              f"{how_many(facts.channels, 'channel')}")  # fmt: skip
        return list(dataset.channels)
    guesses = ["CT" if hounsfield else "MRI" for hounsfield in facts.hounsfield]
    return guesses if len(guesses) == 1 else [f"{guess} {number}" for number, guess in enumerate(guesses, start=1)]


def _intensity(facts: Fingerprint, dataset: DatasetConfig) -> Choices:
    units = facts.hounsfield
    zscore: dict[str, Any] = {"kind": "zscore", "percentiles": [0.5, 99.5]}
    by_case = "grey levels have no unit, as in MRI: each case is scaled by its own foreground"
    by_unit = (
        f"Hounsfield units, as in CT: from air to the 99.9th percentile of the foreground, "
        f"the median of {how_many(len(facts.images), 'case')} rounded up to hundreds"
    )
    if not any(units):
        named = [name for name in dataset.channels if re.fullmatch("(cb)?ct", name.lower())]
        hint = ""
        if named:
            hint = (f"; {', '.join(named)}: if levels are Hounsfield units but none is as low as air, kind: clip with "
                    "a window may suit better")  # fmt: skip
        intensity = Choice(zscore, by_case + hint)
        if not facts.nonzero:
            return {"intensity": intensity}
        return {
            "threshold": Choice("nonzero", "the background is 0, which is brighter than the darkest tissue"),
            "intensity": intensity,
        }
    if all(units):
        return {
            "threshold": Choice(BODY, "in Hounsfield units; leaves out air"),
            "intensity": Choice(_window(facts, range(facts.channels)), by_unit),
        }
    rules = [_window(facts, [number]) if is_unit else zscore for number, is_unit in enumerate(units)]
    return {
        "threshold": Choice([BODY if is_unit else None for is_unit in units], "by channel; leaves out air; null: found "
                            "for each volume"),
        "intensity": Choice(rules, f"by channel. {by_unit}; otherwise {by_case}"),
    }  # fmt: skip


def _window(facts: Fingerprint, channels: Sequence[int]) -> dict[str, Any]:
    """Return a window from air to the brightest tissue in these channels."""
    brightest = [image.channels[number].p99_9 for image in facts.images for number in channels]
    high = 100 * math.ceil(float(np.median(brightest)) / 100)
    return {"kind": "clip", "window": [AIR, float(max(high, 0))]}


def augment_section(spacing: Sequence[float], dataset: DatasetConfig) -> Choices:
    """Return the `augment` section: the preset and the axes that may be mirrored, from the spacing in millimetres."""
    thick = [axis for axis in range(3) if spacing[axis] > THICK_SLICE_RATIO * min(spacing)]
    flips = [axis for axis in range(3) if axis not in thick]
    why = f"not along {'xyz'[thick[0]]}, where slices are thick" if thick else "all axes have similar spacing"
    pairs = dataset.likely_sides if dataset.sides is None else dataset.sides
    if dataset.teeth:
        flips = [axis for axis in flips if axis == 0 and pairs]
        why = "a flipped tooth has another FDI number"
        why += "; only left and right are paired" if flips else ""
    for one, other in pairs[:1]:
        why += f"; a mirrored {one} is a {other}, as in data.sides"
    strong = "rotation, scaling, elastic deformation and grey levels: with few labels, every method gains from it"
    return {"preset": Choice("strong", strong), "flips": Choice(flips, why)}


def network_section(shape: Shape, vram: float) -> Choices:
    """Return the `network` section for a patch; a light network if `vram` is 0, for a CPU."""
    levels = len(shape.kernels)
    strides = [_short(stride) for stride in shape.strides]
    bottom = f"the patch is reduced to {by(shape.bottom)} voxels, by {by(shape.stride)}"
    bottom += "; a coarse axis is halved later than the others" if 1 in shape.kernels[0] else ""
    if not vram:
        return {
            "name": Choice("unet", "light, for a CPU: starts at half resolution"),
            "channels": Choice(list(LIGHT_WIDTHS[:levels]), f"{levels} levels"),
            "strides": Choice(strides, bottom),
        }
    kernels = [_short(kernel) for kernel in shape.kernels]
    flat = "1 along an axis that is still coarse" if any(1 in k for k in shape.kernels) else "no axis is coarse"
    return {
        "name": Choice("dynunet", "keeps full resolution"),
        "channels": Choice(list(WIDTHS[:levels]), f"{levels} levels"),
        "strides": Choice(strides, bottom),
        "kernels": Choice(kernels if len(set(shape.kernels)) > 1 else kernels[:1], flat),
    }


def optimiser(vram: float) -> dict[str, Any]:
    """Return number of steps, optimiser and learning rate: the defaults, or few steps and fast learning on a CPU."""
    if vram:
        return {key: TrainConfig.model_fields[key].default for key in ("iterations", "optimizer", "lr")}
    return {"iterations": 2000, "optimizer": "adamw", "lr": 0.003}


def train_section(
    facts: Fingerprint, shape: Shape, median: Sequence[float], run: RunConfig, method: Path, vram: float
) -> Choices:
    """Return the `train` section: patch, batch and schedule of a run that fits.

    Args:
        median: voxels of the median image at the planned spacing.
        method: the file from which the batch sizes come.
        vram: GiB into which the patch fits; 0 for a CPU.
    """
    train = run.train
    share = shape.voxels / math.prod(median)
    limit = f"this patch is the largest that fits {vram:g} GiB" if vram else "this patch is small enough for a CPU"
    if all(side >= n - t for side, n, t in zip(shape.patch, median, shape.stride, strict=True)):
        limit = "this patch covers it"
    whole = by(round(n) for n in median)
    theirs = f"as in {method}, whose value wins if it comes last"
    rare = min(facts.classes[1:], key=lambda one: one.share, default=None)
    few = f"; the rarest, {rare.name}, is {100 * rare.share:.3g} % of voxels" if rare else ""
    centred = "a patch covers less than half of an image, so a third is centred on a class"
    weights = "how often each class is that one; equal, so that rare classes come as often as common ones"
    schedule = optimiser(vram)
    speed = "usual in the literature" if vram else "few steps and fast learning, for a CPU"
    parts = "the whole batch fits at once" if train.accumulate == 1 else "one after the other, so that they fit"
    return {
        "patch": Choice(list(shape.patch), f"the median image has {whole} voxels at this spacing; {limit}"),
        "labelled_batch": Choice(train.labelled_batch, theirs),
        "unlabelled_batch": Choice(train.unlabelled_batch, theirs),
        "accumulate": Choice(train.accumulate, f"parts of a batch; {parts}"),
        "foreground": Choice(0.33, centred + few)
        if share < 0.5
        else Choice(0.0, "a patch covers at least half an image"),
        "class_weights": Choice([1.0] * (len(run.data.classes) - 1), weights),
        **{key: Choice(value, speed) for key, value in schedule.items()},
    }


def _short(triple: Triple) -> int | list[int]:
    return triple[0] if len(set(triple)) == 1 else list(triple)


def _digits(values: Sequence[float] | np.ndarray[Any, Any]) -> list[float]:
    """Round to four digits, which is finer than the tolerance within which an image keeps its own spacing."""
    return [float(f"{value:.4g}") for value in values]
