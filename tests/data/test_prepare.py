"""Preparing: everything checked first, atomic, resumable, nothing overwritten unasked."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_balls

from medssl.config import dump, load_yaml, parse
from medssl.data.cases import DatasetConfig, SubjectRule
from medssl.data.grid import Slab
from medssl.data.io import read_image, write_image
from medssl.data.prepared import read_prepared
from medssl.data.recipe import Recipe
from medssl.errors import ConfigError, DataError, DeviceError
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
    times = {p.parent.name: p.stat().st_mtime_ns for p in tmp_path.glob("cases/*/image.*")}
    shutil.rmtree(tmp_path / "cases" / "ball_03")
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(DataError, match="not finished"):
        read_prepared(tmp_path)
    prepare(raw, tmp_path, CONFIG, workers=0)
    again = {p.parent.name: p.stat().st_mtime_ns for p in tmp_path.glob("cases/*/image.*")}
    assert {id for id in times if times[id] != again[id]} == {"ball_03"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "expected an object with named entries, found a list"),
        ("7", "found a number"),
        ("{}", "not of a prepared folder"),
        ('{"format": 4, "data": 3}', "\n  data: .*got 3\n  cases: required"),
        ('{"format": 4, "data": {"name": "x", "classes": ["a", "b"]}, "cases": 5}', "cases: .*got 5"),
        (
            '{"format": 4, "data": {"name": "x", "classes": ["a", "b"]}, "cases": ["../a"]}',
            "'../a' cannot name a folder",
        ),
    ],
)
def test_a_description_of_another_kind_is_named(balls, tmp_path, text, words):
    prepare(balls[0], tmp_path, CONFIG, workers=0)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path / 'dataset.json'))}: (.|\n)*{words}"):
        read_prepared(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "null", "{}", '{"label": 1}', '{"label": null, "id": "a", "subject": "a"}'])
def test_a_case_of_another_kind_is_named_and_made_again(balls, tmp_path, text):
    prepare(balls[0], tmp_path, CONFIG, workers=0)
    (tmp_path / "cases" / "ball_03" / "case.json").write_text(text)
    with pytest.raises(DataError, match=r"ball_03: not a complete prepared case"):
        read_prepared(tmp_path)
    assert "ball_03" in prepare(balls[0], tmp_path, CONFIG, workers=0).cases


def test_processes_give_the_same_store_as_one(balls, tmp_path):
    raw, prepared = balls
    config = read_prepared(prepared).config
    other = prepare(raw, tmp_path, config, workers=2)
    for id, case in read_prepared(prepared).cases.items():
        assert np.array_equal(case.open_image()[...], other.cases[id].open_image()[...])


def test_other_settings_need_another_folder_or_permission(balls, tmp_path):
    raw, _ = balls
    prepare(raw, tmp_path, CONFIG, workers=0)
    changed = CONFIG.model_copy(update={"recipe": CONFIG.recipe.model_copy(update={"spacing": (2.0, 2.0, 2.0)})})
    with pytest.raises(ConfigError) as refusal:
        prepare(raw, tmp_path, changed, workers=0)
    before = list(CONFIG.recipe.spacing)
    assert str(refusal.value).splitlines()[1:-1] == [f"  data.recipe.spacing: there {before}, now [2.0, 2.0, 2.0]"]
    dataset = prepare(raw, tmp_path, changed, workers=0, overwrite=True)
    assert dataset.cases["ball_00"].grid.spacing == (2.0, 2.0, 2.0)


def test_a_raw_folder_with_a_description_of_its_own_is_no_prepared_one(tmp_path):
    (tmp_path / "dataset.json").write_text('{"name": "hippocampus", "training": []}')  # as MSD has it
    with pytest.raises(DataError, match=rf"not of a prepared folder; run `medssl prepare {tmp_path} FOLDER`"):
        read_prepared(tmp_path)


def test_a_folder_of_something_else_is_left_alone(balls, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not a prepared folder"):
        prepare(balls[0], tmp_path, CONFIG, workers=0)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="is a file"):
        prepare(balls[0], tmp_path / "thesis.txt", CONFIG, workers=0)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("described", [False, True])
def test_a_folder_of_cases_that_are_not_ours_is_left_alone(balls, tmp_path, described):
    """A folder `cases` is a common name; here it holds the scans themselves."""
    for name in ("ball_00", "ball_01"):
        (tmp_path / "study" / "cases" / name).mkdir(parents=True)
        shutil.copy(balls[0] / "images" / f"{name}.nii.gz", tmp_path / "study" / "cases" / name / "image.nii.gz")
    (tmp_path / "study" / "cases" / "ball_00" / "notes.txt").write_text("mine")
    if described:
        (tmp_path / "study" / "dataset.json").write_text('{"name": "mine"}')
    before = contents(tmp_path)
    for source in (balls[0], tmp_path / "study" / "cases"):
        with pytest.raises(ConfigError, match="not empty and not a prepared folder"):
            prepare(source, tmp_path / "study", CONFIG, workers=0, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("place", "text"), [("unfinished/paper/draft.txt", "{}"), ("cases/p1/ct.nii.gz", "[1]"), ("cases/a.nii.gz", "[1]")]
)
def test_folders_of_our_names_with_other_files_are_left_alone(balls, tmp_path, place, text):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text("mine")
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ConfigError, match="not empty and not a prepared folder"):
        prepare(balls[0], tmp_path, CONFIG, workers=0, overwrite=True)
    assert (tmp_path / place).read_text() == "mine"


@pytest.mark.parametrize("name", ["image.npy", "label.b2nd", "centres.npy"])
def test_a_case_whose_arrays_were_cut_short_is_made_again(balls, tmp_path, name):
    dataset = prepare(balls[0], tmp_path / "out", CONFIG, workers=0)
    folder = next(case.folder for case in dataset.cases.values() if case.labelled)
    whole = contents(folder)
    (folder / name).write_bytes(whole[name][: len(whole[name]) // 2])
    prepare(balls[0], tmp_path / "out", CONFIG, workers=0)
    assert (folder / name).read_bytes() == whole[name]
    (folder / name).unlink()
    prepare(balls[0], tmp_path / "out", CONFIG, workers=0)
    assert contents(folder).keys() == whole.keys()


def test_a_label_that_is_damaged_inside_is_named_with_what_to_do(balls, tmp_path):
    dataset = prepare(balls[0], tmp_path / "out", CONFIG, workers=0)
    case = next(case for case in dataset.cases.values() if case.labelled)
    file = case.folder / "label.b2nd"
    raw = bytearray(file.read_bytes())
    middle = len(raw) // 2
    raw[middle - 60 : middle + 60] = bytes(120)
    file.write_bytes(raw)
    with pytest.raises(DataError, match=rf"{re.escape(str(file))}: (is damaged|cannot be opened).*prepare"):
        case.open_label()[...]


@pytest.mark.parametrize("change", [{"layout": "acdc"}, {"layout": "nothing"}])
def test_a_dataset_that_cannot_be_read_leaves_no_folder(balls, tmp_path, change):
    with pytest.raises((ConfigError, DataError), match="layout"):
        prepare(balls[0], tmp_path / "out", CONFIG.model_copy(update=change), workers=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_what_would_outgrow_memory_is_refused_before_it_is_made(balls, tmp_path, workers):
    raw = shutil.copytree(balls[0], tmp_path / "raw")
    for file in sorted((raw / "images").glob("*"))[-2:]:  # both without labels
        write_image(file, read_image(file).array, np.diag([4000.0, 4000, 4000, 1]))
    fine = CONFIG.model_copy(update={"recipe": Recipe(crop=False, spacing=(1.0, 1.0, 1.0))})
    with pytest.raises(
        DataError, match=r"ball_1\d.nii.gz: 20 x 18 x 14 voxels at 4000 x .* would become 80000 x 72000"
    ):
        prepare(raw, tmp_path / "out", fine, workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_one_unusable_case_stops_everything_before_anything_is_written(balls, tmp_path):
    raw = shutil.copytree(balls[0], tmp_path / "raw")
    write_image(raw / "labels" / "ball_02.nii.gz", np.full((20, 18, 14), 9, np.uint8), np.diag([1, 1, 1.5, 1]))
    (raw / "images" / "ball_05.nii.gz").write_bytes(b"")
    with pytest.raises(DataError) as failure:
        prepare(raw, tmp_path / "out", CONFIG, workers=0)
    assert "ball_02" in str(failure.value)
    assert "ball_05" in str(failure.value)
    assert not (tmp_path / "out").exists()


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_nothing_is_done_when_nothing_changed(balls, tmp_path, monkeypatch):
    raw = shutil.copytree(balls[0], tmp_path / "raw")
    out = tmp_path / "out"
    prepare(raw, out, CONFIG, workers=0)
    before = stamps(out)
    for path in raw.rglob("*.gz"):
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        path.touch()
        os.utime(path, ns=times)
    prepare(raw, out, CONFIG, workers=0)  # the files were touched: they are read, and nothing else is done
    arrays = {path: time for path, time in before.items() if path.name != "case.json"}
    assert arrays.items() <= stamps(out).items()
    assert not (out / "unfinished").exists()
    before = stamps(out)
    opened, usual = [], Path.open
    monkeypatch.setattr(Path, "open", lambda path, *words, **more: opened.append(path) or usual(path, *words, **more))
    prepare(raw, out, CONFIG, workers=0)
    assert out / "dataset.json" in opened
    assert not [path for path in opened if raw in path.parents]
    assert stamps(out) == before


def test_files_are_known_by_their_content(balls, tmp_path):
    """A dataset that was moved is not prepared again; a file of equal size and time that holds something else is."""
    raw, out = shutil.copytree(balls[0], tmp_path / "raw"), tmp_path / "out"
    prepare(raw, out, CONFIG, workers=0)
    arrays = {path: time for path, time in stamps(out).items() if path.stem == "image"}
    moved = raw.rename(tmp_path / "moved")
    dataset = prepare(moved, out, CONFIG, workers=0)
    assert arrays.items() <= stamps(out).items()
    assert dataset.cases["ball_04"].images[0].path == (moved / "images" / "ball_04.nii.gz").resolve()

    image = moved / "images" / "ball_04.nii"
    plain = read_image(image.with_name("ball_04.nii.gz"))
    image.with_name("ball_04.nii.gz").unlink()
    write_image(image, plain.array, plain.affine)
    prepare(moved, out, CONFIG, workers=0)
    first, time = dataset.cases["ball_04"].open_image()[...], image.stat().st_mtime_ns
    write_image(image, plain.array + 1, plain.affine)
    os.utime(image, ns=(time, time))
    before = stamps(out)
    dataset = prepare(moved, out, CONFIG, workers=0)
    assert {path.parent.name for path, time in stamps(out).items() if before[path] != time} == {"ball_04", "out"}
    assert not np.array_equal(dataset.cases["ball_04"].open_image()[...], first - 1)


def test_another_dataset_needs_another_folder_or_permission(balls, tmp_path, capsys):
    """Be it one with equal ids, for whose cases an earlier split would stay valid, or one with none of them."""
    raw, out = shutil.copytree(balls[0], tmp_path / "raw"), tmp_path / "out"
    prepare(raw, out, CONFIG, workers=0)
    equal_ids = write_balls(tmp_path / "equal", labelled=8, unlabelled=4, seed=1)
    none = tmp_path / "none"
    for path in (equal_ids / "images").iterdir():
        (none / "images").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, none / "images" / f"other_{path.name}")
    before = stamps(out)
    for source, found in ((equal_ids, "holds other files for case ball_00"), (none, "has none of its cases")):
        with pytest.raises(ConfigError, match=rf"prepared before from .*raw\n  .* {found}(.|\n)*--overwrite"):
            prepare(source, out, CONFIG, workers=0)
    assert stamps(out) == before
    assert set(prepare(none, out, CONFIG, workers=0, overwrite=True).cases) == {f"other_ball_{n:02}" for n in range(12)}
    assert "dropped 12 cases not found in" in capsys.readouterr().err


def test_cases_that_left_are_named_and_a_dataset_that_was_moved_may_have_grown(balls, tmp_path, capsys):
    raw, out = shutil.copytree(balls[0], tmp_path / "raw"), tmp_path / "out"
    prepare(raw, out, CONFIG, workers=0)
    for name in ("ball_10", "ball_11"):
        (raw / "images" / f"{name}.nii.gz").unlink()
    prepare(raw, out, CONFIG, workers=0)
    said = capsys.readouterr().err
    assert f"{out}: dropped 2 cases not found in {raw}: ball_10, ball_11; split again\n" in said
    assert f"{out / 'cases'}: still has their arrays, which you may delete\n" in said
    moved = raw.rename(tmp_path / "moved")
    shutil.copy(balls[0] / "images" / "ball_11.nii.gz", moved / "images" / "new.nii.gz")
    assert len(prepare(moved, out, CONFIG, workers=0).cases) == 11
    assert " left" not in capsys.readouterr().err


def test_equal_images_of_two_patients_are_named(balls, tmp_path, capsys):
    """Whatever their labels; also where nothing is left to do, and not where they are one patient's."""
    raw, out = shutil.copytree(balls[0], tmp_path / "raw"), tmp_path / "out"
    shutil.copy(raw / "images" / "ball_03.nii.gz", raw / "images" / "again_03.nii.gz")
    shutil.copy(raw / "labels" / "ball_04.nii.gz", raw / "labels" / "ball_05.nii.gz")
    for _ in range(2):
        prepare(raw, out, CONFIG, workers=0)
        assert "may share them: again_03 = ball_03; keep one case" in capsys.readouterr().err
    by_number = CONFIG.model_copy(update={"subject": SubjectRule(pattern=r"(\d+)")})
    prepare(raw, tmp_path / "one", by_number, workers=0)
    assert "equal images" not in capsys.readouterr().err


