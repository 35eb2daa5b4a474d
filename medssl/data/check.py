"""Every fault of a dataset at once, before anything is written: the job behind `medssl check`.

An *error* is what `prepare` cannot use; a *warning* is for its owner to judge. Each case is read in
a worker process, so one that is broken hides no other.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medssl.data.cases import Case, DatasetConfig
from medssl.data.layouts import Layout, declared_channels, declared_classes, read_layout
from medssl.data.nifti import Volume, as_label, case_id, corners_of, read_image, read_volume
from medssl.errors import DataError, OutOfMemoryError
from medssl.progress import track

if TYPE_CHECKING:
    from rich.console import Console

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


@dataclass(frozen=True)
class Finding:
    """One thing about one file. Several lines in `found` belong together, such as two grids."""

    case: str | None
    """None when it concerns the dataset as a whole."""
    file: Path
    severity: Literal["error", "warning"]
    code: str
    found: str
    fix: str


@dataclass(frozen=True)
class Facts:
    """What a readable case adds to the summary."""

    case: str
    shape: tuple[int, int, int] | None = None
    """Of the image as stored; None when it cannot be read."""
    spacing: tuple[float, float, float] | None = None
    voxels: dict[int, int] = field(default_factory=dict)
    """Voxels by label value; empty without a readable label."""


@dataclass(frozen=True)
class Report:
    """What a check found. `unusable` decides the exit code."""

    source: Path | None
    cases: tuple[Case, ...]
    findings: tuple[Finding, ...]
    facts: tuple[Facts, ...]
    """One for each case, in the same order."""
    classes: tuple[str, ...] | None
    """Names by label value; None when nobody declared them."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that keep a case, or the dataset, from being used."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def unusable(self) -> tuple[str, ...]:
        """Ids with an error, each once: of cases, and of labels whose image is missing."""
        return tuple(dict.fromkeys(finding.case for finding in self.errors if finding.case is not None))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Counts and ranges in plain values; `shape` and `spacing` are per axis, as stored."""
        labelled = sum(case.label is not None for case in self.cases)
        voxels: Counter[int] = Counter()
        for facts in self.facts:
            voxels.update(facts.voxels)
        names = dict(enumerate(self.classes or ()))
        return {
            "cases": len(self.cases),
            "labelled": labelled,
            "unlabelled": len(self.cases) - labelled,
            "subjects": len({case.subject for case in self.cases}),
            "shape": _range(facts.shape for facts in self.facts),
            "spacing": _range(facts.spacing for facts in self.facts),
            "classes": [
                {
                    "value": value,
                    "name": names.get(value),
                    "share": voxels[value] / max(1, voxels.total()),
                    "cases": sum(value in facts.voxels for facts in self.facts),
                }
                for value in sorted(voxels.keys() | names.keys())
            ],
        }

    def to_json(self) -> dict[str, Any]:
        """Everything in plain values."""
        return {
            "source": None if self.source is None else str(self.source),
            "summary": self.summary,
            "unusable": list(self.unusable),
            "findings": [asdict(finding) | {"file": str(finding.file)} for finding in self.findings],
        }

    def print(self, console: Console) -> None:
        """Findings grouped by what they are, errors first, a line each; then the summary."""
        from rich.text import Text

        groups: dict[tuple[str, str, str], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.severity, finding.code, finding.fix), []).append(finding)
        for (severity, code, fix), findings in sorted(groups.items(), key=lambda group: group[0][0]):
            style = "bold red" if severity == "error" else "yellow"
            title = Text.assemble((f"{severity} {code}", style), f" ({len(findings)}): {fix}")
            console.print(title, soft_wrap=True)
            width = max(len(finding.case or "") for finding in findings)
            for finding in findings:
                line = f"  {finding.case or '':{width}}  " + "; ".join(_lines(finding))
                console.print(Text(self._relative(line)), soft_wrap=True)
        for line in self._summary_lines():
            console.print(Text(line), soft_wrap=True)

    def _relative(self, line: str) -> str:
        return line if self.source is None else line.replace(f"{self.source}{os.sep}", "")

    def _summary_lines(self) -> Iterator[str]:
        facts = self.summary
        yield (
            f"{facts['cases']} cases: {facts['labelled']} labelled, {facts['unlabelled']} unlabelled, "
            f"{facts['subjects']} subjects; {len(self.unusable)} unusable, {len(self.findings)} findings"
        )
        for name, unit in (("shape", "voxels"), ("spacing", "mm")):
            if facts[name]:
                span = " / ".join(_by(facts[name][key]) for key in ("min", "median", "max"))
                yield f"{name} {span} {unit} (min / median / max of each axis)"
        for known in facts["classes"]:
            name = known["name"] or "(not declared)"
            yield f"class {known['value']} {name}: {known['share']:.3%} of voxels, in {known['cases']} cases"


def check(source: Path, dataset: DatasetConfig | None = None, *, workers: int = 2) -> Report:
    """Read a dataset in any layout and list every finding. Nothing is written.

    Without `dataset`, classes and channels are those that `dataset.json` declares.

    Args:
        workers: processes; below 2 all is read in this one.

    Raises:
        DataError: no known layout, no case in it, or a `dataset.json` that does not fit.
    """
    source = Path(source)
    layout = read_layout(source, dataset)
    if not layout.cases:
        raise DataError(
            f"{source}: no volume found among the images; known formats are .nii, .nii.gz, .nrrd, .mha, .mhd"
        )
    if dataset is None:
        expected = _Expected(declared_classes(source), len(declared_channels(source) or ("",)))
    else:
        expected = _Expected(dataset.classes, len(dataset.channels))
    return _report(source, layout, expected, workers)


def check_cases(cases: Sequence[Case], dataset: DatasetConfig | None = None, *, workers: int = 1) -> Report:
    """As `check`, for cases that are already known; without `dataset` one channel and any classes."""
    expected = _Expected(dataset.classes, len(dataset.channels)) if dataset else _Expected(None, 1)
    return _report(None, Layout(tuple(cases)), expected, workers)


def require_usable(report: Report) -> None:
    """Stop before a dataset with errors is used.

    Raises:
        DataError: every error, by case.
    """
    if not report.errors:
        return
    width = max(len(finding.case or "") for finding in report.errors)
    lines = []
    for finding in report.errors:
        first, *rest = _lines(finding)
        lines.append(f"  {finding.case or '':{width}}  {first}")
        lines += [f"  {'':{width}}  {line}" for line in rest]
    fixes = dict.fromkeys(f"  {finding.code}: {finding.fix}" for finding in report.errors)
    ids = {case.id for case in report.cases} | set(report.unusable)
    title = f"{len(report.unusable)} of {len(ids)} cases cannot be used"
    advice = "Fix the files, or move these cases out of the folder."
    raise DataError("\n".join([title, *lines, advice, *fixes]))


@dataclass(frozen=True)
class _Expected:
    classes: tuple[str, ...] | None
    channels: int


def _report(source: Path | None, layout: Layout, expected: _Expected, workers: int) -> Report:
    results = _read_all(layout.cases, expected, workers)
    facts = tuple(fact for fact, _ in results)
    findings = [
        *(finding for _, found in results for finding in found),
        *_layout_findings(layout),
        *_duplicates(layout.cases),
        *_dataset_findings(source or Path(), facts, expected),
    ]
    return Report(source, layout.cases, tuple(findings), facts, expected.classes)


def _read_all(cases: Sequence[Case], expected: _Expected, workers: int) -> list[tuple[Facts, list[Finding]]]:
    with track("check", len(cases)) as advance:
        if workers < 2 or len(cases) < 2:
            results = []
            for case in cases:
                results.append(_check_case(case, expected))
                advance(case.id)
            return results
        # Workers are spawned, not forked: the libraries below hold threads and locks.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(_check_case, case, expected) for case in cases]
            try:
                for future in as_completed(futures):
                    advance(future.result()[0].case)
            except BrokenProcessPool:
                raise OutOfMemoryError(
                    "a worker of the check was killed, most likely for memory; try --workers 1"
                ) from None
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return [future.result() for future in futures]


def _check_case(case: Case, expected: _Expected) -> tuple[Facts, list[Finding]]:
    """Read the files of one case; everything that is wrong with them."""
    notes = _Notes(case.id)
    image = _check_image(case.image, expected, notes)
    label = None if case.label is None else _check_label(case.label, notes)
    voxels: dict[int, int] = {}
    if label is not None:
        voxels = _voxels(label.array)
        _check_values(label, voxels, expected, notes)
    if image is not None and label is not None:
        _check_grids(image, label, notes)
    shape, spacing = (None, None) if image is None else (image.shape, image.spacing)
    return Facts(case.id, shape, spacing, voxels), notes.findings


class _Notes:
    """Findings of one case, as they come up."""

    def __init__(self, case: str) -> None:
        self.case = case
        self.findings: list[Finding] = []

    def error(self, file: Path, code: str, found: str, fix: str) -> None:
        self.findings.append(Finding(self.case, file, "error", code, found, fix))

    def warning(self, file: Path, code: str, found: str, fix: str) -> None:
        self.findings.append(Finding(self.case, file, "warning", code, found, fix))

    def unreadable(self, file: Path, error: DataError, code: str = "unreadable") -> None:
        fix = "replace the file" if code == "unreadable" else "export the label again as whole class numbers"
        self.error(file, code, str(error).removeprefix(f"{file}: "), fix)


def _check_image(file: Path, expected: _Expected, notes: _Notes) -> Volume | None:
    try:
        image = read_image(file)
    except DataError as error:
        notes.unreadable(file, error)
        return None
    _check_geometry(image, file, notes)
    channels = 1 if image.array.ndim == 3 else image.array.shape[3]
    if channels != expected.channels:
        found = f"shape {_by(image.array.shape)}: {_count(channels, 'volume')} where {expected.channels} is declared"
        notes.error(file, "channels", found, "keep one volume per declared channel, or declare the channels")
    finite = np.isfinite(image.array)
    if not finite.all():
        first = np.unravel_index(int(np.argmin(finite)), finite.shape)
        count = finite.size - int(np.count_nonzero(finite))
        found = f"{_count(count, 'voxel')} NaN, infinite or beyond float32, the first at index {_index(first)}"
        notes.error(file, "not_finite", found, "replace these voxels, or export the image again")
        return image
    axes = (0, 1, 2)
    for number, same in enumerate(np.atleast_1d(image.array.min(axes) == image.array.max(axes))):
        if same:
            name = "every voxel" if channels == 1 else f"every voxel of channel {number}"
            value = float(image.array.reshape(-1, channels)[0, number])
            notes.warning(file, "constant", f"{name} is {value:g}", "look at the image: it shows nothing")
    return image


def _check_label(file: Path, notes: _Notes) -> Volume | None:
    """The label map as int32, or None where it is none."""
    try:
        volume = read_volume(file)
    except DataError as error:
        notes.unreadable(file, error)
        return None
    _check_geometry(volume, file, notes)
    if volume.array.ndim != 3:
        found = f"shape {_by(volume.array.shape)}: 4 axes where a label map has 3"
        notes.error(file, "label_axes", found, "write one map of class numbers; from one-hot channels, their argmax")
        return None
    try:
        return as_label(volume)
    except DataError as error:
        notes.unreadable(file, error, "not_integer")
        return None


def _check_geometry(volume: Volume, file: Path, notes: _Notes) -> None:
    """What makes one file's place or size in space doubtful."""
    for odd in volume.oddities:
        notes.warning(file, odd.code, odd.found, odd.fix)
    if 1 in volume.shape:
        notes.warning(
            file, "one_slice", f"shape {_by(volume.shape)}: one voxel thick", "3D training learns little from it"
        )
    low, high = SPACINGS
    if min(volume.spacing) < low or max(volume.spacing) > high:
        found = f"spacing {_by(volume.spacing)} mm"
        notes.warning(
            file, "spacing", found, f"correct the unit if it is not millimetres ({low:g} to {high:g} are usual)"
        )
    if np.abs(volume.affine[:3, 3]).max() > FAR_ORIGIN:
        found = f"the first voxel lies at {_by(volume.affine[:3, 3])} mm"
        notes.warning(file, "far_origin", found, "correct the origin: coordinates so large lose precision")
    axes = volume.affine[:3, :3] / np.array(volume.spacing)
    if np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR:
        found = "the voxel axes are not at right angles"
        notes.warning(file, "sheared", found, "resample the volume: ITK-based tools refuse or straighten it")


