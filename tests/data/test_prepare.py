"""Preparing: everything checked first, atomic, resumable, nothing overwritten unasked."""

import itertools
import shutil

import numpy as np
import pytest

from medssl.data.cases import DatasetConfig
from medssl.data.nifti import write_image
from medssl.data.prepared import read_prepared
from medssl.data.recipe import Recipe
from medssl.errors import ConfigError, DataError
from medssl.prepare import prepare

CONFIG = DatasetConfig(name="balls", classes=("background", "shell", "core"), recipe=Recipe(crop=False))


def test_store_holds_what_the_recipe_gives(balls):
    raw, prepared = balls
    dataset = read_prepared(prepared)
    assert len(dataset.cases) == 12
    assert sum(case.labelled for case in dataset.cases.values()) == 8
    case = dataset.cases["ball_00"]
    assert case.open_image().shape == (1, 20, 18, 14)
    assert set(np.unique(case.open_label()[...])) == {0, 1, 2}
    assert [source.path for source in case.images] == [(raw / "images" / "ball_00.nii.gz").resolve()]
    assert not (dataset.cases["ball_11"].folder / "label.b2nd").exists()


def test_finished_cases_are_kept_and_missing_ones_made_again(balls, tmp_path):
    raw, _ = balls
    prepare(raw, tmp_path, CONFIG, workers=0)
    times = {p.parent.name: p.stat().st_mtime_ns for p in tmp_path.glob("cases/*/image.b2nd")}
    shutil.rmtree(tmp_path / "cases" / "ball_03")
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(DataError, match="not finished"):
        read_prepared(tmp_path)
    prepare(raw, tmp_path, CONFIG, workers=0)
    again = {p.parent.name: p.stat().st_mtime_ns for p in tmp_path.glob("cases/*/image.b2nd")}
    assert {id for id in times if times[id] != again[id]} == {"ball_03"}


def test_processes_give_the_same_store_as_one(balls, tmp_path):
    raw, prepared = balls
    config = read_prepared(prepared).config
    other = prepare(raw, tmp_path, config, workers=2)
    for id, case in read_prepared(prepared).cases.items():
        assert np.array_equal(case.open_image()[...], other.cases[id].open_image()[...])


def test_other_settings_need_another_folder_or_permission(balls, tmp_path):
    raw, _ = balls
    prepare(raw, tmp_path, CONFIG, workers=0)
    changed = CONFIG.model_copy(update={"recipe": Recipe(spacing=(2.0, 2.0, 2.0))})
    with pytest.raises(ConfigError, match="other settings"):
        prepare(raw, tmp_path, changed, workers=0)
    dataset = prepare(raw, tmp_path, changed, workers=0, overwrite=True)
    assert dataset.cases["ball_00"].grid.spacing == (2.0, 2.0, 2.0)


def test_a_folder_of_something_else_is_left_alone(balls, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not a prepared folder"):
        prepare(balls[0], tmp_path, CONFIG, workers=0)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_one_unusable_case_stops_everything_before_anything_is_written(balls, tmp_path):
    raw = shutil.copytree(balls[0], tmp_path / "raw")
    write_image(raw / "labels" / "ball_02.nii.gz", np.full((20, 18, 14), 9, np.uint8), np.diag([1, 1, 1.5, 1]))
    (raw / "images" / "ball_05.nii.gz").write_bytes(b"")
    with pytest.raises(DataError) as failure:
        prepare(raw, tmp_path / "out", CONFIG, workers=0)
    assert "ball_02" in str(failure.value)
    assert "ball_05" in str(failure.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spacing", [(None, None, None), (1.0, 1.0, 1.0)])
def test_a_label_comes_back_from_the_store_to_its_own_grid(tmp_path, spacing):
    """Eight orientations and a tilt: write, prepare, read the store, undo with the stored grid."""
    shape = (31, 27, 23)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), -1)
    label = (np.linalg.norm(grid - [0.1, 0, -0.1], axis=-1) < 0.7).astype(np.uint8)
    tilt = np.deg2rad(15)
    tilted = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    for i, signs in enumerate(itertools.product((1, -1), repeat=3)):
        affine = np.eye(4)
        axes = list(itertools.permutations(range(3)))[i % 6]
        affine[:3, :3] = tilted @ (np.eye(3)[:, list(axes)] * signs * np.array([0.9, 1.2, 1.5]))
        affine[:3, 3] = (10, -20, 30)
        write_image(tmp_path / "raw" / "images" / f"case_{i}.nii.gz", (300.0 * label + 50).astype(np.float32), affine)
        write_image(tmp_path / "raw" / "labels" / f"case_{i}.nii.gz", label, affine)
    config = DatasetConfig(name="turns", classes=("background", "ball"), recipe=Recipe(spacing=spacing))
    dataset = prepare(tmp_path / "raw", tmp_path / "prepared", config, workers=0)
    assert len(dataset.cases) == 8
    assert len({(case.grid.axes, case.grid.flips) for case in dataset.cases.values()}) == 8
    for case in dataset.cases.values():
        stored = case.open_label()[...]
        back = config.recipe.undo(np.stack([stored == 0, stored == 1]).astype(np.float32), case.grid)
        overlap = 2 * ((back == 1) & (label == 1)).sum() / ((back == 1).sum() + (label == 1).sum())
        assert overlap >= 0.98
        assert spacing[0] is not None or np.array_equal(back, label)
