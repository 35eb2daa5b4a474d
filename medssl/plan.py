"""The job behind `medssl plan`: a dataset's fingerprint to settings for it, with a reason for each.

The plan is a YAML file like those of `configs/data/`, to be read, changed and given to `prepare` and `train`. Rules
decide, and no clock, machine or chance: the same data and options give the same file. Spacing, strides and kernels
follow the reasoning of nnU-Net (Isensee et al., Nature Methods 2021); the patch is the largest that fits the memory.
"""

from __future__ import annotations

import bisect
import math
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medssl import __version__
from medssl.config import found, merge, parse, update
from medssl.data.cases import PATIENT_FIRST, DatasetConfig
from medssl.data.fingerprint import AIR, BODY, Fingerprint, take_fingerprint
from medssl.data.io import read_label
from medssl.data.layouts import declared, read_layout
from medssl.data.recipe import THICK_SLICE_RATIO
from medssl.data.volume import by
from medssl.errors import ConfigError, OutOfMemoryError
from medssl.files import refuse_existing, whole_file, write_json
from medssl.memory import SMALLEST_SIDE, USABLE, Memory, estimate, parts_of_batch
from medssl.methods.base import MethodConfig
from medssl.run import RunConfig
from medssl.trainer import TrainConfig

SMALLEST_MAP = 4
"""Voxels that an axis keeps at the network's bottom."""
SAME = 2.0
"""Axes whose spacings differ less than this many times are halved together, and see each other through a kernel."""
WIDTHS = (32, 64, 128, 256, 320, 320)
"""Feature maps by level on a GPU, as nnU-Net's; beyond 320 weights grow and little else."""
LIGHT_WIDTHS = (16, 32, 64, 128)
"""The same on a CPU."""
LARGEST_PATCH = 160**3
"""Voxels; a larger patch makes steps slow before it makes them better."""
LARGEST_PATCH_CPU = 80_000
"""Voxels; two cores then take a few seconds a step."""
SHRINK = 0.9
"""From one candidate for the patch's side to the next."""
SCATTERED = 0.7
"""A class is in pieces when less than this of it lies in the largest."""
WIDTH = 120
"""Columns of the file."""

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Choice:
    """A setting and why it is so."""

    value: Any
    why: str = ""


Choices = dict[str, "Choice | Choices"]


@dataclass(frozen=True)
class Plan:
    """Settings by section, with what to say before and after them."""

    head: list[str]
    choices: Choices
    memory: Memory
    """What a step needs on the planned device."""
    hints: list[str] = field(default_factory=list)

    def to_plain(self) -> dict[str, Any]:
        """Plain values, as a configuration file holds them."""
        return _plain(self.choices)

    def __str__(self) -> str:
        """The YAML file."""
        lines = [*_comments(self.head, 0), *_lines(self.choices, 0)]
        if self.hints:
            lines += [
                *_comments(["Look at"], 0),
                *(line for hint in self.hints for line in _comments([f"- {hint}"], 0)),
            ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Shape:
    """A patch and the levels of a network for it."""

    patch: Triple
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]

    @property
    def voxels(self) -> int:
        """Of the patch."""
        return math.prod(self.patch)


def plan(
    source: Path,
    out: Path,
    dataset: DatasetConfig,
    *,
    vram: float = 8.0,
    method: Path = Path("configs/method/combined.yaml"),
    fingerprint: Path | None = None,
    workers: int = 2,
    overwrite: bool = False,
) -> tuple[Fingerprint, Plan]:
    """Look at a dataset and write settings for it.

    Args:
        dataset: names, classes and patients, see `dataset_of`; the recipe is the plan's to find.
        vram: GiB of the GPU to plan for; 0 plans for a CPU.
        method: the method file that the memory is reckoned with; its batch is the plan's.
        fingerprint: where to write all that was found, as JSON.

    Raises:
        ConfigError: `out` exists, or the method file does not fit.
        DataError: the dataset cannot be read.
        OutOfMemoryError: not even the smallest patch fits.
    """
    for path in (out, fingerprint):
        if path is not None:
            refuse_existing(path, overwrite)
    facts = take_fingerprint(source, dataset, workers=workers)
    made = make_plan(facts, dataset, vram=vram, method=method, source=source, out=out)
    if fingerprint is not None:
        write_json(fingerprint, facts.to_json())
    with whole_file(out) as partial:
        partial.write_text(str(made), encoding="utf-8")
    return facts, made


