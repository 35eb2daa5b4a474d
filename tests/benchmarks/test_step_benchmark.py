"""The step benchmark at toy size: it runs, adds up, and finds no step cheaper than its floor by much."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "step.py"


@pytest.mark.slow
def test_step_benchmark(tmp_path):
    out = tmp_path / "step.json"
    command = [sys.executable, str(BENCHMARK), "--shapes", "toy", "--rounds", "9", "--out", str(out), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["machine"]["threads"] >= 1
    rows = {row["method"]: row for row in result["rows"]}
    assert set(rows) == {"supervised", "mean_teacher", "bcp"}
    assert rows["supervised"]["batch"] == 2
    assert rows["bcp"]["batch"] == 4
    for row in rows.values():
        assert row["ratio"] > 0.8
        assert row["parts_ms"]["student forward"] > 0
        assert row["parts_ms"]["backward"] > 0
        assert 0.3 < sum(row["parts_ms"].values()) / row["step_ms"] < 3
    assert rows["supervised"]["parts_ms"]["teacher forward"] == 0
    assert rows["bcp"]["parts_ms"]["teacher forward"] > 0
    assert "| toy | bcp |" in done.stdout
