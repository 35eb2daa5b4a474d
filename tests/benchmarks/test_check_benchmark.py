"""The check benchmark on toy sets: every mirrored label is found where sides differ, none where they do not."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medssl.data.io import write_image

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "check.py"
AFFINE = np.array([[0, 0.8, 0, 0], [0.9, 0, 0, 0], [0, 0, 1.5, 0], [0, 0, 0, 1.0]])
"""Left and right lie along the second axis."""


def write_set(folder: Path, starts: tuple[int, ...]) -> Path:
    """Twelve noisy scans of 11 x 15 x 7 voxels; the class lies 4 voxels wide from one of `starts` on."""
    rng = np.random.default_rng(3)
    for number in range(12):
        label = np.zeros((11, 15, 7), np.uint8)
        start = starts[number % len(starts)]
        label[3:8, start : start + 4, 2:5] = rng.random((5, 4, 3)) < 0.9
        image = rng.normal(100, 10, label.shape) + 40 * label
        write_image(folder / "images" / f"case{number:02}.nii.gz", image.astype(np.float32), AFFINE)
        write_image(folder / "labels" / f"case{number:02}.nii.gz", label, AFFINE)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What the script finds in a set whose organ has a side, and in one whose organ is on either side."""
    root = tmp_path_factory.mktemp("check")
    sets = write_set(root / "one_side", (1,)), write_set(root / "either_side", (1, 10))
    noise = root / "noise.nii.gz"
    write_image(noise, np.random.default_rng(4).exponential(size=(40, 9, 70)).astype(np.float32) ** 4, np.eye(4))
    out = root / "new" / "check.json"
    command = [sys.executable, SCRIPT, *sets, "--strangers", noise, "--labelled", 5, 8, 12, "--draws", 3, "--out", out]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"command", "processor"} <= result.keys()
    return {row["set"]: row for row in result["rows"]}


def test_mirrored_labels_are_found_where_sides_differ(rows):
    assert rows["one_side"]["mirrored"] == {"labels": 12, "found": 12, "false_alarms": 0}
    assert rows["either_side"]["mirrored"] == {"labels": 12, "found": 0, "false_alarms": 0}
    assert rows["one_side"]["findings"] == []


def test_strangers_are_called_far_in_every_draw_and_scans_of_the_set_in_none(rows):
    for row in rows.values():
        assert [(hidden["labelled"], hidden["unlabelled"]) for hidden in row["hidden"]] == [(5, 7), (8, 4)]
        for hidden in row["hidden"]:
            assert hidden["called_far"] == [[], [], []]
            assert hidden["called_far_on_average"] == 0
            assert hidden["draws_that_call_a_stranger"] == {"stranger noise": 3}
