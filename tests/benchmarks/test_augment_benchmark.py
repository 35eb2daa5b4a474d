"""The benchmark of augmentation runs, and writes what its table says."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "augment.py"


def test_a_toy_run_compares_three_ways_under_two_presets(tmp_path):
    out = tmp_path / "new" / "augment.json"
    command = [sys.executable, str(SCRIPT), "--toy", "--threads", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"command", "processor", "cores", "threads", "torch", "monai"} <= result["machine"].keys()
    assert result["machine"]["threads"] == 1
    rows = result["rows"]
    assert [(row["preset"], row["way"]) for row in rows] == [
        (preset, way) for preset in ("weak", "strong") for way in ("medssl, cpu", "MONAI", "MONAI, 2 workers")
    ]
    for ours, *others in (rows[:3], rows[3:]):
        assert ours["times_ours"] == 1
        for row in (ours, *others):
            low, high = row["quartiles_ms"]
            assert 0 < low <= row["median_ms"] <= high
            assert abs(row["samples_per_s"] * row["median_ms"] / 1000 - 2) < 0.1
            assert abs(row["times_ours"] - row["median_ms"] / ours["median_ms"]) < 0.05 * row["times_ours"]
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
