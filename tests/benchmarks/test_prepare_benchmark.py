"""The benchmark of preparing on a toy phantom: every number is there."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_prepare_benchmark(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "prepare.py"), "--shape", "48", "40", "32", "--cases", "1",
               "--workers", "1", "--rounds", "1", "--patches", "16", "--codecs",
               "--out", str(tmp_path / "out.json")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["recipe"] for row in rows] == ["as scanned", "resampled"]
    for row in rows:
        assert row["prepare_over_bare"] > 0
        assert 0 < row["store_over_npy"] < 1.2
        assert {"float32 LZ4 SHUFFLE", "float32 ZSTD BITSHUFFLE"} <= row["other_stores"].keys()
        assert all(store["milliseconds"] > 0 for store in row["other_stores"].values())
        assert all(rate > 0 for rate in row["patches_per_second"]["16x16x16"].values())
