"""Find all faults of a dataset before anything is written: the job behind `medssl check`.

An *error* is something that `prepare` cannot use; a *warning* is for the owner of the data to judge. `inspect` reads
each case once, in a worker process, so a broken case does not hide the faults of others. `outliers` then compares the
cases with each other.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from statistics import mode
from typing import Any

import numpy as np

from medssl.data.cases import Case, DatasetConfig, can_name_files
from medssl.data.findings import Facts, Finding, Report
from medssl.data.grid import aligned
from medssl.data.inspect import Expected, check_case, check_label, listed
from medssl.data.io import SUFFIXES, case_id, is_volume, label_id
from medssl.data.labels import mapped
from medssl.data.layouts import Layout, declared, labels_beside, read_layout
from medssl.data.looks import Look, digest, look_at
from medssl.data.outliers import compare, distances, out_of_family
from medssl.data.volume import Source, Volume
from medssl.errors import DataError
from medssl.progress import mapper, tracked

FORMULA = ("=", "+", "-", "@")
"""First characters of a cell that a spreadsheet evaluates as a formula."""
NOT_ON_WINDOWS = re.compile(r'[<>:"|?*]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
"""Characters, endings and names that a file name cannot have on Windows."""

Result = tuple[Facts, list[Finding]]
Draw = Callable[[Volume, Volume | None], Any]
"""Makes a picture of a readable image and its label, in a worker process; `Facts.picture` holds it."""


def check(
    source: Path | str,
    dataset: DatasetConfig | None = None,
    *,
    layout: str | None = None,
    workers: int = 2,
    draw: Draw | None = None,
) -> Report:
    """Read a dataset in any layout and list every finding. Nothing is written.

    Without `dataset`, classes and channels are those that the dataset itself declares. If it declares no channels,
    their number is the number of image files that most cases have.

    Args:
        layout: a name in `LAYOUTS`. Default: the layout of `dataset`, or else the first one that fits.
        workers: number of worker processes; below 2, everything is read in this process.
        draw: a function defined in a module, called with each image and its label while they are in memory.

    Raises:
        DataError: no known layout, no case in it, or a `dataset.json` that does not fit.
    """
    source = Path(source)
    found, expected = survey(source, dataset, layout)
    results = _check_all(found.cases, expected, workers, draw)
    lone = [_check_lone_label(path, expected) for path in found.labels_without_image]
    return report_of(source, found, expected, results, lone)


def survey(source: Path, dataset: DatasetConfig | None = None, layout: str | None = None) -> tuple[Layout, Expected]:
    """Return the layout, and what the cases are expected to hold, before any volume is read.

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
        channels = len(said.channels) if said.channels else mode(len(case.images) for case in found.cases)
        return found, replace(Expected.of(said.config(source.name)), channels=channels)
    return found, Expected.of(dataset)


def check_cases(cases: Sequence[Case], dataset: DatasetConfig | None = None, *, workers: int = 1) -> Report:
    """Check cases that are already listed, as `check` does; without `dataset`, one channel and any classes."""
    expected = Expected.of(dataset)
    return report_of(None, Layout(tuple(cases)), expected, _check_all(cases, expected, workers))


def report_of(
    source: Path | None,
    layout: Layout,
    expected: Expected,
    results: Sequence[Result],
    lone: Sequence[Result] = (),
    *,
    is_all: bool = True,
) -> Report:
    """Collect the findings of single cases, of the layout and, if all cases were read, of comparing cases.

    Args:
        lone: the results of labels without an image.
        is_all: whether `results` cover all cases, as completely as `check` needs them.
    """
    cases = layout.cases
    facts = tuple(fact for fact, _ in results)
    apart = distances(cases, facts) if is_all else ()
    findings = [
        *(finding for _, found in results for finding in found),
        *_layout_findings(layout, source or Path()),
        *(_labels_beside(source, layout) if source is not None else ()),
        *(finding for _, found in lone for finding in found),
        *(finding for (fact, _), path in zip(lone, layout.labels_without_image, strict=False) if fact.look
          for finding in out_of_family(fact.case, path, fact.look, fact.voxels, facts)),
        *_odd_ids(cases),
        *(_dataset_findings(source or Path(), facts, expected) if is_all else ()),
        *(compare(cases, facts, expected.classes, apart, expected.orientation) if is_all else ()),
    ]  # fmt: skip
    return Report(source, cases, tuple(findings), facts, expected.classes, apart, layout.name or None)


def _check_all(cases: Sequence[Case], expected: Expected, workers: int, draw: Draw | None = None) -> list[Result]:
    with mapper(min(workers, len(cases))) as apply:
        return tracked("check", [case.id for case in cases], apply(_check_case, cases, repeat(expected), repeat(draw)))


