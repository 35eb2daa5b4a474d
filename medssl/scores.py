"""The table of scores: its columns, its numbers over cases, and scores.csv written and read.

scores.csv states its convention in comment lines at its top (`strict`, see `medssl.metrics`), then has a row
per case and class.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from medssl.errors import DataError
from medssl.files import whole_file
from medssl.metrics import METRICS, ClassScore, Status

COLUMNS = (
    "case", "class", "label", "status", *METRICS, "prediction_voxels", "reference_voxels", "prediction", "reference"
)  # fmt: skip

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


def read_scores(path: Path) -> Scores:
    """Read a table that `write_scores` wrote.

    Raises:
        DataError: the file is missing, or is not such a table; the line is named.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return _parse_table(path, list(file))
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table of scores: {error}") from None


def write_scores(out: Path, scores: Scores, files: Mapping[str, tuple[Path, Path]]) -> None:
    """Write the table; `files` gives each case's prediction and reference. It appears whole or not at all."""
    paths = {case: [path.resolve() for path in pair] for case, pair in files.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as partial, partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.writelines(f"# {line}\n" for line in _header(scores))
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows([*_cells(score), *paths[score.case]] for score in scores)


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
        **{metric: _spread(metric, groups) for metric in METRICS},
    )


def _spread(metric: str, groups: Sequence[Sequence[ClassScore]]) -> Spread:
    defined = [[value for score in group if (value := getattr(score, metric)) is not None] for group in groups]
    means = [statistics.fmean(values) for values in defined if values]
    return Spread(
        mean=statistics.fmean(means) if means else None,
        sd=statistics.stdev(means) if len(means) > 1 else None,
        n=len(means),
    )


# ---- the table


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


def _parse_table(path: Path, lines: list[str]) -> Scores:
    start = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    scores = Scores(unpredicted=_parse_comments(path, lines[:start]))
    table = csv.reader(lines[start:])
    columns = next(table, [])
    if columns != list(COLUMNS):
        raise DataError(f"{path}:{start + 1}: expected the columns {','.join(COLUMNS)}, found {','.join(columns)!r}")
    seen: set[tuple[str, int]] = set()
    for cells in table:
        where = f"{path}:{start + table.line_num}"
        score = _parse_row(cells, where)
        if (score.case, score.label) in seen:
            raise DataError(f"{where}: case {score.case} has label {score.label} twice")
        seen.add((score.case, score.label))
        scores.append(score)
    return scores


def _parse_comments(path: Path, lines: Sequence[str]) -> list[str]:
    """The references without a prediction, once the convention is known to be ours."""
    unpredicted: list[str] = []
    for number, line in enumerate(lines, 1):
        text = line.removeprefix("#").strip()
        if text.startswith("convention:") and text != "convention: strict":
            raise DataError(f"{path}:{number}: expected convention: strict, found {text}")
        if text.startswith(_UNPREDICTED):
            unpredicted = _parse_unpredicted(text, f"{path}:{number}")
    return unpredicted


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
