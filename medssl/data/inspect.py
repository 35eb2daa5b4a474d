"""Read one case and find everything that is wrong with its files, each alone and together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medssl.data.cases import Case, DatasetConfig
from medssl.data.findings import Finding
from medssl.data.grid import off_grid
from medssl.data.io import as_label, read_image, read_volume
from medssl.data.labels import NUMBERED, misnamed
from medssl.data.looks import Counts, count_voxels, few_levels
from medssl.data.recipe import zero_is_background
from medssl.data.volume import SHEAR, Oddity, Source, Volume
from medssl.errors import DataError
from medssl.words import by, how_many, plain

SPACINGS = (0.01, 20.0)
"""Usual range in millimetres; a spacing outside it more likely has a wrong unit."""
FAR_ORIGIN = 10_000.0
"""Millimetres from the origin of the world; no scanner is that long, and float32 coordinates become coarse."""
STRAIGHTENED = 0.02
"""Cosine between two voxel axes up to which `fix` straightens them; beyond it, voxels would move too far."""
LISTED = 10
"""Label values named in one finding."""


@dataclass(frozen=True)
class Expected:
    """What the cases of a dataset are expected to hold."""

    classes: tuple[str, ...] | None
    channels: int
    places: dict[int, int]
    """See `DatasetConfig.places`."""
    seeks_foreground: bool = True
    """Whether the recipe needs the foreground and finds it by an automatic threshold."""
    orientation: str = "RAS"
    """See `Recipe.orientation`."""

    @classmethod
    def of(cls, dataset: DatasetConfig | None) -> Expected:
        """Return what the settings expect; without settings, any classes and one channel."""
        if dataset is None:
            return cls(None, 1, {})
        recipe, channels = dataset.recipe, len(dataset.channels)
        needs = recipe.crop or any(rule.kind == "zscore" for rule in recipe.intensities(channels))
        seeks = needs and None in recipe.thresholds(channels)
        return cls(dataset.classes, channels, dataset.places, seeks, recipe.orientation)


@dataclass(frozen=True)
class Checked:
    """A case that was read, with everything that is wrong with it."""

    findings: list[Finding]
    images: list[Volume | None]
    """The volume of each file, float32; None if it cannot be read."""
    label: Volume | None
    """int32, with the values of the file; None if there is no label, or it is not a label map."""
    counts: Counts
    """Voxels of the label."""

    @property
    def image(self) -> Volume | None:
        """The first file's volume."""
        return self.images[0]

    @property
    def is_usable(self) -> bool:
        """Whether nothing keeps the case from being used."""
        return all(finding.severity != "error" for finding in self.findings)


def check_case(case: Case, expected: Expected) -> Checked:
    """Read the files of one case, and note everything that is wrong with them."""
    findings: list[Finding] = []
    channels = expected.channels if len(case.images) == 1 else 1
    images = [_check_image(_Notes(case.id, source.path, findings), source, channels) for source in case.images]
    image = images[0]
    if len(images) not in (1, expected.channels):
        found = f"{len(images)} image files for {how_many(expected.channels, 'declared channel')}"
        fix = "give each case one file per declared channel, or correct the declared channels"
        _Notes(case.id, case.images[0].path, findings).error("channels", found, fix)
    for source, other in zip(case.images[1:], images[1:], strict=True):
        if image is not None and other is not None:
            _check_grids(image, other, _Notes(case.id, source.path, findings), "other channel")
    greys = [channel for one in images if one is not None for channel in one.channels]
    if expected.seeks_foreground and all(one is not None for one in images) and zero_is_background(greys):
        found = "the background is 0 and some tissue is darker: the automatic threshold takes all voxels as foreground"
        fix = "set data.recipe.threshold=nonzero; otherwise nothing is cropped, and the background is normalised too"
        _Notes(case.id, case.images[0].path, findings).warning("zero_background", found, fix)
    label, counts = None, Counts({})
    if case.label is not None:
        label, counts = check_label(case.id, case.label, expected, findings)
        if label is not None and image is not None:
            _check_grids(image, label, _Notes(case.id, case.label.path, findings), "label")
    return Checked(findings, images, label, counts)


