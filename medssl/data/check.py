"""Every fault of a dataset at once, before anything is written: the job behind `medssl check`.

An *error* is what `prepare` cannot use; a *warning* is for its owner to judge. Each case is read once, in
a worker process, so one that is broken hides no other; what shows only beside the others is left to `outliers`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from statistics import mode
from typing import Any

import numpy as np

from medssl.data.cases import Case, DatasetConfig
from medssl.data.findings import Facts, Finding, Report
from medssl.data.grid import Turn, aligned
from medssl.data.io import SUFFIXES, as_label, case_id, read_image, read_volume
from medssl.data.labels import mapped
from medssl.data.layouts import Layout, declared, read_layout
from medssl.data.looks import Counts, Look, count_voxels, digest, few_levels, look_at
from medssl.data.outliers import compare, distances, out_of_family
from medssl.data.volume import Source, Volume, by, corners_of
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
STRAIGHTENED = 0.02
"""Cosine up to which `fix` straightens axes: more is no small slip, and voxels would move."""
NOT_ON_WINDOWS = re.compile(r'[<>:"|?*]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
"""What an id cannot hold, end with or be there."""
LISTED = 10
"""Label values named in one finding."""

Result = tuple[Facts, list[Finding]]
Draw = Callable[[Volume, Volume | None], Any]
"""Makes a picture of a readable image and its label, in a worker process; `Facts.picture` holds it."""


def check(
    source: Path,
    dataset: DatasetConfig | None = None,
    *,
    layout: str | None = None,
    workers: int = 2,
    draw: Draw | None = None,
) -> Report:
    """Read a dataset in any layout and list every finding. Nothing is written.

    Without `dataset`, classes and channels are those that the dataset declares itself; where it declares no channels,
    as many as most cases have image files.

    Args:
        layout: a name of `LAYOUTS`; otherwise that of `dataset`, otherwise the first that fits.
        workers: processes; below 2 all is read in this one.
        draw: a function of a module, called with each image and its label while they are in memory.

    Raises:
        DataError: no known layout, no case in it, or a `dataset.json` that does not fit.
    """
    source = Path(source)
    found, expected = survey(source, dataset, layout)
    results = _check_all(found.cases, expected, workers, draw)
    lone = [_check_lone_label(path, expected) for path in found.labels_without_image]
    return report_of(source, found, expected, results, lone)


def survey(source: Path, dataset: DatasetConfig | None = None, layout: str | None = None) -> tuple[Layout, Expected]:
    """What `check` knows before it reads a volume.

    Raises:
        DataError: as `check`.
    """
    found = read_layout(source, dataset, layout)
    if not found.cases:
        raise DataError(
            f"{source}: layout {found.name}: no volume found among the images; known formats are " + ", ".join(SUFFIXES)
        )
    if dataset is None:
        said = declared(source, found.name)
        dataset = said.config(source.name)
        expected = Expected.plain(None, 1) if dataset is None else Expected.of(dataset)
        channels = len(said.channels) if said.channels else mode(len(case.images) for case in found.cases)
        return found, replace(expected, channels=channels)
    return found, Expected.of(dataset)


def check_cases(cases: Sequence[Case], dataset: DatasetConfig | None = None, *, workers: int = 1) -> Report:
    """As `check`, for cases that are already known; without `dataset` one channel and any classes."""
    expected = Expected.of(dataset) if dataset else Expected.plain(None, 1)
    return report_of(None, Layout(tuple(cases)), expected, _check_all(cases, expected, workers))


@dataclass(frozen=True)
class Expected:
    """What a dataset says of itself."""

    classes: tuple[str, ...] | None
    channels: int
    places: dict[int, int]
    """See `DatasetConfig.places`."""

    @classmethod
    def of(cls, dataset: DatasetConfig) -> Expected:
        return cls(dataset.classes, len(dataset.channels), dataset.places)

    @classmethod
    def plain(cls, classes: tuple[str, ...] | None, channels: int) -> Expected:
        return cls(classes, channels, {place: place for place in range(len(classes or ()))})


def report_of(
    source: Path | None,
    layout: Layout,
    expected: Expected,
    results: Sequence[Result],
    lone: Sequence[Result] = (),
    *,
    is_all: bool = True,
) -> Report:
    """What is wrong with the cases that were read, with the layout and, where all were read, with cases among others.

    Args:
        lone: the same of the labels without an image.
        is_all: whether `results` are those of all cases, and as complete as `check` wants them.
    """
    cases = layout.cases
    facts = tuple(fact for fact, _ in results)
    apart = distances(cases, facts) if is_all else ()
    findings = [
        *(finding for _, found in results for finding in found),
        *_layout_findings(layout),
        *(finding for _, found in lone for finding in found),
        *(finding for (fact, _), path in zip(lone, layout.labels_without_image, strict=False) if fact.look
          for finding in out_of_family(fact.case, path, fact.look, fact.voxels, facts)),
        *_odd_ids(cases),
        *(_dataset_findings(source or Path(), facts, expected) if is_all else ()),
        *(compare(cases, facts, expected.classes, apart) if is_all else ()),
    ]  # fmt: skip
    return Report(source, cases, tuple(findings), facts, expected.classes, apart, layout.name or None)


def _check_all(cases: Sequence[Case], expected: Expected, workers: int, draw: Draw | None = None) -> list[Result]:
    with mapper(min(workers, len(cases))) as apply:
        return tracked("check", [case.id for case in cases], apply(_check_case, cases, repeat(expected), repeat(draw)))


def _check_case(case: Case, expected: Expected, draw: Draw | None) -> Result:
    """A case as one of many: what there is to compare it by, and its picture."""
    checked = check_case(case, expected)
    image, label, counts = checked.image, checked.label, checked.counts
    if image is None:
        return Facts(case.id, voxels=counts.voxels, ignored=counts.ignored, sides=counts.sides), checked.findings
    facts = Facts(
        case.id, image.shape, image.spacing, counts.voxels, counts.ignored, look_at(image), counts.sides,
        tuple(_digest(each) for each in checked.images),
        "" if label is None else digest(label.array),
        None if draw is None else draw(image, _drawn_label(label, image, expected.places)),
    )  # fmt: skip
    return facts, checked.findings


@dataclass(frozen=True)
class Checked:
    """A case that was read, with everything that is wrong with it."""

    findings: list[Finding]
    images: list[Volume | None]
    """A volume of each file, float32; None where it cannot be read."""
    label: Volume | None
    """int32, with the values of the file; None where there is none, or it is no label map."""
    counts: Counts
    """Of the label."""

    @property
    def image(self) -> Volume | None:
        """The first file's volume."""
        return self.images[0]

    @property
    def is_usable(self) -> bool:
        """Whether nothing keeps the case from being used."""
        return all(finding.severity != "error" for finding in self.findings)


