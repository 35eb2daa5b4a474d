"""The job behind `medssl evaluate`: predictions and references in, scores.csv out.

Files are matched by case id. Nothing is resampled: two volumes that do not share a grid are an error,
and every fault of every case is known before the first is scored. scores.csv states its convention in
comment lines at its top (`strict`, see `medssl.metrics`), then has a row per case and class.
"""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from medssl.data.nifti import SUFFIXES, Volume, case_id, is_volume, list_volumes, read_label
from medssl.errors import ConfigError, DataError, OutOfMemoryError
from medssl.metrics import METRICS, ClassScore, Status, score_class
from medssl.progress import track

if TYPE_CHECKING:
    from rich.console import Console

GRID_TOLERANCE = 0.01
"""How far apart two grids may put a corner and still be one grid, as a fraction of the smallest voxel side.

Far below what could change a score, and far above what rounding to float32 does to a header.
"""
SHEAR_TOLERANCE = 0.01
"""Largest cosine between two axes that still counts as perpendicular, about half a degree."""
MOST_CLASSES = 256
"""More label values than this, with no class names given, and the files are taken for images."""
COLUMNS = (
    "case", "class", "label", "status", *METRICS, "prediction_voxels", "reference_voxels", "prediction", "reference"
)  # fmt: skip

_FEW = 4
_DEFINITIONS = """\
medssl scores
convention: strict
units: dice and iou 0 to 1; hd95 and asd in mm, by the spacing of the reference
status: scored (in both volumes), absent (in neither: no numbers), missed (in the reference only) and invented \
(in the prediction only): dice and iou 0, no distances; an empty cell is undefined and enters no mean
dice: 2 |P and R| / (|P| + |R|)
iou: |P and R| / |P or R|
surface: voxels with a face neighbour outside the class; beyond the border of the volume all is outside
hd95: the larger of the two directed 95th percentiles of surface distance
asd: the mean of both directed sets of surface distances together
overall: each case's mean over its classes, then mean and n over cases
"""
_UNPREDICTED = "references without a prediction: "

T = TypeVar("T")