def check_label(id: str, source: Source, expected: Expected, findings: list[Finding]) -> tuple[Volume | None, Counts]:
    """Read a label map and count its voxels, by class where a value stands for one; faults are added to `findings`."""
    notes = _Notes(id, source.path, findings)
    label = _read_label(notes, source)
    if label is None:
        return None, Counts({})
    for found in misnamed(label, expected.classes or (), expected.places):
        notes.error("segment_names", found, NUMBERED)
    counts = count_voxels(label)
    by_class = counts.by_class(expected.places)
    _check_values(label, counts.voxels, by_class, expected, notes)
    return label, by_class


@dataclass(frozen=True)
class _Notes:
    """Collects the findings of one file of a case."""

    case: str
    file: Path
    findings: list[Finding]

    def error(self, code: str, found: str, fix: str) -> None:
        self.findings.append(Finding(self.case, self.file, "error", code, found, fix))

    def warning(self, code: str, found: str, fix: str) -> None:
        self.findings.append(Finding(self.case, self.file, "warning", code, found, fix))

    def unreadable(self, error: DataError) -> None:
        fix = "correct the folder as each line says" if self.file.is_dir() else "replace the file"
        self.error("unreadable", self.without_file(error), fix)

    def without_file(self, error: DataError) -> str:
        return str(error).removeprefix(f"{self.file}: ")


def _check_image(notes: _Notes, source: Source, declared: int) -> Volume | None:
    try:
        image = read_image(source)
    except DataError as error:
        notes.unreadable(error)
        return None
    _check_geometry(image, notes)
    channels = len(image.channels)
    if channels != declared:
        counts = f"{how_many(channels, 'volume')}, but {how_many(declared, 'channel')} declared"
        found = f"shape {by(image.array.shape)}: {counts}"
        notes.error("channels", found, "keep one volume per declared channel, or correct the declared channels")
    finite = np.isfinite(image.array)
    if not finite.all():
        first = tuple(map(int, np.unravel_index(int(np.argmin(finite)), finite.shape)))
        count = finite.size - int(np.count_nonzero(finite))
        found = f"{how_many(count, 'voxel')} with NaN, infinity or a value beyond float32, the first at index {first}"
        notes.error("not_finite", found, "replace these voxels, or export the image again")
        return image
    for number, channel in enumerate(image.channels):
        if channel.min() == channel.max():
            name = "every voxel" if channels == 1 else f"every voxel of channel {number}"
            notes.warning("constant", f"{name} is {channel[0, 0, 0]:g}", "look at the image; it shows nothing")
    seen = few_levels(image)
    if len(seen) > 1:
        found = f"holds hardly any values but {', '.join(map(str, seen))}, like a label map"
        notes.warning("like_label", found, "if it is a label, give it the name of its image, or move it elsewhere")
    return image


def _read_label(notes: _Notes, source: Source) -> Volume | None:
    """Read the label map as int32; None if it is not a label map."""
    try:
        volume = read_volume(source)
    except DataError as error:
        notes.unreadable(error)
        return None
    _check_geometry(volume, notes)
    if volume.array.ndim != 3:
        found = f"shape {by(volume.array.shape)}: a label map must have 3 axes, got 4"
        notes.error("label_axes", found, "write one map of class numbers; for one-hot channels, write their argmax")
        return None
    try:
        return as_label(volume)
    except DataError as error:
        notes.error("not_integer", notes.without_file(error), "export the label again as whole class numbers")
        return None


def _check_geometry(volume: Volume, notes: _Notes) -> None:
    for odd in odd_geometry(volume):
        notes.warning(odd.code, odd.found, odd.fix)
    if 1 in volume.shape:
        notes.warning("one_slice", f"shape {by(volume.shape)}: one voxel thick", "3D training learns little from it")


