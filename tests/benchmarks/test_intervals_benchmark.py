"""Intervals from cases.csv: pairs by patient and seed, cases of a patient together, and what a bench itself prints."""

import csv
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "intervals.py"
HEADS = ["method", "labelled", "draw", "seed", "patient", "case", "dice", "hd95", "asd"]


def printed(*words):
    done = subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 2), done.stderr
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    return done, [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADS, *rows])
    return path


def test_cases_of_a_patient_are_one_and_only_shared_seeds_and_cases_are_compared(tmp_path):
    base = {p: 0.5 + 0.03 * i for i, p in enumerate("abcdefgh")}
    few = [["bcp", 4, 0, seed, p, p + "1", v, "", ""] for seed in (0, 1) for p, v in base.items()]
    few += [["bcp", 4, 0, seed, "a", "a2", 0.3, "", ""] for seed in (0, 1)]  # patient a: 0.4 in the mean
    more = [["combined", 4, 0, seed, p, p + "1", v + 0.1 * (seed < 2), "", ""] for seed in (0, 1, 2)
            for p, v in base.items()]  # fmt: skip
    tables = write(tmp_path / "few.csv", few), write(tmp_path / "more.csv", more)
    _, (bcp, combined) = printed(*tables, "--against", "combined")
    assert (bcp["row"], bcp["runs"], combined["runs"]) == ("bcp", "2", "3")
    assert bcp["Dice %"] == f"{100 * (sum(base.values()) - 0.1) / 8:.1f}"
    # seed 2, which bcp lacks, would make it 6.7, and case a2, which combined lacks, 11.2
    assert bcp["combined against it"] == "+10.0"
    assert combined["combined against it"] == ""


def test_a_case_that_a_training_has_no_dice_for_counts_for_none(tmp_path):
    base = {p: 0.5 + 0.03 * i for i, p in enumerate("abcdefgh")}
    rows = [[name, 4, 0, seed, p, p, v + more, "", ""] for name, more in (("bcp", 0.0), ("combined", 0.1))
            for seed in (0, 1) for p, v in base.items()]  # fmt: skip
    healthy = [[name, 4, 0, seed, "i", "i", 0.0 if name == "combined" or seed else "", "", ""]
               for name in ("bcp", "combined") for seed in (0, 1)]  # fmt: skip
    plain, _ = printed(write(tmp_path / "plain.csv", rows), "--against", "combined")
    told, (bcp, combined) = printed(write(tmp_path / "all.csv", rows + healthy), "--against", "combined")
    assert bcp["Dice %"] == f"{100 * sum(base.values()) / 8:.1f}"
    assert combined["Dice %"] == f"{100 * (0.1 + sum(base.values()) / 8) * 8 / 9:.1f}"  # it invents at every seed
    assert bcp["combined against it"] == "+10.0"
    assert plain.stdout.splitlines()[2] == told.stdout.splitlines()[2]


def test_a_row_in_which_no_case_counts_has_no_numbers(tmp_path):
    table = write(
        tmp_path / "cases.csv", [["bcp", 4, 0, 0, "a", "a", 0.0, "", ""], ["bcp", 4, 0, 1, "a", "a", "", "", ""]]
    )
    _, (row,) = printed(table)
    assert (row["runs"], row["Dice %"]) == ("2", "")


def test_equal_runs_in_two_tables_are_one_and_others_are_refused(tmp_path):
    rows = [["bcp", 4, 0, 0, p, p, v, "", ""] for p, v in (("a", 0.5), ("b", 0.7))]
    one, same = write(tmp_path / "one.csv", rows), write(tmp_path / "same.csv", rows)
    assert printed(one, same)[1] == printed(one)[1]
    other = write(tmp_path / "other.csv", [[*rows[0][:6], 0.6, "", ""]])
    done = subprocess.run([sys.executable, SCRIPT, one, other], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "other.csv: bcp, seed 0, case a: Dice is 0.6, but 0.5 in an earlier table" in done.stderr


def test_a_row_that_is_not_there_is_named(tmp_path):
    table = write(tmp_path / "cases.csv", [["bcp", 4, 0, 0, "a", "a", 0.5, "", ""]])
    done, _ = printed(table, "--against", "combnied")
    assert done.returncode == 2
    assert "combnied: no such row; the rows are bcp" in done.stderr


def test_distances_are_compared_in_mm_and_the_shorter_is_better(tmp_path):
    base = {p: 3.0 + 0.08 * i for i, p in enumerate("abcdefgh")}
    rows = [[name, 4, 0, seed, p, p, 0.5, v - less, v / 3] for name, less in (("bcp", 0.0), ("combined", 1.0))
            for seed in (0, 1) for p, v in base.items()]  # fmt: skip
    table = write(tmp_path / "cases.csv", rows)
    _, (bcp, combined) = printed(table, "--metric", "hd95", "--against", "combined")
    assert (bcp["HD95 mm"], combined["HD95 mm"]) == ("3.3", "2.3")  # 3.28 and 2.28
    assert bcp["combined against it"] == "-1.0"
    assert bcp["verdict"].startswith("better by 1.0 mm")
    assert printed(table)[1][0]["Dice %"] == "50.0"
