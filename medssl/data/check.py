"""Every fault of a dataset at once, before anything is written: the job behind `medssl check`.

An *error* is what `prepare` cannot use; a *warning* is for its owner to judge. Each case is read in
a worker process, so one that is broken hides no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl.data.cases import Case, DatasetConfig
from medssl.data.findings import Facts, Finding, Report
from medssl.data.layouts import Layout, declared_channels, declared_classes, read_layout
from medssl.data.nifti import Volume, as_label, by, case_id, corners_of, read_image, read_volume
from medssl.errors import DataError
from medssl.progress import mapper, tracked

GRID_WARNING = 0.01
"""Voxels that a corner of the label may lie off the image's: rounding of float32 headers stays far below."""
GRID_ERROR = 0.5
"""From half a voxel on, a label voxel belongs to another image voxel than the one at its index."""
SPACINGS = (0.01, 20.0)
"""Millimetres; a finer or coarser voxel is more likely a wrong unit than a scan."""
FAR_ORIGIN = 10_000.0
"""Millimetres from the world's origin; no scanner is so long, and float32 coordinates get coarse."""
SHEAR = 1e-3
"""Cosine between two voxel axes; more is no rounding, and ITK's geometry cannot hold it."""
LISTED = 10
"""Label values named in one finding."""


def check(source: Path, dataset: DatasetConfig | None = None, *, workers: int = 2) -> Report:
    """Read a dataset in any layout and list every finding. Nothing is written.

    Without `dataset`, classes and channels are those that `dataset.json` declares.

    Args:
        workers: processes; below 2 all is read in this one.

    Raises:
        DataError: no known layout, no case in it, or a `dataset.json` that does not fit.
    """
    source = Path(source)
    layout, expected = survey(source, dataset)
    return report_of(source, layout, expected, _check_all(layout.cases, expected, workers))


def survey(source: Path, dataset: DatasetConfig | None = None) -> tuple[Layout, Expected]:
    """What `check` knows before it reads a volume.

    Raises:
        DataError: as `check`.
    """
    layout = read_layout(source, dataset)
    if not layout.cases:
        raise DataError(
            f"{source}: no volume found among the images; known formats are .nii, .nii.gz, .nrrd, .mha, .mhd"
        )
    if dataset is None:
        return layout, Expected(declared_classes(source), len(declared_channels(source) or ("",)))
    return layout, Expected(dataset.classes, len(dataset.channels))


def check_cases(cases: Sequence[Case], dataset: DatasetConfig | None = None, *, workers: int = 1) -> Report:
    """As `check`, for cases that are already known; without `dataset` one channel and any classes."""
    expected = Expected(dataset.classes, len(dataset.channels)) if dataset else Expected(None, 1)
    return report_of(None, Layout(tuple(cases)), expected, _check_all(cases, expected, workers))


@dataclass(frozen=True)
class Expected:
    """What a dataset says of itself."""

    classes: tuple[str, ...] | None
    channels: int


def report_of(
    source: Path | None, layout: Layout, expected: Expected, results: Sequence[tuple[Facts, list[Finding]]]
) -> Report:
    """What is wrong with the cases that were read, and with the layout; with the dataset where all were read."""
    facts = tuple(fact for fact, _ in results)
    is_all = len(facts) == len(layout.cases)
    findings = [
        *(finding for _, found in results for finding in found),
        *_layout_findings(layout),
        *_duplicates(layout.cases),
        *(_dataset_findings(source or Path(), facts, expected) if is_all else ()),
    ]
    return Report(source, layout.cases, tuple(findings), facts, expected.classes)


def _check_all(cases: Sequence[Case], expected: Expected, workers: int) -> list[tuple[Facts, list[Finding]]]:
    with mapper(min(workers, len(cases))) as apply:
        return tracked("check", [case.id for case in cases], apply(_check_case, cases, repeat(expected)))