def odd_geometry(volume: Volume) -> Iterator[Oddity]:
    """Yield what makes the position or the size of a volume in space doubtful."""
    yield from volume.oddities
    low, high = SPACINGS
    if min(volume.spacing) < low or max(volume.spacing) > high:
        fix = f"correct the unit if it is not millimetres ({low:g} to {high:g} are usual)"
        yield Oddity("spacing", f"spacing {by(volume.spacing)} mm", fix)
    if np.abs(volume.affine[:3, 3]).max() > FAR_ORIGIN:
        found = f"the first voxel lies at {by(volume.affine[:3, 3])} mm"
        yield Oddity("far_origin", found, "correct the origin; coordinates this large lose precision")
    if volume.shear > SHEAR:
        found = f"the voxel axes are not at right angles: the cosine between two of them is {volume.shear:.2g}"
        small = volume.shear <= STRAIGHTENED
        fix = "`medssl check --fix` straightens such a small skew" if small else "resample the volume on straight axes"
        yield Oddity("sheared", found, f"{fix}; ITK-based tools refuse the file or place it elsewhere")


def _check_values(label: Volume, voxels: dict[int, int], by_class: Counts, expected: Expected, notes: _Notes) -> None:
    negative = {value: count for value, count in voxels.items() if value < 0 and value not in expected.places}
    if negative:
        notes.error("negative", f"the label holds {_list(negative)}", "write classes as 0, 1, 2 and so on")
    if expected.classes is not None:
        _check_declared(label, voxels, expected.places, notes)
    if not by_class.voxels:
        found = f"every voxel is {_list(voxels)}, a value for voxels that nobody annotated"
        notes.warning("empty_label", found, "remove the label, so that the case counts as unlabelled")
    elif by_class.voxels.keys() <= {0}:
        found = "only background" + (" and voxels that nobody annotated" if by_class.ignored else "")
        notes.warning("empty_label", found, "correct if the image shows none of the classes")
    elif 0 not in by_class.voxels:
        notes.warning("no_background", f"no background voxel, only {_list(voxels)}", "look at the label")


def _check_declared(label: Volume, voxels: dict[int, int], places: dict[int, int], notes: _Notes) -> None:
    unknown = {value: count for value, count in voxels.items() if value >= 0 and value not in places}
    if unknown:
        found = f"the label holds {_list(unknown)}; the declared values are {_spans(places)}"
        fix = "correct the label, declare a class for them, or map them with data.values, such as `NAME: [1, 85]`"
        notes.error("unknown_value", found, fix)
    slope, inter = label.scaling
    stored = {round((value - inter) / slope, 3) for value in voxels}
    if not unknown and stored != set(voxels) and stored <= places.keys():
        found = (
            f"stored as {listed(stored)}, but read as {listed(voxels)} with scl_slope {slope:g} and scl_inter {inter:g}"
        )
        notes.error("scaled_label", found, "write the label without scaling; both sets of values are valid")


def _check_grids(image: Volume, other: Volume, notes: _Notes, what: str) -> None:
    odd = off_grid(image, other, what)
    if odd is not None:
        (notes.error if odd.code == "grid" else notes.warning)(odd.code, odd.found, odd.fix)


def listed(values: Iterable[float]) -> str:
    """Write out the smallest LISTED numbers."""
    ordered = sorted(values)
    return ", ".join(plain(value) for value in ordered[:LISTED]) + (" and more" if len(ordered) > LISTED else "")


def _spans(values: Iterable[int]) -> str:
    """Write whole numbers as ranges, such as `0 to 3, 7`."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _list(voxels: dict[int, int]) -> str:
    shown = ", ".join(f"{value} ({how_many(count, 'voxel')})" for value, count in sorted(voxels.items())[:LISTED])
    return shown + (f" and {len(voxels) - LISTED} more values" if len(voxels) > LISTED else "")
