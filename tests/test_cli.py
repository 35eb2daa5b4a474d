"""The commands as a user types them: results, messages and exit codes."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from medssl.cli import app, main
from medssl.config import dump
from medssl.data.io import write_image
from medssl.errors import ConfigError

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def medssl(*words, cwd=None):
    """Run `python -m medssl` in a process of its own."""
    command = [sys.executable, "-m", "medssl", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, timeout=120)


@pytest.fixture
def at_once(monkeypatch, capsys):
    """The same in this process, which has torch already, to the exit code."""

    def run(*words, cwd=None):
        monkeypatch.setattr("sys.argv", ["medssl", *map(str, words)])
        monkeypatch.chdir(cwd or Path.cwd())
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return SimpleNamespace(returncode=stop.value.code or 0, stdout=said.out, stderr=said.err)

    return run


@pytest.fixture
def settings(balls, tmp_path):
    """YAML files as a user has them: data, and method."""
    data = {"name": "balls", "classes": ["background", "shell", "core"],
            "recipe": {"spacing": [1.0, 1.0, 1.5], "crop": False}}  # fmt: skip
    dump({
        "data": data,
        "network": {"name": "unet", "channels": [4, 8], "strides": [2]},
        "train": {"iterations": 6, "patch": [12, 12, 8], "optimizer": "adamw", "lr": 0.01},
    }, tmp_path / "balls.yaml")  # fmt: skip
    dump({"method": {"name": "mean_teacher"}}, tmp_path / "method.yaml")
    return tmp_path


def test_help_and_version_answer_at_once():
    for flag in ("--help", "--version"):
        best = 9.0
        for _ in range(3):
            started = time.perf_counter()
            done = medssl(flag)
            best = min(best, time.perf_counter() - started)
        assert done.returncode == 0
        assert best < 0.5 * float(os.environ.get("MEDSSL_TEST_SLACK", "2"))
    assert done.stdout.startswith("medssl 0.")


@pytest.mark.parametrize(
    "command",
    [
        "check",
        "plan",
        "prepare",
        "split",
        "train",
        "predict",
        "evaluate",
        "report",
        "methods",
        "settings",
        "demo",
        "doctor",
    ],
)
def test_every_command_explains_itself(command):
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.output


def test_the_whole_job_by_commands(balls, settings):
    raw, here = balls[0], settings
    steps = [
        ("check", raw, "--config", here / "balls.yaml"),
        ("prepare", raw, here / "prepared", "--config", here / "balls.yaml", "--workers", 1),
        ("split", here / "prepared", "--labelled", 2, "--val", 2, "--test", 2, "--seed", 3),
        ("train", here / "balls.yaml", here / "method.yaml", "--set", f"data.root={here / 'prepared'}",
         "--out", here / "run"),
        ("predict", here / "run", raw / "images", "-o", here / "predicted"),
        ("predict", here / "run", raw / "images", "-o", here / "predicted"),  # again, as scripts do
        ("predict", here / "run", "--part", "test", "-o", here / "run" / "test"),
        ("evaluate", here / "run" / "test", raw / "labels", "-o", here / "run" / "scores.csv"),
        ("report", here / "run", "-o", here / "report"),
    ]  # fmt: skip
    for step in steps:
        done = medssl(*step)
        assert done.returncode == 0, f"{step[0]}: {done.stderr}"
    split = json.loads((here / "run" / "splits.json").read_text())
    assert [len(split[part]) for part in ("labelled", "unlabelled", "val", "test")] == [2, 6, 2, 2]
    assert len(list((here / "predicted").glob("*.nii.gz"))) == 12
    assert (here / "report" / "report.html").stat().st_size > 10_000


def test_published_lists_split_by_command_and_files_of_ids_win(balls, tmp_path, at_once):
    lists = {"name": "toy", "source": "drawn", "labelled": [2], "train": [f"ball_{i:02}" for i in (5, 3, 4, 9)],
             "val": ["ball_00"], "test": ["ball_01", "ball_02"]}  # fmt: skip
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(lists))
    (tmp_path / "mine.txt").write_text("ball_01\nball_09\n")
    found = {}
    for name, *options in (
        ["plain"],
        ["on-test", "--val-is-test"],
        ["mine", "--unlabelled-list", tmp_path / "mine.txt"],
    ):
        out = tmp_path / f"{name}.json"
        done = at_once("split", balls[1], "--published", tmp_path / "toy.yaml", "--labelled", 2, "-o", out, *options)
        assert done.returncode == 0, done.stderr
        assert ("SELECTION ON TEST" in done.stdout) == (name == "on-test")
        found[name] = json.loads(out.read_text())
    plain = found["plain"]
    assert [plain[part] for part in ("labelled", "unlabelled", "val", "test")] == [
        ["ball_03", "ball_05"], ["ball_04", "ball_09"], ["ball_00"], ["ball_01", "ball_02"],
    ]  # fmt: skip
    assert found["on-test"]["val"] == found["on-test"]["test"] == plain["test"]
    assert (found["mine"]["unlabelled"], found["mine"]["test"]) == (["ball_01", "ball_09"], ["ball_02"])


def test_a_series_of_splits_goes_out_to_nnunet_and_comes_back(balls, tmp_path):
    steps = [
        ("split", balls[1], "--labelled", "50%", "--test", 2, "--folds", 3, "--stratify", "-o", tmp_path / "splits"),
        ("split", "export", *(tmp_path / "splits" / f"fold_{n}.json" for n in range(3)), "--to", "nnunet",
         "-o", tmp_path / "splits_final.json"),
        ("split", "import", balls[1], tmp_path / "splits_final.json", "--fold", 1, "-o", tmp_path / "one.json"),
        ("split", "export", tmp_path / "one.json", "--to", "lists", "-o", tmp_path / "lists"),
    ]  # fmt: skip
    said = []
    for step in steps:
        done = CliRunner().invoke(app, [str(word) for word in step])
        assert done.exception is None, done.exception
        said.append(done.stdout)
    assert "fold_1.json: labels of 4 of 8 training patients are used" in said[0]
    assert "STRATIFIED BY LABELS" in said[0]
    assert "UNLABELLED LABELS SEEN" not in said[0]
    parts = ("labelled", "unlabelled", "val", "test", "left_out")
    fold, back = (json.loads((tmp_path / name).read_text()) for name in ("splits/fold_1.json", "one.json"))
    assert [fold[part] for part in parts] == [back[part] for part in parts]
    assert (tmp_path / "lists" / "val.list").read_text().split() == back["val"]
    for step in steps:
        assert isinstance(CliRunner().invoke(app, [str(word) for word in step]).exception, ConfigError)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--folds", 2, "--draws", 2], "--folds"),
        (["--folds", 2, "--val", 1], "--folds"),
        (["--published", "acdc", "--draws", 2], "--published"),
        (["--published", "ACDC"], "no such lists; choose one of acdc, la"),
        (["--labelled", "1%", "--test", 2], "less than one"),
        (["--labelled", "few"], "10%"),
        (["--folds", 20, "--labelled", 1], "only 8 patients"),
    ],
)
def test_wishes_that_do_not_go_together_are_refused(balls, tmp_path, options, said):
    words = ["split", balls[1], "-o", tmp_path / "out", *options]
    failure = CliRunner().invoke(app, [str(word) for word in words]).exception
    assert isinstance(failure, ConfigError)
    assert said in str(failure)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        (["split", "prepared", "--count", "scans"], ("patients", "cases")),
        (["split", "export", "splits.json", "--to", "csv"], ("nnunet", "lists")),
        (["prepare", "raw", "out", "--config", "x.yaml", "--engine", "slurm"], ("local", "ray")),
        (["bench", "bench.yaml", "--engine", "slurm"], ("local", "ray")),
    ],
)
def test_an_option_names_its_choices(words, choices):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert all(repr(word) in done.output for word in (words[-1], *choices))


def test_a_number_that_was_not_published_is_taken_and_told(balls, tmp_path, at_once):
    lists = {"name": "toy", "source": "drawn", "labelled": [2], "train": [f"ball_{i:02}" for i in (5, 3, 4)],
             "test": ["ball_01"]}  # fmt: skip
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(lists))
    for number, out in ((2, "two.json"), (3, "three.json")):
        done = at_once(
            "split", balls[1], "--published", tmp_path / "toy.yaml", "--labelled", number, "-o", tmp_path / out
        )
        assert done.returncode == 0, done.stderr
        assert ("toy was not published with 3 labelled, only with 2" in done.stderr) == (number == 3)
        assert len(json.loads((tmp_path / out).read_text())["labelled"]) == number


def test_dry_run_prints_yaml_and_writes_nothing(balls, settings, at_once):
    here = settings
    at_once("split", balls[1], "--labelled", 2, "--val", 1, "--test", 1, "-o", here / "splits.json")
    sets = [f"data.root={balls[1]}", f"data.splits={here / 'splits.json'}", "train.lr=1e-3"]
    files = (here / "balls.yaml", here / "method.yaml")
    done = at_once("train", *files, "--out", here / "run", "--dry-run", *(w for s in sets for w in ("--set", s)))
    assert done.returncode == 0, done.stderr
    facts = yaml.safe_load(done.stdout)
    assert facts["config"]["train"]["lr"] == 0.001
    assert facts["parameters"]["student 0"] > 0
    assert facts["seconds_per_step"] > 0
    assert all(len(f"{loss:g}") == len(str(loss)) for loss in facts["losses"].values()), facts["losses"]
    assert not (here / "run").exists()


class TestExitCodes:
    def test_two_for_a_typo_in_a_key(self, settings):
        done = medssl("train", settings / "balls.yaml", settings / "method.yaml", "--set", "train.iteration=5")
        assert done.returncode == 2
        assert "did you mean train.iterations?" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ("method.name=bpc", "'bpc' is not a method"),
            ("method.name=[1]", "[1] is not a method"),
            ("method.ramp=2", "method.ramp"),
            ("train.patch=[1, 2]", "train.patch"),
            ("nonsense", "expected key=value"),
        ],
    )
    def test_two_for_values_that_do_not_fit(self, settings, wrong, words, at_once):
        done = at_once("train", settings / "balls.yaml", settings / "method.yaml", "--set", wrong)
        assert done.returncode == 2
        assert words in done.stderr

    @pytest.mark.parametrize("text", ["data:", "data: 3", "data: [1]"])
    def test_two_for_a_section_that_is_none(self, balls, tmp_path, text):
        (tmp_path / "odd.yaml").write_text(text)
        result = CliRunner().invoke(app, ["plan", str(balls[0]), "--config", str(tmp_path / "odd.yaml")])
        assert isinstance(result.exception, ConfigError)
        assert str(result.exception).startswith("data: expected keys")

    def test_two_for_a_forgotten_equals_sign(self, settings, at_once):
        done = at_once("train", settings / "balls.yaml", settings / "method.yaml", "--set", "train.iterations", "60")
        assert done.returncode == 2
        assert "--set train.iterations: expected key=value" in done.stderr

    def test_two_for_a_checkpoint_that_is_none(self, tmp_path):
        for command in ("predict", "export"):
            result = CliRunner().invoke(app, [command, str(tmp_path), "-o", "out", "--checkpoint", "final"])
            assert result.exit_code == 2
            assert "best" in result.output

    def test_two_for_a_key_that_prepare_would_pass_over(self, balls, settings, at_once):
        words = ("--config", settings / "balls.yaml", "--set", "recipe.spacing=[2, 2, 2]")
        done = at_once("prepare", balls[0], settings / "prepared", *words)
        assert done.returncode == 2
        assert "--set recipe.spacing=[2, 2, 2]: expected a key of the data section" in done.stderr
        assert not (settings / "prepared").exists()

    def test_two_for_a_missing_configuration(self, tmp_path, at_once):
        done = at_once("train", "nowhere.yaml", cwd=tmp_path)
        assert done.returncode == 2
        assert "nowhere.yaml: no such configuration file" in done.stderr

    def test_three_for_an_unusable_case_and_json_says_which(self, balls, tmp_path, at_once):
        raw = shutil.copytree(balls[0], tmp_path / "raw")
        holes = np.full((20, 18, 14), np.nan, np.float32)
        write_image(raw / "images" / "ball_04.nii.gz", holes, np.diag([1, 1, 1.5, 1]))
        done = at_once("check", raw, "--json")
        assert done.returncode == 3
        found = json.loads(done.stdout)
        assert {f["case"] for f in found["findings"] if f["severity"] == "error"} == {"ball_04"}

    def test_three_for_a_folder_that_is_no_dataset(self, tmp_path, at_once):
        done = at_once("check", tmp_path)
        assert done.returncode == 3
        assert str(tmp_path) in done.stderr

    def test_four_for_a_device_that_is_not_there(self, balls, settings, at_once):
        at_once("split", balls[1], "--labelled", 2, "-o", settings / "splits.json")
        done = at_once("train", settings / "balls.yaml", settings / "method.yaml", "--set", f"data.root={balls[1]}",
                      "--set", f"data.splits={settings / 'splits.json'}", "--device", "cuda:77", "--out",
                      settings / "run")  # fmt: skip
        assert done.returncode == 4
        assert "cuda:77" in done.stderr
        assert not (settings / "run").exists()

    def test_five_for_memory(self, monkeypatch, capsys):
        from medssl import cli

        def exhausted():
            raise MemoryError("17 GiB")

        monkeypatch.setattr(cli, "app", exhausted)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 5
        assert "--memory" in capsys.readouterr().err


def test_an_existing_split_is_not_overwritten(balls, tmp_path, at_once):
    (tmp_path / "splits.json").write_text("mine")
    done = at_once("split", balls[1], "--labelled", 2, "-o", tmp_path / "splits.json")
    assert done.returncode == 2
    assert (tmp_path / "splits.json").read_text() == "mine"


def test_configurations_of_the_package_are_found_from_anywhere(tmp_path, at_once):
    done = at_once("train", "configs/data/hippocampus.yaml", "configs/method/bcp.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "data.root" in done.stderr


def test_evaluate_speaks_conventions_and_explains_the_difference(tmp_path, at_once):
    for folder, place in [("p", 3), ("r", 2)]:
        array = np.zeros((5, 6, 7), np.uint8)
        array[place, 1:4, 2:6] = 1
        write_image(tmp_path / folder / "a.nii.gz", array, np.diag([2.0, 1.0, 1.0, 1.0]))
    call = ["evaluate", "p", "r", "--workers", "0", "--tolerance", "0.5", "--tolerance", "1=2", "--instances", "1"]
    done = at_once(*call, "--convention", "strict", "--convention", "monai", "-o", "a.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "strict in mm, monai in voxel" in done.stdout
    done = at_once(*call, "--units", "voxel", "-o", "b.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = at_once("evaluate", "explain", "a.csv", "b.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "A is the larger of both directed 95th percentiles, in mm, B is" in done.stdout
    assert "a, 1: 2 | 1" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--convention", "lax"], "conventions: expected some of strict, monai"),
        (["--units", "inch"], "units: expected some of mm, voxel"),
        (["--tolerance", "canal=wide"], "--tolerance canal=wide: expected a number"),
        (["--metric", "f2"], "metrics: expected some of dice"),
    ],
)
def test_evaluate_refuses_what_it_does_not_know(tmp_path, words, message, at_once):
    done = at_once("evaluate", tmp_path, tmp_path, *words)
    assert done.returncode == 2
    assert message in done.stderr


def test_evaluate_explain_stands_beside_evaluate_in_the_help():
    done = CliRunner().invoke(app, ["evaluate", "explain", "--help"])
    assert done.exit_code == 0
    assert "two tables" in done.output
    assert "evaluate explain" in CliRunner().invoke(app, ["--help"]).output
    assert "evaluate explain" in CliRunner().invoke(app, ["evaluate", "--help"]).output


def test_a_file_in_the_way_of_a_folder_is_said_in_one_line(tmp_path, at_once):
    (tmp_path / "taken").write_text("")
    done = at_once("demo", "--out", tmp_path / "taken" / "demo")
    assert done.returncode == 4
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("medssl: ")]
    assert str(tmp_path / "taken") in said
    assert "choose another place" in said
    assert "Traceback" not in done.stderr
    assert (tmp_path / "taken").read_text() == ""


@pytest.mark.parametrize("words", [("predict", "run", "scans"), ("evaluate", "predicted", "labels"), ("report", "run")])
def test_a_place_that_cannot_be_written_is_said_before_the_work(tmp_path, words, at_once):
    (tmp_path / "taken").write_text("")
    done = at_once(*words, "--out", tmp_path / "taken" / "out", cwd=tmp_path)
    assert done.returncode == 4
    assert f"{tmp_path / 'taken'}: not a directory" in done.stderr


def test_a_name_that_no_file_can_have_is_said_in_one_line(tmp_path, at_once):
    (tmp_path / "list.csv").write_text(f"image\n{'x' * 300}.nii.gz\n")
    done = at_once("check", tmp_path / "list.csv", "--workers", 0)
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert "shorten it" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_said_in_one_line():
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "medssl", "methods"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 4, done.stderr
    assert "no space left on device; free some space" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="users have names there")
def test_a_user_who_is_a_number_without_a_name_can_train_and_report():
    """As `docker run --user 5000` has it."""
    code = """
        import os, pwd

        def nobody(*args):
            raise KeyError("uid not found")

        for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME", "XDG_CACHE_HOME"):
            os.environ.pop(name, None)
        pwd.getpwuid = nobody
        import medssl.networks, medssl.windows
        from monai.networks import nets
        from medssl.report.viewer import find_niivue
        find_niivue()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="closes a descriptor by its number")
def test_a_command_that_nobody_listens_to_has_its_exit_code(tmp_path):
    command = f'"{sys.executable}" -m medssl train "{tmp_path}/none.yaml" --out "{tmp_path}/x" 2>&-'
    assert subprocess.run(command, shell=True, env=ENVIRONMENT, timeout=120).returncode == 2
