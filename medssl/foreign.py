"""Reading tables of scores, of medssl and of other tools, into one form for comparison."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medssl.data.io import SUFFIXES, case_id
from medssl.data.volume import Source
from medssl.errors import DataError
from medssl.files import separator
from medssl.metrics import CONVENTIONS, METRICS
from medssl.metrics.conventions import TOLERANCE
from medssl.score_file import is_ours, read_scores
from medssl.scores import Scores, counted

Averages = Literal["cases", "classes"]
_CASES = ("case", "case_id", "caseid", "id", "name", "file", "filename", "subject", "patient", "image")
_CLASSES = ("class", "class_name", "label", "structure", "organ", "region")
_METRICS = {
    "dice": ("dice", "dsc", "dc", "dice_score", "meandice"),
    "iou": ("iou", "jaccard", "jc", "jaccard_index"),
    "hd95": ("hd95", "95hd", "hausdorff95", "hausdorff_95", "hd_95", "hausdorff_distance_95"),
    "hd": ("hd", "hausdorff", "hausdorff_distance"),
    "asd": ("asd", "average_surface_distance"),
    "assd": ("assd", "average_symmetric_surface_distance"),
    "nsd": ("nsd", "surface_dice", "normalized_surface_dice"),
    "precision": ("precision", "ppv"),
    "recall": ("recall", "sensitivity"),
}
"""Names of the metrics here and elsewhere; `medssl evaluate explain` finds out whether they mean the same."""

_UNIT = re.compile(r"[\[(]?(%|(?<![a-z])(mm|voxels?))[\])]?$")
"""A unit at the end of a column's name in lower case."""


@dataclass
class ScoreTable:
    """Numbers by case and class, and what is known about how they were computed."""

    says: str
    """What kind of table it is and which rules it states, for the user."""
    cells: dict[tuple[str, str], dict[str, float | None]]
    """The number of each metric, by case and class."""
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The label value of each class, or the values of all classes of a region."""
    files: dict[str, tuple[Source, Source]] = field(default_factory=dict)
    """Prediction and reference by case."""
    averages: Averages = "cases"
    scores: Scores | None = None
    rounding: dict[str, float] = field(default_factory=dict)
    """Largest rounding error of another tool's numbers by metric, from the decimals that it wrote."""
    has_classes: bool = True
    """Whether the table says which class a number belongs to."""
    left_out: frozenset[str] = frozenset()
    """Classes or regions that do not enter its overall mean."""

    @property
    def cases(self) -> list[str]:
        """The case ids, sorted."""
        return sorted({case for case, _ in self.cells})

    @property
    def classes(self) -> list[str]:
        """The names of classes and regions, sorted."""
        return sorted({name for _, name in self.cells})

    @property
    def metrics(self) -> list[str]:
        """The metrics with at least one number, in table order."""
        found = {name for values in self.cells.values() for name, value in values.items() if value is not None}
        return [name for name in METRICS if name in found]

    def slack(self, metric: str) -> float:
        """Return how far a written number may be from the exact one."""
        return self.rounding.get(metric, 1e-9)

    def tolerance_of(self, class_name: str) -> float:
        """Return the NSD tolerance of a class; for other tools' tables the default."""
        return TOLERANCE if self.scores is None else self.scores.measures.tolerance_of(class_name)

    def adopt_names(self, other: ScoreTable) -> None:
        """Rename classes that are named by their label value here to the names that another table has for them."""
        theirs = {labels: name for name, labels in other.labels.items()}
        own = {name: _labels_in(name) for _, name in self.cells}
        names = {name: theirs.get(said, name) if self.labels.get(name, said) == said else name
                 for name, said in own.items()}  # fmt: skip
        self.cells = {(case, names[name]): values for (case, name), values in self.cells.items()}
        self.labels = {names[name]: labels for name, labels in self.labels.items()}

    def overall(self, metric: str, averages: Averages) -> float | None:
        """Return the overall mean of a metric: over cases of each case's mean over classes, or the other way round.

        None if there is no number, or, averaged over classes, if a class has none.
        """
        groups: dict[str, list[float]] = {}
        for key, values in self.cells.items():
            if key[1] in self.left_out:
                continue
            found = groups.setdefault(key[0 if averages == "cases" else 1], [])
            if (value := values.get(metric)) is not None:
                found.append(value)
        means = [statistics.fmean(found) for found in groups.values() if found]
        incomplete = averages == "classes" and len(means) < len(groups)
        return None if incomplete or not means else statistics.fmean(means)


def read_table(path: Path) -> ScoreTable:
    """Read medssl's scores.csv, nnU-Net's summary.json, or a CSV file with a row per case, or per case and class.

    Raises:
        DataError: the file is none of these or cannot be read.
    """
    try:
        if path.suffix == ".json":
            return _read_nnunet(path)
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a table of scores: {error}") from None
    try:
        return _read_ours(path) if is_ours(text.partition("\n")[0]) else _read_csv(path, text)
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as a table of scores: {error}; is a quote left open?") from None