def test_a_fault_leaves_a_finished_folder_as_it_was(balls, tmp_path):
    raw, out = shutil.copytree(balls[0], tmp_path / "raw"), tmp_path / "out"
    prepare(raw, out, CONFIG, workers=0)
    before = stamps(out)
    changed = CONFIG.model_copy(update={"recipe": Recipe(spacing=(2.0, 2.0, 2.0))})
    (raw / "images" / "ball_11.nii.gz").write_bytes(b"")
    shutil.copy(raw / "images" / "ball_01.nii.gz", raw / "images" / "ball_01.NII.gz")
    with pytest.raises(DataError, match=r"ball_01 .* 2 cases have this id(.|\n)*|ball_11 .* is empty") as failure:
        prepare(raw, out, changed, workers=2, overwrite=True)
    assert "ball_01" in str(failure.value)
    assert "ball_11" in str(failure.value)
    assert stamps(out) == before
    assert read_prepared(out).config == CONFIG


CASES = 14


@pytest.fixture
def slow_cases(tmp_path):
    """`(raw folder, configuration)` of CASES cases that take a while."""
    rng = np.random.default_rng(0)
    for number in range(CASES):
        image = rng.normal(100, 20, (70, 66, 62)).astype(np.float32)
        write_image(tmp_path / "raw" / "images" / f"case_{number:02}.nii.gz", image, np.eye(4))
    recipe = {"spacing": [0.75, 0.75, 0.75], "crop": False}
    dump({"data": {"name": "slow", "classes": ["a", "b"], "recipe": recipe}}, tmp_path / "slow.yaml")
    return tmp_path / "raw", tmp_path / "slow.yaml"