def _voxels(label: NDArray[np.int32]) -> dict[int, int]:
    """Voxels by value, slab by slab: counting is faster than sorting, and slabs keep it small."""
    low, high = int(label.min()), int(label.max())
    if high - low >= 2**16:
        values, counts = np.unique(label, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))
    total = np.zeros(high - low + 1, np.int64)
    for slab in label:
        total += np.bincount((slab - low).ravel(), minlength=len(total))
    return {low + int(offset): int(total[offset]) for offset in np.flatnonzero(total)}


def _check_values(label: Volume, voxels: dict[int, int], expected: _Expected, notes: _Notes) -> None:
    assert label.path is not None
    negative = {value: count for value, count in voxels.items() if value < 0}
    if negative:
        notes.error(label.path, "negative", f"the label holds {_list(negative)}", "write classes as 0, 1, 2 and so on")
    if expected.classes is not None:
        _check_declared(label, voxels, len(expected.classes), notes)
    if set(voxels) == {0}:
        notes.warning(label.path, "empty_label", "no voxel but background", "correct when nothing is there to see")
    elif 0 not in voxels:
        notes.warning(label.path, "no_background", f"no voxel of background, only {_list(voxels)}", "look at the label")


def _check_declared(label: Volume, voxels: dict[int, int], classes: int, notes: _Notes) -> None:
    assert label.path is not None
    unknown = {value: count for value, count in voxels.items() if value >= classes}
    if unknown:
        found = f"the label holds {_list(unknown)}; the dataset names 0 to {classes - 1}"
        notes.error(label.path, "unknown_value", found, "map the values to the declared classes, or declare them")
    slope, inter = label.scaling
    stored = {round((value - inter) / slope, 3) for value in voxels}
    if not unknown and stored != set(voxels) and stored <= set(range(classes)):
        found = f"stored as {_set(stored)}, read with scl_slope {slope:g} and scl_inter {inter:g} as {_set(voxels)}"
        notes.error(
            label.path, "scaled_label", found, "write the label without scaling: either reading is a valid label"
        )