def check_case(case: Case, expected: Expected) -> Checked:
    """Read the files of one case; everything that is wrong with them."""
    findings: list[Finding] = []
    channels = expected.channels if len(case.images) == 1 else 1
    images = [_check_image(_Notes(case.id, source.path, findings), source, channels) for source in case.images]
    image = images[0]
    if len(images) not in (1, expected.channels):
        found = f"{len(images)} image files where {_count(expected.channels, 'channel')} is declared"
        fix = "give each case a file per declared channel, or declare the channels"
        _Notes(case.id, case.images[0].path, findings).error("channels", found, fix)
    for source, other in zip(case.images[1:], images[1:], strict=True):
        if image is not None and other is not None:
            _check_grids(image, other, _Notes(case.id, source.path, findings), what="another modality")
    label, counts = None, Counts({})
    if case.label is not None:
        notes = _Notes(case.id, case.label.path, findings)
        label, counts = _read_label(case.label, expected, notes)
        if label is not None and image is not None:
            _check_grids(image, label, notes)
    return Checked(findings, images, label, counts)


def _drawn_label(label: Volume | None, image: Volume, places: dict[int, int]) -> Volume | None:
    """The label by class and along the image's axes, if it lies on the image's grid."""
    label = None if label is None else aligned(label, image)
    if label is None or label.shape != image.shape or label.orientation != image.orientation:
        return None
    classes = mapped(label.array, places)
    return replace(label, array=np.where(classes < 0, label.array, classes))


def _digest(image: Volume | None) -> str:
    """Empty for a constant image, of which many may be alike."""
    return "" if image is None or image.array.min() == image.array.max() else digest(image.array)


