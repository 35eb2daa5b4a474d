"""The job behind `medssl evaluate explain`: why two tables of scores differ, in words.

The tables are matched by case and class. Numbers that differ are recomputed from the label maps that the tables name,
by every rule known here, to find the rule that gives A's number and the one that gives B's. A number that no rule
gives is called unexplained.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl.data.cases import DatasetConfig
from medssl.data.grid import aligned
from medssl.data.labels import read_pair, read_prediction
from medssl.data.volume import Source, Volume
from medssl.errors import DataError
from medssl.foreign import ScoreTable, read_table
from medssl.metrics import CONVENTIONS, METRICS, Status, masks
from medssl.metrics.masks import Overlap
from medssl.metrics.scoring import voxel_volume
from medssl.metrics.surfaces import Distances, Mask, between, surface
from medssl.metrics.table import status_of
from medssl.words import by, listed

NAMED = 3
"""Number of examples listed for each reason."""
_TOLERANCES = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0)

_HD95: dict[str, Callable[[Distances], float]] = {
    "the larger of both directed 95th percentiles": masks.hd95_max,
    "the 95th percentile of both directions together": masks.hd95_pooled,
    "the mean of both directed 95th percentiles": lambda d: float(np.mean([np.percentile(each, 95) for each in d])),
    "the 95th percentile from prediction to reference": lambda d: float(np.percentile(d[0], 95)),
    "the largest distance": masks.hd,
}
_ASD: dict[str, Callable[[Distances], float]] = {
    "the mean of both directions together": masks.assd,
    "the mean from prediction to reference": masks.asd_directed,
    "the mean from reference to prediction": lambda d: float(d[1].mean()),
    "the mean of both directed means": lambda d: float(np.mean([each.mean() for each in d])),
}
_DEFINITIONS = {"hd95": _HD95, "hd95_max": _HD95, "hd95_pooled": _HD95, "hd": _HD95, "asd": _ASD, "assd": _ASD,
                "asd_directed": _ASD}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """A number that differs between the two tables; None means undefined."""

    case: str
    class_name: str
    metric: str
    a: float | None
    b: float | None

    def __str__(self) -> str:
        return f"{self.case}, {self.class_name}: {_say(self.a)} | {_say(self.b)}"


def explain(a: Path, b: Path) -> list[str]:
    """Explain in lines of text how and why two tables of scores differ.

    Args:
        a: medssl's scores.csv, another tool's CSV file, or nnU-Net's summary.json.
        b: the same.

    Raises:
        DataError: a file is not such a table, or the tables have no numbers in common.
    """
    one, other = read_table(Path(a)), read_table(Path(b))
    for place, table, beside in ((a, one, other), (b, other, one)):
        if not table.has_classes and len(beside.classes) > 1:
            of = listed(beside.classes, NAMED)
            raise DataError(f"{place}: needs a column `class`, because the other table has several classes: {of}")
    one.adopt_names(other)
    other.adopt_names(one)
    shared = sorted(one.cells.keys() & other.cells.keys())
    metrics = [name for name in METRICS if name in one.metrics and name in other.metrics]
    if not shared or not metrics:
        raise DataError(f"{a} and {b} have no numbers in common: A has {_contents(one)}; B has {_contents(other)}")
    lines = [f"A  {a}: {one.says}", f"B  {b}: {other.says}", *_coverage(one, other)]
    files, different = _compare_files(one, other, sorted({case for case, _ in shared}))
    lines += files
    for metric in metrics:
        cells = [(key, one.cells[key].get(metric), other.cells[key].get(metric)) for key in shared]
        slack = max(one.slack(metric), other.slack(metric))
        differing = [Difference(*key, metric, x, y) for key, x, y in cells if not _same(x, y, slack)]
        lines.append(f"{metric}: {len(differing)} of {len(cells)} numbers differ" if differing else
                     f"{metric}: all {len(cells)} numbers are the same")  # fmt: skip
        lines += [f"  {line}" for line in _reasons(differing, one, other, different)]
        lines += [f"  {line}" for line in _averages(metric, one, other)]
    return lines


# ---- cases, settings, files


def _coverage(one: ScoreTable, other: ScoreTable) -> Iterator[str]:
    for (here, table), (there, against) in [(("A", one), ("B", other)), (("B", other), ("A", one))]:
        alone = [case for case in table.cases if case not in against.cases]
        if alone:
            yield f"other cases: {listed(alone, NAMED)} in {here} only; {here}'s means include them, {there}'s do not"
        unmatched = sorted({name for _, name in table.cells} - {name for _, name in against.cells})
        if unmatched:
            yield f"other classes: {listed(unmatched, NAMED)} in {here} only"


def _compare_files(one: ScoreTable, other: ScoreTable, cases: Sequence[str]) -> tuple[list[str], set[str]]:
    """Return lines about differences between the label maps of both tables, and the cases that have any."""
    lines, different = [], set()
    for case in cases:
        if case not in one.files or case not in other.files or one.files[case] == other.files[case]:
            continue
        for role, mine, theirs in zip(("prediction", "reference"), one.files[case], other.files[case], strict=True):
            said = _compare_volumes(mine, theirs) if mine != theirs else None
            if said:
                different.add(case)
                lines.append(f"other files: {case}, {role}: {said}   A {mine}   B {theirs}")
    return lines, different


def _compare_volumes(mine: Source, theirs: Source) -> str | None:
    one, other = _read(mine), _read(theirs)
    if one is None or other is None:
        return "a file is missing or cannot be read, so they cannot be compared"
    other = aligned(other, one)
    if one.shape != other.shape:
        return f"{by(one.shape)} voxels in A, {by(other.shape)} in B"
    if not np.allclose(one.spacing, other.spacing, rtol=1e-4):
        return f"other spacing: {by(one.spacing)} mm in A, {by(other.spacing)} mm in B"
    voxels = int((one.array != other.array).sum())
    return f"{voxels} voxels differ" if voxels else None


# ---- why


def _reasons(differing: Sequence[Difference], one: ScoreTable, other: ScoreTable, different: set[str]) -> Iterator[str]:
    """Yield the differences of one metric grouped by reason, the most frequent first."""
    rules = [(_rules(each, each.a, one, other), _rules(each, each.b, other, one)) for each in differing]
    liked: list[Counter[str]] = [Counter(rule for pair in rules for rule in pair[side] or ()) for side in (0, 1)]
    groups: dict[str, list[Difference]] = {}
    for each, (mine, theirs) in zip(differing, rules, strict=True):
        groups.setdefault(_reason(mine, theirs, liked, each.case in different), []).append(each)
    for reason, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        examples = "; ".join(map(str, members[:NAMED])) + ("; ..." if len(members) > NAMED else "")
        yield f"{len(members)} {reason}   ({examples})"


def _reason(
    mine: Sequence[str] | None, theirs: Sequence[str] | None, liked: Sequence[Counter[str]], files_differ: bool
) -> str:
    if mine is None or theirs is None:
        return "unexplained: the label maps or the label value are unknown, so the number cannot be recomputed"
    common = [rule for rule in mine if rule in theirs]
    if common and files_differ:
        return f"by other files: both are {common[0]}"
    if not mine or not theirs:
        lost = " and ".join(name for name, rules in [("A's", mine), ("B's", theirs)] if not rules)
        known = "".join(f"; {name} is {rules[0]}" for name, rules in [("A", mine), ("B", theirs)] if rules)
        return f"unexplained: no rule gives {lost} number from the files{known}"
    a, b = (_likeliest(rules, counts) for rules, counts in zip((mine, theirs), liked, strict=True))
    return f"by rule: A is {a}, B is {b}" if a != b else f"by rounding: both are {a}"


def _likeliest(rules: Sequence[str], counts: Counter[str]) -> str:
    """Return the rule that explains most numbers of a table; if several tie, the first two."""
    most = max(counts[rule] for rule in rules)
    return " or ".join([rule for rule in rules if counts[rule] == most][:2])


def _rules(each: Difference, value: float | None, table: ScoreTable, against: ScoreTable) -> list[str] | None:
    """Return the rules that give a table's number from its label maps, or else from the other table's.

    None if the label maps or the label value are unknown.
    """
    owner = table if each.case in table.files else against
    labels = table.labels if each.class_name in table.labels else against.labels
    if each.case not in owner.files or each.class_name not in labels:
        return None
    data = owner.scores.data if owner.scores else None
    places = labels[each.class_name]
    volumes = _read_pair(owner.files[each.case], "" if data is None else data.model_dump_json())
    if volumes is None:
        return None
    reference = volumes[1]
    pair = (np.isin(volumes[0].array, places), np.isin(volumes[1].array, places))
    status = status_of(bool(pair[0].any()), bool(pair[1].any()))
    if status != "scored" and (said := _rule_of_empty(status, each.metric, value)):
        return [said]
    slack = table.slack(each.metric)
    tolerances = [table.tolerance_of(each.class_name), against.tolerance_of(each.class_name), *_TOLERANCES]
    readings = _readings(each.metric, pair, reference.steps, status, tolerances)
    found = [rule for rule, number in readings if number is not None and _same(number, value, slack)]
    stated = _stated(table, each)
    return [stated] if stated in found else found


def _stated(table: ScoreTable, each: Difference) -> str | None:
    """Return the rule that a table of medssl states for NSD or a distance metric; None if it states none."""
    if table.scores is None:
        return None
    unit = "in mm" if table.scores.units == "mm" else "in voxels"
    if each.metric == "nsd":
        return f"the share within {table.tolerance_of(each.class_name):g}, {unit}"
    rules = CONVENTIONS[table.scores.convention]
    meant = getattr(masks, {"hd95": rules.hd95, "asd": rules.asd}.get(each.metric, each.metric), None)
    definitions = _DEFINITIONS.get(each.metric, {})
    return next((f"{rule}, {unit}" for rule, function in definitions.items() if function is meant), None)


def _rule_of_empty(status: Status, metric: str, value: float | None) -> str | None:
    """Return the rule of a table for a class that is not in both volumes; None for volumes and instances."""
    if METRICS[metric].kind in ("volume", "instances"):
        return None
    also = [name for name, rules in CONVENTIONS.items() if name != "strict" and metric in rules.metrics and
            _same(rules.read(status, {"dice": 0.0, "iou": 0.0} if status != "absent" else {}, [metric])[metric], value,
                  1e-3)]  # fmt: skip
    as_in = f", as in {' and '.join(also)}" if also else ""
    return f"undefined for {status} classes{as_in}" if value is None else f"{_say(value)} for {status} classes{as_in}"


def _readings(
    metric: str, pair: tuple[Mask, Mask], steps: NDArray[np.float64], status: Status, tolerances: Sequence[float]
) -> Iterator[tuple[str, float | None]]:
    """Yield each rule that goes by the metric's name and the number that it gives, likely ones first."""
    overlap = Overlap.of(*pair)
    if metric in _DEFINITIONS or metric == "nsd":
        if status != "scored":
            return
        ours, theirs = map(surface, pair)
        for unit, grid in _grids(steps):
            distances = between(ours, theirs, grid)
            if metric == "nsd":
                for tolerance in tolerances:
                    yield f"the share within {tolerance:g}, {unit}", masks.nsd(distances, tolerance)
            for rule, function in _DEFINITIONS.get(metric, {}).items():
                yield f"{rule}, {unit}", function(distances)
        return
    if metric == "boundary_iou":
        yield "the IoU of the two surfaces", Overlap.of(*map(surface, pair)).iou
    if metric == "volume_difference":
        yield "|P| - |R| in ml", (overlap.prediction - overlap.reference) * voxel_volume(steps) / 1000
    if metric == "relative_volume":
        yield "|P| - |R| over |R|, in percent", overlap.relative_volume
    overlaps = {"dice": overlap.dice, "iou": overlap.iou, "precision": overlap.precision, "recall": overlap.recall}
    if metric not in overlaps:
        return
    # The metric itself comes first, then those that it may be confused with.
    for name in sorted(overlaps, key=lambda name: name != metric):
        title, value = METRICS[name].title + " of the volume", overlaps[name]
        yield title, value
        yield f"{title} in percent", None if value is None else 100 * value
    if metric in ("dice", "iou"):
        for axis in range(pair[0].ndim):
            slices = [getattr(Overlap.of(*both), metric) for both in zip(*(np.moveaxis(m, axis, 0) for m in pair),
                                                                          strict=True)]  # fmt: skip
            filled = [value for value in slices if value is not None]
            yield f"the mean over slices across axis {axis}, empty ones left out", float(np.mean(filled or [0]))
            full = [1.0 if value is None else value for value in slices]
            yield f"the mean over slices across axis {axis}, empty ones counting 1", float(np.mean(full))


