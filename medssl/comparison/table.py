"""The comparison as a table of text."""

from __future__ import annotations

from collections.abc import Sequence

from medssl.comparison.rows import BASELINE, Gain, Row, gains, scale_of, units_of
from medssl.statistics import POINTS, Interval, Scale, told, verdict
from medssl.words import p_value

_AGAINST = ("95 % interval", "effect", "p", "p, Holm,", "p of the interval, Holm,", "verdict")


def comparison_table(
    rows: Sequence[Row], metric: str = "dice", references: Sequence[str] = (BASELINE,)
) -> list[list[str]]:
    """Return a table of each row's numbers by patient and its differences from the references, header row first.

    p-values are corrected for each reference separately. Shares such as Dice are in percent, distances in the unit of
    the scores; undefined values are empty cells.
    """
    scale = scale_of(metric, units_of(rows))
    heads = ["method", "labelled", "labelled patients", "draws", "seeds", "patients", "steps", "minutes",
             f"{metric}, {'%' if scale is POINTS else scale.unit}", "95 % interval", "sd of patients", "sd of runs",
             "median"]  # fmt: skip
    for reference in references:
        heads += [f"against {reference}", *(f"{name} against {reference}" for name in _AGAINST)]
    lines = [_cells_of(row, metric, scale) for row in rows]
    for reference in references:
        for line, gain in zip(lines, gains(rows, metric, reference), strict=True):
            line += _cells_of_gain(gain, scale)
    return [heads, *lines]


def _cells_of(row: Row, metric: str, scale: Scale) -> list[str]:
    about, interval = row.describe(metric), row.interval(metric)
    counts = (
        row.key.labelled,
        max(run.labelled_patients for run in row.runs),
        len({run.replicate.draw for run in row.scored}),
        len({run.seed for run in row.scored}),
        about.patients if about else 0,
        row.key.steps,
    )
    numbers = [""] * 5
    if about and interval:
        spreads = (about.sd, about.sd_of_trainings, about.median)
        numbers = [_number(about.mean, scale), _between(interval, scale), *(_number(each, scale) for each in spreads)]
    return [row.name, *map(str, counts), f"{row.minutes:.2f}", *numbers]


def _cells_of_gain(gain: Gain | None, scale: Scale) -> list[str]:
    if gain is None:
        return [""] * (1 + len(_AGAINST))
    found = gain.comparison
    return [
        told(found.difference.mean, scale, "+"),
        _between(found.difference, scale),
        "" if found.effect is None else f"{found.effect:.2f}",
        p_value(found.p),
        p_value(found.p_holm),
        p_value(found.p_interval_holm),
        verdict(found, scale),
    ]


def _number(value: float | None, scale: Scale) -> str:
    return "" if value is None else told(value, scale)


def _between(interval: Interval, scale: Scale) -> str:
    return "" if interval.low is None else f"{_number(interval.low, scale)} to {_number(interval.high, scale)}"
