"""The tables of a report, independent of the format that they are written in (HTML, Markdown or LaTeX).

Cells are text, with a number to sort by. Dice, IoU and similar shares are shown in percent, distances in the unit of
the scores. Undefined numbers are shown as a dash and sort last.
"""

from __future__ import annotations

import functools
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple

from medssl.comparison import (
    BASELINE,
    Gain,
    Row,
    Run,
    convention_of,
    differing_facts,
    facts,
    gains,
    rank_rows,
    scale_of,
    units_of,
)  # fmt: skip
from medssl.metrics import METRICS
from medssl.published import PublishedRow
from medssl.scores import ClassSummary, Scores, Spread, counted
from medssl.statistics import POINTS, Interval, Scale, told, verdict
from medssl.words import how_many, p_value, some

NOTHING = "–"
"""Shown in place of an undefined number."""

_IN_ROW = {"data.root", "data.splits", "train.workers", "train.seed", "train.iterations", "augment.preset",
           "window.network", "prediction.window.network", "prediction.window.batch"}  # fmt: skip
_SHOWN = ("dice", "iou", "hd95", "asd", "nsd", "precision", "recall", "relative_volume", "cldice", "instance_f1")
"""Metrics that a report shows, if they were measured; scores.csv contains all metrics."""
_COMPARED = {"dice": "gains", "hd95": "distances"}
"""Metrics whose differences have a table of their own, and its id."""
_MOST_NAMES = 4

Kind = Literal["number", "text", "long"]


@dataclass(frozen=True)
class Column:
    """The heading of a column, a note in small print below it, and how its cells are aligned."""

    head: str
    note: str = ""
    kind: Kind = "number"


@dataclass(frozen=True)
class Cell:
    """The text of a cell, a note in small print, the number to sort by (None: sort by text), and a colour."""

    text: str = NOTHING
    note: str = ""
    order: float | None = None
    colour: str = ""


@dataclass(frozen=True)
class Table:
    """A table with named groups of lines; the first cell of a line is its heading.

    Most tables have one group, without a name.
    """

    id: str
    caption: str
    columns: list[Column]
    groups: list[tuple[str, list[list[Cell]]]]

    def __bool__(self) -> bool:
        return any(lines for _, lines in self.groups)


def result_tables(
    rows: Sequence[Row], published: Sequence[PublishedRow] = (), references: Sequence[str] = (BASELINE,)
) -> list[Table]:
    """Return the tables of results in reading order; empty tables are left out.

    Args:
        published: published results for the same dataset, shown in a table of their own.
        references: methods that the other methods are compared with.
    """
    against = {metric: _against(rows, metric, references) for metric in _COMPARED}
    compared = [
        _gains_table(rows, found, metric, reference, number)
        for metric, by_reference in against.items()
        for number, (reference, found) in enumerate(by_reference.items(), 1)
    ]
    tables = [_dice_table(rows, against["dice"]), *compared, _metrics_table(rows), _classes_table(rows),
              _ranks_table(rows), _published_table(published)]  # fmt: skip
    return [table for table in tables if table]


def _against(rows: Sequence[Row], metric: str, references: Sequence[str]) -> dict[str, list[Gain | None]]:
    """Return the gains of all rows against each reference, without references that no row can be compared with."""
    found = {reference: gains(rows, metric, reference) for reference in references}
    return {reference: each for reference, each in found.items() if any(each)}


def _dice_table(rows: Sequence[Row], against: Mapping[str, Sequence[Gain | None]]) -> Table:
    columns = [
        *_KEY_COLUMNS,
        Column("Dice, %", "mean ± sd over patients"),
        Column("95 % interval", "of the mean"),
        Column("sd of runs", "points"),
        *(Column(f"Against {reference}", "points") for reference in against),
        Column("Steps", "minutes per run"),
        Column("Runs", "cases"),
    ]
    lines = [
        [
            *_key_cells(row),
            *_dice_cells(row),
            *(_gain_cell(found[i]) for found in against.values()),
            Cell(f"{row.key.steps:,}", f"{row.minutes:,.1f} min", order=row.key.steps),
            _runs(row),
        ]
        for i, row in enumerate(rows)
    ]
    words = (
        f"Mean Dice over {_counting(rows)} ({conditions(rows)}). Unless a note says otherwise, runs of a row differ "
        "only in their seed and, where there are several, their draw of labelled cases. A patient’s Dice is the mean "
        "over its cases and over runs; a class counts in the cases where all runs of the row have a Dice for it. The "
        "sd of runs is that of their means over patients. Intervals are bootstrapped over patients and trainings; with "
        "a single run, they leave out the spread of training. Minutes are those of the steps, without validations."
    )
    return Table("methods", words, columns, [("", lines)])


