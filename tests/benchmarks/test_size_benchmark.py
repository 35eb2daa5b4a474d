"""The size benchmark on a toy dataset: a row per size, and nothing done twice."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BALLS, write_balls

from medssl.config import dump

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(os.name == "nt", reason="paths in --set")
@pytest.mark.slow
def test_size_benchmark(tmp_path):
    source = write_balls(tmp_path / "source", labelled=6)
    (source / "labels").rename(source / "labelsTr")
    (source / "labels").symlink_to(source / "labelsTr")
    dump({"data": BALLS.model_dump(mode="json", exclude={"root", "splits"})}, tmp_path / "balls.yaml")
    command = [sys.executable, str(ROOT / "benchmarks" / "size.py"), str(source), "--config",
               str(tmp_path / "balls.yaml"), "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "size.csv"),
               "--runs", "supervised:weak", "--parts", "2", "1", "2", "--threads", "1", "--set", "train.iterations=3",
               "train.patch=[32,16,16]", "train.validate_every=3"]  # fmt: skip
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with (tmp_path / "size.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["size"] for row in rows] == ["laptop", "full"]
    assert all(row["cases"] == "2" and float(row["minutes"]) >= 0 for row in rows)
