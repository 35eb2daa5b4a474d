"""Print benchmark results as Markdown: mean and standard deviation over seeds.

python benchmarks/table.py benchmarks/results/hippocampus.csv [--checkpoint last]
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path

KEYS = ("labelled", "split_seed", "preset", "iterations")
COLUMNS = {"dice": "Dice", "dice_anterior": "anterior", "dice_posterior": "posterior", "hd95_mm": "HD95 mm",
           "asd_mm": "ASD mm"}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last")
    parser.add_argument("--network", choices=["student", "teacher"], default="student")
    options = parser.parse_args()
    with options.results.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["checkpoint"] == options.checkpoint]
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        if row["network"] == options.network or row["row"].startswith("supervised"):
            groups.setdefault((*(row[key] for key in KEYS), row["row"]), []).append(row)

    print(f"| {' | '.join(KEYS)} | row | seeds | {' | '.join(COLUMNS.values())} | gain over supervised |")
    print("|" + "---|" * (len(KEYS) + 3 + len(COLUMNS)))
    for (*keys, name), runs in groups.items():
        cells = [spread([float(run[column]) for run in runs]) for column in COLUMNS]
        baseline = groups.get((*keys, "supervised"), [])
        print(f"| {' | '.join(keys)} | {name} | {len(runs)} | {' | '.join(cells)} | {gain(runs, baseline)} |")


def spread(values: list[float]) -> str:
    """`mean ± sd`, the sample standard deviation."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def gain(runs: list[dict[str, str]], baseline: list[dict[str, str]]) -> str:
    """Difference of Dice to the baseline of the same seed, over the seeds that both have."""
    theirs = {run["seed"]: float(run["dice"]) for run in baseline}
    pairs = [float(run["dice"]) - theirs[run["seed"]] for run in runs if run["seed"] in theirs]
    if not pairs or runs == baseline:
        return ""
    return f"{statistics.fmean(pairs):+.3f} ({min(pairs):+.3f} to {max(pairs):+.3f})"


if __name__ == "__main__":
    main()