def _check_case(case: Case, expected: Expected) -> tuple[Facts, list[Finding]]:
    checked = check_case(case, expected)
    return checked.facts, checked.findings


@dataclass(frozen=True)
class Checked:
    """A case that was read, with everything that is wrong with it."""

    facts: Facts
    findings: list[Finding]
    image: Volume | None
    """float32; None where it cannot be read."""
    label: Volume | None
    """int32; None where there is none, or it is no label map."""

    @property
    def is_usable(self) -> bool:
        """Whether nothing keeps the case from being used."""
        return all(finding.severity != "error" for finding in self.findings)


def check_case(case: Case, expected: Expected) -> Checked:
    """Read the files of one case; everything that is wrong with them."""
    findings: list[Finding] = []
    image = _check_image(_Notes(case.id, case.image, findings), expected)
    label, voxels = None, {}
    if case.label is not None:
        notes = _Notes(case.id, case.label, findings)
        label = _check_label(notes)
        if label is not None:
            voxels = _voxels(label.array)
            _check_values(label, voxels, expected, notes)
            if image is not None:
                _check_grids(image, label, notes)
    shape, spacing = (None, None) if image is None else (image.shape, image.spacing)
    return Checked(Facts(case.id, shape, spacing, voxels), findings, image, label)


@dataclass(frozen=True)
class _Notes:
    """Takes down what is found in one file of a case."""

    case: str
    file: Path
    findings: list[Finding]

    def error(self, code: str, found: str, fix: str) -> None:
        self.findings.append(Finding(self.case, self.file, "error", code, found, fix))

    def warning(self, code: str, found: str, fix: str) -> None:
        self.findings.append(Finding(self.case, self.file, "warning", code, found, fix))

    def unreadable(self, error: DataError) -> None:
        self.error("unreadable", self.without_file(error), "replace the file")

    def without_file(self, error: DataError) -> str:
        return str(error).removeprefix(f"{self.file}: ")


def _check_image(notes: _Notes, expected: Expected) -> Volume | None:
    try:
        image = read_image(notes.file)
    except DataError as error:
        notes.unreadable(error)
        return None
    _check_geometry(image, notes)
    channels = 1 if image.array.ndim == 3 else image.array.shape[3]
    if channels != expected.channels:
        found = f"shape {by(image.array.shape)}: {_count(channels, 'volume')} where {expected.channels} is declared"
        notes.error("channels", found, "keep one volume per declared channel, or declare the channels")
    finite = np.isfinite(image.array)
    if not finite.all():
        first = np.unravel_index(int(np.argmin(finite)), finite.shape)
        count = finite.size - int(np.count_nonzero(finite))
        found = f"{_count(count, 'voxel')} NaN, infinite or beyond float32, the first at index {_index(first)}"
        notes.error("not_finite", found, "replace these voxels, or export the image again")
        return image
    axes = (0, 1, 2)
    for number, same in enumerate(np.atleast_1d(image.array.min(axes) == image.array.max(axes))):
        if same:
            name = "every voxel" if channels == 1 else f"every voxel of channel {number}"
            value = float(image.array.reshape(-1, channels)[0, number])
            notes.warning("constant", f"{name} is {value:g}", "look at the image: it shows nothing")
    return image


def _check_label(notes: _Notes) -> Volume | None:
    """The label map as int32, or None where it is none."""
    try:
        volume = read_volume(notes.file)
    except DataError as error:
        notes.unreadable(error)
        return None
    _check_geometry(volume, notes)
    if volume.array.ndim != 3:
        found = f"shape {by(volume.array.shape)}: 4 axes where a label map has 3"
        notes.error("label_axes", found, "write one map of class numbers; from one-hot channels, their argmax")
        return None
    try:
        return as_label(volume)
    except DataError as error:
        notes.error("not_integer", notes.without_file(error), "export the label again as whole class numbers")
        return None


