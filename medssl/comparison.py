"""Runs read from their folders, gathered into rows that differ by their draw and seed only, and compared by patient.

    rows = make_rows(load_runs(paths))             one Row per method, labelled count, augmentation, steps, network
    row.interval("dice")                           mean over patients with its 95 % interval (None when not scored)
    row.describe("dice")                           mean, sd, median, percentiles, sd of the trainings' means
    gains(rows, "dice")                            a Gain or None per row: against supervised with as many labels,
                                                   p corrected (Holm) over the rows that share a baseline
    gains(rows, "dice", reference="bcp")           the same against another method
    gain_over_baseline(row, rows)                  the entry of one row, where no other is needed
    compare(row, other, "dice")                    a Comparison of any two rows, uncorrected
    verdict(gain.comparison, scale_of("dice"))     "better by 1.8 points (95 % interval 0.9 to 2.7)"
    rank_rows(rows, "dice")                        a Ranking per labelled count with two scored rows or more
    comparison_table(rows, "dice")                 a TableRow of plain numbers per row, against one reference or several
    table_cells(table, "dice")                     the same as text, heads first, for terminals, CSV and Markdown

A metric is a name of `ClassScore`. A case's value is the mean over the classes where it is defined; a patient's the
mean over cases; where a run does not know its patients each case is one, and `notes` says so. Replicates are
(draw, seed), a draw being the labelled and unlabelled cases. Numbers stay as scores.csv has them (Dice from 0 to 1,
distances in mm) but for `Gain.points` and `table_cells`; nothing is drawn or rendered here. How intervals and tests
are made is told in `medssl.statistics`.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from medssl.config import load_yaml
from medssl.data.volume import Source
from medssl.errors import ConfigError, DataError
from medssl.figures import STYLES, method_colours
from medssl.logs import read_metrics, training_seconds
from medssl.metrics import METRICS
from medssl.scores import Scores, Spread, Summary, counted, read_scores, summarise
from medssl.statistics import (
    MILLIMETRES,
    POINTS,
    Comparison,
    Description,
    Interval,
    Ranking,
    Replicate,
    Scale,
    Values,
    bootstrap_mean,
    describe,
    holm,
    paired,
    rank,
    verdict,
    wilcoxon,
)  # fmt: skip

PARTS = ("labelled", "unlabelled", "val", "test")
BASELINE = "supervised"

_FILES = ("config.yaml", "splits.json", "env.json", "metrics.csv")
_NEEDED = ("data.name", "data.classes", "method.name", "augment.preset", "train.iterations", "train.seed",
           "window.network")  # fmt: skip
_SEED_AND_PLACE = {"train.seed", "train.workers", "data.root", "data.splits"}
_DRAW = {"splits.labelled", "splits.unlabelled"}
_AGAINST = ("95 % interval", "effect", "p", "p, Holm,", "verdict")


class Key(NamedTuple):
    """What runs of one row share."""

    method: str
    """`name` of the settings, which tells variants of a method apart, or else the method's."""
    labelled: int
    augment: str
    steps: int
    network: str
    """Whose predictions were scored: student, teacher or ensemble."""


