"""The comparison as a table of plain numbers, and the same as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medssl.comparison.rows import BASELINE, Row, gains, scale_of
from medssl.statistics import POINTS, Comparison, verdict

_AGAINST = ("95 % interval", "effect", "p", "p, Holm,", "verdict")


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
    """Cases."""
    labelled_patients: int
    """The most that a run has."""
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
    heads = ["method", "labelled", "labelled patients", "draws", "seeds", "patients", "steps", "minutes",
             f"{metric}, {unit}", "95 % interval", "sd of patients", "sd of runs", "median"]  # fmt: skip
    for reference in references:
        heads += [f"against {reference}", *(f"{name} against {reference}" for name in _AGAINST)]
    return [heads, *(_cells_of(row, factor, references) for row in table)]


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
        labelled_patients=max(run.labelled_patients for run in row.runs),
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
    counts = (row.labelled, row.labelled_patients, row.draws, row.seeds, row.patients, row.steps)
    return [row.name, *map(str, counts), f"{row.minutes:.2f}", number(row.mean), between(row.low, row.high),
            number(row.sd), number(row.sd_of_trainings), number(row.median), *compared]  # fmt: skip