class Scores(list[ClassScore]):
    """Scores sorted by case, then label, with the cases that could not be scored for want of a prediction."""

    def __init__(self, scores: Iterable[ClassScore] = (), unpredicted: Iterable[str] = ()) -> None:
        super().__init__(scores)
        self.unpredicted = tuple(unpredicted)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of the `n` defined values; None below one and two of them."""

    mean: float | None
    sd: float | None
    n: int


@dataclass(frozen=True)
class ClassSummary:
    """One class over all cases: how often it was what, and its numbers."""

    class_name: str
    scored: int
    absent: int
    missed: int
    invented: int
    dice: Spread
    iou: Spread
    hd95: Spread
    asd: Spread


@dataclass(frozen=True)
class Summary:
    """All classes, and all of them together.

    The values behind an `overall` number are cases: each gives the mean over those of its classes where the
    metric is defined, and a case without any is left out. Its counts add up those of the classes.
    """

    cases: int
    classes: tuple[ClassSummary, ...]
    overall: ClassSummary


def evaluate_folders(
    predictions: Path,
    references: Path,
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    workers: int = 2,
    overwrite: bool = False,
) -> Scores:
    """Score predicted label maps against references of the same case id, and write the table `out`.

    Args:
        predictions: folder of label maps, or one file.
        references: the same; it may hold more cases, which are then counted and named as unpredicted. Two
            single files are a pair whatever their names, under the id of the prediction.
        out: the CSV file to write.
        classes: names by label value, the background first. Without them, `classes` in the
            `predictions.json` beside the predictions; without that, the label values found.
        workers: processes; 0 works in this one, as a handful of cases always does.
        overwrite: replace `out` if it exists.

    Raises:
        ConfigError: `out` exists, or `classes` are no list of names.
        DataError: a prediction has no reference, or cases cannot be scored; all of them are listed.
    """
    predictions, references, out = Path(predictions), Path(references), Path(out)
    _refuse_existing(out, overwrite)
    names = _class_names(classes, predictions)
    pairs, unpredicted = _match(predictions, references)
    known = None if names is None else len(names)
    with _mapper(len(pairs), workers) as apply:
        findings = _tracked("check", pairs, apply(_inspect, pairs, repeat(known)))
        labels = _labels(pairs, findings, names)
        scores = _tracked("score", pairs, apply(_score, pairs, repeat(labels)))
    result = Scores((score for case in scores for score in case), unpredicted)
    _write(out, result, pairs)
    return result


def summarise(scores: Sequence[ClassScore]) -> Summary:
    """Mean, spread and counts of each class, in order of label, and of all classes together."""
    by_class: dict[tuple[int, str], list[ClassScore]] = {}
    by_case: dict[str, list[ClassScore]] = {}
    for score in scores:
        by_class.setdefault((score.label, score.class_name), []).append(score)
        by_case.setdefault(score.case, []).append(score)
    return Summary(
        cases=len(by_case),
        classes=tuple(
            _summarise(key[1], by_class[key], [[score] for score in by_class[key]]) for key in sorted(by_class)
        ),
        overall=_summarise("overall", scores, list(by_case.values())),
    )


def print_summary(scores: Sequence[ClassScore], console: Console | None = None) -> None:
    """Print the summary as a table, a row per class and one for all, and name the references left alone."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    summary = summarise(scores)
    console = console or Console()
    table = Table(box=None, padding=(0, 1, 0, 0), caption="mean (n) ± sd; overall: over cases")
    for column in ("class", "dice", "iou", "hd95 mm", "asd mm", "counts"):
        table.add_column(column, no_wrap=column != "class", overflow="fold")
    for row in (*summary.classes, summary.overall):
        counts = f"{row.scored} scored, {row.absent} absent\n{row.missed} missed, {row.invented} invented"
        table.add_row(escape(row.class_name), *map(_show, (row.dice, row.iou, row.hd95, row.asd)), counts)
    console.print(table)
    unpredicted = scores.unpredicted if isinstance(scores, Scores) else ()
    if unpredicted:
        console.print(f"{_UNPREDICTED}{len(unpredicted)} ({', '.join(unpredicted)})", markup=False, highlight=False)


def read_scores(path: Path) -> Scores:
    """Read a table that `evaluate_folders` wrote.

    Raises:
        DataError: the file is missing, or is not such a table; the line is named.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return _parse_table(path, file)
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table of scores: {error}") from None


# ---- which files, which classes


@dataclass(frozen=True)
class _Pair:
    case: str
    prediction: Path
    reference: Path


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; name the CSV file to write, such as {out / 'scores.csv'}")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out}: exists already; choose another name, or replace it with --overwrite")


def _match(predictions: Path, references: Path) -> tuple[list[_Pair], list[str]]:
    """Pairs sorted by case, and the references that stay alone."""
    ours, theirs = _volumes(predictions), _volumes(references)
    if predictions.is_file() and references.is_file():
        return [_Pair(case, path, references) for case, path in ours.items()], []
    orphans = [f"  {case}  {ours[case]}" for case in sorted(ours.keys() - theirs.keys())]
    if orphans:
        raise DataError(
            f"{len(orphans)} of {len(ours)} predictions have no reference of the same name in {references}\n"
            + "\n".join(orphans)
            + "\nAdd the references, or move these files out of the predictions."
        )
    return [_Pair(case, ours[case], theirs[case]) for case in sorted(ours)], sorted(theirs.keys() - ours.keys())


def _volumes(source: Path) -> dict[str, Path]:
    """The volumes of a folder, or the one file, by case id."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    paths = list_volumes(source) if source.is_dir() else [source]
    if not paths or not is_volume(paths[0]):
        raise DataError(f"{source}: expected volumes ({', '.join(SUFFIXES)}), found none")
    volumes: dict[str, Path] = {}
    for path in paths:
        other = volumes.setdefault(case_id(path), path)
        if other != path:
            raise DataError(f"{source}: {other.name} and {path.name} both claim case {case_id(path)}; keep one")
    return volumes