@dataclass(frozen=True)
class Run:
    """A run folder in memory."""

    path: Path
    settings: dict[str, Any]
    """config.yaml, its keys joined by dots."""
    config_text: str
    splits: dict[str, list[str]]
    environment: dict[str, Any]
    metrics: list[dict[str, float]]
    scores: Scores | None
    files: dict[str, tuple[Path, Source]]
    """Prediction and reference of each scored case."""
    made: dict[str, Any]
    """predictions.json, empty when there is none."""
    patients: dict[str, str] = field(default_factory=dict)
    """Patient of each case, as far as any of the compared runs recorded it."""
    quirks: tuple[str, ...] = ()
    """Habits of published protocols that its split follows, see `medssl.data.splits`."""

    @property
    def key(self) -> Key:
        """The row that this run belongs to."""
        s = self.settings
        network = str(self.made.get("network", s["window.network"]))
        method = str(s.get("name") or s["method.name"])
        return Key(method, len(self.splits["labelled"]), s["augment.preset"], s["train.iterations"], network)

    @property
    def seed(self) -> int:
        """The seed that decides everything random in the run."""
        return int(self.settings["train.seed"])

    @cached_property
    def replicate(self) -> Replicate:
        """What sets it apart from the other runs of its row."""
        return Replicate(f"{_digest(self.splits['labelled'])}, {_digest(self.splits['unlabelled'])}", self.seed)

    @cached_property
    def summary(self) -> Summary | None:
        """Its scores over cases; None when it was not scored."""
        return None if self.scores is None else summarise(self.scores)

    @cached_property
    def case_dice(self) -> dict[str, float]:
        """Each case's mean Dice over the classes where it is defined."""
        return case_values(self, "dice")

    @cached_property
    def case_values(self) -> dict[str, dict[str, float]]:
        """What the function `case_values` has found so far, by metric."""
        return {}

    def curve(self, *names: str) -> tuple[list[float], list[float]]:
        """Steps, and the values of a column there (the sum of several), where all are finite."""
        rows = [(row["step"], sum(row[n] for n in names)) for row in self.metrics if all(n in row for n in names)]
        rows = [(step, value) for step, value in rows if math.isfinite(value)]
        return [step for step, _ in rows], [value for _, value in rows]

    @property
    def best_validation(self) -> tuple[float, float] | None:
        """Highest validation Dice, and the first step that reached it."""
        steps, values = self.curve("val/dice")
        return max(zip(values, (-step for step in steps), strict=True), default=None)

    @property
    def last_step(self) -> int:
        """The last step that was logged."""
        return int(max((row["step"] for row in self.metrics), default=0))

    @property
    def minutes(self) -> float:
        """Time that its steps took, validations left out."""
        return training_seconds(self.metrics) / 60


class CurvePoint(NamedTuple):
    """A logged number of a row's runs at one step."""

    step: int
    values: Sequence[float]
    """Of the runs that have one there."""

    @property
    def mean(self) -> float:
        """Over runs."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Over runs; None for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """Runs that should differ by their draw of labelled cases and their seed only, in order of seed."""

    key: Key
    runs: tuple[Run, ...]
    name: str
    colour: str
    style: str

    @property
    def scored(self) -> tuple[Run, ...]:
        """Those of its runs that have scores."""
        return tuple(run for run in self.runs if run.scores is not None)

    @cached_property
    def summary(self) -> Summary | None:
        """Over the cases of all its runs, a case counting once per run."""
        if not self.scored:
            return None
        return summarise(
            [replace(s, case=f"{i} {s.case}") for i, run in enumerate(self.scored) for s in run.scores or ()]
        )

    @property
    def minutes(self) -> float:
        """Time that the steps of a run took, the mean over its runs."""
        return statistics.fmean(run.minutes for run in self.runs)

    @property
    def cases(self) -> int:
        """Different cases that any of its runs was scored on."""
        return len({score.case for run in self.scored for score in run.scores or ()})

    @property
    def spread_of_seeds(self) -> Spread:
        """Mean and standard deviation of the runs' mean Dice."""
        means = [m for run in self.scored if run.summary and (m := run.summary.overall.dice.mean) is not None]
        sd = statistics.stdev(means) if len(means) > 1 else None
        return Spread(statistics.fmean(means) if means else None, sd, len(means))

    @cached_property
    def case_dice(self) -> dict[str, float]:
        """Each case's Dice, the mean over runs."""
        return _gathered(pair for run in self.scored for pair in run.case_dice.items())

    def curve(self, name: str) -> list[CurvePoint]:
        """A logged number of all its runs, step by step."""
        by_step: dict[float, list[float]] = defaultdict(list)
        for run in self.runs:
            for step, value in zip(*run.curve(name), strict=True):
                by_step[step].append(value)
        return [CurvePoint(int(step), values) for step, values in sorted(by_step.items())]

    @property
    def last_gain(self) -> float | None:
        """How far validation Dice in the last fifth of the steps lies above the fifth before: whether it has settled.

        Each fifth is the mean over its validations, then over the runs that have some in both; None without such a run.
        """
        gains = []
        for run in self.runs:
            fifths: dict[int, list[float]] = {4: [], 5: []}
            for step, value in zip(*run.curve("val/dice"), strict=True):
                fifths.setdefault(math.ceil(5 * step / self.key.steps), []).append(value)
            if fifths[4] and fifths[5]:
                gains.append(statistics.fmean(fifths[5]) - statistics.fmean(fifths[4]))
        return statistics.fmean(gains) if gains else None

    def values(self, metric: str = "dice", cases: Collection[str] | None = None) -> Values:
        """Each run's patients with the mean over their cases, or over those of the given ones."""
        return {
            replicate: _gathered(
                (run.patients.get(case, case), value)
                for run in self.scored
                if run.replicate == replicate
                for case, value in case_values(run, metric).items()
                if cases is None or case in cases
            )
            for replicate in {run.replicate for run in self.scored}
        }

    def interval(self, metric: str = "dice") -> Interval | None:
        """Mean over patients with its 95 % bootstrap interval; None without a value."""
        values = self.values(metric)
        return bootstrap_mean(values) if any(values.values()) else None

    def describe(self, metric: str = "dice") -> Description | None:
        """The distribution over patients; None without a value."""
        values = self.values(metric)
        return describe(values) if any(values.values()) else None