def dataset_of(
    source: Path,
    given: dict[str, Any],
    *,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    layout: str | None = None,
) -> DatasetConfig:
    """What a plan keeps of a configuration's `data` section, completed by what the dataset says of itself.

    Args:
        given: the section; its recipe and places are left out.
        classes: names by label value, which win over the configuration and what the dataset declares.
        layout: a name of `LAYOUTS`; otherwise that of the section, otherwise the first that fits.

    Raises:
        ConfigError: nobody names the classes.
    """
    values = {key: value for key, value in given.items() if key not in ("recipe", "root", "splits")}
    values["name"] = name or values.get("name") or Path(source).resolve().name
    if layout is not None:
        values["layout"] = layout
    said = declared(source, values.get("layout"))
    if classes:
        values["classes"] = list(classes)
    elif "classes" not in values and said.classes:
        values |= {"classes": said.classes, "values": said.values, "ignore": said.ignore, "regions": said.regions}
    if not values.get("classes"):
        raise ConfigError(f"{source}: nobody names the classes{_seen(source, layout)}; "
                          "name them by label value, as in --classes background,tooth; where values are not 0, 1, 2 "
                          "and so on, give data.classes and data.values in a file by --config")  # fmt: skip
    if "channels" not in values and said.channels:
        values["channels"] = said.channels
    return parse(DatasetConfig, values, where="data")


def _seen(source: Path, layout: str | None) -> str:
    """The values of the first label, in words."""
    label = next((case.label for case in read_layout(source, layout=layout).cases if case.label is not None), None)
    if label is None:
        return ""
    found = np.unique(read_label(label).array)
    return f" ({label.path.name} holds {', '.join(map(str, found[:10]))}{' and more' if len(found) > 10 else ''})"


def make_plan(
    facts: Fingerprint,
    dataset: DatasetConfig,
    *,
    vram: float = 8.0,
    method: Path = Path("configs/method/combined.yaml"),
    source: Path = Path("SOURCE"),
    out: Path = Path("plan.yaml"),
) -> Plan:
    """Settings for a dataset, from its fingerprint; see `plan` for arguments and errors. Nothing is read or written.

    `source` and `out` are for the commands in the file's head.
    """
    theirs = _method_file(method)
    spacing, why = plan_spacing(facts)
    median = tuple(float(n) for n in np.median(facts.extents, 0) / spacing)
    choices: Choices = {
        "data": _data(facts, dataset, spacing, why),
        "augment": _augment(spacing, dataset.classes),
    }
    fitting = _Fitting(choices, theirs, method, vram)
    shape, run = fitting.largest(shapes(median, spacing, on_cpu=not vram))
    choices["network"] = _network(shape, vram)
    choices["train"] = _train(facts, shape, median, run, fitting)
    memory = fitting.memory(shape, run.train.accumulate)
    ordered: Choices = {key: choices[key] for key in ("data", "network", "augment", "train")}
    planned = parse(RunConfig, _over(_plain(ordered), theirs))
    head = _head(facts, source, out, method, [fitting.told(memory), *fitting.on_cpu(shape, run)])
    return Plan(head, ordered, memory, _hints(facts, planned.method))


def _method_file(path: Path) -> dict[str, Any]:
    values = merge([found(path)])
    if "method" not in values:
        raise ConfigError(f"{path}: has no section `method`; give a file such as configs/method/combined.yaml")
    decided = ["network"] if "network" in values else []
    decided += [f"train.{key}" for key in ("patch", "accumulate") if key in values.get("train", {})]
    if decided:
        raise ConfigError(f"{path}: sets {', '.join(decided)}, which a plan is to find; give a file without")
    return values


def plan_spacing(facts: Fingerprint) -> tuple[tuple[float, float, float], str]:
    """The spacing to prepare with, and why: the median, and the 10th percentile along thick slices."""
    spacings = facts.spacings
    spacing, why = np.median(spacings, 0), f"the median of {_count(len(spacings), 'case')}"
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


def shapes(median: tuple[float, ...], spacing: tuple[float, float, float], *, on_cpu: bool = False) -> list[Shape]:
    """Patches to choose from, each within the one before: cubes in millimetres that end where the median image does.

    Args:
        median: voxels of the median image at the spacing; a fraction counts.
    """
    most, levels = (LARGEST_PATCH_CPU, len(LIGHT_WIDTHS)) if on_cpu else (LARGEST_PATCH, len(WIDTHS))
    side = max(n * mm for n, mm in zip(median, spacing, strict=True))
    candidates: list[Shape] = []
    while True:
        sides = [min(n, side / mm) for n, mm in zip(median, spacing, strict=True)]
        shape = shape_for(sides, spacing, levels)
        if not candidates or _is_within(shape.patch, candidates[-1].patch):
            candidates.append(shape)
        if max(sides) <= SMALLEST_SIDE:
            break
        side *= SHRINK
    return [shape for shape in candidates if shape.voxels <= most] or candidates[-1:]


