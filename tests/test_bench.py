"""A matrix of runs: what it makes, that it goes on, and that a run which fails or is stopped costs no other."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from medssl.bench import bench
from medssl.bench.matrix import ALL, Bench, BenchConfig, load_bench
from medssl.bench.plan import plan, print_plan
from medssl.bench.setup import write_splits
from medssl.bench.tables import print_comparison
from medssl.bench.times import time_rows
from medssl.checkpoint import load_checkpoint
from medssl.config import bundled, dump, parse
from medssl.data.io import read_image, read_label, write_label
from medssl.data.prepared import read_prepared
from medssl.data.splits import read_split, write_split
from medssl.engines import Job, execute
from medssl.errors import ConfigError, DataError, DeviceError, DivergedError, RunsFailed
from medssl.logs import read_metrics
from medssl.predict import load_predictor
from medssl.prepare import prepare
from medssl.score_file import read_scores

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="stops runs by signals")


@pytest.fixture
def make(balls, tmp_path):
    """A bench file's settings on the prepared balls."""
    data = read_prepared(balls[1]).config.model_dump(mode="json")
    sections = {
        "data": {**data, "root": str(balls[1])},
        "network": {"name": "unet", "channels": [4, 8], "strides": [2]},
        "train": {"iterations": 4, "patch": [12, 12, 8], "optimizer": "adamw", "lr": 0.01},
    }
    dump(sections, tmp_path / "balls.yaml")

    def settings(**values):
        base = {"configs": [tmp_path / "balls.yaml"], "methods": {"bcp": None}, "labelled": [2], "seeds": [0],
                "val": 2, "test": 2, "parallel": 2, "threads": 1}  # fmt: skip
        return parse(BenchConfig, {**base, **values})

    return settings


def table(out):
    with (out / "runs.csv").open() as file:
        return list(csv.DictReader(file))


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}


def test_every_run_is_trained_scored_and_reported_once(make, balls, tmp_path):
    out = tmp_path / "out"
    page = bench(make(references=["supervised", "bcp"]), out, device="cpu")
    rows = table(out)
    assert [(row["method"], row["labelled"], row["status"]) for row in rows] == [
        ("supervised", "2", "done"), ("bcp", "2", "done"), ("supervised", ALL, "done")
    ]  # fmt: skip
    assert all(0 <= float(row["dice"]) <= 1 and row["cases"] == "2" for row in rows)
    tests = [{score.case for score in read_scores(out / row["run"] / "scores.csv")} for row in rows]
    splits = [read_split(out / row["run"] / "splits.json", read_prepared(balls[1])) for row in rows]
    assert tests[0] == tests[1] == tests[2] == set(splits[0].test)
    assert len(splits[2].labelled) == 4  # of 8 with a label, 2 validate and 2 test
    text = page.read_text()
    assert "bcp" in text
    assert "supervised" in text
    compared = list(csv.DictReader((out / "comparison.csv").open()))
    assert [row["method"] for row in compared] == [
        "supervised, 2 labelled", "bcp, 2 labelled", "supervised, 4 labelled"
    ]  # fmt: skip
    assert compared[1]["verdict against supervised"].startswith("too few patients to tell")
    assert float(compared[0]["against bcp"]) == -float(compared[1]["against supervised"])
    distances = list(csv.DictReader((out / "comparison-hd95.csv").open()))
    assert [row["method"] for row in distances] == [row["method"] for row in compared]
    for row, run in zip(distances, rows, strict=True):
        assert float(row["hd95, mm"]) == pytest.approx(float(run["hd95"]), abs=0.06)
    cases = list(csv.DictReader((out / "cases.csv").open()))
    assert [row["case"] for row in cases if row["labelled"] == ALL] == sorted(splits[2].test)
    for row in rows:
        own = [float(c["dice"]) for c in cases if (c["method"], c["labelled"]) == (row["method"], row["labelled"])]
        assert sum(own) / len(own) == pytest.approx(float(row["dice"]), abs=1e-4)
    script = Path(__file__).parents[1] / "benchmarks" / "intervals.py"
    words = [sys.executable, script, out / "cases.csv", "--against", "bcp"]
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    printed = [[cell.strip() for cell in line.split("|")[1:-1]] for line in again.stdout.splitlines()[2:]]
    assert [line[3:5] for line in printed] == [[row["dice, %"], row["95 % interval"]] for row in compared]
    assert float(printed[0][6]) == -float(compared[0]["against bcp"])
    curves = list(csv.DictReader((out / "curves.csv").open()))
    logged = [row for row in read_metrics(out / rows[1]["run"] / "metrics.csv") if "val/dice" in row]
    of_bcp = [(row["runs"], int(row["step"]), float(row["mean"])) for row in curves if row["row"] == "bcp"]
    assert of_bcp == [("1", row["step"], pytest.approx(row["val/dice"], abs=1e-4)) for row in logged]
    assert {(row["row"], row["labelled"]) for row in curves} == {
        ("supervised", "2"), ("bcp", "2"), ("supervised", "4")
    }  # fmt: skip
    before = stamps(out)
    bench(make(), out, device="cpu")
    assert stamps(out) == before