def _check_geometry(volume: Volume, notes: _Notes) -> None:
    """What makes one file's place or size in space doubtful."""
    for odd in volume.oddities:
        notes.warning(odd.code, odd.found, odd.fix)
    if 1 in volume.shape:
        notes.warning("one_slice", f"shape {by(volume.shape)}: one voxel thick", "3D training learns little from it")
    low, high = SPACINGS
    if min(volume.spacing) < low or max(volume.spacing) > high:
        fix = f"correct the unit if it is not millimetres ({low:g} to {high:g} are usual)"
        notes.warning("spacing", f"spacing {by(volume.spacing)} mm", fix)
    if np.abs(volume.affine[:3, 3]).max() > FAR_ORIGIN:
        found = f"the first voxel lies at {by(volume.affine[:3, 3])} mm"
        notes.warning("far_origin", found, "correct the origin: coordinates so large lose precision")
    if volume.shear > SHEAR:
        found = "the voxel axes are not at right angles"
        notes.warning("sheared", found, "resample the volume: ITK-based tools refuse or straighten it")


def _voxels(label: NDArray[np.int32]) -> dict[int, int]:
    """Voxels by value, slab by slab: counting is faster than sorting, and slabs keep it small."""
    low, high = int(label.min()), int(label.max())
    if high - low >= 2**16:
        values, counts = np.unique(label, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))
    total = np.zeros(high - low + 1, np.int64)
    for slab in np.array_split(label.ravel(order="K"), 64):  # in the order of the file: the fastest
        total += np.bincount(slab - low, minlength=len(total))
    return {low + int(offset): int(total[offset]) for offset in np.flatnonzero(total)}


def _check_values(label: Volume, voxels: dict[int, int], expected: Expected, notes: _Notes) -> None:
    negative = {value: count for value, count in voxels.items() if value < 0}
    if negative:
        notes.error("negative", f"the label holds {_list(negative)}", "write classes as 0, 1, 2 and so on")
    if expected.classes is not None:
        _check_declared(label, voxels, len(expected.classes), notes)
    if set(voxels) == {0}:
        notes.warning("empty_label", "no voxel but background", "correct when nothing is there to see")
    elif 0 not in voxels:
        notes.warning("no_background", f"no voxel of background, only {_list(voxels)}", "look at the label")


def _check_declared(label: Volume, voxels: dict[int, int], classes: int, notes: _Notes) -> None:
    unknown = {value: count for value, count in voxels.items() if value >= classes}
    if unknown:
        found = f"the label holds {_list(unknown)}; the dataset names 0 to {classes - 1}"
        notes.error("unknown_value", found, "map the values to the declared classes, or declare them")
    slope, inter = label.scaling
    stored = {round((value - inter) / slope, 3) for value in voxels}
    if not unknown and stored != set(voxels) and stored <= set(range(classes)):
        found = f"stored as {_set(stored)}, read with scl_slope {slope:g} and scl_inter {inter:g} as {_set(voxels)}"
        notes.error("scaled_label", found, "write the label without scaling: either reading is a valid label")


def _check_grids(image: Volume, label: Volume, notes: _Notes) -> None:
    """Whether both lie on one grid in the world; their axes may be stored in another order."""
    shift = _shift(image, label)
    if shift is not None and shift <= GRID_WARNING:
        return
    if shift is None or shift > GRID_ERROR:
        first = "image and label lie on different grids" + (f", up to {shift:.3g} voxels apart" if shift else "")
        if image.shape != label.shape and image.shape == label.shape[::-1]:
            first += "; the label's axes look transposed"
        found = "\n".join([first, f"image {_grid(image)}", f"label {_grid(label)}"])
        fix = "resample the label onto the image's grid, or copy the image's header if only that is wrong"
        notes.error("grid", found, fix)
        return
    found = f"the label's grid lies up to {shift:.3g} voxels off the image's"
    notes.warning("grid_shift", found, "harmless if a tool rounded the header; the image's grid is used")