def _check_lone_label(path: Path, expected: Expected) -> tuple[Facts, list[Finding]]:
    """A label without an image: what it holds, for whoever wonders where it belongs."""
    id, findings = case_id(path), list[Finding]()
    label, counts = _read_label(Source(path), expected, _Notes(id, path, findings))
    if label is None:
        return Facts(id), findings
    return Facts(id, label.shape, label.spacing, counts.voxels, look=Look.of_grid(label)), findings


def _read_label(source: Source, expected: Expected, notes: _Notes) -> tuple[Volume | None, Counts]:
    """The label map and what it holds, by class where a value is one's; what is wrong with it is taken down."""
    label = _check_label(notes, source)
    if label is None:
        return None, Counts({})
    counts = count_voxels(label)
    by_class = counts.by_class(expected.places)
    _check_values(label, counts.voxels, by_class, expected, notes)
    return label, by_class


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


def _check_image(notes: _Notes, source: Source, declared: int) -> Volume | None:
    try:
        image = read_image(source)
    except DataError as error:
        notes.unreadable(error)
        return None
    _check_geometry(image, notes)
    channels = len(image.channels)
    if channels != declared:
        found = f"shape {by(image.array.shape)}: {_count(channels, 'volume')} where {declared} is declared"
        notes.error("channels", found, "keep one volume per declared channel, or declare the channels")
    finite = np.isfinite(image.array)
    if not finite.all():
        first = np.unravel_index(int(np.argmin(finite)), finite.shape)
        count = finite.size - int(np.count_nonzero(finite))
        found = f"{_count(count, 'voxel')} NaN, infinite or beyond float32, the first at index {_index(first)}"
        notes.error("not_finite", found, "replace these voxels, or export the image again")
        return image
    for number, channel in enumerate(image.channels):
        if channel.min() == channel.max():
            name = "every voxel" if channels == 1 else f"every voxel of channel {number}"
            notes.warning("constant", f"{name} is {channel[0, 0, 0]:g}", "look at the image: it shows nothing")
    seen = few_levels(image)
    if len(seen) > 1:
        found = f"holds {', '.join(map(str, seen))} and hardly anything else, as a label map does"
        notes.warning("like_label", found, "if it is one, name it so that its image is found, or move it elsewhere")
    return image


def _check_label(notes: _Notes, source: Source) -> Volume | None:
    """The label map as int32, or None where it is none."""
    try:
        volume = read_volume(source)
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
        found = f"the voxel axes are not at right angles: the cosine between two of them is {volume.shear:.2g}"
        small = volume.shear <= STRAIGHTENED
        fix = "`medssl check --fix` straightens so little" if small else "resample the volume on straight axes"
        notes.warning("sheared", found, f"{fix}: ITK-based tools refuse it or place it elsewhere")


def _check_values(label: Volume, voxels: dict[int, int], by_class: Counts, expected: Expected, notes: _Notes) -> None:
    negative = {value: count for value, count in voxels.items() if value < 0 and value not in expected.places}
    if negative:
        notes.error("negative", f"the label holds {_list(negative)}", "write classes as 0, 1, 2 and so on")
    if expected.classes is not None:
        _check_declared(label, voxels, expected.places, notes)
    if not by_class.voxels:
        found = f"every voxel is {_list(voxels)}, which means that nobody looked there"
        notes.warning("empty_label", found, "remove the label, so that the case counts as unlabelled")
    elif by_class.voxels.keys() <= {0}:
        found = "no voxel but background" + (" and what nobody annotated" if by_class.ignored else "")
        notes.warning("empty_label", found, "correct when nothing is there to see")
    elif 0 not in by_class.voxels:
        notes.warning("no_background", f"no voxel of background, only {_list(voxels)}", "look at the label")