def test_a_failed_run_stops_no_other_and_is_tried_again(make, tmp_path):
    out = tmp_path / "out"
    hot = {"configs": ["configs/method/supervised.yaml"],
           "settings": {"train": {"optimizer": "sgd", "lr": 1e30, "log_every": 1, "iterations": 30}}}  # fmt: skip
    config = make(methods={"hot": hot}, all_labels=[])
    with pytest.raises(RunsFailed, match=r"hot, 2 labelled, draw 0, seed 0: exit code 6, see .*txt") as error:
        bench(config, out, device="cpu")
    assert error.value.exit_code == DivergedError.exit_code
    assert {row["method"]: row["status"] for row in table(out)} == {"supervised": "done", "hot": "failed (6)"}
    assert (out / "report" / "report.html").exists()
    log = next((out / "logs").glob("hot*"))
    assert "Cases of this step" in log.read_text()
    before = log.stat().st_size
    with pytest.raises(RunsFailed):
        bench(config, out, device="cpu")
    assert log.stat().st_size > before


def test_the_plan_times_each_row_and_writes_nothing(make, tmp_path):
    rows = plan(make(labelled=[1, 2], seeds=[0, 1]), tmp_path / "out", device="cpu")
    assert [(row.method, row.labelled, row.runs, row.done) for row in rows] == [
        ("supervised", 1, 2, 0), ("bcp", 1, 2, 0), ("supervised", 2, 2, 0), ("bcp", 2, 2, 0), ("supervised", None, 2, 0)
    ]  # fmt: skip
    assert all(row.seconds_per_step > 0 for row in rows)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rows_at_the_same_time_take_the_steps_that_the_measured_times_allow(make, tmp_path):
    out = tmp_path / "out"
    config = make(as_long_as="supervised", all_labels=[], settings={"train": {"iterations": 40, "validate_every": 20}})
    bench(config, out, device="cpu")
    times = {row["row"]: row for row in csv.DictReader((out / "times.csv").open())}
    steps = {row["method"]: int(row["steps"]) for row in table(out)}
    assert list(steps) == ["supervised", "bcp", "bcp, same time"]
    assert steps["supervised"] == steps["bcp"] == 40
    seconds = {row: float(values["seconds_per_step"]) for row, values in times.items()}
    assert seconds["bcp"] > 1.2 * seconds["supervised"] > 0  # two networks, and twice the patches
    assert steps["bcp, same time"] == round(40 * seconds["supervised"] / seconds["bcp"])
    assert times["bcp"]["steps"] == "40"
    assert times["bcp"]["steps_same_time"] == str(steps["bcp, same time"])
    assert len(list(out.glob("runs/bcp,-same-time__*/scores.csv"))) == 1
    before = stamps(out), (out / "times.csv").read_text()
    bench(config, out, device="cpu")
    assert (stamps(out), (out / "times.csv").read_text()) == before
    (out / "times.csv").unlink()
    with pytest.raises(ConfigError, match=r"times.csv: has no step times for runs .*, such as bcp, same time"):
        bench(config, out, device="cpu")