def _shift(image: Volume, label: Volume) -> float | None:
    """Largest distance, in image voxels along an axis, of a label corner from where it belongs.

    None when the axes do not correspond at all: other shapes, or other spacings or directions.
    """
    to_image = np.linalg.inv(image.affine) @ label.affine
    turn = np.rint(to_image[:3, :3])  # which label axis runs along which image axis, and whether backwards
    if not (np.abs(turn).sum(0) == 1).all() or not (np.abs(turn).sum(1) == 1).all():
        return None
    if tuple(np.abs(turn).astype(int) @ np.array(label.shape)) != image.shape:
        return None
    corners = corners_of(label.shape)
    last = np.where(turn.sum(1) < 0, np.array(image.shape) - 1, 0)  # a flipped axis starts at its far end
    return float(np.abs((corners @ to_image.T)[:, :3] - (corners[:, :3] @ turn.T + last)).max())


def _layout_findings(layout: Layout) -> Iterator[Finding]:
    for label in layout.labels_without_image:
        fix = "add the image or remove the label; file names must agree up to the suffix"
        yield Finding(case_id(label), label, "error", "no_image", "a label without an image", fix)
    for case, label in layout.absent_labels:
        fix = "add the label, or remove it from dataset.json"
        yield Finding(case, label, "warning", "absent_label", "the listed label is absent; taken as unlabelled", fix)
    for label in layout.unlisted_labels:
        fix = "list it in dataset.json to use it"
        found = "a label that dataset.json does not list is not used"
        yield Finding(case_id(label), label, "warning", "unlisted_label", found, fix)
    for path in layout.others:
        fix = "convert it, or move it elsewhere" + ("; DICOM series with dcm2niix" if path.is_dir() else "")
        found = "a folder is not read" if path.is_dir() else "not a volume of a known format; not read"
        yield Finding(None, path, "warning", "not_read", found, fix)


def _duplicates(cases: Iterable[Case]) -> Iterator[Finding]:
    by_id: dict[str, list[Case]] = {}
    for case in cases:
        by_id.setdefault(case.id, []).append(case)
    for id, same in by_id.items():
        if len(same) > 1:
            files = [path.name for case in same for path in (case.image, case.label) if path is not None]
            found = f"{len(same)} cases have this id: {', '.join(files)}"
            fix = "keep one file of each name, listed once"
            yield Finding(id, same[-1].image, "error", "duplicate", found, fix)


def _dataset_findings(place: Path, facts: Sequence[Facts], expected: Expected) -> Iterator[Finding]:
    present = {value for fact in facts for value in fact.voxels}
    if not present:
        return
    if expected.classes is None:
        found = f"no classes are declared; the labels hold the values {_set(present)}"
        fix = "name them under data.classes of a configuration, or under `labels` in dataset.json"
        yield Finding(None, place, "warning", "no_classes", found, fix)
        return
    for value, name in enumerate(expected.classes):
        if value not in present:
            fix = "correct the declared classes if they are wrong"
            yield Finding(None, place, "warning", "class_absent", f"no label holds class {value}, {name}", fix)


def _grid(volume: Volume) -> str:
    origin = ", ".join(f"{x:.4g}" for x in volume.affine[:3, 3])
    return f"{by(volume.shape)} at {by(volume.spacing)} mm, {volume.orientation} from ({origin})  {volume.path}"


def _index(index: Iterable[object]) -> str:
    return "(" + ", ".join(str(i) for i in index) + ")"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _set(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return ", ".join(f"{value:g}" for value in ordered[:LISTED]) + (" and more" if len(ordered) > LISTED else "")


def _list(voxels: dict[int, int]) -> str:
    shown = ", ".join(f"{value} ({_count(count, 'voxel')})" for value, count in sorted(voxels.items())[:LISTED])
    return shown + (f" and {len(voxels) - LISTED} more values" if len(voxels) > LISTED else "")