def _is_within(patch: Triple, other: Triple) -> bool:
    return patch != other and all(a <= b for a, b in zip(patch, other, strict=True))


def shape_for(sides: Sequence[float], spacing: Sequence[float], levels: int) -> Shape:
    """The patch nearest to `sides` that its network's strides divide.

    An axis is halved until SMALLEST_MAP voxels are left, a coarse one only when the others have come near its spacing;
    until then kernels are flat along it.
    """
    size, mm, flat = list(sides), list(spacing), [True] * 3
    strides: list[Triple] = []
    kernels: list[Triple] = []
    while True:
        flat = [f and (n < 2 or step >= SAME * min(mm)) for f, n, step in zip(flat, size, mm, strict=True)]
        kernels.append(_triple(1 if f else 3 for f in flat))
        able = [axis for axis in range(3) if size[axis] >= 2 * SMALLEST_MAP]
        if len(kernels) == levels or (not able and len(strides) >= 2):  # networks have three levels or more
            break
        finest = min((mm[axis] for axis in able), default=0)
        stride = _triple(2 if axis in able and mm[axis] < SAME * finest else 1 for axis in range(3))
        strides.append(stride)
        size = [n / s for n, s in zip(size, stride, strict=True)]
        mm = [step * s for step, s in zip(mm, stride, strict=True)]
    total = [math.prod(axis) for axis in zip(*strides, strict=True)]
    patch = _triple(max(1, round(side / t)) * t for side, t in zip(sides, total, strict=True))
    return Shape(patch, tuple(strides), tuple(kernels))


class _Fitting:
    """What a step of a method needs with a patch, and what fits."""

    def __init__(self, choices: Choices, theirs: dict[str, Any], method: Path, vram: float) -> None:
        self.data, self.theirs, self.method, self.vram = _plain(choices), theirs, method, vram
        self.name = theirs["method"].get("name")
        self._known: dict[tuple[Shape, int, str], Memory] = {}

    def run(self, shape: Shape, parts: int = 1, precision: str | None = None) -> RunConfig:
        """The settings of a run with a patch, as `train` would have them."""
        values = {
            **self.data,
            "network": _plain(_network(shape, self.vram)),
            "train": {**_optimiser(self.vram), "patch": list(shape.patch), "accumulate": parts},
        }
        run = _over(values, self.theirs)
        run["train"]["precision"] = precision or ("bf16" if self.vram else "fp32")
        return parse(RunConfig, run)

    def memory(self, shape: Shape, parts: int, precision: str | None = None) -> Memory:
        """Of a step, 16 bits a number on GPUs and 32 on CPUs."""
        run = self.run(shape, parts, precision)
        key = (shape, parts, run.train.precision)
        if key not in self._known:
            self._known[key] = estimate(run)
        return self._known[key]

    def fits(self, shape: Shape, parts: int) -> bool:
        """Whether a step fits the budget."""
        return not self.vram or self.memory(shape, parts).total <= USABLE * self.vram * 2**30

    def largest(self, candidates: Sequence[Shape]) -> tuple[Shape, RunConfig]:
        """The largest patch that fits, in the fewest parts of a batch that do.

        Raises:
            OutOfMemoryError: none fits.
        """
        parts = parts_of_batch(self.run(candidates[-1])) if self.vram else [1]
        places = range(1 if self.fits(candidates[0], parts[-1]) else len(candidates))  # most often all fits
        place = bisect.bisect_left(places, True, key=lambda n: self.fits(candidates[n], parts[-1]))
        if place == len(candidates):
            least = math.ceil(10 * self.memory(candidates[-1], parts[-1]).total / USABLE / 2**30) / 10
            raise OutOfMemoryError(
                f"no step of {self.name} fits {self.vram:g} GiB: a patch of {by(candidates[-1].patch)} voxels needs "
                f"{least}. Plan for more memory, for another --method, or for a CPU with --vram 0"
            )
        shape = candidates[place]
        return shape, self.run(shape, next(count for count in parts if self.fits(shape, count)))

    def told(self, memory: Memory) -> str:
        """The estimate in words."""
        where = f"; the plan fills at most {USABLE:.0%} of {self.vram:g} GiB" if self.vram else " of main memory"
        return f"A step of {self.name} needs {memory}{where}."

    def on_cpu(self, shape: Shape, run: RunConfig) -> list[str]:
        """The estimate for a CPU in words, where the plan is for a GPU."""
        if not self.vram:
            return []
        memory = self.memory(shape, run.train.accumulate, "fp32")
        return [f"The same step on a CPU needs {memory.total / 2**30:.1f} GiB; --vram 0 plans for one."]


