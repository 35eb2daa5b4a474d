"""Read run folders, group runs that differ only in draw and seed into rows, and compare the rows by patient.

    rows = make_rows(load_runs(paths))             one Row per method, labelled count, augmentation, steps, network
    row.interval("dice")                           mean over patients with its 95 % interval (None when not scored)
    row.describe("dice")                           mean, sd, median, sd of the runs' means
    gains(rows, "dice")                            a Gain or None per row: against supervised with as many labels,
                                                   p-values corrected (Holm) over the rows that share a baseline
    gains(rows, "dice", reference="bcp")           the same against another method
    verdict(gain.comparison, scale_of("dice"))     "better by 1.8 points (95 % interval 0.9 to 2.7)"
    rank_rows(rows, "dice")                        a Ranking per labelled count with at least two scored rows
    comparison_table(rows, "dice")                 all of it as text, header row first, against one or more references

A metric is a field of `ClassScore`. A case's value is the mean over the classes where the metric is defined, and a
patient's value the mean over the patient's cases. Where the patient of a case is not recorded, the case counts as a
patient of its own, and `notes` says so. A replicate is a (draw, seed), where a draw is the set of labelled and
unlabelled cases. Numbers are those of scores.csv (Dice from 0 to 1, distances in mm or voxels, see `units_of`), except
in `comparison_table`. All runs are scored with one convention. Plots and pages are made elsewhere;
intervals and tests are described in `medssl.statistics`.
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