@dataclass(frozen=True)
class Gain:
    """How far a row lies above another, the baseline, over the cases that both have."""

    comparison: Comparison
    cases: int
    baseline: Row

    @property
    def points(self) -> float:
        """Mean difference over patients in hundredths: Dice points."""
        return POINTS.factor * self.comparison.difference.mean


@dataclass(frozen=True)
class Against:
    """A row's difference to a reference, over patients; None where it is undefined."""

    gain: float
    """The mean; positive when the row has the larger number."""
    low: float | None
    """Of its 95 % interval, as `high`."""
    high: float | None
    effect: float | None
    p: float | None
    p_holm: float | None
    verdict: str
    """In plain words."""


@dataclass(frozen=True)
class TableRow:
    """A row's numbers for one metric, as scores.csv has them; None where they are undefined."""

    name: str
    method: str
    labelled: int
    draws: int
    seeds: int
    patients: int
    steps: int
    minutes: float
    """That the steps of a run took."""
    mean: float | None
    low: float | None
    """Of the 95 % interval of the mean, as `high`."""
    high: float | None
    sd: float | None
    """Over patients, each the mean over runs."""
    sd_of_trainings: float | None
    """Of the runs' means."""
    median: float | None
    against: dict[str, Against]
    """By reference; none for the reference itself and for rows without one."""


