"""The benchmark of metrics runs, finds equal numbers, and writes what its tables say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "metrics.py"


def run(*words):
    done = subprocess.run([sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("|")]


@pytest.mark.slow
def test_a_toy_run_compares_the_tools_that_are_there(tmp_path):
    out = tmp_path / "new" / "metrics.json"
    lines = run("--toy", "--repeats", 2, "--threads", 2, "--out", out)
    result = json.loads(out.read_text())
    assert {"command", "processor", "cores", "monai", "medpy", "scipy", "numpy"} <= result["machine"].keys()
    ours, threaded, monai, *medpy = result["rows"]
    assert [row["tool"] for row in (ours, threaded, monai)] == ["medssl", "medssl, 2 threads", "MONAI"]
    assert [row["tool"] for row in medpy] == (["medpy"] if result["machine"]["medpy"] else [])
    assert (ours["times_ours"], ours["turns"]) == (1, 2)
    assert all(row["wall_s"] > 0 for row in result["rows"])
    assert len(lines) == 2 + len(result["rows"])


def test_every_convention_agrees_with_its_tool():
    rows = [line.split(" | ") for line in run("--parity")]
    beside = [row for row in rows if row[-1].endswith("equal |")]
    assert len(beside) >= 11
    for row in beside:
        assert row[-1] == "50 of 50 equal |"
        assert not any("tool:" in cell for cell in row)
