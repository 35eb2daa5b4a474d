"""Writing and reading scores.csv.

The file states its conventions and the definitions of its columns in comment lines at the top, followed by a row per
convention, case and class. Tables from older versions without the column `convention` are read as `strict`.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from medssl.data.cases import DatasetConfig
from medssl.data.volume import Source
from medssl.errors import ConfigError, DataError
from medssl.files import whole_file
from medssl.metrics import CONVENTIONS, METRICS, ClassScore, Measures, Status
from medssl.scores import ClassSummary, Scores, summarise

KEYS = ("convention", "case", "class", "label", "status")
PLACES = ("prediction_voxels", "reference_voxels", "prediction", "reference")
"""Columns before and after those of the metrics."""
TITLE = "medssl scores"
"""Text of the first line."""

_STATUSES = """\
status: scored (in both volumes), absent (in neither), missed (in the reference only), invented (in the prediction \
only); an empty cell is undefined, or the convention lacks this metric, and enters no mean
surface: voxels with a face neighbour outside the class; beyond the border of the volume everything is outside
P, R: prediction, reference; overlaps from 0 to 1; distances in mm by the spacing of the reference, or in voxels"""
_SETTINGS = "settings: "
_LABELS = "labels: "
_OF_LABELS = {"name", "classes", "values", "ignore", "regions"}
_UNPREDICTED = "references without a prediction: "
_OLD_METRICS = ("dice", "iou", "hd95", "asd")
_SHOWN = ("dice", "iou", "hd95", "asd", "nsd", "cldice", "instance_f1")


def read_scores(path: Path, convention: str | None = None) -> Scores:
    """Read a table that `write_scores` wrote, and return the scores under one convention, the first by default.

    Those under the other conventions are in the attribute `beside`.

    Raises:
        DataError: the file is missing, or is not such a table; the message names the line.
        ConfigError: it has no scores under this convention.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            tables = _parse_table(path, list(file))
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table of scores: {error}") from None
    chosen = convention or next(iter(tables))
    if chosen not in tables:
        raise ConfigError(f"{path}: has no scores under convention {chosen}; choose one of {', '.join(tables)}")
    scores = tables.pop(chosen)
    scores.beside = tuple(tables.values())
    return scores


def write_scores(out: Path, scores: Scores) -> None:
    """Write scores, and those `beside` them, as one table; `scores.files` must hold every case.

    The file appears whole or not at all.
    """
    paths = {case: [path.absolute() for path in pair] for case, pair in scores.files.items()}
    tables = (scores, *scores.beside)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as partial, partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.writelines(f"# {line}\n" for line in _header(tables))
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*KEYS, *scores.metrics, *PLACES])
        for each in tables:
            table.writerows([each.convention, *_cells(score, each.metrics), *paths[score.case]] for score in each)


# ---- written


def _header(tables: Sequence[Scores]) -> list[str]:
    first = tables[0]
    return [
        TITLE,
        *(line for scores in tables for line in _lines_of_convention(scores)),
        *_STATUSES.splitlines(),
        *(f"{name}: {METRICS[name].description}" for name in first.metrics),
        f"{_SETTINGS}{json.dumps(_settings(first.measures))}",
        *([] if first.data is None else [f"{_LABELS}{first.data.model_dump_json(include=_OF_LABELS)}"]),
        f"cases: {summarise(first).cases}",
        f"{_UNPREDICTED}{len(first.unpredicted)} {json.dumps(first.unpredicted)}",
        *(line for scores in tables for line in _lines_of_summary(scores, len(tables) > 1)),
    ]


def _lines_of_convention(scores: Scores) -> list[str]:
    rules = CONVENTIONS[scores.convention]
    order = "each case's mean over its classes, then mean and n over cases"
    if rules.averages == "classes":
        order = "each class's mean over cases, then mean and n over classes"
    if any(score.is_region for score in scores):
        order += "; regions in place of classes" if rules.has_regions_for_classes else "; regions left out"
    return [
        f"convention: {scores.convention}",
        f"{scores.convention} is {rules.source}; distances in {scores.units}; hd95 is {rules.hd95}, asd is {rules.asd}",
        f"{scores.convention}, empty classes: {rules.says}",
        f"{scores.convention}, overall: {order}",
    ]