def _check_case(case: Case, expected: Expected, draw: Draw | None) -> Result:
    """Check one case; return the facts by which it is compared, with its picture, and its findings."""
    checked = check_case(case, expected)
    image, label, counts = checked.image, checked.label, checked.counts
    if image is None:
        return Facts(case.id, voxels=counts.voxels, ignored=counts.ignored, sides=counts.sides), checked.findings
    facts = Facts(
        case.id, image.shape, image.spacing, counts.voxels, counts.ignored, look_at(image), counts.sides,
        tuple(_digest(each) for each in checked.images),
        "" if label is None else digest(label.array),
        image.series,
        None if draw is None else draw(image, _drawn_label(label, image, expected.places)),
    )  # fmt: skip
    return facts, checked.findings


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
    """Check a label without an image; what it holds helps to find where it belongs."""
    id, findings = case_id(path), list[Finding]()
    label, counts = check_label(id, Source(path), expected, findings)
    if label is None:
        return Facts(id), findings
    return Facts(id, label.shape, label.spacing, counts.voxels, look=Look.of_grid(label)), findings


def _labels_beside(source: Path, layout: Layout) -> Iterator[Finding]:
    """Warn if the source is a folder of images whose labels lie in a folder beside it."""
    if any(case.label for case in layout.cases) or not source.is_dir():
        return
    labels, count = labels_beside(source)
    if count:
        found = f"no case has a label, but {labels} holds labels for {count} of these images"
        fix = f"to use them, give {labels.parent} as the source"
        yield Finding(None, source, "warning", "labels_beside", found, fix)


def _layout_findings(layout: Layout, source: Path) -> Iterator[Finding]:
    for odd in layout.contradictions:
        yield Finding(None, source, "warning", odd.code, odd.found, odd.fix)
    for label in layout.labels_without_image:
        fix = "add the image or remove the label; their file names must be equal apart from the suffix"
        yield Finding(label_id(label), label, "error", "no_image", "a label without an image", fix)
    for case, label in layout.absent_labels:
        fix = "add the label, or remove it from dataset.json"
        found = "the listed label file does not exist; the case counts as unlabelled"
        yield Finding(case, label, "warning", "absent_label", found, fix)
    for label in layout.unlisted_labels:
        fix = "list it in dataset.json to use it"
        found = "dataset.json does not list this label, so it is not used"
        yield Finding(label_id(label), label, "warning", "unlisted_label", found, fix)
    for path in layout.others:
        fix = "convert it, or move it elsewhere" + ("; for DICOM, see `--layout dicom`" if path.is_dir() else "")
        found = "this folder is not read" if path.is_dir() else "not a volume in a known format; not read"
        if is_volume(path) and path.is_file():
            where = "labels/ if it is a label" if layout.name == "dicom" else "a folder that the layout reads"
            fix = f"move it to {where}, or out of the dataset, or list it in a datalist; see also `--layout`"
            found = "this volume is not read: the layout does not look here"
        yield Finding(None, path, "warning", "not_read", found, fix)
    for path in layout.scouts:
        fix = "list it in a datalist if it is a case"
        found = "one slice beside other series of the same patient, probably a scout; not read"
        yield Finding(None, path, "warning", "not_read", found, fix)


def _odd_ids(cases: Iterable[Case]) -> Iterator[Finding]:
    """Report ids that occur twice, or that cannot name a folder here or on other file systems."""
    by_id: dict[str, list[Case]] = {}
    for case in cases:
        by_id.setdefault(case.id, []).append(case)
    for id, same in by_id.items():
        if not can_name_files(id):
            fix = "give it an id of printable characters, without slashes and without a leading dot"
            yield Finding(id, same[0].images[0].path, "error", "bad_id", f"the id {id!r} cannot be a file name", fix)
        elif NOT_ON_WINDOWS.search(id):
            fix = "give it another id if the data may be used on Windows"
            found = f"the id {id!r} cannot be a file name on Windows"
            yield Finding(id, same[0].images[0].path, "warning", "odd_id", found, fix)
        elif id.startswith(FORMULA):
            fix = "give it another id; a spreadsheet would evaluate it in tables of scores"
            found = f"the id {id!r} begins like a spreadsheet formula"
            yield Finding(id, same[0].images[0].path, "warning", "odd_id", found, fix)
        if len(same) > 1:
            files = dict.fromkeys(path for case in same for path in case.files)
            found = f"{len(same)} cases have this id: {', '.join(path.name for path in files)}"
            fix = "keep one image and one label for this id, listed once, and move the others elsewhere"
            yield Finding(id, same[-1].images[0].path, "error", "duplicate", found, fix)
    folded: dict[str, str] = {}
    for id, same in by_id.items():
        other = folded.setdefault(unicodedata.normalize("NFC", id).casefold(), id)
        if other != id:
            found = f"the ids {id!r} and {other!r} are the same file name on Windows and macOS, which ignore case"
            fix = "give one of them another id; on such a system, one case would replace the other"
            yield Finding(id, same[0].images[0].path, "warning", "odd_id", found, fix)


def _dataset_findings(place: Path, facts: Sequence[Facts], expected: Expected) -> Iterator[Finding]:
    present = {value for fact in facts for value in fact.voxels}
    if not present:
        return
    if expected.classes is None:
        found = f"no classes are declared; the labels hold the values {listed(present)}"
        fix = "name them under data.classes in a configuration, or under `labels` in dataset.json"
        yield Finding(None, place, "warning", "no_classes", found, fix)
        return
    for value, name in enumerate(expected.classes):
        if value not in present:
            fix = "correct the declared classes if they are wrong"
            yield Finding(None, place, "warning", "class_absent", f"no label holds class {value}, {name}", fix)