# ---- runs


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders, which must belong to one dataset.

    Raises:
        ConfigError: no run, the same run twice, or runs of different datasets.
        DataError: a path is no run folder, all such paths listed, or one of its files cannot be read.
    """
    if not paths:
        raise ConfigError("no runs to compare: name one or more run folders")
    places = [path.resolve() for path in paths]
    twice = [str(path) for path, place in zip(paths, places, strict=True) if places.count(place) > 1]
    if twice:
        raise ConfigError(f"the same run is given more than once: {', '.join(twice)}")
    faults = [fault for path in paths if (fault := _fault_of_folder(path))]
    if faults:
        raise DataError("\n".join(faults))
    runs = [_load_run(path) for path in paths]
    known = {case: patient for run in runs for case, patient in run.patients.items()}
    runs = [replace(run, patients=known | run.patients) for run in runs]
    datasets = {run.settings["data.name"]: run.path for run in runs}
    if len(datasets) > 1:
        found = ", ".join(f"{name} ({path})" for name, path in datasets.items())
        raise ConfigError(f"the runs belong to different datasets: {found}; write a report for each")
    return runs


def _fault_of_folder(path: Path) -> str | None:
    if not path.is_dir():
        return f"{path}: not a folder; expected a run folder, as `medssl train` writes it"
    missing = [name for name in _FILES if not (path / name).is_file()]
    return f"{path}: not a run folder: {', '.join(missing)} missing" if missing else None


def _load_run(path: Path) -> Run:
    config, text = _read_config(path / "config.yaml")
    scores, files, made = None, {}, {}
    if (path / "scores.csv").exists():
        scores = read_scores(path / "scores.csv")
        files = _read_files(path / "scores.csv")
        notes = next((prediction for prediction, _ in files.values()), Path()).parent / "predictions.json"
        made = _read_json(notes) if notes.is_file() else {}
    splits = _read_json(path / "splits.json")
    try:
        return Run(
            path=path,
            settings=config,
            config_text=text,
            splits={part: [str(case) for case in splits[part]] for part in PARTS},
            environment=_read_json(path / "env.json"),
            metrics=read_metrics(path / "metrics.csv"),
            scores=scores,
            files=files,
            made=made,
            patients={str(case): str(patient) for case, patient in splits.get("patients", {}).items()},
            quirks=tuple(map(str, splits.get("quirks", ()))),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: splits.json or metrics.csv is not as `medssl train` writes it: {error!r}") from None


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_text(encoding="utf-8")
        settings = _flatten(load_yaml(text))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as the settings of a run: {error}") from None
    missing = [key for key in _NEEDED if key not in settings]
    if missing:
        raise DataError(
            f"{path}: lacks {', '.join(missing)}; expected the resolved settings that `medssl train` writes"
        )
    return settings, text


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected an object with named entries, found a {type(values).__name__}")
    return values


def _read_files(path: Path) -> dict[str, tuple[Path, Source]]:
    """Prediction and reference of each case in a table that `read_scores` has accepted."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        table = csv.DictReader(itertools.dropwhile(lambda line: line.startswith("#"), file))
        return {row["case"]: (Path(row["prediction"]), Source.parse(row["reference"])) for row in table}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


# ---- rows


def make_rows(runs: Sequence[Run]) -> list[Row]:
    """Gather runs by key: few labels first, one augmentation after the other, the baseline before the rest."""
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
    """Method and labels; augmentation and steps where rows differ in them; the network where a method has several."""
    own = [other for other in keys if other.method == key.method]
    says = [
        (keys, "augment", f"{key.augment} augmentation"),
        (keys, "steps", f"{key.steps:,} steps"),
        (own, "network", key.network),
    ]
    varying = [text for among, field, text in says if len({getattr(other, field) for other in among}) > 1]
    return ", ".join([f"{key.method}, {key.labelled} labelled", *varying])


# ---- comparisons


def case_values(run: Run, metric: str) -> dict[str, float]:
    """Each scored case's mean of a metric over the classes where it is defined; cases without any are left out."""
    if metric not in run.case_values:
        defined = ((score.case, score.value(metric)) for score in counted(run.scores or ()))
        run.case_values[metric] = _gathered((case, value) for case, value in defined if value is not None)
    return run.case_values[metric]


def scale_of(metric: str) -> Scale:
    """Unit and direction of a metric: shares from 0 to 1 in points, distances in millimetres."""
    facts = METRICS[metric]
    if facts.higher_is_better is None:
        raise ValueError(f"{metric}: neither larger nor smaller numbers are better, so methods do not compare by it")
    return POINTS if facts.higher_is_better else MILLIMETRES


def compare(row: Row, reference: Row, metric: str = "dice") -> Comparison | None:
    """A row less another, by patient, over the cases that both have; None without any."""
    shared = _shared_cases(row, reference, metric)
    return paired(row.values(metric, shared), reference.values(metric, shared)) if shared else None