def _class_names(classes: Sequence[str] | None, predictions: Path) -> list[str] | None:
    """The given names, those stored beside the predictions, or None."""
    if classes is not None:
        fault = _fault_of_names(list(classes))
        if fault:
            raise ConfigError(f"classes: {fault}")
        return list(classes)
    path = (predictions if predictions.is_dir() else predictions.parent) / "predictions.json"
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from None
    names = stored.get("classes") if isinstance(stored, dict) else None
    fault = _fault_of_names(names)
    if fault:
        raise DataError(f"{path}: classes: {fault}; mend the file, or name the classes")
    return list(names or ())


def _fault_of_names(names: object) -> str | None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return f"expected a list of names by label value, found {names!r}"
    if len(names) < 2:
        return f"expected the background and at least one class, found {names!r}"
    odd = [name for name in names if not name.strip() or not name.isprintable() or names.count(name) > 1]
    return f"each name must be printable and unique, found {odd!r}" if odd else None


# ---- what the cases hold


def _inspect(pair: _Pair, classes: int | None) -> tuple[list[str], set[int]]:
    """Everything that keeps a pair from being scored, and the label values of both volumes."""
    faults: list[str] = []
    volumes: list[Volume] = []
    values: set[int] = set()
    for role, path in (("prediction", pair.prediction), ("reference", pair.reference)):
        try:
            volume = read_label(path)
        except DataError as error:
            faults.append(str(error))
            continue
        found = _values(volume.array)
        faults += _fault_of_values(role, found, classes, path)
        values |= found
        volumes.append(volume)
    if len(volumes) == 2:
        faults += _faults_of_grids(*volumes)
    return faults, values


def _values(array: NDArray[Any]) -> set[int]:
    if array.min() < 0 or array.max() > 2**16:
        return {int(value) for value in np.unique(array)}
    # Counting slice by slice is many times faster than sorting a volume.
    return {int(value) for plane in array for value in np.flatnonzero(np.bincount(plane.ravel()))}


def _fault_of_values(role: str, found: set[int], classes: int | None, path: Path) -> list[str]:
    odd = sorted(value for value in found if value < 0 or (classes is not None and value >= classes))
    if not odd:
        return []
    shown = ", ".join(str(value) for value in odd[:10]) + (" ..." if len(odd) > 10 else "")
    known = "labels start at 0" if classes is None else f"the classes are 0 to {classes - 1}"
    return [f"{role} holds label {shown}; {known}   {path}"]


def _faults_of_grids(prediction: Volume, reference: Volume) -> list[str]:
    grids = f"\nprediction {_describe(prediction)}\nreference  {_describe(reference)}"
    if prediction.array.ndim != 3 or reference.array.ndim != 3:
        return [f"a label map has three axes{grids}"]
    if prediction.shape != reference.shape:
        return [f"prediction and reference lie on different grids: their shapes differ{grids}"]
    apart = _corners_apart(prediction, reference)
    tolerance = GRID_TOLERANCE * min(reference.spacing)
    if apart > tolerance:
        return [
            f"prediction and reference lie on different grids: corners are up to {apart:.4g} mm apart, "
            f"{tolerance:.2g} mm is tolerated{grids}"
        ]
    axes = reference.affine[:3, :3] / np.asarray(reference.spacing)
    if np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR_TOLERANCE:
        return [f"the axes of the grid are not perpendicular, so its distances are not defined{grids}"]
    return []


def _corners_apart(prediction: Volume, reference: Volume) -> float:
    """The largest distance in mm between where the two affines put a corner of the grid."""
    last = np.asarray(reference.shape) - 1
    corners = np.array([(*(np.array(corner) * last), 1) for corner in np.ndindex(2, 2, 2)])  # (8, 4)
    moved = corners @ (prediction.affine - reference.affine).T
    return float(np.linalg.norm(moved[:, :3], axis=1).max())


def _describe(volume: Volume) -> str:
    shape = " x ".join(str(side) for side in volume.array.shape)
    spacing = " x ".join(f"{side:.4g}" for side in volume.spacing)
    rows = "; ".join(" ".join(f"{value:.6g}" for value in row) for row in volume.affine[:3])
    return f"{shape} at {spacing} mm, affine [{rows}]   {volume.path}"


