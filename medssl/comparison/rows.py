"""Runs grouped into rows, and the differences between rows by patient, with intervals and corrected tests."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from medssl.comparison.runs import Key, Run, Structure, case_values, gathered
from medssl.metrics import CONVENTIONS, METRICS, Convention, Units
from medssl.palette import STYLES, method_colours
from medssl.scores import Scores, Summary, counted, summarise
from medssl.statistics import (
    DISTANCES,
    POINTS,
    Comparison,
    Description,
    Interval,
    Ranking,
    Scale,
    Values,
    bootstrap_mean,
    corrected,
    describe,
    paired,
    rank,
)  # fmt: skip

BASELINE = "supervised"


class CurvePoint(NamedTuple):
    """The values of a logged number at one step, from the runs of a row."""

    step: int
    values: Sequence[float]
    """One per run that logged it at this step."""

    @property
    def mean(self) -> float:
        """Mean over runs."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Standard deviation over runs; None for a single run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """Runs that should differ only in their draw of labelled cases and their seed, in order of seed."""

    key: Key
    runs: tuple[Run, ...]
    name: str
    colour: str
    style: str

    @property
    def scored(self) -> tuple[Run, ...]:
        """The runs that have scores."""
        return tuple(run for run in self.runs if run.scores is not None)

    @cached_property
    def scores(self) -> Scores | None:
        """The scores of all its runs, in which a case occurs once per run; None if no run is scored."""
        tables = [run.scores for run in self.runs if run.scores is not None]
        if not tables:
            return None
        renamed = (replace(score, case=f"{i} {score.case}") for i, table in enumerate(tables) for score in table)
        return Scores(renamed, convention=tables[0].convention, measures=tables[0].measures, data=tables[0].data)

    @cached_property
    def summary(self) -> Summary | None:
        """The summary of its scores, by their convention; None if no run is scored."""
        return None if self.scores is None else summarise(self.scores)

    @property
    def minutes(self) -> float:
        """Time of the training steps of a run, as the mean over its runs."""
        return statistics.fmean(run.minutes for run in self.runs)

    @property
    def cases(self) -> int:
        """Number of different cases on which any of its runs was scored."""
        return len({score.case for run in self.scored for score in run.scores or ()})

    @cached_property
    def case_dice(self) -> dict[str, float]:
        """Mean Dice of each case over runs."""
        return gathered(pair for run in self.scored for pair in run.case_dice.items())

    def curve(self, name: str) -> list[CurvePoint]:
        """Return a logged number of all its runs at each step."""
        by_step: dict[float, list[float]] = defaultdict(list)
        for run in self.runs:
            for step, value in zip(*run.curve(name), strict=True):
                by_step[step].append(value)
        return [CurvePoint(int(step), values) for step, values in sorted(by_step.items())]

    @property
    def last_gain(self) -> float | None:
        """Gain of validation Dice from the fourth fifth of the steps to the last: near 0 if training has settled.

        A fifth's value is the mean over its validations. The gain is the mean over the runs that validated in both
        fifths; None without such a run.
        """
        gains = []
        for run in self.runs:
            fifths: dict[int, list[float]] = {4: [], 5: []}
            for step, value in zip(*run.curve("val/dice"), strict=True):
                fifths.setdefault(math.ceil(5 * step / self.key.steps), []).append(value)
            if fifths[4] and fifths[5]:
                gains.append(statistics.fmean(fifths[5]) - statistics.fmean(fifths[4]))
        return statistics.fmean(gains) if gains else None

    def values(self, metric: str = "dice", structures: Collection[Structure] | None = None) -> Values:
        """Return a value per patient for each run: the mean over the patient's cases of each case's mean over classes.

        Args:
            structures: the cases and classes to use; None: those for which all of its runs have a number.
        """
        if structures is None:
            structures = numbered(self.scored, metric)
        return {
            replicate: gathered(
                (run.patients.get(case, case), value)
                for run in self.scored
                if run.replicate == replicate
                for case, value in case_values(run, metric, structures).items()
            )
            for replicate in {run.replicate for run in self.scored}
        }

    def interval(self, metric: str = "dice") -> Interval | None:
        """Mean over patients with its 95 % bootstrap interval, kept within 0 to 1 for shares; None without a value."""
        values = self.values(metric)
        if not any(values.values()):
            return None
        found = bootstrap_mean(values)
        if found.low is None or found.high is None or not METRICS[metric].higher_is_better:
            return found
        return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))

    def describe(self, metric: str = "dice") -> Description | None:
        """Describe the distribution over patients; None without a value."""
        values = self.values(metric)
        return describe(values) if any(values.values()) else None


@dataclass(frozen=True)
class Gain:
    """The difference of a row from another, its baseline, over the cases that both have."""

    comparison: Comparison
    baseline: Row


def make_rows(runs: Sequence[Run]) -> list[Row]:
    """Group runs by key into rows, ordered by labelled count, then augmentation, the baseline first within each."""
    groups: dict[Key, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.key].append(run)
    presets = list(dict.fromkeys(key.augment for key in groups))
    keys = sorted(groups, key=lambda key: (key.labelled, presets.index(key.augment), key.method != BASELINE))
    colours = method_colours(key.method for key in keys)
    styles: dict[str, Iterator[str]] = defaultdict(lambda: itertools.cycle(STYLES))
    return [
        Row(key, tuple(sorted(groups[key], key=lambda run: (run.seed, run.replicate.draw))), _name(key, keys),
            colours[key.method], next(styles[key.method]))
        for key in keys
    ]  # fmt: skip


def _name(key: Key, keys: Sequence[Key]) -> str:
    """Method and labelled count; augmentation and steps if rows differ in them; network if a method has several."""
    own = [other for other in keys if other.method == key.method]
    says = [
        (keys, "augment", f"{key.augment} augmentation"),
        (keys, "steps", f"{key.steps:,} steps"),
        (own, "network", key.network),
    ]
    varying = [text for among, field, text in says if len({getattr(other, field) for other in among}) > 1]
    return ", ".join([f"{key.method}, {key.labelled} labelled", *varying])


def convention_of(rows: Sequence[Row]) -> Convention:
    """Return the convention by which all rows were scored; `load_runs` makes sure that there is only one."""
    return CONVENTIONS[next((row.scores.convention for row in rows if row.scores is not None), "strict")]


def units_of(rows: Sequence[Row]) -> Units:
    """Return the unit of the distances of all rows; `load_runs` makes sure that there is only one."""
    return next((row.scores.units for row in rows if row.scores is not None), "mm")


def scale_of(metric: str, units: Units = "mm") -> Scale:
    """Return the unit and direction of a metric: shares (0 to 1) in points, distances in the unit of the scores.

    Raises:
        ValueError: neither larger nor smaller values of the metric are better.
    """
    facts = METRICS[metric]
    if facts.higher_is_better is None:
        raise ValueError(f"{metric}: neither larger nor smaller numbers are better, so it cannot compare methods")
    return POINTS if facts.higher_is_better else DISTANCES[units]


def gains(rows: Sequence[Row], metric: str = "dice", reference: str = BASELINE) -> list[Gain | None]:
    """Compare each row with the reference method's row of the same labelled count, the most similar one of several.

    p-values are corrected over the rows that share a reference row. The gain is None for rows of the reference method
    itself, and where there is no such row or no shared case.
    """
    found = [_gain(row, reference_row(row, rows, metric, reference), metric) for row in rows]
    families: dict[Key, list[Comparison]] = defaultdict(list)
    for gain in found:
        if gain is not None:
            families[gain.baseline.key].append(gain.comparison)
    told = {key: iter(corrected(family)) for key, family in families.items()}
    return [gain and replace(gain, comparison=next(told[gain.baseline.key])) for gain in found]


def rank_rows(rows: Sequence[Row], metric: str = "dice") -> dict[int, Ranking]:
    """Rank the scored rows of each labelled count that has at least two of them.

    Only the classes of cases that all these rows share are used; a count without any is left out.
    """
    found = {}
    for labelled in dict.fromkeys(row.key.labelled for row in rows):
        members = [row for row in rows if row.key.labelled == labelled and any(row.values(metric).values())]
        shared = shared_structures(members, metric)
        if len(members) > 1 and shared:
            values = {row.name: row.values(metric, shared) for row in members}
            found[labelled] = rank(values, higher_is_better=scale_of(metric).higher_is_better)
    return found


def _gain(row: Row, baseline: Row | None, metric: str) -> Gain | None:
    """The gain of a row with an uncorrected p-value."""
    shared = set() if baseline is None else shared_structures([row, baseline], metric)
    if baseline is None or not shared:
        return None
    return Gain(paired(row.values(metric, shared), baseline.values(metric, shared)), baseline)


def reference_row(row: Row, rows: Sequence[Row], metric: str, method: str) -> Row | None:
    """Return the row of a method that a row is compared with: the same labelled count, otherwise the most similar."""
    if row.key.method == method:
        return None
    ours = row.key

    def nearness(other: Row) -> tuple[bool, bool, int, int, str]:
        theirs = other.key
        return (theirs.augment == ours.augment, theirs.network == ours.network, -abs(theirs.steps - ours.steps),
                theirs.steps, other.name)  # fmt: skip

    others = [r for r in rows if r.key.method == method and r.key.labelled == ours.labelled]
    return max((other for other in others if any(other.values(metric).values())), key=nearness, default=None)


def shared_structures(rows: Sequence[Row], metric: str) -> set[Structure]:
    """Return what rows are compared on: classes of cases that each row has, where all their runs have a number."""
    cases = [{score.case for run in row.scored for score in run.scores or ()} for row in rows]
    shared = set.intersection(*cases) if cases else set()
    return {one for one in numbered([run for row in rows for run in row.scored], metric) if one[0] in shared}


def numbered(runs: Sequence[Run], metric: str) -> set[Structure]:
    """Return the classes of cases for which all runs that were scored on the case have a finite number.

    A class that is in neither volume has no Dice, one that was invented has a Dice of 0, and one that was missed has no
    distance. If each run used all of its own numbers, the means of two runs would be over different structures.
    """
    scores = [score for run in runs for score in counted(run.scores or Scores())]
    without = {(s.case, s.class_name) for s in scores if not _is_finite(s.value(metric))}
    return {(s.case, s.class_name) for s in scores} - without


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