def _counting(rows: Sequence[Row]) -> str:
    """Say what the overall numbers are averaged over: all classes, or regions by name."""
    scores = [score for row in rows for run in row.scored for score in counted(run.scores or Scores())]
    regions = dict.fromkeys(score.class_name for score in scores if score.is_region)
    return f"the regions {', '.join(dict.fromkeys(score.class_name for score in scores))}" if regions else "all classes"


def _gains_table(
    rows: Sequence[Row], compared: Sequence[Gain | None], metric: str, reference: str, number: int
) -> Table:
    scale = scale_of(metric, units_of(rows))
    columns = [
        *_KEY_COLUMNS,
        Column(f"Against {reference}", f"{METRICS[metric].title}, {scale.unit}"),
        Column("95 % interval"),
        Column("p", "corrected"),
        Column("In words", kind="long"),
    ]
    lines = []
    for row, gain in zip(rows, compared, strict=True):
        if gain:
            p = gain.comparison.p_corrected
            lines.append([
                *_key_cells(row),
                _gain_cell(gain, scale),
                _interval_cell(gain.comparison.difference, functools.partial(_signed, scale=scale)),
                Cell() if p is None else Cell(p_value(p), order=p),
                Cell(verdict(gain.comparison, scale)),
            ])  # fmt: skip
    words = (
        f"{METRICS[metric].title} of each row against {reference} at the same labelled count, over the patients that "
        "both have. p is the larger of two: that of a Wilcoxon signed-rank test and that of the interval, each "
        "corrected over the rows that share a baseline (Holm)."
    )
    if not scale.higher_is_better:
        words += (
            " A negative difference is better. A class counts in the cases where all runs of both rows have a number, "
            "so see also how many classes were missed."
        )
    name = _COMPARED[metric]
    return Table(name if number == 1 else f"{name}-{number}", words, columns, [("", lines)])


def _metrics_table(rows: Sequence[Row]) -> Table:
    others = [metric for metric in shown_metrics(rows) if metric != "dice"]
    columns = [
        *_KEY_COLUMNS,
        *(Column(_head(metric, rows), f"mean ± sd over {_behind_overall(rows)}") for metric in others),
        Column("Missed / invented / absent", "pairs of class and case"),
    ]
    lines = [
        [*_key_cells(row), *(_spread_cell(metric, row.summary.overall.spread(metric)) for metric in others),
         _counts_cell(row.summary.overall)]
        for row in rows if row.summary
    ]  # fmt: skip
    words = (
        f"Other metrics over {_counting(rows)}: mean ± standard deviation over {_behind_overall(rows)}. A missed class "
        "is in the reference only, an invented one in the prediction only, an absent one in neither."
    )
    return Table("metrics", words, columns, [("", lines)])


def _classes_table(rows: Sequence[Row]) -> Table:
    metrics = shown_metrics(rows)
    columns = [*_KEY_COLUMNS, *(Column(_head(metric, rows)) for metric in metrics),
               Column("Missed / invented / absent")]  # fmt: skip
    groups: dict[str, list[list[Cell]]] = defaultdict(list)
    for row in rows:
        for summary in row.summary.classes if row.summary else ():
            numbers = [_spread_cell(metric, summary.spread(metric)) for metric in metrics]
            groups[summary.class_name].append([*_key_cells(row), *numbers, _counts_cell(summary)])
    words = f"By class ({conditions(rows)}): mean ± standard deviation over cases and seeds."
    return Table("classes", words, columns, list(groups.items()))


def _ranks_table(rows: Sequence[Row]) -> Table:
    by_name = {row.name: row for row in rows}
    groups = []
    for labelled, ranking in rank_rows(rows).items():
        if len(ranking.names) < 3:
            continue
        lines = [
            [
                _key_cells(by_name[name])[0],
                Cell(f"{mean_rank:.2f}", order=mean_rank),
                Cell(f"{100 * places[0]:.0f}", order=places[0]),
            ]
            for name, mean_rank, places in zip(ranking.names, ranking.mean_ranks, ranking.places, strict=True)
        ]
        told = [f"{ranking.patients} patients", f"critical difference {ranking.critical_difference:.2f}"]
        told += [] if ranking.friedman is None else [f"Friedman p {p_value(ranking.friedman)}"]
        groups.append((f"{labelled} labelled: {', '.join(told)}", lines))
    words = (
        "Ranks by Dice among rows with the same labelled count, averaged over patients; 1 is best. Rows whose mean "
        "ranks lie closer together than the critical difference (Nemenyi) cannot be told apart. Mean ranks take the "
        "trained networks as given, so rows can differ only by the chance of their seeds; the shares of first places "
        "and the verdicts include that chance."
    )
    return Table("ranks", words, [_METHOD, Column("Mean rank"), Column("First, %", "of resamples")], groups)