def _check_grids(image: Volume, label: Volume, notes: _Notes) -> None:
    """Whether both lie on one grid in the world; their axes may be stored in another order."""
    assert label.path is not None
    shift = _shift(image, label)
    if shift is not None and shift <= GRID_WARNING:
        return
    if shift is None or shift > GRID_ERROR:
        first = "image and label lie on different grids" + (f", up to {shift:.3g} voxels apart" if shift else "")
        if image.shape != label.shape and image.shape == label.shape[::-1]:
            first += "; the label's axes look transposed"
        found = "\n".join([first, f"image {_grid(image)}", f"label {_grid(label)}"])
        fix = "resample the label onto the image's grid, or copy the image's header if only that is wrong"
        notes.error(label.path, "grid", found, fix)
        return
    found = f"the label's grid lies up to {shift:.3g} voxels off the image's"
    notes.warning(label.path, "grid_shift", found, "harmless if a tool rounded the header; the image's grid is used")


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
            files = [str(path.name) for case in same for path in (case.image, case.label) if path is not None]
            found = f"{len(same)} cases have this id: {', '.join(files)}"
            fix = "keep one file of each name, listed once"
            yield Finding(id, same[-1].image, "error", "duplicate", found, fix)


def _dataset_findings(place: Path, facts: Sequence[Facts], expected: _Expected) -> Iterator[Finding]:
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
            found = f"no label holds class {value}, {name}"
            yield Finding(
                None, place, "warning", "class_absent", found, "correct the declared classes if they are wrong"
            )


