"""Measure how much Dice the smaller network and schedule of configs/size/laptop.yaml lose against full.yaml.

    python benchmarks/size.py Task04_Hippocampus --out runs/size --results benchmarks/results/size.csv

Data, split, method, augmentation and seed are the same; network and steps differ. Each row has the test Dice of the
weights after the last step and the time of all training steps (without validations). Runs that are in the results
already are skipped; interrupted runs are resumed.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

from machine import processor

from medssl.logs import read_metrics
from medssl.score_file import read_scores
from medssl.scores import summarise

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--config", type=Path, default=CONFIGS / "data" / "hippocampus.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/size"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/size.csv"))
    parser.add_argument("--sizes", nargs="+", default=["laptop", "full"])
    parser.add_argument("--runs", nargs="+", default=["bcp:weak", "supervised:strong"], help="method:augmentation")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--parts", nargs=3, type=int, default=[4, 20, 40], help="number of labelled, val and test cases"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", nargs="+", default=[], dest="sets")
    options = parser.parse_args(argv)

    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    medssl("prepare", options.source, options.out / "prepared", "--config", options.config)
    split = options.out / "splits.json"
    if not split.exists():
        counts = zip(("--labelled", "--val", "--test"), options.parts, strict=True)
        medssl("split", options.out / "prepared", *(word for pair in counts for word in pair), "--count", "cases",
               "--seed", 0, "-o", split)  # fmt: skip
    for seed in options.seeds:
        for run in options.runs:
            for size in options.sizes:
                method, preset = run.split(":")
                measure(options, size, method, preset, seed)


def measure(options: argparse.Namespace, size: str, method: str, preset: str, seed: int) -> None:
    """Train, predict and score one run, and append its row to the results."""
    facts = {"size": size, "method": method, "preset": preset, "seed": str(seed)}
    if any(all(row[key] == value for key, value in facts.items()) for row in read_rows(options.results)):
        return
    folder = options.out / "-".join(facts.values())
    settings = [f"data.root={options.out / 'prepared'}", f"data.splits={options.out / 'splits.json'}",
                f"augment.preset={preset}", f"train.seed={seed}", *options.sets]  # fmt: skip
    medssl("train", options.config, CONFIGS / "method" / f"{method}.yaml", CONFIGS / "size" / f"{size}.yaml", "--out",
           folder, "--resume", "--quiet", *(word for item in settings for word in ("--set", item)))  # fmt: skip
    medssl("predict", folder, "--part", "test", "--checkpoint", "last", "-o", folder / "test", "--overwrite")
    medssl("evaluate", folder / "test", options.source / "labelsTr", "-o", folder / "scores.csv", "--overwrite")
    dice = summarise(read_scores(folder / "scores.csv")).overall.dice
    assert dice.mean is not None
    row = {
        **facts, "threads": options.threads, "minutes": f"{minutes(folder):.1f}", "test_dice": f"{dice.mean:.4f}",
        "sd_over_cases": f"{dice.sd:.4f}", "cases": dice.n, "processor": processor(),
    }  # fmt: skip
    options.results.parent.mkdir(parents=True, exist_ok=True)
    is_new = not options.results.exists()
    with options.results.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)
    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def minutes(folder: Path) -> float:
    """Return the minutes of all training steps, without validations."""
    rows = [row for row in read_metrics(folder / "metrics.csv") if "seconds_per_step" in row]
    steps = [0.0, *(row["step"] for row in rows)]
    return sum(row["seconds_per_step"] * (row["step"] - before) for row, before in zip(rows, steps, strict=False)) / 60


def medssl(*words: object) -> None:
    """Run a medssl command as a user would."""
    command = [sys.executable, "-m", "medssl", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the results so far."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
