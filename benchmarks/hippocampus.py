"""Supervised, Mean Teacher and BCP on the hippocampus with few labels, beside supervision by all labels.

    python benchmarks/hippocampus.py SOURCE --out runs/hippocampus --results benchmarks/results/hippocampus.csv

SOURCE is the decathlon's Task04 folder with a `cases.csv` (case, inferred_subject). Every run is three
`medssl` commands: train, predict, evaluate. Runs that are in the results already are left out, a run
that was cut short is resumed. Validation cases choose `best.pt`; nothing is chosen by test cases. The
student of `last.pt` is the primary result; that of `best.pt`, and the teacher, are scored beside it.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from medssl.data.prepared import read_prepared
from medssl.logs import read_metrics
from medssl.scores import read_scores, summarise

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ROWS = {  # name: (method, split)
    "supervised": ("supervised", "few"),
    "mean_teacher": ("mean_teacher", "few"),
    "bcp": ("bcp", "few"),
    "supervised, all labels": ("supervised", "all"),
}
SCORED = (("last", "student"), ("best", "student"), ("last", "teacher"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/hippocampus"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/hippocampus.csv"))
    parser.add_argument("--presets", nargs="+", default=["weak", "strong"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--labelled", type=int, default=4, help="labelled cases")
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()

    prepare(options)
    matrix = itertools.product(options.presets, options.seeds, options.rows)
    with ThreadPoolExecutor(options.parallel) as pool:
        for _ in pool.map(lambda cell: run(options, *cell), list(matrix)):
            pass


def prepare(options: argparse.Namespace) -> None:
    """The prepared dataset and its two splits, which share their test and validation cases."""
    out = options.out
    medssl("prepare", options.source, out / "prepared", "--config", CONFIGS / "data" / "hippocampus.yaml")
    cases = len(read_prepared(out / "prepared").cases)
    for name, labelled in (("few", options.labelled), ("all", cases - 20 - 40)):
        path = out / f"{name}.json"
        if not path.exists():
            medssl("split", out / "prepared", "--labelled", labelled, "--val", 20, "--test", 40, "--count", "cases",
                   "--seed", options.split_seed, "-o", path)  # fmt: skip


def run(options: argparse.Namespace, preset: str, seed: int, row: str) -> None:
    """Train, predict and score one run, and add its rows to the results."""
    facts = {
        "row": row, "preset": preset, "seed": seed, "labelled": options.labelled, "split_seed": options.split_seed,
        "iterations": options.iterations,
    }  # fmt: skip
    done = {tuple(r[k] for k in facts) for r in read_rows(options.results)}
    if tuple(str(v) for v in facts.values()) in done:
        return
    method, split = ROWS[row]
    name = f"{method}-{split}-{preset}-l{options.labelled}-d{options.split_seed}-i{options.iterations}-s{seed}"
    folder = options.out / name
    medssl(
        "train", CONFIGS / "data" / "hippocampus.yaml", CONFIGS / "method" / f"{method}.yaml", "--out", folder,
        "--resume", "--quiet", "--set", f"data.root={options.out / 'prepared'}", "--set",
        f"data.splits={options.out / f'{split}.json'}", "--set", f"augment.preset={preset}", "--set",
        f"train.seed={seed}", "--set", f"train.iterations={options.iterations}",
    )  # fmt: skip
    scored = [what for what in SCORED if method != "supervised" or what[1] == "student"]
    new = [{**facts, **score(options, folder, *what)} for what in scored]
    options.results.parent.mkdir(parents=True, exist_ok=True)
    is_new = not options.results.exists()
    with options.results.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(new[0]), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(new)
    print(f"{name}: test Dice " + ", ".join(f"{r['checkpoint']} {r['network']} {r['dice']}" for r in new), flush=True)


def score(options: argparse.Namespace, folder: Path, checkpoint: str, network: str) -> dict[str, object]:
    """Test scores of a run. The primary ones lie in the run folder, where the report looks."""
    place = folder if (checkpoint, network) == SCORED[0] else folder / f"{checkpoint}-{network}"
    medssl("predict", folder, "--part", "test", "--checkpoint", checkpoint, "--network", network, "-o",
           place / "test", "--overwrite")  # fmt: skip
    medssl("evaluate", place / "test", options.source / "labelsTr", "-o", place / "scores.csv", "--overwrite",
           "--workers", 0)  # fmt: skip
    summary = summarise(read_scores(place / "scores.csv"))
    overall, metrics = summary.overall, read_metrics(folder / "metrics.csv")
    val = [row["val/dice"] for row in metrics if "val/dice" in row]
    return {
        "checkpoint": checkpoint,
        "network": network,
        "cases": summary.cases,
        "dice": number(overall.dice.mean),
        "dice_sd_cases": number(overall.dice.sd),
        "dice_anterior": number(summary.classes[0].dice.mean),
        "dice_posterior": number(summary.classes[1].dice.mean),
        "hd95_mm": number(overall.hd95.mean),
        "asd_mm": number(overall.asd.mean),
        "missed": overall.missed,
        "val_dice": number(max(val) if checkpoint == "best" else val[-1]) if network == "student" else "",
    }


def medssl(*words: object) -> None:
    """Run a command as a user would, on one thread."""
    command = [sys.executable, "-m", "medssl", *map(str, words)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The results so far."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