def _data(facts: Fingerprint, dataset: DatasetConfig, spacing: tuple[float, ...], why: str) -> Choices:
    kept = dataset.model_dump(
        mode="json", exclude_unset=True, exclude={"name", "channels", "classes", "subject", "recipe"}
    )
    subject = None if dataset.subject is None else dataset.subject.model_dump(mode="json", exclude_unset=True)
    recipe: Choices = {
        "orientation": Choice("RAS", "axes grow to the right, the front and up, so that flips have a meaning"),
        "spacing": Choice(list(spacing), why),
        "crop": Choice(True, "to the foreground by grey levels; no label is looked at"),
        **_intensity(facts),
    }
    who = "every case counts as a patient of its own; if some share one, say how to tell: {pattern: '(patient\\d+)'}"
    if subject is not None:
        who = "how to tell who a case is of"
    elif facts.namesakes is not None:
        subject = {"pattern": PATIENT_FIRST}
        who = f"{' and '.join(facts.namesakes)} look like one patient; null makes each case a patient of its own"
    elif facts.patients is not None and facts.patients < facts.cases:
        who = f"the dataset itself names its patients: {facts.cases} cases of {_count(facts.patients, 'patient')}"
    return {
        "name": Choice(dataset.name),
        "channels": Choice(_channels(facts, dataset), _count(facts.channels, "channel") + " in every image"),
        "classes": Choice(list(dataset.classes), "in the order of label values"),
        **{key: Choice(value, "as given") for key, value in kept.items()},
        "subject": Choice(subject, who),
        "recipe": recipe,
    }


def _channels(facts: Fingerprint, dataset: DatasetConfig) -> list[str]:
    """The names that were given or declared, or a guess."""
    if "channels" in dataset.model_fields_set:
        if len(dataset.channels) != facts.channels:
            raise ConfigError(f"data.channels: names {', '.join(dataset.channels)}, and each image holds "
                              f"{_count(facts.channels, 'channel')}")  # fmt: skip
        return list(dataset.channels)
    guess = "CT" if facts.hounsfield else "MRI"
    return [guess] if facts.channels == 1 else [f"{guess} {number}" for number in range(1, facts.channels + 1)]


def _intensity(facts: Fingerprint) -> Choices:
    if not facts.hounsfield:
        zscore = {"kind": "zscore", "percentiles": [0.5, 99.5]}
        return {"intensity": Choice(zscore, "grey levels have no unit, as in MRI: each case by its own foreground")}
    brightest = [grey.p99_9 for image in facts.images for grey in image.channels]
    high = 100 * math.ceil(float(np.median(brightest)) / 100)
    why = (
        f"Hounsfield units, as in CT: from air to the 99.9th percentile of the foreground, "
        f"a median of {_count(len(facts.images), 'case')}, upwards to a hundred"
    )
    return {
        "threshold": Choice(BODY, "Hounsfield units; above it is no air"),
        "intensity": Choice({"kind": "clip", "window": [AIR, float(max(high, 0))]}, why),
    }


def _augment(spacing: Sequence[float], classes: Sequence[str]) -> Choices:
    thick = [axis for axis in range(3) if spacing[axis] > THICK_SLICE_RATIO * min(spacing)]
    flips = [axis for axis in range(3) if axis not in thick]
    why = f"not along {'xyz'[thick[0]]}, where slices are thick" if thick else "all axes have like spacing"
    for one, other in _sides(classes):
        why += f"; leave out 0 if a mirrored {one} would be a {other}"
        break
    return {"flips": Choice(flips, why)}