def _labels(
    pairs: Sequence[_Pair], findings: Sequence[tuple[list[str], set[int]]], names: list[str] | None
) -> dict[int, str]:
    """The foreground classes by label value, once no case has a fault."""
    faulty = [(pair.case, faults) for pair, (faults, _) in zip(pairs, findings, strict=True) if faults]
    if faulty:
        raise DataError(
            f"{len(faulty)} of {len(pairs)} cases cannot be scored\n"
            + "\n".join(_indent(case, fault) for case, faults in faulty for fault in faults)
            + "\nNothing is resampled or relabelled here: mend these files, or leave them out."
        )
    if names is not None:
        return {label: name for label, name in enumerate(names) if label > 0}
    found = sorted({value for _, values in findings for value in values} - {0})
    if not found:
        raise DataError("no volume holds any label but 0, so there is nothing to score; name the classes")
    if len(found) >= MOST_CLASSES:
        raise DataError(f"the volumes hold {len(found)} label values; are they images? If not, name the classes")
    return {label: str(label) for label in found}


def _indent(case: str, fault: str) -> str:
    return f"  {case}  " + fault.replace("\n", "\n" + " " * (len(case) + 4))


# ---- the work


def _score(pair: _Pair, labels: dict[int, str]) -> list[ClassScore]:
    prediction, reference = read_label(pair.prediction), read_label(pair.reference)
    return [score_class(pair.case, name, label, prediction, reference) for label, name in labels.items()]