def _published_table(published: Sequence[PublishedRow]) -> Table:
    unit = published[0].unit if published else ""
    columns = [
        Column("Method", "and its paper", "text"),
        Column("Dice, %"),
        Column("Jaccard, %"),
        Column(f"95HD, {unit}"),
        Column(f"ASD, {unit}"),
        Column("Source", kind="long"),
        Column("Protocol", kind="long"),
    ]
    groups: dict[str, list[list[Cell]]] = defaultdict(list)
    for row in published:
        numbers = [_printed_cell(number) for number in (row.dice, row.jaccard, row.hd95, row.asd)]
        source = f"{row.source.address}{', second-hand' if row.secondary else ''}"
        group = f"{row.labelled} labelled and {row.unlabelled} unlabelled patients"
        groups[group].append([Cell(row.method, row.paper), *numbers, Cell(row.source.name, source), Cell(row.protocol)])
    words = (
        "PUBLISHED ELSEWHERE: quoted as printed; none of it was measured here. Cases, metric definitions, grids and "
        "the choice of weights differ from ours unless the last column says otherwise, so do not read these as rows of "
        "the tables above. Second-hand: taken from another paper’s table, log or note."
    )
    return Table("published", words, columns, list(groups.items()))


def runs_table(rows: Sequence[Row]) -> Table:
    """Return the table of all runs with their best validation Dice and their test scores."""
    columns = [
        Column("Run", kind="text"), Column("Method", "augmentation", "text"), Column("Labelled"), Column("Seed"),
        Column("Steps", "logged, of planned"), Column("Best validation Dice, %"), Column("Weights scored", kind="text"),
        Column("Cases"), Column("Dice, %"), Column("Seconds per step"),
    ]  # fmt: skip
    lines = [_run_line(row, run) for row in rows for run in row.runs]
    words = "All runs. Validation Dice chose the weights named “best”; the cases under “Dice” were scored afterwards."
    return Table("runs", words, columns, [("", lines)])


def settings_table(rows: Sequence[Row]) -> Table:
    """Return the table of settings that differ between runs: the most common value, and the runs with another one."""
    runs = [run for row in rows for run in row.runs]
    known = {run.path.name: facts(run) for run in runs}
    # The settings that define a row, and those of a method alone, are shown elsewhere.
    keys = [key for key in differing_facts(runs) if key not in _IN_ROW and not key.startswith("method.")]
    lines = []
    for key in keys:
        holders: dict[str, list[str]] = defaultdict(list)
        for name, held in known.items():
            holders[str(held[key]) if key in held else NOTHING].append(name)
        (value, most), *others = sorted(holders.items(), key=lambda item: -len(item[1]))
        told = "; ".join(f"{value}: {some(names, _MOST_NAMES)}" for value, names in others)
        lines.append([Cell(key), Cell(value, some(most, _MOST_NAMES)), Cell(told)])
    words = (
        "Settings, splits, machines and versions that differ between runs. Left out are the methods’ own settings and "
        "what the columns above show."
    )
    columns = [Column("Setting", kind="text"), Column("Most runs", kind="long"), Column("Others", kind="long")]
    return Table("settings", words, columns, [("", lines)])


def conditions(rows: Sequence[Row]) -> str:
    """Describe augmentation and steps of all rows in a few words, for captions."""
    presets = " / ".join(dict.fromkeys(row.key.augment for row in rows))
    steps = " / ".join(dict.fromkeys(f"{row.key.steps:,}" for row in rows))
    return f"{presets} augmentation, {steps} steps"


def conditions_of(row: Row) -> str:
    """Describe what defines a row besides method and labelled count: augmentation, steps and network."""
    return f"{row.key.augment}, {row.key.steps:,} steps, {row.key.network}"


def shown_metrics(rows: Sequence[Row]) -> list[str]:
    """Return the metrics of the tables that have a value in at least one row."""
    summaries = [row.summary.overall for row in rows if row.summary]
    return [metric for metric in _SHOWN if any(summary.spread(metric).n for summary in summaries)]


def percent(value: float | None) -> str:
    """Format a share in percent: 0.851 becomes 85.1; None becomes a dash."""
    return NOTHING if value is None else f"{100 * value:.1f}"


# ---- cells


_METHOD = Column("Method", "augmentation, steps, network scored", "text")
_KEY_COLUMNS = (_METHOD, Column("Labelled"))


class _Form(NamedTuple):
    unit: str
    factor: float
    digits: int


def _form_of(metric: str) -> _Form:
    """Return how to show a metric: shares in percent, others in the unit of scores.csv."""
    unit = METRICS[metric].unit
    return _Form("%", 100, 1) if not unit else _Form(unit, 1, 1 if unit == "%" else 2)


def _head(metric: str, rows: Sequence[Row]) -> str:
    """Return a column heading: the metric with its unit."""
    unit = _form_of(metric).unit
    return f"{METRICS[metric].title}, {units_of(rows) if unit == 'mm' else unit}"


