"""Runs read from their folders, gathered into rows that differ by their draw and seed only, and compared by patient.

    rows = make_rows(load_runs(paths))             one Row per method, labelled count, augmentation, steps, network
    row.interval("dice")                           mean over patients with its 95 % interval (None when not scored)
    row.describe("dice")                           mean, sd, median, sd of the trainings' means
    gains(rows, "dice")                            a Gain or None per row: against supervised with as many labels,
                                                   p corrected (Holm) over the rows that share a baseline
    gains(rows, "dice", reference="bcp")           the same against another method
    verdict(gain.comparison, scale_of("dice"))     "better by 1.8 points (95 % interval 0.9 to 2.7)"
    rank_rows(rows, "dice")                        a Ranking per labelled count with two scored rows or more
    comparison_table(rows, "dice")                 all of it as text, heads first, against one reference or several

A metric is a name of `ClassScore`. A case's value is the mean over the classes where it is defined; a patient's the
mean over cases; where a run does not know its patients each case is one, and `notes` says so. Replicates are
(draw, seed), a draw being the labelled and unlabelled cases. Numbers stay as scores.csv has them (Dice from 0 to 1,
distances in mm or voxels as `units_of` says) but for `Gain.points` and `comparison_table`; all runs are scored by one
convention. Nothing is drawn or rendered here. How intervals and tests are made is told in `medssl.statistics`.
"""

from medssl.comparison.notes import differing_facts, facts, notes
from medssl.comparison.rows import (
    BASELINE,
    Gain,
    Row,
    convention_of,
    gains,
    make_rows,
    rank_rows,
    scale_of,
    units_of,
)  # fmt: skip
from medssl.comparison.runs import Run, load_runs
from medssl.comparison.table import comparison_table

__all__ = [
    "BASELINE",
    "Gain",
    "Row",
    "Run",
    "comparison_table",
    "convention_of",
    "differing_facts",
    "facts",
    "gains",
    "load_runs",
    "make_rows",
    "notes",
    "rank_rows",
    "scale_of",
    "units_of",
]
