"""The intervals of a bench, made again from the cases of its runs; of several benches together, if need be.

    python benchmarks/intervals.py benchmarks/results/hippocampus-time-9-cases.csv --against combined

Reads cases.csv, as `medssl bench` writes it. Prints a row per method and labelled count: Dice by patient with its 95 %
interval, the spread of its runs, and what each row named with `--against` has more, over the seeds that both have;
verdicts are corrected for all rows of a labelled count.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from medssl.comparison.runs import gathered
from medssl.statistics import (
    POINTS,
    Comparison,
    Interval,
    Replicate,
    Values,
    bootstrap_mean,
    corrected,
    describe,
    paired,
    verdict,
)  # fmt: skip

Row = tuple[str, str]
"""A method and its labelled count."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path, help="cases.csv of one bench or more, of the same test cases")
    parser.add_argument("--against", action="append", default=[], help="a row, each other one beside it; repeatable")
    arguments = parser.parse_args(argv)
    rows = read_cases(arguments.tables)
    for name in arguments.against:
        if name not in {method for method, _ in rows}:
            parser.error(f"--against {name}: no such row; there are {', '.join(dict.fromkeys(m for m, _ in rows))}")
    heads = ["row", "labelled", "seeds", "Dice %", "95 % interval", "sd of runs"]
    lines = {row: [*row, str(len(values)), *of_one(values)] for row, values in rows.items()}
    for name in arguments.against:
        heads += [f"{name} against it", "95 % interval", "verdict"]
        told = against(name, rows)
        for row, cells in lines.items():
            nothing = ["", "", "" if row[0] == name else "no seed in common"]
            cells += of_two(told[row]) if row in told else nothing
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for cells in lines.values():
        print(f"| {' | '.join(cells)} |")


def read_cases(paths: Sequence[Path]) -> dict[Row, Values]:
    """Each row's Dice, by training and patient: the mean over a patient's cases."""
    found: dict[Row, dict[Replicate, list[tuple[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                cases = found[line["method"], line["labelled"]][Replicate(line["draw"], int(line["seed"]))]
                cases += [(line["patient"], float(line["dice"]))] if line["dice"] else []
    return {row: {key: gathered(cases) for key, cases in trainings.items()} for row, trainings in found.items()}


def of_one(values: Values) -> list[str]:
    """Mean, interval and spread of runs, in percent."""
    about, interval = describe(values), bootstrap_mean(values)
    sd = "" if about.sd_of_trainings is None else f"{POINTS.factor * about.sd_of_trainings:.1f}"
    return [f"{POINTS.factor * about.mean:.1f}", ends(interval), sd]


def against(name: str, rows: Mapping[Row, Values]) -> dict[Row, Comparison]:
    """What a method has more than each other row of as many labels, over the trainings that both have, if any."""
    found: dict[Row, Comparison] = {}
    for labelled in dict.fromkeys(labelled for _, labelled in rows):
        family: dict[Row, Comparison] = {}
        ours = rows.get((name, labelled), {})
        for row, theirs in rows.items():
            if row[1] == labelled and row[0] != name and (shared := sorted(ours.keys() & theirs.keys())):
                family[row] = paired({one: ours[one] for one in shared}, {one: theirs[one] for one in shared})
        found |= zip(family, corrected(list(family.values())), strict=True)
    return found


def of_two(found: Comparison) -> list[str]:
    """How many points more, the interval of that, and what it amounts to beside the others."""
    return [f"{POINTS.factor * found.difference.mean:+.1f}", ends(found.difference), verdict(found)]


def ends(interval: Interval) -> str:
    """Both in percent."""
    if interval.low is None or interval.high is None:
        return ""
    return f"{POINTS.factor * interval.low:.1f} to {POINTS.factor * interval.high:.1f}"


if __name__ == "__main__":
    main()