def test_rows_of_other_runs_are_scored_and_not_trained(make, balls, tmp_path):
    out = tmp_path / "out"
    rows = {
        "supervised": {"network": "one-student"},
        "all": {"of": "supervised", "network": "student", "mirror": True},
        "mean": {"of": "supervised", "runs": 2},
    }
    bench(make(methods=rows, all_labels=[], seeds=[0, 1]), out, device="cpu")
    found = {(row["method"], row["seed"]): row for row in table(out)}
    assert list(found) == [("supervised", "0"), ("all", "0"), ("mean", "0"), ("supervised", "1"), ("all", "1")]
    assert {row["status"] for row in found.values()} == {"done"}
    assert {path.parent.name.partition("__")[0] for path in out.glob("runs/*/last.pt")} == {"supervised"}
    folders = {key: out / row["run"] for key, row in found.items()}
    made = {key: json.loads((folder / "test" / "predictions.json").read_text()) for key, folder in folders.items()}
    first, second = (str(folders["supervised", seed].resolve()) for seed in "01")
    assert [made[name, "1"]["run"] for name in ("supervised", "all")] == [second, second]
    assert [made[name, "1"]["network"] for name in ("supervised", "all")] == ["one-student", "student"]
    assert [made[name, "1"]["window"]["mirror"] for name in ("supervised", "all")] == [False, True]
    mean = made["mean", "0"]
    assert (mean["run"], mean["also"], mean["network"]) == (first, [second], "one-student")
    by_hand, _ = load_predictor(Path(first), torch.device("cpu"), also=[Path(second)])
    case = next(iter(mean["images"]))
    expected = by_hand.segment(read_image(balls[0] / "images" / f"{case}.nii.gz"))
    assert np.array_equal(read_label(folders["mean", "0"] / "test" / f"{case}.nii.gz").array, expected)
    minutes = {key: float(row["minutes"]) for key, row in found.items()}
    both = minutes["supervised", "0"] + minutes["supervised", "1"]
    assert minutes["mean", "0"] == pytest.approx(both, rel=0.01)
    compared = [row["method"].partition(",")[0] for row in csv.DictReader((out / "comparison.csv").open())]
    assert sorted(compared) == ["all", "mean", "supervised"]
    before = stamps(out)
    bench(make(methods=rows, all_labels=[], seeds=[0, 1]), out, device="cpu")
    assert stamps(out) == before
    rows["all"] = {"of": "supervised", "network": "one-student"}
    with pytest.raises(ConfigError, match=r"all__2.*/predictions.json: network, window.mirror\n"):
        bench(make(methods=rows, all_labels=[], seeds=[0, 1]), out, device="cpu")