def _sides(classes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of classes that are each other with left and right exchanged."""
    lower = {name.lower(): name for name in classes}
    for name in classes:
        other = name.lower().replace("left", "right")
        if "left" in name.lower() and other in lower:
            yield name, lower[other]


def _network(shape: Shape, vram: float) -> Choices:
    levels = len(shape.kernels)
    strides = [_short(stride) for stride in shape.strides]
    total = by(math.prod(axis) for axis in zip(*shape.strides, strict=True))
    bottom = f"down to {by(_bottom(shape))} voxels, by {total}"
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


def _bottom(shape: Shape) -> Triple:
    total = [math.prod(axis) for axis in zip(*shape.strides, strict=True)]
    return _triple(side // t for side, t in zip(shape.patch, total, strict=True))


def _optimiser(vram: float) -> dict[str, Any]:
    if vram:
        return {key: TrainConfig.model_fields[key].default for key in ("iterations", "optimizer", "lr")}
    return {"iterations": 2000, "optimizer": "adamw", "lr": 0.003}


def _train(facts: Fingerprint, shape: Shape, median: Sequence[float], run: RunConfig, fitting: _Fitting) -> Choices:
    train = run.train
    share = shape.voxels / math.prod(median)
    limit = f"the largest that fits {fitting.vram:g} GiB" if fitting.vram else "small enough for a CPU"
    if all(side >= n - t for side, n, t in zip(shape.patch, median, _total(shape), strict=True)):
        limit = "the whole of it"
    whole = by(round(n) for n in median)
    theirs = f"as in {fitting.method}, which wins where it comes last"
    rare = min(facts.classes[1:], key=lambda one: one.share, default=None)
    few = f"; the rarest, {rare.name}, is {_percent(rare.share)} of voxels" if rare else ""
    centred = "the patch sees less than half of an image, so a third is centred on a class"
    weights = "how often each class is that one; rare ones then come as often as common ones, and in Dice count as much"
    schedule = _optimiser(fitting.vram)
    speed = "usual in the literature" if fitting.vram else "few and quick ones, for a CPU"
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


def _total(shape: Shape) -> list[int]:
    return [math.prod(axis) for axis in zip(*shape.strides, strict=True)]


def _head(facts: Fingerprint, source: Path, out: Path, method: Path, memory: list[str]) -> list[str]:
    folder, file = shlex.quote(str(source)), shlex.quote(str(out))
    labels = ["Labels have a say in the shares of classes above, and in the hints at the end, and in no setting."]
    return [
        f"Made by medssl {__version__} plan. Change what you know better; then",
        f"  medssl prepare {folder} prepared --config {file}",
        "  medssl split prepared --help",
        f"  medssl train {file} {shlex.quote(str(method))} --set data.root=prepared",
        *facts.summary(),
        *(labels if facts.labels else []),
        *memory,
    ]


def _hints(facts: Fingerprint, method: MethodConfig) -> list[str]:
    """What the labels or the method ask for and no setting of the plan can say."""
    hints = []
    scattered = [one for one in facts.classes[1:] if one.cases and one.largest < SCATTERED]
    if scattered and getattr(method, "largest_component", False):
        told = ", ".join(f"{one.name} {one.largest:.0%}" for one in scattered)
        hints.append(f"--set method.largest_component=false: the largest piece of a class is but a part of it ({told})")
    hints += [f"{one.name}: no label that was read holds it" for one in facts.classes[1:] if not one.cases]
    return hints


def _over(values: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Settings with a method file after them, as `train` merges them."""
    merged: dict[str, Any] = {}
    update(merged, values)
    update(merged, theirs)
    return merged


def _plain(choices: Choices) -> dict[str, Any]:
    return {key: one.value if isinstance(one, Choice) else _plain(one) for key, one in choices.items()}


def _lines(choices: Choices, depth: int) -> Iterator[str]:
    """YAML, a key a line, its reason behind it or, where that is too long, before."""
    indent = "  " * depth
    for key, one in choices.items():
        if not isinstance(one, Choice):
            yield f"{indent}{key}:"
            yield from _lines(one, depth + 1)
            continue
        line = (
            indent + yaml.safe_dump({key: one.value}, default_flow_style=True, width=math.inf, allow_unicode=True)[1:-2]
        )
        beside = f"{line}  # {one.why}"
        if one.why and len(beside) > WIDTH:
            yield from _comments([one.why], depth)
        yield beside if one.why and len(beside) <= WIDTH else line


def _comments(texts: Sequence[str], depth: int) -> Iterator[str]:
    indent = "  " * depth + "# "
    for text in texts:
        lead = indent + " " * (len(text) - len(text.lstrip()))
        yield from textwrap.wrap(text.strip(), WIDTH, initial_indent=lead, subsequent_indent=lead + "  ",
                                 break_long_words=False, break_on_hyphens=False)  # fmt: skip


def _triple(values: Any) -> Triple:
    x, y, z = values
    return x, y, z


def _short(triple: Triple) -> int | list[int]:
    return triple[0] if len(set(triple)) == 1 else list(triple)


def _digits(values: Sequence[float] | np.ndarray[Any, Any]) -> list[float]:
    """Four digits: closer than the tolerance within which a spacing is a file's own."""
    return [float(f"{value:.4g}") for value in values]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