def gains(rows: Sequence[Row], metric: str = "dice", reference: str = BASELINE) -> list[Gain | None]:
    """Each row against the row of the reference method with as many labels, the nearest where there are several.

    p-values are corrected over the rows that have one reference row. None for rows of the reference method itself,
    and where there is no such row or no shared case.
    """
    return [_gain(row, rows, metric, reference) for row in rows]


def gain_over_baseline(row: Row, rows: Sequence[Row]) -> Gain | None:
    """The Dice of a row against the supervised row with as many labels; see `gains`."""
    return _gain(row, rows, "dice", BASELINE)


def rank_rows(rows: Sequence[Row], metric: str = "dice") -> dict[int, Ranking]:
    """For each labelled count, its scored rows by their names in order of rank; counts with a single one are left out.

    Only cases that all of them have take part, and a count without such cases is left out as well.
    """
    found = {}
    for labelled in dict.fromkeys(row.key.labelled for row in rows):
        members = [row for row in rows if row.key.labelled == labelled and any(row.values(metric).values())]
        shared = set.intersection(*(_cases(row, metric) for row in members)) if members else set()
        if len(members) > 1 and shared:
            values = {row.name: row.values(metric, shared) for row in members}
            found[labelled] = rank(values, higher_is_better=scale_of(metric).higher_is_better)
    return found


def comparison_table(
    rows: Sequence[Row], metric: str = "dice", references: Sequence[str] = (BASELINE,)
) -> list[TableRow]:
    """The numbers of each row, and what its differences to the reference methods amount to; each corrects by itself."""
    found: list[dict[str, Against]] = [{} for _ in rows]
    for reference in references:
        for against, gain in zip(found, gains(rows, metric, reference), strict=True):
            if gain is not None:
                against[reference] = _against(gain.comparison, metric)
    return [_table_row(row, against, metric) for row, against in zip(rows, found, strict=True)]


def table_cells(
    table: Sequence[TableRow], metric: str = "dice", references: Sequence[str] = (BASELINE,)
) -> list[list[str]]:
    """The table as text, its heads first; Dice and IoU in percent, distances in mm, an empty cell for None."""
    factor, unit = scale_of(metric).factor, "%" if scale_of(metric) is POINTS else "mm"
    heads = ["method", "labelled", "draws", "seeds", "patients", "steps", "minutes", f"{metric}, {unit}",
             "95 % interval", "sd of patients", "sd of runs", "median"]  # fmt: skip
    for reference in references:
        heads += [f"against {reference}", *(f"{name} against {reference}" for name in _AGAINST)]
    return [heads, *(_cells_of(row, factor, references) for row in table)]


def _gain(row: Row, rows: Sequence[Row], metric: str, reference: str) -> Gain | None:
    baseline = _reference(row, rows, metric, reference)
    shared = set() if baseline is None else _shared_cases(row, baseline, metric)
    if baseline is None or not shared:
        return None
    comparison = paired(row.values(metric, shared), baseline.values(metric, shared))
    family = [other for other in rows if _reference(other, rows, metric, reference) is baseline]
    corrected = holm([_p(other, baseline, metric) for other in family])
    place = next(i for i, other in enumerate(family) if other is row)
    return Gain(replace(comparison, p_holm=corrected[place]), len(shared), baseline)


def _reference(row: Row, rows: Sequence[Row], metric: str, method: str) -> Row | None:
    if row.key.method == method:
        return None
    others = [r for r in rows if r.key.method == method and r.key.labelled == row.key.labelled and _cases(r, metric)]
    return max(others, key=lambda r: sum(map(lambda a, b: a == b, r.key, row.key)), default=None)


def _p(row: Row, reference: Row, metric: str) -> float | None:
    shared = _shared_cases(row, reference, metric)
    return wilcoxon(row.values(metric, shared), reference.values(metric, shared)) if shared else None


def _cases(row: Row, metric: str) -> set[str]:
    return {case for run in row.scored for case in case_values(run, metric)}


def _shared_cases(row: Row, reference: Row, metric: str) -> set[str]:
    return _cases(row, metric) & _cases(reference, metric)