@contextmanager
def _mapper(tasks: int, workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` that works in this process, or in several when the tasks are worth it."""
    if workers < 2 or tasks < _FEW:
        yield map
        return
    try:
        # Spawned, not forked: the caller may hold threads, locks or a GPU.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, tasks), mp_context=context) as pool:
            yield pool.map
    except BrokenProcessPool:
        raise OutOfMemoryError(
            "a worker process ended without a word, most often because memory ran out; use fewer workers, or 0 "
            '(in a script of your own, workers need the guard `if __name__ == "__main__":`)'
        ) from None


def _tracked(title: str, pairs: Sequence[_Pair], results: Iterable[T]) -> list[T]:
    done = []
    with track(title, len(pairs)) as advance:
        for pair, result in zip(pairs, results, strict=True):
            done.append(result)
            advance(pair.case)
    return done


# ---- numbers over cases


def _summarise(name: str, scores: Sequence[ClassScore], groups: Sequence[Sequence[ClassScore]]) -> ClassSummary:
    """Counts of all scores; each number over the means of the groups."""
    counts = Counter(score.status for score in scores)
    return ClassSummary(
        class_name=name,
        scored=counts["scored"],
        absent=counts["absent"],
        missed=counts["missed"],
        invented=counts["invented"],
        dice=_spread("dice", groups),
        iou=_spread("iou", groups),
        hd95=_spread("hd95", groups),
        asd=_spread("asd", groups),
    )


def _spread(metric: str, groups: Sequence[Sequence[ClassScore]]) -> Spread:
    defined = [[value for score in group if (value := getattr(score, metric)) is not None] for group in groups]
    means = [statistics.fmean(values) for values in defined if values]
    return Spread(
        mean=statistics.fmean(means) if means else None,
        sd=statistics.stdev(means) if len(means) > 1 else None,
        n=len(means),
    )


def _show(spread: Spread) -> str:
    mean = "-" if spread.mean is None else f"{spread.mean:.3f}"
    sd = "" if spread.sd is None else f"±{spread.sd:.3f}"
    return f"{mean} ({spread.n})\n{sd}"


# ---- the table


def _write(out: Path, scores: Scores, pairs: Sequence[_Pair]) -> None:
    paths = {pair.case: (pair.prediction.resolve(), pair.reference.resolve()) for pair in pairs}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".partial-{os.getpid()}-{out.name}")
    try:
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.writelines(f"# {line}\n" for line in _header(scores))
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows([*_cells(score), *paths[score.case]] for score in scores)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _header(scores: Scores) -> list[str]:
    summary = summarise(scores)
    names = json.dumps(scores.unpredicted, ensure_ascii=True)
    return [
        *_DEFINITIONS.splitlines(),
        f"cases: {summary.cases}",
        f"{_UNPREDICTED}{len(scores.unpredicted)} {names}",
        *(f"class {row.class_name}: {_line(row)}" for row in summary.classes),
        f"overall: {_line(summary.overall)}",
    ]


def _line(row: ClassSummary) -> str:
    numbers = ((metric, getattr(row, metric)) for metric in METRICS)
    means = [f"{metric} mean {_digits(spread.mean) or '-'} (n {spread.n})" for metric, spread in numbers]
    counts = f"{row.scored} scored, {row.absent} absent, {row.missed} missed, {row.invented} invented"
    return "; ".join([counts, *means])


def _cells(score: ClassScore) -> list[str | int]:
    numbers = [_digits(getattr(score, metric)) for metric in METRICS]
    return [
        score.case, score.class_name, score.label, score.status, *numbers,
        score.prediction_voxels, score.reference_voxels,
    ]  # fmt: skip


def _digits(value: float | None) -> str:
    """Six significant digits; nothing for what is undefined."""
    return "" if value is None else f"{value:.6g}"


def _parse_table(path: Path, file: TextIO) -> Scores:
    unpredicted: list[str] = []
    comments = 0
    for line in file:
        if not line.startswith("#"):
            break
        comments += 1
        text = line.removeprefix("#").strip()
        if text.startswith("convention:") and text != "convention: strict":
            raise DataError(f"{path}:{comments}: expected convention: strict, found {text}")
        if text.startswith(_UNPREDICTED):
            unpredicted = _parse_unpredicted(text, f"{path}:{comments}")
    else:
        line = ""
    columns = next(csv.reader([line]), [])
    if columns != list(COLUMNS):
        raise DataError(f"{path}:{comments + 1}: expected the columns {','.join(COLUMNS)}, found {line.strip()!r}")
    scores = Scores(unpredicted=unpredicted)
    table = csv.reader(file)
    seen: set[tuple[str, int]] = set()
    for cells in table:
        where = f"{path}:{comments + 1 + table.line_num}"
        score = _parse_row(cells, where)
        if (score.case, score.label) in seen:
            raise DataError(f"{where}: case {score.case} has label {score.label} twice")
        seen.add((score.case, score.label))
        scores.append(score)
    return scores


def _parse_unpredicted(text: str, where: str) -> list[str]:
    try:
        return [str(case) for case in json.loads(text.removeprefix(_UNPREDICTED).partition(" ")[2])]
    except (ValueError, TypeError):
        raise DataError(f"{where}: expected a list of case ids, found {text!r}") from None


def _parse_row(cells: list[str], where: str) -> ClassScore:
    if len(cells) != len(COLUMNS):
        raise DataError(f"{where}: expected {len(COLUMNS)} cells, found {len(cells)}; is the file cut short?")
    row = dict(zip(COLUMNS, cells, strict=True))
    if row["status"] not in get_args(Status):
        raise DataError(f"{where}: expected a status of {', '.join(get_args(Status))}, found {row['status']!r}")
    try:
        score = ClassScore(
            case=row["case"],
            class_name=row["class"],
            label=int(row["label"]),
            status=row["status"],  # type: ignore[arg-type]  # checked above
            **{metric: _parse_number(row[metric]) for metric in METRICS},
            prediction_voxels=int(row["prediction_voxels"]),
            reference_voxels=int(row["reference_voxels"]),
        )
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    overlap, distance = score.status != "absent", score.status == "scored"
    if [getattr(score, metric) is not None for metric in METRICS] != [overlap, overlap, distance, distance]:
        raise DataError(f"{where}: the numbers do not fit the status {score.status}")
    return score


def _parse_number(cell: str) -> float | None:
    if not cell:
        return None
    value = float(cell)
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"expected a number from 0 up, or an empty cell, found {cell}")
    return value