def start(slow_cases, out, *words):
    raw, config = slow_cases
    command = [sys.executable, "-m", "medssl", "prepare", raw, out, "--config", config, "--workers", "2", *words]
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, start_new_session=True)


def finished(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("*/case_*/image.*")}


def wait_for(happens, process):
    deadline = time.monotonic() + 120
    while not happens():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_goes_on(slow_cases, out, done):
    process = start(slow_cases, out)
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 0, said
    assert f"prepare: {CASES - len(done)} of {CASES - len(done)}" in said
    after = finished(out)
    assert len(after) == len(read_prepared(out).cases) == CASES
    assert {out / "cases" / path.parent.name / path.name: time for path, time in done.items()}.items() <= after.items()
    assert sorted(path.name for path in out.iterdir()) == ["cases", "dataset.json"]
    assert len(list((out / "cases").iterdir())) == CASES


@pytest.mark.skipif(sys.platform == "win32", reason="stops by signals")
class TestStopped:
    def test_a_killed_job_goes_on_with_what_is_missing(self, slow_cases, tmp_path):
        out = tmp_path / "out"
        process = start(slow_cases, out)
        wait_for(lambda: len(finished(out)) >= 2, process)
        process.kill()
        process.communicate()
        time.sleep(0.5)
        done = finished(out)
        assert 2 <= len(done) < CASES
        time.sleep(1.5)
        assert finished(out) == done, "no worker goes on alone"
        with pytest.raises(DataError, match="is not finished"):
            read_prepared(out)
        (out / "unfinished" / ".partial-case_7-0").mkdir()
        assert_goes_on(slow_cases, out, done)

    def test_two_at_once_are_one_too_many(self, slow_cases, tmp_path):
        out, other = tmp_path / "out", tmp_path / "other.yaml"
        process = start(slow_cases, out)
        wait_for(lambda: finished(out), process)
        dump({"data": {"name": "slow", "classes": ["a", "b"], "recipe": {"spacing": [2, 2, 2]}}}, other)
        said = start((slow_cases[0], other), out).communicate(timeout=60)[1]
        assert "another process is using it" in said
        assert process.poll() is None
        done = finished(out)
        process.kill()
        process.communicate()
        time.sleep(2)  # its workers end with the case that they are at
        assert_goes_on(slow_cases, out, finished(out) | done)

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_to_all_processes_keeps_what_is_finished(self, slow_cases, tmp_path, signum):
        out = tmp_path / "out"
        process = start(slow_cases, out)
        wait_for(lambda: finished(out), process)
        os.killpg(process.pid, signum)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 130, said
        assert "Run the same command again to go on" in said
        assert "Traceback" not in said
        done = finished(out)
        assert 1 <= len(done) < CASES
        assert_goes_on(slow_cases, out, done)

    def test_a_lost_worker_is_told_and_costs_no_finished_case(self, slow_cases, tmp_path):
        out = tmp_path / "out"
        process = start(slow_cases, out)
        wait_for(lambda: finished(out), process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            pytest.skip("finds processes in Linux's /proc")
        workers = [
            pid for pid in children.read_text().split() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(int(workers[0]), signal.SIGKILL)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 5, said
        assert "use fewer workers" in said
        assert_goes_on(slow_cases, out, finished(out))


def test_no_more_processes_than_memory_holds(slow_cases, tmp_path, monkeypatch, capsys):
    raw, config = slow_cases
    monkeypatch.setattr("medssl.prepare.available_memory", lambda: 300 * 2**20)
    dataset = prepare(raw, tmp_path / "out", parse(DatasetConfig, load_yaml(config.read_text())["data"]), workers=2)
    assert len(dataset.cases) == CASES
    assert "prepare: using 1 of 2 processes, because case case_13 may need" in capsys.readouterr().err


class TestGreyLevels:
    """Images are stored as numbers of grey levels."""

    def stored(self, tmp_path, image, recipe):
        write_image(tmp_path / "raw" / "images" / "a.nii.gz", image, np.diag([1, 1, 1.5, 1]))
        config = DatasetConfig(name="levels", classes=("a", "b"), recipe=recipe)
        case = prepare(tmp_path / "raw", tmp_path / "out", config, workers=0).cases["a"]
        return case, recipe.apply(read_image(tmp_path / "raw" / "images" / "a.nii.gz")).image

    @pytest.mark.parametrize("most", [200, 3000, 65_000])
    @pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.6)])
    @pytest.mark.parametrize("kind", ["zscore", "clip"])
    def test_are_off_by_a_part_in_131070_of_the_range(self, tmp_path, most, spacing, kind):
        image = np.random.default_rng(0).integers(0, most, (41, 43, 37)).astype(np.uint16)
        window = (10.3, 0.9 * most) if kind == "clip" else None
        recipe = Recipe(crop=False, spacing=spacing or (None,) * 3, intensity={"kind": kind, "window": window})
        case, expected = self.stored(tmp_path, image, recipe)
        stored = case.open_image()
        assert (stored[...].dtype, stored.stored.dtype, stored.shape) == (np.float32, np.uint16, expected.shape)
        off = np.abs(stored[...].astype(np.float64) - expected).max()
        assert 0 < off <= 1.05 * np.ptp(expected) / 131070

    @pytest.mark.parametrize("outlier", [False, True])
    def test_slices_and_channels(self, tmp_path, outlier):
        image = np.random.default_rng(0).normal(size=(43, 41, 39, 2)).astype(np.float32) * [1, 50]
        if outlier:
            image[3, 2, 1, 1] = 1e6
        write_image(tmp_path / "raw" / "images" / "a.nii.gz", image.astype(np.float32), np.eye(4))
        recipe = Recipe(crop=False, intensity={"percentiles": (0, 100)})
        config = DatasetConfig(name="levels", classes=("a", "b"), recipe=recipe, channels=("x", "y"))
        stored = prepare(tmp_path / "raw", tmp_path / "out", config, workers=0).cases["a"].open_image()
        whole, expected = stored[...], recipe.apply(read_image(tmp_path / "raw" / "images" / "a.nii.gz")).image
        if outlier:
            assert np.array_equal(whole, expected), "a voxel far from all others must not make the rest coarse"
        else:
            off, half_a_step = np.abs(whole - expected).max((1, 2, 3)), np.ptp(expected, (1, 2, 3)) / 131070
            assert off == pytest.approx(half_a_step, rel=0.05)
        part = slice(3, 9)
        for key in (0, 1, slice(1, 2), (1, part), (slice(None), 2, part), (..., part), slice(None)):
            assert np.array_equal(stored[key], whole[key])
            assert stored[key].dtype == np.float32
            assert stored[key].flags.writeable

    def test_an_image_that_was_cut_short_is_named(self, tmp_path):
        image = np.random.default_rng(0).normal(size=(43, 41, 39)).astype(np.float32)
        case, _ = self.stored(tmp_path, image, Recipe(crop=False))
        file = case.folder / "image.npy"
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(DataError, match=re.escape(str(file))):
            case.open_image()

    @pytest.mark.parametrize("image", [np.full((70, 60, 50), 7, np.int16), np.ones((3, 2, 1), np.float32)])
    def test_one_grey_level_is_enough(self, tmp_path, image):
        case, expected = self.stored(tmp_path, image, Recipe())
        assert np.array_equal(case.open_image()[...], expected)