def _read_ours(path: Path) -> ScoreTable:
    scores = read_scores(path)
    rules, regions = CONVENTIONS[scores.convention], {} if scores.data is None else scores.data.region_places
    return ScoreTable(
        says=f"medssl, convention {scores.convention} ({rules.source}), {scores.units}, {rules.hd95}, {rules.asd}, "
        f"tolerance {scores.measures.tolerance:g}"
        + "".join(f", {name} {value:g}" for name, value in scores.measures.tolerances.items())
        + f"; empty classes: {rules.says}",
        cells={(score.case, score.class_name): dict(score.values) for score in scores},
        labels={s.class_name: tuple(sorted(regions.get(s.class_name, (s.label,)))) for s in scores},
        files={case: (Source(prediction), reference) for case, (prediction, reference) in scores.files.items()},
        averages=rules.averages,
        scores=scores,
        left_out=frozenset({score.class_name for score in scores} - {score.class_name for score in counted(scores)}),
    )


def _read_nnunet(path: Path) -> ScoreTable:
    table = ScoreTable(f"nnU-Net's summary; {CONVENTIONS['nnunet'].says}", {}, averages="classes")
    try:
        for entry in json.loads(path.read_text(encoding="utf-8"))["metric_per_case"]:
            prediction, reference = Source(Path(entry["prediction_file"])), Source(Path(entry["reference_file"]))
            case = case_id(prediction.path)
            table.files[case] = (prediction, reference)
            for name, values in entry["metrics"].items():
                table.cells[case, name] = {"dice": _number(values["Dice"]), "iou": _number(values["IoU"])}
                if labels := _labels_in(name):
                    table.labels[name] = labels
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: expected a summary.json as nnU-Net writes it: {error!r}") from None
    return table


def _read_csv(path: Path, text: str) -> ScoreTable:
    lines = ["" if line.startswith("#") else line for line in text.splitlines()]
    start = next((number for number, line in enumerate(lines) if line.strip()), 0)
    content = io.StringIO("\n".join(lines[start:]))
    between = separator(content)
    rows = csv.DictReader(content, delimiter=between)
    names = [name for name in rows.fieldnames or () if name]
    # If names differ only in their unit, the one without a unit is taken, or else the first.
    columns = {_plain(name): name for name in reversed(names)}
    columns |= {_plain(name): name for name in names if not _UNIT.search(name.strip().lower())}
    case, class_name = _first(_CASES, columns), _first(_CLASSES, columns)
    metrics = {ours: found for ours, theirs in _METRICS.items() if (found := _first(theirs, columns))}
    if case is None or not metrics:
        raise DataError(
            f"{path}: expected a column of cases ({', '.join(_CASES[:3])} ...) and columns of metrics "
            f"({', '.join(_METRICS)}), found {', '.join(columns) or 'none'}"
        )
    says = f"a CSV file with {', '.join(metrics.values())}; its rules are unknown"
    table = ScoreTable(says, {}, has_classes=class_name is not None)
    digits: dict[str, int] = {}
    for row in rows:
        key = (_case(row[case] or ""), (row[class_name] or "") if class_name else "1")
        if key in table.cells:
            of = f"class {key[1]} of " if class_name else ""
            where = f"{path}:{start + rows.line_num}"
            raise DataError(f"{where}: {of}case {key[0]} occurs a second time; if there is a row per class, name the "
                            f"columns `{_CASES[0]}` and `{_CLASSES[0]}`")  # fmt: skip
        written = {ours: row[theirs] or "" for ours, theirs in metrics.items()}
        if between != ",":  # a comma may then be the decimal separator
            written = {ours: cell.replace(",", ".") for ours, cell in written.items()}
        try:
            table.cells[key] = {ours: _number(cell) for ours, cell in written.items()}
        except ValueError as error:
            raise DataError(f"{path}:{start + rows.line_num}: {error}") from None
        for ours, cell in written.items():
            digits[ours] = max(digits.get(ours, 0), _decimals(cell))
    for ours, most in digits.items():
        is_share = all((values[ours] or 0) <= 1 for values in table.cells.values())
        table.rounding[ours] = min(0.51 * 10.0**-most, 0.005 if is_share else math.inf)
    return table


def _labels_in(name: str) -> tuple[int, ...]:
    """Return the label values that a name consists of: `2`, or `(1, 2)` for a region of nnU-Net; otherwise none."""
    return tuple(sorted(map(int, re.findall(r"\d+", name)))) if re.fullmatch(r"\d+|\(\d+(, \d+)*,?\)", name) else ()


def _plain(head: str) -> str:
    """Return a column's name without its unit: `HD95 (mm)` and `Dice [%]` become hd95 and dice."""
    return re.sub(r"\W+", "_", _UNIT.sub("", head.strip().lower())).strip("_")


def _first(names: Iterable[str], columns: Mapping[str, str]) -> str | None:
    return next((columns[name] for name in names if name in columns), None)


def _case(cell: str) -> str:
    name = Path(cell.strip()).name
    return case_id(Path(name)) if name.endswith(SUFFIXES) else name


def _decimals(cell: str) -> int:
    if "e" in cell.lower():
        return 9
    return len(cell.strip().partition(".")[2])


def _number(cell: Any) -> float | None:
    """Return the number in a cell; None for an empty cell or NaN."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    value = float(cell)
    return None if math.isnan(value) else value