def _lines(finding: Finding) -> list[str]:
    """What was found, and in which file where that does not say so itself."""
    named = str(finding.file) in finding.found
    return (finding.found if named else f"{finding.found}  {finding.file}").split("\n")


def _range(rows: Iterable[tuple[float, ...] | None]) -> dict[str, list[float]] | None:
    table = np.array([row for row in rows if row is not None])
    if not len(table):
        return None
    return {name: getattr(np, name)(table, axis=0).tolist() for name in ("min", "median", "max")}


def _grid(volume: Volume) -> str:
    origin = ", ".join(f"{x:.4g}" for x in volume.affine[:3, 3])
    return f"{_by(volume.shape)} at {_by(volume.spacing)} mm, {volume.orientation} from ({origin})  {volume.path}"


def _by(numbers: Iterable[float]) -> str:
    return " x ".join(f"{number:.6g}" for number in numbers)


def _index(index: Iterable[Any]) -> str:
    return "(" + ", ".join(str(i) for i in index) + ")"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _set(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return ", ".join(f"{value:g}" for value in ordered[:LISTED]) + (" and more" if len(ordered) > LISTED else "")


def _list(voxels: dict[int, int]) -> str:
    shown = ", ".join(f"{value} ({_count(count, 'voxel')})" for value, count in sorted(voxels.items())[:LISTED])
    return shown + (f" and {len(voxels) - LISTED} more values" if len(voxels) > LISTED else "")