def test_no_run_is_in_two_means(make, tmp_path):
    rows = {"bcp": None, "two": {"of": "bcp", "runs": 2}, "same": {"of": "bcp, same time", "runs": 2}}
    matrix = Bench(make(methods=rows, seeds=[5, 6, 7, 8, 9], draws=[0, 1], as_long_as="supervised"), tmp_path / "out")
    used = [(cell.draw, source.draw, source.method, source.seed)
            for cell in matrix.cells if cell.method == "two" for source in matrix.sources(cell)]  # fmt: skip
    assert sorted(used) == [(draw, draw, "bcp", seed) for draw in (0, 1) for seed in (5, 6, 7, 8)]
    untimed = {cell.method for cell in matrix.cells if matrix.is_untimed(cell)}
    assert untimed == {"bcp, same time", "same"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": {"two": {"of": "bcp"}}}, "methods.two.of: no such row: bcp; the rows are supervised, two"),
        ({"methods": {"bcp": None, "a": {"of": "bcp"}, "b": {"of": "a"}}}, "methods.b.of: row a is not trained itself"),
        (
            {"methods": {"bcp": None, "a": {"of": "bcp", "runs": 2}}},
            "methods.a.runs: must be at most 1, the number of seeds, got 2",
        ),
        ({"methods": {"a": {"of": "supervised"}}, "as_long_as": "a"}, "as_long_as: row a has `of` and is not trained"),
        (
            {"methods": {"bcp": None, "a": {"of": "bcp"}}, "all_labels": ["a"]},
            "all_labels: a scores the runs of bcp; add bcp",
        ),
    ],
)
def test_rows_of_runs_that_there_are_not_are_refused(make, tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        Bench(make(**values), tmp_path / "out")


def test_a_row_of_other_runs_takes_no_settings(make):
    with pytest.raises(ConfigError, match="`of: bcp` is not trained; remove its configs and settings"):
        make(methods={"bcp": None, "a": {"of": "bcp", "settings": {"train": {"lr": 1}}}})
    with pytest.raises(ConfigError, match="runs: must be 1 without `of`, got 2; name in `of` the row"):
        make(methods={"bcp": {"runs": 2}})


class TestTimes:
    def write(self, out, **seconds):
        out.mkdir(exist_ok=True)
        lines = [f"{row},{value}" for row, value in seconds.items()]
        (out / "times.csv").write_text("\n".join(["row,seconds_per_step", *lines, ""]))

    def trains(self, matrix, method):
        return next(s.train for cell, s in matrix.settings.items() if cell.method == method)

    def test_times_from_elsewhere_set_the_steps_and_the_places_of_validations(self, make, tmp_path):
        train = {"iterations": 1000, "validate_every": 100}
        self.write(tmp_path / "out", supervised=0.1, bcp=0.25)
        found = Bench(make(as_long_as="bcp", settings={"train": train}), tmp_path / "out")
        again = self.trains(found, "supervised, same time")
        assert (again.iterations, again.validate_every) == (2500, 250)
        assert self.trains(found, "bcp").iterations == self.trains(found, "supervised").iterations == 1000
        assert "bcp, same time" not in found.methods
        few = Bench(make(as_long_as="supervised", settings={"train": train}), tmp_path / "out")
        assert self.trains(few, "bcp, same time").iterations == 400

    def test_a_row_that_joins_later_is_timed_without_changing_the_others(self, make, tmp_path):
        self.write(tmp_path / "out", supervised=50.0, bcp=100.0)
        rows = {"bcp": None, "mean_teacher": None}
        config = make(as_long_as="supervised", methods=rows, settings={"train": {"iterations": 100}})
        time_rows(config, tmp_path / "out", device="cpu")
        found = Bench(config, tmp_path / "out")
        assert (found.times["supervised"], found.times["bcp"]) == (50, 100)
        assert 50 < found.times["mean_teacher"] < 1000  # a step here takes milliseconds: it was set to those of then
        assert self.trains(found, "bcp, same time").iterations == 50

    def test_the_plan_says_what_is_still_to_be_measured(self, make, tmp_path, capsys):
        config = make(as_long_as="supervised", all_labels=[])
        rows = plan(config, tmp_path / "out", device="cpu")
        assert [(row.method, row.steps) for row in rows] == [("supervised", 4), ("bcp", 4), ("bcp, same time", None)]
        assert rows[2].seconds == rows[0].seconds
        assert not (tmp_path / "out").exists()
        print_plan(rows, 1)
        assert "to be measured" in capsys.readouterr().out
        self.write(tmp_path / "out", supervised=1, bcp=2)
        assert [row.steps for row in plan(config, tmp_path / "out", device="cpu")] == [4, 4, 2]

    @pytest.mark.parametrize("text", ["row,seconds\nbcp,1\n", "row,seconds_per_step\nbcp,fast\n",
                                      "row,seconds_per_step\nbcp,0\n"])  # fmt: skip
    def test_a_table_without_times_is_refused(self, make, tmp_path, text):
        (tmp_path / "times.csv").write_text(text)
        with pytest.raises(DataError, match=r"times.csv: expected columns `row` and `seconds_per_step`"):
            Bench(make(as_long_as="bcp"), tmp_path)


def test_draws_change_who_is_labelled_and_never_who_tests(make, balls, tmp_path):
    dataset = read_prepared(balls[1])
    matrix = Bench(make(draws=[0, 1, 2], labelled=[1, 3]), tmp_path / "out")
    write_splits(matrix, dataset)
    splits = {cell.split: read_split(matrix.split(cell), dataset) for cell in matrix.cells}
    assert len(splits) == 7  # three draws of two counts, and all
    assert len({(split.val, split.test) for split in splits.values()}) == 1
    assert len({split.labelled for name, split in splits.items() if name.startswith("3-")}) > 1
    for draw in range(3):
        few, more = (set(splits[f"{n}-labelled__draw-{draw}"].labelled) for n in (1, 3))
        assert few < more


def test_published_lists_give_their_first_patients(make, balls, tmp_path):
    train = ["ball_05", "ball_01", "ball_03", "ball_09", "ball_07"]
    lists = {
        "name": "balls",
        "source": "drawn by hand",
        "labelled": [1],
        "train": train,
        "test": ["ball_00", "ball_02"],
    }
    dump(lists, tmp_path / "lists.yaml")
    dataset = read_prepared(balls[1])
    matrix = Bench(make(published=tmp_path / "lists.yaml", labelled=[1, 2], val=1), tmp_path / "out")
    write_splits(matrix, dataset)
    found = {cell.split: read_split(matrix.split(cell), dataset) for cell in matrix.cells}
    assert found["1-labelled__draw-0"].labelled == ("ball_05",)
    assert found["1-labelled__draw-0"].unlabelled == ("ball_01", "ball_03", "ball_09")
    assert found["2-labelled__draw-0"].labelled == ("ball_01", "ball_05")
    assert all((s.val, s.test) == (("ball_07",), ("ball_00", "ball_02")) for s in found.values())
    with pytest.raises(ConfigError, match=r"--labelled 9: must be from 1 to 5 for balls"):
        write_splits(Bench(make(published=tmp_path / "lists.yaml", labelled=[9], val=1), tmp_path / "more"), dataset)
    dump({**lists, "train": [name for name in train if name != "ball_09"]}, tmp_path / "lists.yaml")
    for labelled, val in ((4, 1), (2, 3), (1, 4), (1, 9)):
        few = Bench(make(published=tmp_path / "lists.yaml", labelled=[labelled], val=val), tmp_path / "few")
        with pytest.raises(ConfigError, match=rf"at most {max(0, 4 - val)}, got {labelled}; .*of balls are used"):
            write_splits(few, dataset)


def test_what_is_asked_for_twice_is_run_once(make, tmp_path):
    once, twice = (Bench(make(seeds=seeds, labelled=n), tmp_path) for seeds, n in (([3, 1], [2]), ([3, 1, 3], [2, 2])))
    assert once.cells == twice.cells
    with pytest.raises(ConfigError, match="seeds"):
        make(seeds=[])


def test_runs_that_began_with_other_settings_are_not_mixed_in(make, tmp_path):
    out = tmp_path / "out"
    bench(make(methods={}, all_labels=[]), out, device="cpu")
    with pytest.raises(ConfigError, match=r"has runs with other settings; the keys named differ in 1 file\n.*train"):
        bench(make(methods={}, all_labels=[], settings={"train": {"iterations": 5}}), out, device="cpu")
    last = {"methods": {}, "all_labels": [], "checkpoint": "last"}
    with pytest.raises(ConfigError, match=r"seed-0/test/predictions.json: checkpoint\n"):
        bench(make(**last), out, device="cpu")
    record = next(out.glob("runs/*/test/predictions.json"))
    told = json.loads(record.read_text())
    record.write_text(json.dumps({key: value for key, value in told.items() if key not in ("window", "network")}))
    bench(make(methods={}, all_labels=[]), out, device="cpu")  # an older version told less
    bench(make(**{**last, "labelled": [3]}), out, device="cpu")  # of which no run is finished
    with pytest.raises(ConfigError, match=r"2-labelled.*/predictions.json: checkpoint\n"):
        bench(make(**{**last, "labelled": [2, 3]}), out, device="cpu")


def test_a_split_of_other_labelled_cases_is_not_taken_for_the_one_that_is_asked_for(make, balls, tmp_path):
    dataset = read_prepared(balls[1])
    matrix = Bench(make(), tmp_path / "out")
    write_splits(matrix, dataset)
    write_splits(matrix, dataset)
    path = matrix.split(matrix.cells[0])
    split = read_split(path, dataset)
    other = split.model_copy(
        update={"labelled": split.labelled[:1], "unlabelled": split.unlabelled + split.labelled[1:]}
    )
    write_split(path, other)
    with pytest.raises(ConfigError, match=rf"{path}: its labelled and unlabelled cases are not those"):
        write_splits(matrix, dataset)


def test_cases_that_changed_since_runs_were_made_are_named(make, balls, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(balls[0], raw)
    config = make(methods={}, all_labels=[], source=raw, settings={"data": {"root": None}})
    bench(config, out, device="cpu")
    before = stamps(out)
    label = raw / "labels" / "ball_03.nii.gz"
    (raw / "labels" / "ball_02.nii.gz").touch()
    bench(config, out, device="cpu")
    coarse = {"data": {"root": None, "recipe": {"spacing": [2, 2, 2]}}}
    with pytest.raises(ConfigError, match=r"prepared before with other settings\n  data.recipe.spacing"):
        bench(make(methods={}, all_labels=[], source=raw, settings=coarse), out, device="cpu")
    shutil.copyfile(raw / "labels" / "ball_01.nii.gz", label)
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"{raw}: 1 case changed after the runs in {out} .*: ball_03;"):
            bench(config, out, device="cpu")
    shutil.copyfile(balls[0] / "labels" / "ball_03.nii.gz", label)
    (raw / "images" / "ball_00.nii.gz").rename(tmp_path / "away.nii.gz")
    (raw / "labels" / "ball_00.nii.gz").unlink()
    with pytest.raises(ConfigError, match=r"1 case changed after .*: ball_00;"):
        bench(config, out, device="cpu")
    assert stamps(out) == before


@pytest.mark.parametrize(("part", "seeds"), [("labelled", (0, 1)), ("test", (0, 1)), ("test", (1,))])
def test_prepared_cases_that_changed_between_two_calls_are_named(make, balls, tmp_path, part, seeds):
    raw, prepared = shutil.copytree(balls[0], tmp_path / "raw"), tmp_path / "prepared"
    data = read_prepared(balls[1]).config
    prepare(raw, prepared, data, workers=0)
    config = make(methods={}, all_labels=[], settings={"data": {"root": prepared}})
    bench(config, tmp_path / "out", device="cpu")
    (changed, *_) = getattr(read_split(next((tmp_path / "out" / "splits").iterdir()), read_prepared(prepared)), part)
    label = raw / "labels" / f"{changed}.nii.gz"
    write_label(label, read_label(label).array[::-1], read_label(label))
    prepare(raw, prepared, data, workers=0)
    with pytest.raises(ConfigError, match=rf"{prepared}: .* changed after the runs in .* scored: {changed};"):
        bench(config.model_copy(update={"seeds": seeds}), tmp_path / "out", device="cpu")
    shutil.rmtree(tmp_path / "out" / "runs")
    for _ in range(2):  # once new runs are trained and scored, their cases count
        bench(config, tmp_path / "out", device="cpu")


@pytest.mark.parametrize("name", ["bench.yaml", "runs.csv", "cases.csv", "report/report.html"])
def test_what_no_bench_wrote_is_not_replaced(make, tmp_path, name):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(ConfigError, match=r"exists already, but .* holds no earlier bench"):
        bench(make(methods={}), tmp_path / "out", device="cpu")
    assert [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["mine"]


def test_a_damaged_run_is_told_before_others_are_trained(make, tmp_path):
    config = make(methods={}, all_labels=[])
    bench(config, tmp_path / "out", device="cpu")
    (run,) = (tmp_path / "out" / "runs").iterdir()
    (run / "metrics.csv").unlink()
    with pytest.raises(DataError, match=r"not a run folder: metrics\.csv missing"):
        bench(config.model_copy(update={"seeds": (0, 1)}), tmp_path / "out", device="cpu")
    assert [path.name for path in (tmp_path / "out" / "runs").iterdir()] == [run.name]


def test_a_run_that_was_killed_has_an_exit_code_of_ours(tmp_path, monkeypatch):
    for signum, code in ((signal.SIGKILL, 5), (signal.SIGSEGV, 1)):
        (tmp_path / "medssl.sh").write_text(f"kill -{int(signum)} $$")
        monkeypatch.setattr(subprocess, "Popen", _as_script(tmp_path / "medssl.sh"))
        assert execute(Job("one", (("train",),), tmp_path / "log.txt", 1)) == code
        monkeypatch.undo()
    assert "ended by signal 9, most often because memory ran out" in (tmp_path / "log.txt").read_text()


def _as_script(script, Popen=subprocess.Popen):
    return lambda words, **options: Popen(["/bin/sh", str(script)], **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": {"bpc": None}}, r"row bpc: configs/method/bpc.yaml: no such configuration file"),
        ({"methods": {"bcp": {"settings": {"train": {"iteratons": 5}}}}}, "row bcp.*\n.*did you mean train.iterations"),
        ({"all_labels": ["bpc"]}, "all_labels: no such row: bpc; the rows are supervised, bcp"),
        ({"as_long_as": "bpc"}, "as_long_as: no such row: bpc; the rows are supervised, bcp"),
        ({"references": ["supervised", "bpc"]}, "references: no such row: bpc; the rows are supervised, bcp"),
        (
            {"methods": {"bcp x": None, "BCP-x": None}},
            "methods: rows bcp x and BCP-x would use the same folders; rename one of them",
        ),
        ({"methods": {"a/b": None}}, "methods: row name 'a/b' must also be a folder name: .* without any of .* / "),
        ({"test": None}, "test: must be a number of patients, got null"),
        ({"labelled": [9]}, "labelled: 9 patients wanted"),
    ],
)
def test_a_wrong_matrix_is_refused_before_any_run(make, tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        bench(make(**values), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out" / "runs").exists()


def test_jobs_start_on_windows(tmp_path, monkeypatch):
    class Popen(subprocess.Popen):
        def __init__(self, *words, preexec_fn=None, **options):
            if preexec_fn is not None:
                raise ValueError("preexec_fn is not supported on Windows platforms")
            super().__init__(*words, **options)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "Popen", Popen)
    assert execute(Job("version", (("--version",),), tmp_path / "log.txt", 1)) == 0
    assert "medssl 0." in (tmp_path / "log.txt").read_text()


def test_a_missing_dataset_is_named(make, tmp_path):
    with pytest.raises(ConfigError, match="--set source=FOLDER"):
        bench(make(settings={"data": {"root": None}}), tmp_path / "out", device="cpu")
    with pytest.raises(DataError, match="nowhere"):
        bench(make(settings={"data": {"root": None}}, source=tmp_path / "nowhere"), tmp_path / "out", device="cpu")


def test_the_bundled_benches_resolve():
    folder = bundled(Path("configs/bench/hippocampus.yaml")).parent
    for path in sorted(folder.glob("*.yaml")):
        matrix = Bench(load_bench(path), Path("out"))
        assert len(matrix.cells) == len({cell.name for cell in matrix.cells}) > 1


class TestStopped:
    def start(self, make, out, *words):
        long = {"train": {"iterations": 100_000, "log_every": 1, "validate_every": 100_000}}
        config = make(methods={}, all_labels=[], seeds=[0, 1], parallel=1, settings=long)
        dump(config.model_dump(mode="json"), out.parent / "bench.yaml")
        command = [sys.executable, "-m", "medssl", "bench", out.parent / "bench.yaml", "-o", out, "--device", "cpu"]
        process = subprocess.Popen([*map(str, command), *words], stderr=subprocess.PIPE, text=True)
        metrics = out / "runs" / "supervised__2-labelled__draw-0__seed-0" / "metrics.csv"
        self.wait(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, process)
        return process, metrics.parent

    def wait(self, happens, process=None):
        deadline = time.monotonic() + 120
        while not happens():
            assert process is None or process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def trainings(self, out):
        found = [path for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != str(os.getpid())]
        return [path for path in found if self.is_training(path, out)]

    def is_training(self, path, out):
        try:
            return b"\0train\0" in path.read_bytes() and str(out).encode() in path.read_bytes()
        except OSError:  # it has just ended
            return False

    def test_sigterm_saves_the_run_and_starts_no_other(self, make, tmp_path):
        out = tmp_path / "out"
        process, run = self.start(make, out)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 130, said
        assert "2 of 2 runs unfinished" in said
        assert "exit code" not in said
        assert [row["status"] for row in table(out)] == ["waiting", "waiting"]
        assert load_checkpoint(run / "last.pt")["iteration"] > 0
        assert not run.with_name(run.name.replace("seed-0", "seed-1")).exists()

    @pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in Linux's /proc")
    def test_a_killed_bench_leaves_no_training_behind(self, make, tmp_path):
        out = tmp_path / "out"
        process, _ = self.start(make, out)
        assert self.trainings(out)
        process.kill()
        process.wait()
        self.wait(lambda: not self.trainings(out))


class TestRay:
    def test_its_absence_is_told(self, make, tmp_path):
        try:
            import ray  # noqa: F401
        except ImportError:
            with pytest.raises(DeviceError, match=r"pip install 'medssl\[ray\]'"):
                bench(make(), tmp_path / "out", engine="ray", device="cpu")
        else:
            pytest.skip("ray is installed")

    @pytest.mark.slow
    def test_a_node_lost_halfway_loses_no_run(self, make, tmp_path):
        ray = pytest.importorskip("ray", reason="needs the package ray")
        from ray.cluster_utils import Cluster

        out = tmp_path / "out"
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
        config = make(seeds=[0, 1], all_labels=[], settings={"train": {"iterations": 400, "validate_every": 40}})
        dump(config.model_dump(mode="json"), tmp_path / "bench.yaml")
        command = [sys.executable, "-m", "medssl", "bench", tmp_path / "bench.yaml", "-o", out, "--engine", "ray",
                   "--device", "cpu"]  # fmt: skip
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        try:
            process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, env=environment)
            TestStopped().wait(lambda: len(list(out.glob("runs/*/last.pt"))) == 2, process)
            begun = {path.parent.name: load_checkpoint(path)["iteration"] for path in out.glob("runs/*/last.pt")}
            assert all(0 < iteration < 400 for iteration in begun.values())
            cluster.remove_node(nodes[0], allow_graceful=False)
            said = process.communicate(timeout=500)[1]
            assert process.returncode == 0, said
        finally:
            cluster.shutdown()
            ray.shutdown()
        assert [row["status"] for row in table(out)] == ["done"] * 4
        assert all(load_checkpoint(path)["iteration"] == 400 for path in out.glob("runs/*/last.pt"))
        again = [path.name for path in out.glob("logs/*.txt") if path.read_text().count("# medssl train") > 1]
        assert again, "the run of the lost node was started again"
        shutil.rmtree(out)


@pytest.mark.parametrize("draws", ["1", "5"])
def test_the_comparison_fits_a_terminal_and_says_verdicts_in_full_below(draws):
    heads = ["method", "draws", "seeds", "minutes", "dice, %", "95 % interval", "sd of runs",
             "verdict against supervised"]  # fmt: skip
    said = "too few patients to tell: -0.2 points, 95 % interval -0.9 to 0.2; only 3 patients"
    cells = [heads, ["supervised", draws, "1", "0.2", "5.3", "3 to 7", "", ""],
             ["bcp", draws, "1", "0.1", "5.1", "3 to 6", "", said]]  # fmt: skip
    out = io.StringIO()
    print_comparison(cells, Console(file=out, width=80))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[-2:] == ["against supervised", f"  bcp: {said}"]
    assert len(lines) == 5
    assert ("draws" in lines[0]) == (draws == "5")
