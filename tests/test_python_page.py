"""docs/python.md runs as it stands."""

import math
import re
import shutil
from pathlib import Path

import pytest
import yaml

from medssl.config import bundled
from medssl.logs import read_metrics
from medssl.methods import METHODS

ROOT = Path(__file__).parents[1]


def test_the_blocks_of_the_page_run_in_order(balls, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(balls[0], tmp_path / "mydata")
    (tmp_path / "configs/method").mkdir(parents=True)
    shutil.copy(bundled("method/bcp.yaml"), tmp_path / "configs/method")
    (tmp_path / "mydata.yaml").write_text(
        yaml.safe_dump(
            {
                "data": {"name": "balls", "classes": ["background", "shell", "core"], "recipe": {"crop": False}},
                "network": {"name": "unet", "channels": [4, 8], "strides": [2]},
                "train": {"patch": [12, 12, 8], "lr": 0.01},
            }
        )
    )
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(encoding="utf-8"), re.DOTALL)
    names = {"__name__": "page"}
    try:
        for block in blocks:
            exec(compile(block, "docs/python.md", "exec"), names)
    finally:
        METHODS.pop("sure", None)
    assert "mean Dice over cases: 0." in capsys.readouterr().out
    assert names["classes"].shape == names["uncertainty"].shape == (21, 18, 13)
    assert (tmp_path / "report/report.html").exists()
    rows = [row for row in read_metrics(tmp_path / "runs/sure/metrics.csv") if "loss/entropy" in row]
    assert rows
    assert all(0 < row["loss/entropy"] <= 0.1 * math.log(3) for row in rows)
    assert pytest.approx(1) == sum(rows[-1][f"stat/pseudo/{value}"] for value in range(3))