def _gathered(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of each name's values."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, value in pairs:
        found[name].append(value)
    return {name: statistics.fmean(values) for name, values in found.items()}


def _against(comparison: Comparison, metric: str) -> Against:
    difference = comparison.difference
    return Against(difference.mean, difference.low, difference.high, comparison.effect, comparison.p,
                   comparison.p_holm, verdict(comparison, scale_of(metric)))  # fmt: skip


def _table_row(row: Row, against: dict[str, Against], metric: str) -> TableRow:
    about, interval = row.describe(metric), row.interval(metric)
    return TableRow(
        name=row.name,
        method=row.key.method,
        labelled=row.key.labelled,
        draws=len({run.replicate.draw for run in row.scored}),
        seeds=len({run.seed for run in row.scored}),
        patients=about.patients if about else 0,
        steps=row.key.steps,
        minutes=row.minutes,
        mean=about.mean if about else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        sd=about.sd if about else None,
        sd_of_trainings=about.sd_of_trainings if about else None,
        median=about.median if about else None,
        against=against,
    )


def _cells_of(row: TableRow, factor: float, references: Sequence[str]) -> list[str]:
    def number(value: float | None, form: str = ".1f") -> str:
        return "" if value is None else format(factor * value, form)

    def between(low: float | None, high: float | None) -> str:
        return "" if low is None else f"{number(low)} to {number(high)}"

    def p(value: float | None) -> str:
        return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"

    def told(one: Against | None) -> list[str]:
        if one is None:
            return [""] * (1 + len(_AGAINST))
        effect = "" if one.effect is None else f"{one.effect:.2f}"
        return [number(one.gain, "+.1f"), between(one.low, one.high), effect, p(one.p), p(one.p_holm), one.verdict]

    compared = (cell for reference in references for cell in told(row.against.get(reference)))
    return [row.name, *map(str, (row.labelled, row.draws, row.seeds, row.patients, row.steps)), f"{row.minutes:.2f}",
            number(row.mean), between(row.low, row.high), number(row.sd), number(row.sd_of_trainings),
            number(row.median), *compared]  # fmt: skip


# ---- notes


def notes(rows: Sequence[Row], references: Sequence[str] = (BASELINE,)) -> list[str]:
    """What a reader must know before comparing numbers, of rows and of each with its references."""
    found = [note for row in rows for run in row.runs for note in _notes_of_run(run)]
    for row in rows:
        found += _notes_of_row(row)
        baselines = (_reference(row, rows, "dice", reference) for reference in references)
        found += [note for baseline in baselines if baseline for note in _notes_of_pair(row, baseline)]
    unknown = {case for row in rows for run in row.scored for case in run.case_dice if case not in run.patients}
    if unknown:
        found.append(f"The patients of {_few(sorted(unknown))} scored cases are not recorded: each counts as a patient "
                     "of its own, and intervals are too narrow where a patient has several.")  # fmt: skip
    sets = {frozenset(run.case_dice) for row in rows for run in row.scored}
    if len(sets) > 1:
        found.append("The runs were not all scored on the same cases: means of different cases do not compare.")
    return list(dict.fromkeys(found))


def _notes_of_run(run: Run) -> list[str]:
    name, found = run.path.name, _notes_of_protocol(run)
    if run.last_step < run.key.steps:
        found.append(f"{name}: its log ends at step {run.last_step:,} of {run.key.steps:,}.")
    if run.scores is None:
        return [*found, f"{name}: not scored; its folder holds no scores.csv."]
    method = run.settings["method.name"]
    made_by = run.made.get("method", method)
    if made_by != method:
        found.append(f"{name}: its predictions come from the method {made_by}, not {method}.")
    scored = {score.case for score in run.scores}
    for part in PARTS[:3]:
        inside = sorted(scored & set(run.splits[part]))
        if inside:
            found.append(f"{name}: scored on cases of the {part} part of its split: {_few(inside)}.")
    left = sorted(set(run.splits["test"]) - scored)
    if left:
        found.append(f"{name}: test cases that were not scored: {_few(left)}, of {len(run.splits['test'])}.")
    return found


def _notes_of_protocol(run: Run) -> list[str]:
    """The habits of the literature that a run took over, and where its published protocol had others."""
    name, found = run.path.name, []
    if "selection on test" in run.quirks:
        found.append(
            f"{name}: SELECTION ON TEST. Its validation cases are its test cases, so the scores of its best.pt are too "
            "high: compare them only with published numbers that were selected in the same way."
        )
    if "renamed frames" in run.quirks:
        found.append(f"{name}: its split was read from lists that count a patient's frames (renamed frames).")
    if "unlabelled labels seen" in run.quirks:
        found.append(
            f"{name}: its patients were drawn by what labels hold, among them labels of cases that count as unlabelled "
            "(stratified by labels): a choice that scans without labels would not allow."
        )
    elif "stratified by labels" in run.quirks:
        found.append(f"{name}: its patients were drawn so that classes and volumes are spread (stratified by labels).")
    if run.settings.get("data.recipe.resize"):
        side = " x ".join(map(str, run.settings["data.recipe.resize"]))
        found.append(
            f"{name}: trained on slices resized to {side} by the nearest voxel; spacing was ignored (2D resize)."
        )
    departures = run.settings.get("protocol.departures")
    if departures:
        found.append(f"Unlike the published {run.settings['protocol.name']}: {'; '.join(departures)}.")
    return found


def _notes_of_row(row: Row) -> list[str]:
    found = []
    replicates = [run.replicate for run in row.runs]
    if len(set(replicates)) < len(replicates):
        seeds = ", ".join(str(run.seed) for run in row.runs)
        found.append(f"{row.name}: a seed occurs more than once ({seeds}).")
    differing = [key for key in differing_facts(row.runs) if key not in _SEED_AND_PLACE | _DRAW]
    if differing:
        found.append(f"{row.name}: its runs differ in more than their seed: {', '.join(differing)}.")
    return found


def _notes_of_pair(row: Row, baseline: Row) -> list[str]:
    found, other, shared = [], baseline.key, len(_shared_cases(row, baseline, "dice"))
    if not shared:
        return []
    name = other.method
    if (other.augment, other.steps) != (row.key.augment, row.key.steps):
        found.append(
            f"{row.name}: compared with a {name} row of {other.augment} augmentation and {other.steps:,} steps."
        )
    if len({frozenset(run.replicate.draw for run in each.scored) for each in (row, baseline)}) > 1:
        found.append(f"{row.name}: compared with a {name} row of other draws of labelled cases.")
    if shared < max(len(row.case_dice), len(baseline.case_dice)):
        found.append(f"{row.name}: the difference to {name} rests on the cases that both rows have ({shared}).")
    return found


def facts(run: Run) -> dict[str, Any]:
    """Everything that two runs can differ in but who was told of them; long lists of cases by number and digest."""
    settings = {key: value for key, value in run.settings.items() if not key.startswith("logging.")}
    splits = {f"splits.{part}": _digest(run.splits[part]) for part in PARTS}
    made = _flatten({key: run.made[key] for key in ("checkpoint", "window") if key in run.made}, "prediction.")
    return {**settings, **splits, **_flatten(run.environment, "env."), **made}


def differing_facts(runs: Iterable[Run]) -> list[str]:
    """Keys of `facts` in which runs differ; how predictions were made counts among those that have some."""
    known = [facts(run) for run in runs]
    differing = []
    for key in dict.fromkeys(key for each in known for key in each):
        values = [each.get(key) for each in known if key in each or not key.startswith("prediction.")]
        if any(value != values[0] for value in values):
            differing.append(key)
    return differing


def _digest(cases: Sequence[str]) -> str:
    text = json.dumps(sorted(cases)).encode()
    return f"{len(cases)} cases ({hashlib.sha256(text).hexdigest()[:6]})"


def _few(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:5])}{' ...' if len(names) > 5 else ''})"
