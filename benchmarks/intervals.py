"""Compute the intervals and tests of a bench, or of several together, from the cases of their runs.

    python benchmarks/intervals.py benchmarks/results/hippocampus-time-9-cases.csv --against combined

Reads cases.csv files of `medssl bench`. Prints a row per method and labelled count: Dice (or `--metric hd95`) by
patient with its 95 % interval, the standard deviation of its runs, and by how much each row named with `--against`
exceeds it, over the runs (draw and seed) and cases that both have. Verdicts are corrected for all rows of a labelled
count.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from medssl.comparison import scale_of
from medssl.comparison.runs import gathered
from medssl.metrics import METRICS
from medssl.statistics import (
    POINTS,
    Comparison,
    Interval,
    Replicate,
    Scale,
    Values,
    bootstrap_mean,
    corrected,
    describe,
    paired,
    told,
    verdict,
)  # fmt: skip

Row = tuple[str, str]
"""A method and its labelled count."""
Case = tuple[str, str]
"""A patient and one of its cases."""
Cases = Mapping[Replicate, Mapping[Case, float | None]]
"""For each training, the metric of the cases on which it was scored; None where no class has one."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "tables", nargs="+", type=Path, help="cases.csv of one or more benches with the same test cases"
    )
    parser.add_argument(
        "--against", action="append", default=[], help="row to compare with every other row; repeatable"
    )
    parser.add_argument("--metric", choices=("dice", "hd95", "asd"), default="dice", help="column to compare")
    arguments = parser.parse_args(argv)
    rows, scale = read_cases(arguments.tables, arguments.metric), scale_of(arguments.metric)
    for name in arguments.against:
        if name not in {method for method, _ in rows}:
            parser.error(f"--against {name}: no such row; the rows are {', '.join(dict.fromkeys(m for m, _ in rows))}")
    head = f"{METRICS[arguments.metric].title} {'%' if scale is POINTS else scale.unit}"
    heads = ["row", "labelled", "runs", head, "95 % interval", "sd of runs"]
    lines = {row: [*row, str(len(cases)), *of_one(by_patient(cases, numbered(cases)), scale)]
             for row, cases in rows.items()}  # fmt: skip
    for name in arguments.against:
        heads += [f"{name} against it", "95 % interval", "verdict"]
        found = against(name, rows)
        for row, cells in lines.items():
            nothing = ["", "", "" if row[0] == name else "no run in common"]
            cells += of_two(found[row], scale) if row in found else nothing
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for cells in lines.values():
        print(f"| {' | '.join(cells)} |")


def read_cases(paths: Sequence[Path], metric: str) -> dict[Row, Cases]:
    """Read the cases of each row by training.

    Raises:
        SystemExit: two tables have different numbers for the same case of a training.
    """
    found: dict[Row, dict[Replicate, dict[Case, float | None]]] = defaultdict(lambda: defaultdict(dict))
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                training = found[line["method"], line["labelled"]][Replicate(line["draw"], int(line["seed"]))]
                case, value = (line["patient"], line["case"]), float(line[metric]) if line[metric] else None
                if training.setdefault(case, value) != value:
                    run = f"{line['method']}, seed {line['seed']}"
                    raise SystemExit(
                        f"{path}: {run}, case {line['case']}: {METRICS[metric].title} is {value}, but "
                        f"{training[case]} in an earlier table; the tables hold different runs under the same name"
                    )
    return dict(found)


def numbered(*rows: Cases) -> set[Case]:
    """Return the cases that each row has and for which all trainings scored on them have a value."""
    shared = set.intersection(*({case for cases in row.values() for case in cases} for row in rows))
    return shared - {case for row in rows for cases in row.values() for case, value in cases.items() if value is None}


def by_patient(row: Cases, counts: Collection[Case]) -> Values:
    """Return the mean over each patient's cases, for the cases in `counts`."""
    return {
        key: gathered((case[0], value) for case, value in cases.items() if case in counts and value is not None)
        for key, cases in row.items()
    }


def of_one(values: Values, scale: Scale) -> list[str]:
    """Return mean, interval and standard deviation of runs, in the unit of the scale."""
    if not any(values.values()):
        return ["", "", ""]
    about, interval = describe(values), bootstrap_mean(values)
    sd = "" if about.sd_of_trainings is None else told(about.sd_of_trainings, scale)
    return [told(about.mean, scale), ends(interval, scale), sd]


def against(name: str, rows: Mapping[Row, Cases]) -> dict[Row, Comparison]:
    """Compare a method with each other row of the same labelled count, over the trainings that both have."""
    found: dict[Row, Comparison] = {}
    for labelled in dict.fromkeys(labelled for _, labelled in rows):
        family: dict[Row, Comparison] = {}
        ours = rows.get((name, labelled), {})
        for row, theirs in rows.items():
            if row[1] == labelled and row[0] != name and (shared := sorted(ours.keys() & theirs.keys())):
                pair: list[Cases] = [{one: cases[one] for one in shared} for cases in (ours, theirs)]
                if counts := numbered(*pair):
                    family[row] = paired(*(by_patient(cases, counts) for cases in pair))
        found |= zip(family, corrected(list(family.values())), strict=True)
    return found


def of_two(found: Comparison, scale: Scale) -> list[str]:
    """Return the difference in the unit of the scale, its interval, and the verdict."""
    return [told(found.difference.mean, scale, "+"), ends(found.difference, scale), verdict(found, scale)]


def ends(interval: Interval, scale: Scale) -> str:
    """Return both ends of an interval in the unit of the scale; empty if it has none."""
    if interval.low is None or interval.high is None:
        return ""
    return f"{told(interval.low, scale)} to {told(interval.high, scale)}"


if __name__ == "__main__":
    main()