def _settings(measures: Measures) -> dict[str, Any]:
    return {
        "conventions": {name: measures.units_of(name) for name in measures.conventions},
        "units": measures.units,
        "tolerance": measures.tolerance,
        "tolerances": dict(measures.tolerances),
        "instances": list(measures.instances),
        "centreline": list(measures.centreline),
    }


def _lines_of_summary(scores: Scores, several: bool) -> list[str]:
    summary = summarise(scores)
    mark = f"{scores.convention}, " if several else ""
    shown = [metric for metric in _SHOWN if metric in CONVENTIONS[scores.convention].metrics and
             metric in scores.metrics]  # fmt: skip
    return [
        *(
            f"{mark}{'region' if row.is_region else 'class'} {row.class_name}: {_line(row, shown)}"
            for row in summary.classes
        ),
        f"{mark}overall: {_line(summary.overall, shown)}",
    ]


def _line(row: ClassSummary, metrics: Iterable[str]) -> str:
    numbers = ((metric, row.spread(metric)) for metric in metrics)
    means = [f"{metric} mean {digits(spread.mean) or '-'} (n {spread.n})" for metric, spread in numbers]
    counts = f"{row.scored} scored, {row.absent} absent, {row.missed} missed, {row.invented} invented"
    return "; ".join([counts, *means])


def _cells(score: ClassScore, metrics: Sequence[str]) -> list[str | int]:
    return [
        score.case, score.class_name, score.label, score.status, *(digits(score.value(name)) for name in metrics),
        score.prediction_voxels, score.reference_voxels,
    ]  # fmt: skip


def digits(value: float | None) -> str:
    """Return a number with six significant digits, or an empty text if it is undefined."""
    return "" if value is None else f"{value:.6g}"


# ---- read


def is_ours(first: str) -> bool:
    """Return whether a file with this first line is a table of medssl, possibly saved by a spreadsheet program."""
    return first.strip(' #"\t\r\n,;') == TITLE


def _parse_table(path: Path, lines: list[str]) -> dict[str, Scores]:
    """Return the scores of each convention, in the order of the file."""
    if lines and is_ours(lines[0]) and lines[0].strip() != f"# {TITLE}":
        raise DataError(f"{path}: a spreadsheet program has saved this table and changed its lines; use the file that "
                        "medssl evaluate wrote, or evaluate again")  # fmt: skip
    start = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    conventions, settings, unpredicted, data = _parse_comments(path, lines[:start])
    table = csv.reader(lines[start:])
    columns = next(table, [])
    metrics = _parse_columns(columns, f"{path}:{start + 1}")
    try:
        measures = Measures(conventions=tuple(conventions), metrics=metrics, **settings)
    except (ConfigError, TypeError) as error:
        raise DataError(f"{path}: {error}") from None
    files: dict[str, tuple[Path, Source]] = {}
    tables = {
        name: Scores(unpredicted=unpredicted, convention=name, measures=measures, data=data, files=files)
        for name in conventions
    }
    regions = () if data is None else data.region_places
    seen: set[tuple[str, str, int]] = set()
    for cells in table:
        where = f"{path}:{start + table.line_num}"
        if len(cells) != len(columns):
            raise DataError(f"{where}: expected {len(columns)} cells, found {len(cells)}; is the file cut short?")
        row = dict(zip(columns, cells, strict=True))
        convention = row.get("convention", "strict")
        if convention not in tables:
            raise DataError(f"{where}: expected convention {' or '.join(tables)}, found {convention!r}")
        score = _parse_row(row, metrics, convention, regions, where)
        if (convention, score.case, score.label) in seen:
            raise DataError(f"{where}: case {score.case} has label {score.label} twice")
        seen.add((convention, score.case, score.label))
        tables[convention].append(score)
        files[score.case] = (Path(row["prediction"]), Source.parse(row["reference"]))
    said = next((int(found[1]) for line in lines[:start] if (found := re.fullmatch(r"# cases: (\d+)\s*", line))), None)
    if said is not None and said != len(files):
        raise DataError(f"{path}: states that it has {said} cases, but has {len(files)}; it was cut short or changed, "
                        "so evaluate again")  # fmt: skip
    return tables