class TestRay:
    @pytest.mark.slow
    def test_a_node_lost_halfway_loses_no_case_and_does_none_twice(self, slow_cases, tmp_path):
        ray = pytest.importorskip("ray", reason="needs the package ray")
        from ray.cluster_utils import Cluster

        out = tmp_path / "out"
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
        try:
            process = start(slow_cases, out, "--engine", "ray", "--address", cluster.address)
            wait_for(lambda: len(finished(out)) >= 2, process)
            cluster.remove_node(nodes[0], allow_graceful=False)
            done = finished(out)
            assert len(done) < CASES
            said = process.communicate(timeout=400)[1]
            assert process.returncode == 0, said
        finally:
            cluster.shutdown()
            ray.shutdown()
        assert f"prepare: {CASES} of {CASES}" in said
        assert {out / "cases" / path.parent.name / path.name: t for path, t in done.items()}.items() <= finished(
            out
        ).items()
        assert len(read_prepared(out).cases) == CASES
        assert len(list((out / "cases").iterdir())) == CASES

    def test_its_absence_is_told(self, balls, tmp_path):
        try:
            import ray  # noqa: F401
        except ImportError:
            with pytest.raises(DeviceError, match=r"pip install 'medssl\[ray\]'"):
                prepare(balls[0], tmp_path / "out", CONFIG, engine="ray")
        else:
            pytest.skip("ray is installed")


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
        back = config.recipe.undo([Slab(np.stack([stored == 0, stored == 1]).astype(np.float32))], case.grid)
        overlap = 2 * ((back == 1) & (label == 1)).sum() / ((back == 1).sum() + (label == 1).sum())
        assert overlap >= 0.98
        assert spacing[0] is not None or np.array_equal(back, label)