def _behind_overall(rows: Sequence[Row]) -> str:
    """Say what the convention averages its overall numbers over."""
    return "classes" if convention_of(rows).averages == "classes" else "cases and seeds"


def _key_cells(row: Row) -> list[Cell]:
    return [Cell(row.key.method, conditions_of(row), colour=row.colour),
            _labelled_cell(row.runs)]  # fmt: skip


def _labelled_cell(runs: Sequence[Run]) -> Cell:
    """Return the labelled count, with a note on the other count (cases or patients) if it differs.

    Draws with the same labelled count may differ in the other count, so the note can be a range.
    """
    number, by_patient = runs[0].key.labelled, runs[0].counts_patients
    others = [run.labelled_cases if by_patient else run.labelled_patients for run in runs]
    ends, unit = sorted({min(others), max(others)}), "case" if by_patient else "patient"
    told = "" if ends == [number] else f"{' to '.join(map(str, ends))} {unit}{'' if ends == [1] else 's'}"
    return Cell(str(number), told, order=number)


def _spread_cell(metric: str, spread: Spread) -> Cell:
    form = _form_of(metric)
    if spread.mean is None:
        return Cell(NOTHING, f"n {spread.n}")
    sd = "" if spread.sd is None else f" ± {form.factor * spread.sd:.{form.digits}f}"
    mean = f"{form.factor * spread.mean:.{form.digits}f}".replace("-", "−")
    return Cell(mean + sd, f"n {spread.n}", order=spread.mean)


def _interval_cell(interval: Interval | None, form: Callable[[float], str] = percent) -> Cell:
    if interval is None or interval.low is None or interval.high is None:
        return Cell()
    ends = f"{form(interval.low)} to {form(interval.high)}"
    return Cell(ends, f"{interval.patients} patients", order=interval.low)


def _printed_cell(number: Decimal | None) -> Cell:
    return Cell() if number is None else Cell(str(number), order=float(number))


def _dice_cells(row: Row) -> list[Cell]:
    """Return cells with mean and spread over patients, the interval of the mean, and the spread of the runs' means."""
    about = row.describe()
    if about is None:
        return [Cell("not scored" if row.summary is None else NOTHING), Cell(), Cell()]
    sd = about.sd_of_trainings
    return [
        _spread_cell("dice", Spread(about.mean, about.sd, about.patients)),
        _interval_cell(row.interval()),
        Cell() if sd is None else Cell(f"{100 * sd:.1f}", order=sd),
    ]


def _counts_cell(summary: ClassSummary) -> Cell:
    counts = (summary.missed, summary.invented, summary.absent)
    return Cell(" / ".join(map(str, counts)), order=summary.missed + summary.invented)


def _gain_cell(gain: Gain | None, scale: Scale = POINTS) -> Cell:
    if gain is None:
        return Cell()
    mean = gain.comparison.difference.mean
    return Cell(_signed(mean, scale), order=mean)


def _runs(row: Row) -> Cell:
    scored, planned = len(row.scored), len(row.runs)
    draws, seeds = ({getattr(run.replicate, part) for run in row.scored} for part in ("draw", "seed"))
    told = f"{len(draws)} draws, {how_many(len(seeds), 'seed')}, " if len(draws) > 1 else ""
    number = f"{scored}" if scored == planned else f"{scored} of {planned}"
    return Cell(number, f"{told}{row.cases} cases", order=scored)


def _run_line(row: Row, run: Run) -> list[Cell]:
    best, made = run.best_validation, run.made
    _, seconds = run.curve("seconds_per_step")
    rate = statistics.median(seconds) if seconds else None
    step = "" if made.iteration is None else f", step {made.iteration}"
    scored = [Cell("not scored"), Cell(), Cell()]
    if run.summary:
        dice = run.summary.overall.dice
        scored = [
            Cell(made.checkpoint or NOTHING, f"{run.key.network}{step}"),
            Cell(str(run.summary.cases), order=run.summary.cases),
            Cell(_spread_cell("dice", dice).text, order=dice.mean),
        ]
    return [
        Cell(run.path.name),
        Cell(run.key.method, run.key.augment, colour=row.colour),
        _labelled_cell([run]),
        Cell(str(run.seed), order=run.seed),
        Cell(f"{run.last_step:,}", f"of {run.key.steps:,}", order=run.last_step),
        Cell(percent(best[0]), f"step {-best[1]:,.0f}", order=best[0]) if best else Cell(),
        *scored,
        Cell() if rate is None else Cell(f"{rate:.2f}", order=rate),
    ]


def _signed(value: float, scale: Scale) -> str:
    text = told(value, scale, "+")
    return "0.0" if float(text) == 0 else text.replace("-", "−")