def _parse_comments(
    path: Path, lines: Sequence[str]
) -> tuple[list[str], dict[str, Any], list[str], DatasetConfig | None]:
    """Return the conventions, the settings, the references without a prediction, and the meaning of the labels.

    Raises:
        DataError: a convention is unknown, or a line is not as medssl writes it.
    """
    conventions, settings, unpredicted, data = [], {}, [], None
    for number, line in enumerate(lines, 1):
        text, where = line.removeprefix("#").strip(), f"{path}:{number}"
        if text.startswith("convention: "):
            name = text.removeprefix("convention: ")
            if name not in CONVENTIONS:
                raise DataError(f"{where}: expected convention {' or '.join(CONVENTIONS)}, found {name!r}")
            conventions.append(name)
        if text.startswith(_SETTINGS):
            settings = _parse_settings(text, where)
        if text.startswith(_UNPREDICTED):
            unpredicted = _parse_unpredicted(text, where)
        if text.startswith(_LABELS):
            data = _parse_labels(text, where)
    return conventions or ["strict"], settings, unpredicted, data


def _parse_settings(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text.removeprefix(_SETTINGS))
        return {
            "units": found["units"], "tolerance": float(found["tolerance"]), "tolerances": dict(found["tolerances"]),
            "instances": tuple(found["instances"]), "centreline": tuple(found["centreline"]),
        }  # fmt: skip
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{where}: expected settings as medssl writes them, found {text!r}") from None


def _parse_labels(text: str, where: str) -> DatasetConfig:
    try:
        return DatasetConfig.model_validate_json(text.removeprefix(_LABELS))
    except ValueError:
        raise DataError(f"{where}: expected labels as medssl writes them, found {text!r}") from None


def _parse_unpredicted(text: str, where: str) -> list[str]:
    try:
        return [str(case) for case in json.loads(text.removeprefix(_UNPREDICTED).partition(" ")[2])]
    except (ValueError, TypeError):
        raise DataError(f"{where}: expected a list of case ids, found {text!r}") from None


def _parse_columns(columns: list[str], where: str) -> tuple[str, ...]:
    """Return the metrics among the columns of a table, which may lack the column `convention`."""
    keys = list(KEYS if "convention" in columns else KEYS[1:])
    metrics = columns[len(keys) : -len(PLACES)]
    if columns != [*keys, *(name for name in METRICS if name in metrics), *PLACES] or not metrics:
        form = ",".join([*keys, "METRICS", *PLACES])
        raise DataError(f"{where}: expected the columns {form} with known metrics, found {','.join(columns)!r}")
    return tuple(metrics)


def _parse_row(
    row: Mapping[str, str], metrics: Sequence[str], convention: str, regions: Collection[str], where: str
) -> ClassScore:
    if row["status"] not in get_args(Status):
        raise DataError(f"{where}: expected a status of {', '.join(get_args(Status))}, found {row['status']!r}")
    try:
        score = ClassScore(
            case=row["case"],
            class_name=row["class"],
            label=int(row["label"]),
            status=row["status"],  # type: ignore[arg-type]  # checked above
            prediction_voxels=int(row["prediction_voxels"]),
            reference_voxels=int(row["reference_voxels"]),
            values={metric: _parse_number(metric, row[metric]) for metric in metrics},
            is_region=row["class"] in regions,
        )
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    if not _fits(score, convention):
        raise DataError(f"{where}: the numbers do not fit the status {score.status} under convention {convention}")
    return score


def _parse_number(metric: str, cell: str) -> float | None:
    if not cell:
        return None
    value = float(cell)
    if math.isnan(value) or (value < 0 and METRICS[metric].kind != "volume"):
        raise ValueError(f"{metric}: expected a number of 0 or more, or an empty cell, found {cell}")
    return value


def _fits(score: ClassScore, convention: str) -> bool:
    """Return whether exactly those overlaps and distances are defined that the convention defines for this status.

    Only the columns of the oldest tables are looked at, as the clearest sign of a damaged row.
    """
    overlap, distance = score.status != "absent", score.status == "scored"
    numbers = {"dice": 1.0, "iou": 1.0} if overlap else {}
    if distance:
        numbers |= {"hd95_max": 1.0, "hd95_pooled": 1.0, "assd": 1.0, "asd_directed": 1.0}
    columns = [name for name in _OLD_METRICS if name in score.values]
    expected = CONVENTIONS[convention].read(score.status, numbers, columns)
    return all((score.value(name) is None) == (expected[name] is None) for name in columns)