def _grids(steps: NDArray[np.float64]) -> list[tuple[str, NDArray[np.float64]]]:
    sides = steps if steps.ndim == 1 else np.linalg.norm(steps, axis=0)
    straight = [] if steps.ndim == 1 else [("in mm with the axes taken as perpendicular", sides)]
    turned = [("in mm with the axes of the spacing reversed", sides[::-1])] if (sides != sides[::-1]).any() else []
    return [("in mm", steps), ("in voxels", np.ones(len(sides))), *straight, *turned]


# ---- averages


def _averages(metric: str, one: ScoreTable, other: ScoreTable) -> Iterator[str]:
    """Explain the two overall means if the tables average in different ways and the means differ."""
    a, b = one.overall(metric, one.averages), other.overall(metric, other.averages)
    if one.averages == other.averages or _same(a, b, max(one.slack(metric), other.slack(metric))):
        return
    yield (
        f"averaged differently: {_say(a)} in A, a mean over {one.averages}; {_say(b)} in B, a mean over "
        f"{other.averages}; A's numbers averaged as B's give {_say(one.overall(metric, other.averages))}"
    )


# ---- small things


@lru_cache(maxsize=4)
def _read(source: Source) -> Volume | None:
    try:
        return read_prediction(source)  # references have no predictions.json beside them
    except DataError:
        return None


@lru_cache(maxsize=2)
def _read_pair(files: tuple[Source, Source], data: str) -> tuple[Volume, Volume] | None:
    """Return prediction and reference as they were compared; None if they cannot be read.

    Args:
        data: the meaning of the labels by the table, as JSON.
    """
    config = DatasetConfig.model_validate_json(data) if data else None
    try:
        return read_pair(*files, config)
    except DataError:
        return None


def _same(x: float | None, y: float | None, slack: float) -> bool:
    """Return whether two numbers are equal within the digits that were written."""
    if x is None or y is None:
        return x is y
    return x == y or (math.isfinite(x) and math.isfinite(y) and abs(x - y) <= slack + 1e-5 * max(abs(x), abs(y)))


def _say(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.6g}"


def _contents(table: ScoreTable) -> str:
    cases, classes = listed(table.cases, NAMED), listed(table.classes, NAMED)
    return f"cases {cases} and classes {classes} with {', '.join(table.metrics)}"
