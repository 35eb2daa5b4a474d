"""Tables of scores, ours and other tools', in one form to compare them in."""

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
"""Our names, and what others call the same; `medssl evaluate explain` finds out whether it is the same."""

_UNIT = re.compile(r"[\[(]?(%|(?<![a-z])(mm|voxels?))[\])]?$")
"""What a column's name may end in, in small letters."""


@dataclass
class ScoreTable:
    """Numbers by case and class, and what is known about how they came about."""

    says: str
    cells: dict[tuple[str, str], dict[str, float | None]]
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By class, or region: of its classes."""
    files: dict[str, tuple[Source, Source]] = field(default_factory=dict)
    """Prediction and reference by case."""
    averages: Averages = "cases"
    scores: Scores | None = None
    rounding: dict[str, float] = field(default_factory=dict)
    """What rounding to the decimals that another tool wrote may have changed, by metric."""
    has_classes: bool = True
    """Whether it says of which class a number is."""
    left_out: frozenset[str] = frozenset()
    """Regions, or classes beside them, that its headline mean does not count."""

    @property
    def cases(self) -> list[str]:
        """Their ids, sorted."""
        return sorted({case for case, _ in self.cells})

    @property
    def classes(self) -> list[str]:
        """Their names, regions among them, sorted."""
        return sorted({name for _, name in self.cells})

    @property
    def metrics(self) -> list[str]:
        """Those with a number somewhere, in table order."""
        found = {name for values in self.cells.values() for name, value in values.items() if value is not None}
        return [name for name in METRICS if name in found]

    def slack(self, metric: str) -> float:
        """How far a number may be from what was measured."""
        return self.rounding.get(metric, 1e-9)

    def tolerance_of(self, class_name: str) -> float:
        """Of NSD."""
        return TOLERANCE if self.scores is None else self.scores.measures.tolerance_of(class_name)

    def adopt_names(self, other: ScoreTable) -> None:
        """Call classes that go by their label value here by the names that another table has for them."""
        theirs = {labels: name for name, labels in other.labels.items()}
        own = {name: _labels_in(name) for _, name in self.cells}
        names = {name: theirs.get(said, name) if self.labels.get(name, said) == said else name
                 for name, said in own.items()}  # fmt: skip
        self.cells = {(case, names[name]): values for (case, name), values in self.cells.items()}
        self.labels = {names[name]: labels for name, labels in self.labels.items()}

    def overall(self, metric: str, averages: Averages) -> float | None:
        """The mean over cases of each one's mean over classes, or the other way round."""
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
        DataError: the file is none of these.
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
    columns = {_plain(name): name for name in reversed(names)}  # of two units the first, and before both a plain name
    columns |= {_plain(name): name for name in names if not _UNIT.search(name.strip().lower())}
    case, class_name = _first(_CASES, columns), _first(_CLASSES, columns)
    metrics = {ours: found for ours, theirs in _METRICS.items() if (found := _first(theirs, columns))}
    if case is None or not metrics:
        raise DataError(
            f"{path}: expected a column of cases ({', '.join(_CASES[:3])} ...) and metrics ({', '.join(_METRICS)}), "
            f"found {', '.join(columns) or 'nothing'}"
        )
    says = f"a CSV file with {', '.join(metrics.values())}; its rules are unknown"
    table = ScoreTable(says, {}, has_classes=class_name is not None)
    digits: dict[str, int] = {}
    for row in rows:
        key = (_case(row[case] or ""), (row[class_name] or "") if class_name else "1")
        if key in table.cells:
            of = f"class {key[1]} of " if class_name else ""
            where = f"{path}:{start + rows.line_num}"
            raise DataError(f"{where}: {of}case {key[0]} a second time; where rows are of classes, call "
                            f"their column `{_CLASSES[0]}`, and that of cases `{_CASES[0]}`")  # fmt: skip
        written = {ours: row[theirs] or "" for ours, theirs in metrics.items()}
        if between != ",":  # then a comma may stand before decimals
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
    """The labels that a name consists of, as `2`, or `(1, 2)` of a region in nnU-Net's summary; else none."""
    return tuple(sorted(map(int, re.findall(r"\d+", name)))) if re.fullmatch(r"\d+|\(\d+(, \d+)*,?\)", name) else ()


def _plain(head: str) -> str:
    """A column's name without its unit: `HD95 (mm)` and `Dice [%]` are hd95 and dice."""
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
    """A number; None for an empty cell and NaN."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    value = float(cell)
    return None if math.isnan(value) else value