def _check_declared(label: Volume, voxels: dict[int, int], places: dict[int, int], notes: _Notes) -> None:
    unknown = {value: count for value, count in voxels.items() if value >= 0 and value not in places}
    if unknown:
        found = f"the label holds {_list(unknown)}; the dataset names {_spans(places)}"
        fix = "correct the label, declare a class for them, or map them with data.values, such as `NAME: [1, 85]`"
        notes.error("unknown_value", found, fix)
    slope, inter = label.scaling
    stored = {round((value - inter) / slope, 3) for value in voxels}
    if not unknown and stored != set(voxels) and stored <= places.keys():
        found = f"stored as {_set(stored)}, read with scl_slope {slope:g} and scl_inter {inter:g} as {_set(voxels)}"
        notes.error("scaled_label", found, "write the label without scaling: either reading is a valid label")


def _check_grids(image: Volume, label: Volume, notes: _Notes, what: str = "label") -> None:
    """Whether both lie on one grid in the world; the axes of a label may be stored in another order."""
    shift = _shift(image, label)
    if shift is not None and shift <= GRID_WARNING:
        return
    if shift is None or shift > GRID_ERROR:
        first = f"image and {what} lie on different grids" + (f", up to {shift:.3g} voxels apart" if shift else "")
        if image.shape != label.shape and image.shape == label.shape[::-1]:
            first += f"; the axes of the {what} look transposed"
        found = "\n".join([first, f"image {_grid(image)}", f"{what} {_grid(label)}"])
        fix = f"resample the {what} onto the image's grid, or copy the image's header if only that is wrong"
        notes.error("grid", found, fix)
        return
    found = f"the grid of the {what} lies up to {shift:.3g} voxels off the image's"
    notes.warning("grid_shift", found, "harmless if a tool rounded the header; the image's grid is used")


def _shift(image: Volume, label: Volume) -> float | None:
    """Largest distance, in image voxels along an axis, of a label corner from where it belongs.

    None when the axes do not correspond at all: other shapes, or other spacings or directions.
    """
    turn = Turn.onto(image.affine, label.affine)
    if turn is None or (label := turn.apply_to_volume(label)).shape != image.shape:
        return None
    to_image = np.linalg.inv(image.affine) @ label.affine
    return float(np.abs(corners_of(image.shape) @ (to_image - np.eye(4)).T).max())


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
        fix = "convert it, or move it elsewhere" + ("; of DICOM see `--layout dicom`" if path.is_dir() else "")
        found = "a folder is not read" if path.is_dir() else "not a volume of a known format; not read"
        yield Finding(None, path, "warning", "not_read", found, fix)


def _odd_ids(cases: Iterable[Case]) -> Iterator[Finding]:
    """Ids that are taken twice, or that cannot name a folder, here or on other file systems."""
    by_id: dict[str, list[Case]] = {}
    for case in cases:
        by_id.setdefault(case.id, []).append(case)
    for id, same in by_id.items():
        if id.startswith(".") or not id.isprintable() or {"/", "\\"} & set(id):
            fix = "give it an id without slashes that does not begin with a dot"
            yield Finding(id, same[0].images[0].path, "error", "bad_id", f"{id!r} cannot name files", fix)
        elif NOT_ON_WINDOWS.search(id):
            fix = "give it another id if the data may ever lie there"
            yield Finding(id, same[0].images[0].path, "warning", "odd_id", f"{id!r} cannot name files on Windows", fix)
        if len(same) > 1:
            files = dict.fromkeys(path for case in same for path in case.files)
            found = f"{len(same)} cases have this id: {', '.join(path.name for path in files)}"
            fix = "keep one image and one label of it, listed once, and move the others elsewhere"
            yield Finding(id, same[-1].images[0].path, "error", "duplicate", found, fix)
    folded: dict[str, str] = {}
    for id, same in by_id.items():
        other = folded.setdefault(unicodedata.normalize("NFC", id).casefold(), id)
        if other != id:
            found = f"{id!r} and {other!r} are one name where case does not count, as on Windows and macOS"
            fix = "give one of them another id: there, one case would replace the other"
            yield Finding(id, same[0].images[0].path, "warning", "odd_id", found, fix)


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


def _spans(values: Iterable[int]) -> str:
    """Whole numbers as few ranges, such as `0 to 3, 7`."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _list(voxels: dict[int, int]) -> str:
    shown = ", ".join(f"{value} ({_count(count, 'voxel')})" for value, count in sorted(voxels.items())[:LISTED])
    return shown + (f" and {len(voxels) - LISTED} more values" if len(voxels) > LISTED else "")
