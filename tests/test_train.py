"""Training: exact resume, interruption, divergence, refusals, and no look at what is forbidden."""

import copy
import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BALLS, write_balls
from scipy import ndimage
from torch import nn
from typer.testing import CliRunner

from medssl.augment import Augment, AugmentConfig
from medssl.canaries import PseudoLabels, canary_cases, learned_cases
from medssl.checkpoint import load_checkpoint
from medssl.cli import app
from medssl.config import dump, parse
from medssl.data import patches
from medssl.data.cases import SubjectRule
from medssl.data.draw import Wish, make_split
from medssl.data.io import read_image, read_label, write_image, write_label
from medssl.data.prepared import read_prepared
from medssl.data.splits import write_split
from medssl.device import prepare_device
from medssl.errors import ConfigError, DataError, DivergedError, Interrupted, OutOfMemoryError
from medssl.files import alone_in
from medssl.logs import read_metrics
from medssl.machine import available_cpus
from medssl.methods import METHODS
from medssl.methods.base import Method
from medssl.parts.sample import Progress, Sample
from medssl.prepare import prepare
from medssl.run import RunConfig, build_method, make_predictor, predictor_of
from medssl.train import (
    baseline_folder,
    baseline_of,
    dry_run,
    make_streams,
    make_trainer,
    open_data,
    train,
)
from medssl.trainer import Trainer, choose_workers


def plain_settings(balls, splits, method="supervised", **train_settings):
    data = read_prepared(balls[1]).config.model_dump(mode="json")
    batch = {"labelled_batch": 2, "unlabelled_batch": 0 if method == "supervised" else 2}
    return {
        "data": {**data, "root": str(balls[1]), "splits": str(splits)},
        "method": {"name": method},
        "network": {"name": "unet", "channels": [4, 8], "strides": [2], "dropout": 0.1},
        "augment": {"preset": "weak"},
        "train": {
            "iterations": 40, "patch": [12, 12, 8], "lr": 0.01, "optimizer": "adamw", "validate_every": 10,
            "log_every": 1, **batch, **train_settings,
        },
    }  # fmt: skip


@pytest.fixture
def splits(balls, tmp_path):
    path = tmp_path / "splits.json"
    write_split(path, make_split(read_prepared(balls[1]), Wish(labelled=2, val=2, test=2)))
    return path


@pytest.fixture
def config(balls, splits):
    def make(method="supervised", **train_settings):
        return parse(RunConfig, plain_settings(balls, splits, method, **train_settings))

    return make


def weights(run):
    return load_checkpoint(run / "last.pt")["method"]


QUICK = ("supervised", "bcp", "combined")
"""What is tried of all methods with `-m slow`, and of these always."""


@pytest.mark.parametrize(
    "method", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in sorted(METHODS)]
)
def test_seventeen_steps_and_twenty_three_more_are_forty(config, tmp_path, method):
    settings = config(method)
    straight = train(settings, tmp_path / "straight", quiet=True)
    train(settings, tmp_path / "parts", until=17, quiet=True)
    assert load_checkpoint(tmp_path / "parts" / "last.pt")["iteration"] == 17
    torch.rand(5)  # the global random state is another one now
    parts = train(settings, tmp_path / "parts", resume=True, quiet=True)
    one, two = weights(straight), weights(parts)
    assert all(torch.equal(one[name], two[name]) for name in one)

    def losses(run):
        rows = read_metrics(run / "metrics.csv")
        return [{k: v for k, v in row.items() if k not in ("seconds_per_step", "waiting")} for row in rows]

    assert losses(straight) == losses(parts)


def test_a_deterministic_run_asks_torch_for_it_and_learns_the_same(config, tmp_path):
    plain = train(config("bcp", iterations=6), tmp_path / "plain", quiet=True)
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        asked = train(config("bcp", iterations=6, deterministic=True), tmp_path / "asked", quiet=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    one, two = weights(plain), weights(asked)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_run_folder_tells_everything(config, balls, tmp_path):
    run = train(config("bcp"), tmp_path / "run", quiet=True)
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "splits.json", "env.json", "metrics.csv", "events", "best.pt", "last.pt"} <= names
    assert not [name for name in names if "partial" in name]
    rows = read_metrics(run / "metrics.csv")
    assert [row["step"] for row in rows if "val/dice" in row] == [10, 20, 30, 40]
    assert {"loss/pretrain", "loss/in", "loss/out", "stat/pseudo/2", "stat/gap"} <= {key for row in rows for key in row}
    assert json.loads((run / "env.json").read_text())["torch"] == torch.__version__
    assert list((run / "events").iterdir())
    best = load_checkpoint(run / "best.pt")
    assert best["best"] == pytest.approx(max(row.get("val/dice", 0) for row in rows), abs=1e-5)


def test_training_learns(config, tmp_path):
    run = train(config(iterations=200), tmp_path / "run", quiet=True)
    dice = [row["val/dice"] for row in read_metrics(run / "metrics.csv") if "val/dice" in row]
    assert dice[-1] > 0.6 > dice[0]


def test_same_seed_same_weights_other_seed_others(config, tmp_path):
    runs = [train(config(iterations=5, seed=s), tmp_path / f"{i}", quiet=True) for i, s in enumerate((1, 1, 2))]
    first, same, other = (weights(run) for run in runs)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_training_neither_needs_nor_heeds_forbidden_files(balls, tmp_path, method):
    """Deleting test cases and the unlabelled cases' labels changes nothing, bit for bit."""
    runs = []
    for name in ("whole", "bare"):
        root = shutil.copytree(balls[1], tmp_path / name / "prepared")
        dataset = read_prepared(root)
        split = make_split(dataset, Wish(labelled=2, val=2, test=2))
        write_split(tmp_path / name / "splits.json", split)
        if name == "bare":
            assert sum((dataset.cases[id].folder / "label.b2nd").exists() for id in split.unlabelled) == 2
            for id in split.unlabelled:
                (dataset.cases[id].folder / "label.b2nd").unlink(missing_ok=True)
            for id in split.test:
                for file in ("image.npy", "label.b2nd"):
                    (dataset.cases[id].folder / file).unlink()
        settings = plain_settings((None, root), tmp_path / name / "splits.json", method, iterations=6)
        runs.append(train(parse(RunConfig, settings), tmp_path / name / "run", quiet=True))
    one, two = map(weights, runs)
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_a_baseline_has_the_dice_loss_of_its_run(balls, splits):
    for method, form in (("uamt", "foreground"), ("bcp", "linear"), ("mean_teacher", "squared")):
        settings = plain_settings(balls, splits, method)
        settings["method"]["dice"] = form
        assert baseline_of(parse(RunConfig, settings)).method.dice == form
    assert baseline_of(parse(RunConfig, plain_settings(balls, splits, "umct"))).method.dice == "squared"


def test_patches_that_are_mixed_with_each_other_are_two_in_each_part(balls, splits, tmp_path):
    settings = plain_settings(balls, splits, "fixmatch", unlabelled_batch=2, accumulate=2)
    settings["method"]["cutmix"] = 0.5
    with pytest.raises(ConfigError, match=r"unlabelled_batch must be at least 4, got 2: .* needs 2 in each of 2 parts"):
        train(parse(RunConfig, settings), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("again", [False, True])
def test_a_run_folder_has_one_training_at_a_time(config, tmp_path, again):
    for name in ("run", "run-baseline"):
        with alone_in(tmp_path / name), pytest.raises(ConfigError, match=f"{name}: another process is using it"):
            train(config("bcp"), tmp_path / "run", resume=again, with_baseline=True, quiet=True)
        assert not list(tmp_path.glob("run*"))


def test_a_training_that_is_refused_leaves_no_folder(config, tmp_path):
    fitting = config()
    other = fitting.model_copy(update={"data": fitting.data.model_copy(update={"root": tmp_path / "nowhere"})})
    with pytest.raises(DataError, match="nowhere"):
        train(other, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_told_with_the_one_that_is_whole(config, tmp_path):
    settings = config(iterations=12, validate_every=5)
    run = train(settings, tmp_path / "run", until=6, quiet=True)
    (run / ".partial-0123-last.pt").write_bytes(b"half")  # of a save in which it was killed
    content = (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        DataError, match=r"last\.pt: not a readable .*\n.*best\.pt .* intact, from step 5; copy it over"
    ):
        train(settings, run, resume=True, quiet=True)
    shutil.copyfile(run / "best.pt", run / "last.pt")
    train(settings, run, resume=True, quiet=True)
    assert not list(run.glob(".partial-*"))
    straight = train(settings, tmp_path / "straight", quiet=True)
    assert all(torch.equal(tensor, weights(straight)[name]) for name, tensor in weights(run).items())
    for name in ("best.pt", "last.pt"):
        (run / name).write_bytes(content[:1000])
    with pytest.raises(DataError, match="train again in another folder"):
        train(settings, run, resume=True, quiet=True)


def test_a_checkpoint_that_finds_no_room_ends_the_run_with_its_name_and_exit_code_4(balls, splits, tmp_path):
    resource = pytest.importorskip("resource")
    dump(plain_settings(balls, splits, iterations=10), tmp_path / "config.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "medssl", "train", tmp_path / "config.yaml", "--out", tmp_path / "run", "--quiet"],
        stderr=subprocess.PIPE, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert f"medssl: {tmp_path / 'run' / 'best.pt'}: file too large; " in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("*.pt"))
    assert not list((tmp_path / "run").glob(".partial*"))


@pytest.mark.skipif(sys.platform == "win32", reason="waits for a pipe")
def test_sigterm_before_the_first_step_is_no_failure(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "medssl", "train", tmp_path / "config.yaml", "--out", tmp_path / "run"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with (tmp_path / "config.yaml").open("w"):  # once it reads
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert said == "medssl: interrupted\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("signum", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 1), (signal.SIGHUP, 1)])
def test_a_signal_saves_and_exits_130_and_resume_goes_on(balls, splits, tmp_path, signum, workers):
    """Sent to the whole process group, as a terminal does with Ctrl-C."""
    settings = plain_settings(balls, splits, iterations=100_000, validate_every=100_000, workers=workers)
    dump(settings, tmp_path / "config.yaml")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "medssl", "train", str(tmp_path / "config.yaml"), "--out", str(run)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (
        not (run / "metrics.csv").exists() or len(read_metrics(run / "metrics.csv")) < 3
    ):
        time.sleep(0.1)
    os.killpg(process.pid, signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopping after this step" in said
    assert "--resume" in said
    stopped = load_checkpoint(run / "last.pt")["iteration"]
    assert stopped >= 3
    train(parse(RunConfig, settings), run, resume=True, until=stopped + 2, quiet=True)
    assert load_checkpoint(run / "last.pt")["iteration"] == stopped + 2


@pytest.mark.parametrize("names", [["slurm-1.out"], ["config.yaml", "env.json", "slurm-1.out"]])
def test_a_log_or_files_that_a_power_cut_emptied_do_not_keep_a_run_from_beginning(config, tmp_path, names):
    (tmp_path / "run").mkdir()
    for name in names:
        (tmp_path / "run" / name).write_text("waiting" if name.endswith("out") else "")
    assert (train(config(iterations=2), tmp_path / "run", resume=True, quiet=True) / "last.pt").exists()
    assert (tmp_path / "run" / "slurm-1.out").read_text() == "waiting"


@pytest.mark.parametrize("name", ["config.yaml", "events/mine.txt", "metrics.csv"])
def test_resuming_in_a_folder_without_a_run_touches_nothing(config, tmp_path, name):
    (tmp_path / "mine" / name).parent.mkdir(parents=True)
    (tmp_path / "mine" / name).write_text("mine: 1\n")
    with pytest.raises(ConfigError, match="mine: holds no run to go on from, but a "):
        train(config(), tmp_path / "mine", resume=True, quiet=True)
    assert [path.read_text() for path in (tmp_path / "mine").rglob("*") if path.is_file()] == ["mine: 1\n"]


def test_ctrl_c_saves_though_whoever_read_the_messages_is_gone(balls, splits, tmp_path):
    """As with `medssl train ... 2>&1 | tee log`, where Ctrl-C ends tee as well."""
    settings = plain_settings(balls, splits, iterations=100_000, validate_every=100_000, log_every=1)
    dump(settings, tmp_path / "config.yaml")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "medssl", "train", str(tmp_path / "config.yaml"), "--out", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not ((table := run / "metrics.csv").exists() and table.stat().st_size):
        time.sleep(0.1)
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert load_checkpoint(run / "last.pt")["iteration"] > 0


def test_a_signal_during_the_last_save_costs_nothing_and_begins_no_baseline(config, tmp_path, monkeypatch):
    save = Trainer.save

    def disturbed(self, name):
        if self.iteration == self.config.iterations and name == "last.pt":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        save(self, name)

    monkeypatch.setattr(Trainer, "save", disturbed)
    run = tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped after the last step, 4, saved"):
        train(config("bcp", iterations=4), run, with_baseline=True, quiet=True)
    assert load_checkpoint(run / "last.pt")["iteration"] == 4
    assert not (tmp_path / "run-baseline" / "metrics.csv").exists()
    monkeypatch.setattr(Trainer, "save", save)
    train(config("bcp", iterations=4), run, with_baseline=True, resume=True, quiet=True)
    assert load_checkpoint(tmp_path / "run-baseline" / "last.pt")["iteration"] == 4


def test_a_reader_that_is_killed_ends_the_run_with_advice_and_leaves_nobody_behind(config, tmp_path, monkeypatch):
    """As the system does where memory runs out; the other readers do not heed SIGTERM."""
    monkeypatch.setattr(patches, "MEMORY_LIMIT", 0)
    others = multiprocessing.active_children()
    run = tmp_path / "run"

    def kill_one():
        while not (run / "metrics.csv").exists() or not read_metrics(run / "metrics.csv"):
            time.sleep(0.1)
        next(child for child in multiprocessing.active_children() if child not in others).kill()

    threading.Thread(target=kill_one, daemon=True).start()
    with pytest.raises(OutOfMemoryError, match=r"reads patches was lost (.|\n)*--shm-size(.|\n)*workers=0") as stopped:
        train(config("mean_teacher", iterations=100_000, validate_every=100_000, workers=1), run, quiet=True)
    assert multiprocessing.active_children() == others  # though the traceback is still there
    assert stopped.tb


def test_resuming_what_never_began_says_so(config, tmp_path, capsys):
    said = "run holds no last.pt to go on from; training begins at step 0"
    train(config(), tmp_path / "run", resume=True, until=1)
    assert said in capsys.readouterr().err
    train(config(), tmp_path / "run", resume=True, until=2)
    told = capsys.readouterr().err
    assert said not in told
    assert "run: going on from step 1 of " in told


def test_rows_after_the_checkpoint_are_dropped_on_resume(config, tmp_path):
    run = train(config(), tmp_path / "run", until=10, quiet=True)
    with (run / "metrics.csv").open("a", newline="") as file:
        file.write("13,9,9,9\r\n14,9")  # as a killed process may leave them
    train(config(), run, resume=True, until=12, quiet=True)
    with (run / "metrics.csv").open(newline="") as file:
        steps = [row["step"] for row in csv.DictReader(file)]
    assert steps == [*map(str, range(1, 11)), "10", "11", "12"]


def test_non_finite_losses_stop_the_run_and_name_loss_and_cases(balls, splits, config, tmp_path, monkeypatch):
    import medssl.methods.supervised as supervised

    def poisoned(logits, *args, **kwargs):
        return logits.sum() * float("nan")

    monkeypatch.setattr(supervised, "dice_ce", poisoned)
    with pytest.raises(DivergedError) as failure:
        train(config(), tmp_path / "run", quiet=True)
    split = json.loads(splits.read_text())
    assert failure.value.exit_code == 6
    assert "supervised = nan" in str(failure.value)
    assert any(id in str(failure.value) for id in split["labelled"])


def test_a_single_bad_step_is_left_out(config, tmp_path, monkeypatch):
    import medssl.methods.supervised as supervised

    real, calls = supervised.dice_ce, []

    def sometimes(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs) * (float("inf") if len(calls) == 3 else 1)

    monkeypatch.setattr(supervised, "dice_ce", sometimes)
    run = train(config(iterations=6, log_every=2, validate_every=3), tmp_path / "run", quiet=True)
    assert all(torch.isfinite(value).all() for value in weights(run).values())
    rows = read_metrics(run / "metrics.csv")
    assert {row["step"]: row["skipped"] for row in rows if "skipped" in row} == {4: 0.5}


def test_a_bad_step_leaves_the_statistics_of_batch_norm_alone(config, tmp_path):
    settings = config("mean_teacher", iterations=6)
    settings = settings.model_copy(update={"network": settings.network.model_copy(update={"norm": "batch"})})
    trainer = make_trainer(settings, tmp_path, torch.device("cpu"))
    batches = list(trainer.batches(*make_streams(settings, open_data(settings)), 3))
    before = None
    for number, batch in enumerate(batches):
        if number == 1:
            before = {name: value.clone() for name, value in trainer.method.state_dict().items()}
            batch.image[0, 0, 3, 4, 5] = torch.inf
        trainer.train_step(batch)
        if number == 1:
            after = trainer.method.state_dict()
            students = [name for name in before if "running_" in name and "student" in name]
            assert students
            assert all(torch.equal(before[name], after[name]) for name in students)
    assert all(value.isfinite().all() for value in trainer.method.state_dict().values())
    assert not all(torch.equal(before[name], trainer.method.state_dict()[name]) for name in students)


def test_resting_students_do_not_move(tmp_path):
    from medssl.methods.base import Method, StepResult
    from medssl.parts.sample import TrainBatch
    from medssl.trainer import TrainConfig

    class Alternating(Method):
        def __init__(self):
            super().__init__(None, lambda: None)
            self.nets = nn.ModuleList(nn.Conv3d(1, 2, 1) for _ in range(2))

        def students(self):
            return list(self.nets)

        def step(self, batch, progress, rng):
            return StepResult({"loss": self.nets[progress.iteration % 2](batch.image).square().mean()})

    method = Alternating()
    config = TrainConfig(iterations=10, optimizer="sgd", weight_decay=0.1)
    trainer = Trainer(
        method, config, tmp_path, torch.device("cpu"), Augment(AugmentConfig(), (5, 6, 7), (1, 1, 1), 2), {}
    )
    batch = TrainBatch(torch.ones(1, 1, 5, 6, 7), torch.zeros(1, 5, 6, 7, dtype=torch.long), torch.zeros(0), ())
    for step in range(4):
        resting = method.nets[1 - step % 2]
        before = [p.clone() for p in resting.parameters()]
        trainer.train_step(batch)
        assert all(torch.equal(a, b) for a, b in zip(before, resting.parameters(), strict=True))


def test_dry_run_tells_the_cost_and_writes_nothing(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    facts = dry_run(config("bcp"), device="cpu")
    assert facts["parameters"]["student 0"] > 0
    assert set(facts["losses"]) == {"in", "out"}
    assert facts["seconds_per_step"] > 0
    assert 0.5 < facts["memory"]["estimated_for_a_step_gib"] < 1.5  # the device's context and a tiny step
    assert facts["memory"]["peak_of_this_process_gib"] > 0
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("patch", "enough"),
    [([12, 12, 8], None), ([20, 18, 14], None), ([12, 40, 8], [12, 18, 8]), ([24, 20, 14], [20, 18, 14])],
)
def test_a_patch_that_no_case_fills_is_told_of(config, tmp_path, capsys, patch, enough):
    dry_run(config(patch=patch), device="cpu")
    train(config(patch=patch), tmp_path / "run", until=1)
    told = [line for line in capsys.readouterr().err.splitlines() if "padding" in line]
    assert len(told) == (0 if enough is None else 2)
    words = "no training case is larger than [20, 18, 14] "
    assert all(words in line and f"train.patch={enough} " in line for line in told)


def test_what_no_machine_holds_is_refused_at_once(config, tmp_path):
    settings = config(patch=[4096, 4096, 4096])
    words = r"a training step needs about [\d.]+ GiB .* GiB are free; reduce train\.patch"
    with pytest.raises(OutOfMemoryError, match=words):
        dry_run(settings, device="cpu")
    with pytest.raises(OutOfMemoryError, match=words):
        train(settings, tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()


def method_of(run):
    """The method of a run as it was saved last."""
    values = load_checkpoint(run / "last.pt")
    method = build_method(parse(RunConfig, values["config"]))
    method.load_state_dict(values["method"])
    return method


class TestStartFrom:
    def test_begins_with_every_network_of_the_other_run_and_its_own_schedule(self, config, tmp_path):
        first = train(config("bcp", iterations=6), tmp_path / "first", quiet=True)
        settings = config("bcp", iterations=3, lr=1e-12, start_from=str(first))
        second = train(settings, tmp_path / "second", until=1, quiet=True)
        one, two = weights(first), weights(second)
        assert one.keys() == two.keys()
        student = [name for name in one if "student" in name]
        assert all(torch.allclose(one[name].float(), two[name].float(), atol=1e-6) for name in student)
        rows = read_metrics(second / "metrics.csv")
        assert [row["step"] for row in rows] == [1]
        train(settings, second, resume=True, quiet=True)
        assert load_checkpoint(second / "last.pt")["iteration"] == 3

    @pytest.mark.parametrize(
        ("method", "settings"),
        [("mean_teacher", {"ramp": 0}), ("cfc_mt", {}), ("rail", {}), ("combined", {"pretrain": 0})],
    )
    def test_teachers_are_taken_over_and_stay(self, balls, splits, tmp_path, method, settings):
        def run(name, **train_settings):
            plain = plain_settings(balls, splits, method, **train_settings)
            plain["method"] |= settings
            return train(parse(RunConfig, plain), tmp_path / name, quiet=True)

        def vector(net):
            return torch.cat([p.detach().flatten() for p in net.parameters()])

        first = run("first", iterations=30)
        second = run("second", iterations=3, lr=1e-12, start_from=str(first))
        before, after = (method_of(one) for one in (first, second))
        for number in (0, 1):  # each group, where groups take turns
            for follow in before.followers(Progress(number, 3)):
                place = next(i for i, net in enumerate(before.teachers()) if net is follow.teacher)
                was = vector(follow.teacher)
                apart = (torch.stack([vector(net) for net in follow.students]).mean(0) - was).norm()
                moved = (vector(after.teachers()[place]) - was).norm()
                assert 0 < moved < 0.2 * apart

    @pytest.mark.parametrize("pretrain", [0.0, 0.4])
    def test_that_stage_one_forgets_teachers_is_told(self, balls, splits, tmp_path, capsys, pretrain):
        def run(name, **train_settings):
            plain = plain_settings(balls, splits, "bcp", iterations=3, **train_settings)
            plain["method"] |= {"pretrain": pretrain}
            return train(parse(RunConfig, plain), tmp_path / name, quiet=True)

        first = run("first")
        assert "start_from" not in capsys.readouterr().err
        run("second", start_from=str(first))
        told = "the first stage of bcp runs again and replaces the loaded teachers by copies of their students; --set "
        told += "method.pretrain=0"
        assert (told in capsys.readouterr().err) == (pretrain > 0)

    def test_resumes_as_it_would_have_gone_on(self, config, tmp_path):
        first = train(config(iterations=3), tmp_path / "first", quiet=True)
        settings = config(iterations=6, start_from=str(first))
        straight = train(settings, tmp_path / "straight", quiet=True)
        parts = train(settings, tmp_path / "parts", until=2, quiet=True)
        train(settings, parts, resume=True, quiet=True)
        assert all(torch.equal(value, weights(parts)[name]) for name, value in weights(straight).items())

    def test_steps_of_all_runs_before_are_counted_and_a_resume_keeps_them(self, config, tmp_path):
        first = train(config(iterations=3), tmp_path / "first", quiet=True)
        second = train(config(iterations=2, start_from=str(first)), tmp_path / "second", quiet=True)
        settings = config(iterations=4, start_from=str(second))
        third = train(settings, tmp_path / "third", until=1, quiet=True)
        train(settings, third, resume=True, quiet=True)
        assert [load_checkpoint(run / "last.pt")["steps_before"] for run in (first, second, third)] == [0, 3, 5]

    @pytest.mark.parametrize("changed", [{"method": {"name": "bcp"}}, {"network": {"channels": [4, 12]}}])
    def test_other_networks_are_refused(self, balls, splits, config, tmp_path, changed):
        first = train(config(iterations=1), tmp_path / "first", quiet=True)
        settings = plain_settings(balls, splits, unlabelled_batch=2, start_from=str(first))
        settings = {**settings, **{key: {**settings[key], **values} for key, values in changed.items()}}
        with pytest.raises(ConfigError, match=r"last\.pt: its networks .* do not fit this run .*\n  \S"):
            train(parse(RunConfig, settings), tmp_path / "second", quiet=True)
        assert not (tmp_path / "second").exists()

    def test_classes_in_other_places_are_told_of(self, config, tmp_path, capsys):
        first = train(config(iterations=1), tmp_path / "first", quiet=True)
        values = torch.load(first / "last.pt")
        values["config"]["data"]["classes"] = ["background", "core", "shell"]
        torch.save(values, first / "last.pt")
        train(config(iterations=1, start_from=str(first)), tmp_path / "second", quiet=True)
        told = capsys.readouterr().err
        assert "was trained for the classes background, core, shell; in this run, the same network outputs" in told
        assert "stand for background, shell, core" in told

    def test_nobody_seen_before_may_validate_or_test(self, balls, splits, config, tmp_path):
        """Nor whom a forerunner saw, as the weights of the second run tell, resumed or not; the first may be gone."""
        first = train(config(iterations=1), tmp_path / "first", quiet=True)
        drawn = json.loads(splits.read_text())
        for part, one in (("val", "labelled"), ("test", "unlabelled"), ("test", "val")):
            moved = {**drawn, one: drawn[one][1:], part: [drawn[one][0]]}
            splits.write_text(json.dumps(moved))
            with pytest.raises(ConfigError, match=f"the {part} set has .*first, or .*used for training or validation"):
                train(config(iterations=1, start_from=str(first)), tmp_path / "second", quiet=True)
        splits.write_text(json.dumps({**drawn, "val": [], "test": [], "left_out": []}))
        settings = config(iterations=2, start_from=str(first))
        second = train(settings, tmp_path / "second", until=1, quiet=True)
        train(settings, second, resume=True, quiet=True)
        trained = json.loads((first / "splits.json").read_text())["unlabelled"]
        splits.write_text(json.dumps({**drawn, "unlabelled": [], "test": [trained[0]]}))
        (second / "splits.json").write_text(json.dumps({**drawn, "unlabelled": [], "val": [], "test": []}))
        first.rename(tmp_path / "moved")
        with pytest.raises(ConfigError, match=f"has {trained[0]} of b.*second, or a run that it was started from, "):
            train(config(iterations=1, start_from=str(second)), tmp_path / "third", quiet=True)
        with pytest.raises(DataError, match=r"start_from: .*first/last\.pt does not exist .* name the folder of a run"):
            train(settings, tmp_path / "fourth", quiet=True)

    def test_patients_of_another_dataset_may_have_the_same_names(self, balls, splits, tmp_path):
        """If one says so; those of its own are known through a forerunner on another, and can't be talked away."""

        def settings(name, **changes):
            plain = plain_settings(balls, splits, iterations=1, **changes)
            return parse(RunConfig, {**plain, "data": {**plain["data"], "name": name}})

        drawn = json.loads(splits.read_text())
        turned = {**drawn, "labelled": drawn["test"], "test": drawn["labelled"]}
        first = train(settings("here"), tmp_path / "first", quiet=True)
        splits.write_text(json.dumps(turned))
        there = settings("there", start_from=str(first))
        with pytest.raises(ConfigError, match=r"of here, whom .* if the patients of here are other people, use "):
            train(there, tmp_path / "second", quiet=True)
        there = settings("there", start_from=str(first), other_patients=True)
        second = train(there, tmp_path / "second", quiet=True)
        again = settings("here", start_from=str(second), other_patients=True)
        with pytest.raises(ConfigError, match=r"the test set has .* of here, whom .*; make a split .*\.start_from$"):
            train(again, tmp_path / "third", quiet=True)
        splits.write_text(json.dumps(drawn))
        train(again, tmp_path / "third", quiet=True)


def make_trainer_of(settings):
    data = open_data(settings)
    trainer = make_trainer(settings, Path("unused"), torch.device("cpu"))
    return trainer, trainer.batches(*make_streams(settings, data), settings.train.iterations)


def test_patches_of_a_mirror_have_their_sides_exchanged(balls, splits):
    settings = plain_settings(balls, splits)
    settings["augment"] = {"flips": [1]}
    sided = {**settings, "data": {**settings["data"], "sides": [["core", "shell"]]}}
    batches = [list(make_trainer_of(parse(RunConfig, each))[1]) for each in (settings, sided)]
    exchanged = 0
    for plain, other in zip(*batches, strict=True):
        assert torch.equal(plain.image, other.image)
        for label, again in zip(plain.label, other.label, strict=True):
            mirrored = not torch.equal(label, again)
            assert torch.equal(again, torch.tensor([0, 2, 1])[label] if mirrored else label)
            exchanged += mirrored
    assert 20 < exchanged < 60  # of 80 patches, half of which are mirrored


@pytest.mark.parametrize(
    ("sides", "flips", "asks"), [(None, [0], True), ([["left core", "right core"]], [0], False), (None, [], False)]
)
def test_training_asks_about_sides_that_nobody_spoke_of(balls, splits, tmp_path, capsys, sides, flips, asks):
    root = tmp_path / "prepared"
    shutil.copytree(balls[1], root)
    facts = json.loads((root / "dataset.json").read_text())
    facts["data"]["classes"] = ["background", "left core", "right core"]
    (root / "dataset.json").write_text(json.dumps(facts))
    settings = plain_settings(balls, splits, iterations=1)
    data = {**settings["data"], "classes": facts["data"]["classes"], "sides": sides, "root": str(root)}
    train(parse(RunConfig, {**settings, "data": data, "augment": {"flips": flips}}), tmp_path / "run")
    assert ("set data.sides=[[left core, right core]]" in capsys.readouterr().err) == asks


def test_a_step_moves_student_and_teacher(config):
    trainer, batches = make_trainer_of(config("mean_teacher"))
    trainer.train_step(next(batches))
    student, teacher = (
        [p.clone() for p in net.parameters()] for net in (*trainer.method.students(), *trainer.method.teachers())
    )
    trainer.train_step(next(batches))
    assert any(not torch.equal(a, b) for a, b in zip(student, trainer.method.students()[0].parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(teacher, trainer.method.teachers()[0].parameters(), strict=True))


def test_students_train_with_dropout_and_teachers_without(config):
    trainer, batches = make_trainer_of(config("bcp"))
    trainer.method.eval()
    trainer.train_step(next(batches))
    assert all(net.training for net in trainer.method.students())
    assert not any(net.training for net in trainer.method.teachers())


def test_every_network_that_learns_has_the_optimiser_of_the_settings(config):
    for name, wanted in (("sgd", {"momentum": 0.9, "nesterov": True}), ("adamw", {})):
        trainer, _ = make_trainer_of(config("cps", optimizer=name, weight_decay=0.03))
        groups = trainer.optimizer.param_groups
        assert len(groups) == 2
        for group in groups:
            assert wanted | {"weight_decay": 0.03, "lr": 0.01} == {k: group[k] for k in (*wanted, "weight_decay", "lr")}


def test_gradients_are_clipped(config):
    trainer, batches = make_trainer_of(config(max_grad_norm=1e-3))
    trainer.train_step(next(batches))
    norm = torch.stack([p.grad.norm() for p in trainer.method.students()[0].parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


def test_learning_rate_falls_to_nothing(config, tmp_path):
    run = train(config(iterations=10), tmp_path / "run", quiet=True)
    rates = [row["lr"] for row in read_metrics(run / "metrics.csv") if "lr" in row]
    assert rates[0] == pytest.approx(0.01)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.01 * 0.1**0.9, rel=1e-4)


def test_patches_are_augmented_on_their_way(config):
    settings = config("mean_teacher")
    data = open_data(settings)
    labelled, unlabelled = make_streams(settings, data)
    batch = next(make_trainer_of(settings)[1])
    assert not torch.equal(batch.image[0], labelled[0][0])
    assert not torch.equal(batch.unlabelled[0], unlabelled[0][0])
    plain = settings.model_copy(update={"augment": AugmentConfig(preset="none")})
    assert torch.equal(next(make_trainer_of(plain)[1]).image[0], labelled[0][0])


@pytest.mark.parametrize("preset", ["weak", "strong"])
def test_weak_views_keep_grey_levels_and_lie_on_the_strong_ones(config, preset):
    """The weak view of a flip has the patch's own numbers, moved; the strong one is its place with other numbers."""
    settings = config("mean_teacher", unlabelled_batch=8)
    settings = settings.model_copy(update={"augment": AugmentConfig(preset=preset)})
    unlabelled = make_streams(settings, open_data(settings))[1]
    raw, batch = unlabelled.batch(range(8))[0], next(make_trainer_of(settings)[1])
    moved = changed = 0
    for patch, weak, strong in zip(raw, batch.weak_view(), batch.unlabelled, strict=True):
        if preset == "weak":
            assert torch.equal(weak.flatten().sort().values, patch.flatten().sort().values)
        assert weak.min() >= patch.min() - 1e-4  # trilinear at most
        assert weak.max() <= patch.max() + 1e-4
        moved += not torch.equal(weak, patch)
        changed += not torch.equal(strong, weak)
        assert torch.corrcoef(torch.stack([weak.flatten(), strong.flatten()]))[0, 1] > 0.5
    assert moved >= 4
    assert changed >= 4


def test_an_unlabelled_patch_is_augmented_by_its_own_number(config):
    """Not as the labelled one beside it, and not as it was seen before; strong views are seeded in the same way."""
    settings = config("mean_teacher")
    trainer, batches = make_trainer_of(settings)
    labelled, unlabelled = make_streams(settings, open_data(settings))
    assert labelled.seed != unlabelled.seed
    first, second = next(batches), next(batches)
    raw = unlabelled.batch(range(2))[0]
    theirs, others = (trainer.augment.views(raw, trainer.draws(s, range(2)))[0] for s in (unlabelled, labelled))
    assert torch.equal(first.unlabelled, theirs)
    assert not torch.equal(first.unlabelled, others)
    assert len({*first.seeds, *second.seeds}) == 4
    other = next(make_trainer_of(config("mean_teacher", seed=7))[1])
    assert not {*other.seeds} & {*first.seeds, *second.seeds}


def test_chance_within_a_step_hangs_on_the_seed_and_the_step_alone(config, monkeypatch, tmp_path):
    """Boxes and dropout: other ones in each step and for each seed, and the same ones again after a resume."""

    class Watched(METHODS["mean_teacher"]):
        def step(self, batch, progress, rng):
            drawn.append((torch.rand(1, generator=rng).item(), torch.rand(1).item()))
            return super().step(batch, progress, rng)

    monkeypatch.setitem(METHODS, "mean_teacher", Watched)

    def chances(name, until=None, **settings):
        drawn.clear()
        settings = config("mean_teacher", iterations=4, **settings)
        train(settings, tmp_path / name, until=until, resume=name == "parts", quiet=True)
        return [*drawn]

    drawn = []
    straight = chances("straight")
    assert len({number for pair in straight for number in pair}) == 8
    train(config("mean_teacher", iterations=4), tmp_path / "parts", until=2, quiet=True)
    assert chances("parts") == straight[2:]
    other = chances("other", seed=7)
    assert not {number for pair in other for number in pair} & {number for pair in straight for number in pair}


def test_teachers_follow_as_is_due_in_the_step_that_was_made(config, monkeypatch, tmp_path):
    made, followed = [], []

    class Watched(METHODS["mean_teacher"]):
        def step(self, batch, progress, rng):
            made.append(progress)
            return super().step(batch, progress, rng)

        def followers(self, progress):
            followed.append(progress)
            return super().followers(progress)

    monkeypatch.setitem(METHODS, "mean_teacher", Watched)
    train(config("mean_teacher", iterations=4, log_every=40), tmp_path / "run", quiet=True)
    assert [progress.iteration for progress in made] == [0, 1, 2, 3]
    assert [each for n, each in enumerate(followed) if each not in followed[:n]] == made


def test_the_best_score_so_far_outlives_an_interruption(config, tmp_path):
    settings = config(iterations=4)
    run = train(settings, tmp_path / "run", until=2, quiet=True)
    trainer = make_trainer(settings, run, torch.device("cpu"))
    trainer.best = 0.75
    trainer.save("last.pt")
    again = make_trainer(settings, run, torch.device("cpu"))
    again.load(run / "last.pt")
    assert again.best == 0.75


def test_each_student_is_clipped_by_itself(config):
    trainer, batches = make_trainer_of(config("cps", max_grad_norm=1e-3))
    trainer.train_step(next(batches))
    for student in trainer.method.students():
        norm = torch.stack([p.grad.norm() for p in student.parameters() if p.grad is not None]).norm()
        assert norm.item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_validation_scores_the_network_that_is_asked_for_without_its_dropout(config, tmp_path, network):
    settings = config("mean_teacher")
    settings = settings.model_copy(update={"window": settings.window.model_copy(update={"network": network})})
    trainer, _ = make_trainer_of(settings)
    trainer.method.students()[0].train()
    with torch.no_grad():
        for parameter in trainer.method.students()[0].parameters():
            parameter.add_(0.1)
    predictor = make_predictor(trainer.method, settings, trainer.device)
    image = np.random.default_rng(0).standard_normal((1, 12, 12, 8), np.float32)
    told = predictor.probabilities(image)
    np.testing.assert_array_equal(predictor.probabilities(image), told)
    net = copy.deepcopy({"student": trainer.method.students, "teacher": trainer.method.teachers}[network]()[0])
    expected = net.eval()(torch.from_numpy(image)[None]).softmax(1)[0].detach()
    np.testing.assert_allclose(told, expected, atol=2e-3)


def test_foreground_share_and_class_weights_reach_the_labelled_stream_only(config):
    settings = config("mean_teacher", foreground=0.5, class_weights=[3.0, 1.0])
    labelled, unlabelled = make_streams(settings, open_data(settings))
    assert (labelled.foreground, unlabelled.foreground) == (0.5, 0.0)
    assert labelled.class_weights == (3.0, 1.0)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], [0.0, 0.0]])
def test_class_weights_are_one_for_each_foreground_class(config, weights):
    with pytest.raises(ConfigError, match=r"train.class_weights.*number for each of"):
        config("supervised", class_weights=weights)


def test_bf16_networks_give_float32_losses(config):
    trainer, batches = make_trainer_of(config("bcp", precision="bf16"))
    seen = []
    trainer.method.pair.student.register_forward_hook(lambda net, args, out: seen.append(out.dtype))
    result = trainer.train_step(next(batches))
    assert seen == [torch.bfloat16]
    assert {loss.dtype for loss in result.losses.values()} == {torch.float32}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_first_step_that_is_left_out_leaves_no_trace(config, optimizer):
    trainer, batches = make_trainer_of(config(optimizer=optimizer))
    before = [p.clone() for p in trainer.method.parameters()]
    handle = next(trainer.method.parameters()).register_hook(lambda grad: grad * float("nan"))
    trainer.train_step(next(batches))
    handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.method.parameters(), strict=True))
    momenta = [state[key] for state in trainer.optimizer.state.values() for key in state if key != "step"]
    assert momenta
    assert not any(momentum.any() for momentum in momenta)


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(config, tmp_path):
    trainer, batches = make_trainer_of(config())
    trainer.train_step(next(batches))
    before = [p.clone() for p in trainer.method.parameters()]
    weight = next(trainer.method.parameters())
    handle = weight.register_hook(lambda grad: grad * float("nan"))
    trainer.train_step(next(batches))
    handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.method.parameters(), strict=True))
    trainer.train_step(next(batches))
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.method.parameters(), strict=True))


def run_steps(config, count, **settings):
    """Losses, and the weights after some steps of a run of the same seed."""
    trainer, batches = make_trainer_of(config(**settings))
    losses = [{k: v.item() for k, v in trainer.train_step(next(batches)).losses.items()} for _ in range(count)]
    return losses, {name: value.clone() for name, value in trainer.method.state_dict().items()}


@pytest.mark.parametrize("method", ["mean_teacher", "bcp"])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(balls, splits, method):
    """Where the loss is a mean over volumes; dropout is off."""

    def config(**train_settings):
        batch = {"labelled_batch": 4, "unlabelled_batch": 4, "optimizer": "sgd"}
        settings = plain_settings(balls, splits, method, **batch, **train_settings)
        settings["network"]["dropout"] = 0.0
        settings["method"]["dice"] = "linear"
        return parse(RunConfig, settings)

    whole, parts = run_steps(config, 3, precision="fp32"), run_steps(config, 3, precision="fp32", accumulate=2)
    for one, two in zip(whole[0], parts[0], strict=True):
        assert two == pytest.approx(one, abs=1e-5)
    for name, value in whole[1].items():
        torch.testing.assert_close(parts[1][name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("settings", [{"activation_checkpointing": True}, {"channels_last": True}])
def test_settings_of_speed_and_memory_leave_the_losses_alone(config, settings):
    plain, other = run_steps(config, 3, precision="fp32"), run_steps(config, 3, precision="fp32", **settings)
    for one, two in zip(plain[0], other[0], strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    assert plain[1].keys() == other[1].keys()


def test_compiled_networks_give_the_losses_and_weights_of_others(balls, splits):
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("torch.compile needs a C++ compiler")

    def config(**train_settings):
        settings = plain_settings(balls, splits, "bcp", **train_settings)
        settings["network"]["dropout"] = 0.0  # compiled code draws other random numbers
        return parse(RunConfig, settings)

    plain, compiled = run_steps(config, 2), run_steps(config, 2, compile="default")
    for one, two in zip(plain[0], compiled[0], strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    assert plain[1].keys() == compiled[1].keys()


def test_a_batch_that_cannot_be_cut_in_parts_is_refused(config):
    with pytest.raises(
        ConfigError, match=r"labelled_batch must be a multiple of 4, got 2: .* into 2 parts .* even number in each"
    ):
        make_trainer_of(config("bcp", accumulate=2))


def test_a_run_is_fitted_into_a_budget_and_resumes_so(config, tmp_path, capsys):
    settings = config("bcp", labelled_batch=4, unlabelled_batch=4, patch=[80, 80, 80])
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"patch": (80, 80, 80)})})
    with pytest.raises(OutOfMemoryError):
        train(settings, tmp_path / "none", memory=0.5, until=1, device="cpu")
    run = train(settings, tmp_path / "run", memory=1.05, until=1, device="cpu")
    assert "to fit into memory: train.accumulate 1 -> 2" in capsys.readouterr().err
    assert load_checkpoint(run / "last.pt")["config"]["train"]["accumulate"] == 2
    train(settings, run, memory=1.05, until=2, device="cpu", resume=True, quiet=True)


def test_until_zero_takes_no_step_and_the_command_wants_one_at_least(config, tmp_path):
    run = train(config(), tmp_path / "run", until=0, quiet=True)
    assert load_checkpoint(run / "last.pt")["iteration"] == 0
    done = CliRunner().invoke(app, ["train", "balls.yaml", "--until", "0"])
    assert done.exit_code == 2
    assert "--until" in done.output


def test_a_finished_run_writes_its_last_checkpoint_once(config, tmp_path, monkeypatch):
    written, save = [], torch.save
    monkeypatch.setattr(torch, "save", lambda values, path: (written.append(path.name), save(values, path)))
    train(config(iterations=6, validate_every=3), tmp_path / "run", quiet=True)
    assert sum(name.endswith("last.pt") for name in written) == 2  # of steps 3 and 6


def test_save_every_saves_between_validations(config, tmp_path):
    run = train(config(iterations=9, validate_every=100, save_every=4), tmp_path / "run", until=6, quiet=True)
    assert load_checkpoint(run / "last.pt")["iteration"] == 6
    (run / "last.pt").unlink()
    train(config(iterations=9, validate_every=100, save_every=2), run, resume=True, until=3, quiet=True)
    assert load_checkpoint(run / "last.pt")["iteration"] == 3


def test_how_often_is_logged_may_change_and_changes_no_weight(config, tmp_path):
    straight = train(config(iterations=6, log_every=3), tmp_path / "straight", quiet=True)
    run = train(config(iterations=6, log_every=3), tmp_path / "run", until=3, quiet=True)
    train(config(iterations=6, log_every=1), run, resume=True, quiet=True)
    assert [row["step"] for row in read_metrics(run / "metrics.csv") if "lr" in row] == [1, 3, 4, 5, 6]
    one, other = (load_checkpoint(folder / "last.pt")["method"] for folder in (straight, run))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_waits_for_patches_says_so(config, tmp_path, monkeypatch, capsys):
    train(config(iterations=3), tmp_path / "quick", quiet=True)
    assert all(0 < row["waiting"] < 1 for row in read_metrics(tmp_path / "quick" / "metrics.csv") if "lr" in row)
    read = patches.PatchStream.__getitem__

    def slowly(stream, n):
        time.sleep(0.1)
        return read(stream, n)

    monkeypatch.setattr(patches.PatchStream, "__getitem__", slowly)
    train(config(iterations=21), tmp_path / "slow", quiet=True)
    assert all(row["waiting"] > 0.5 for row in read_metrics(tmp_path / "slow" / "metrics.csv") if "lr" in row)
    assert capsys.readouterr().err.count("waiting for patches") == 1


def test_a_run_is_saved_between_validations_as_time_goes_by(config, tmp_path, monkeypatch):
    saves, save = [], torch.save
    monkeypatch.setattr(torch, "save", lambda values, path: (saves.append(values["iteration"]), save(values, path)))
    train(config(iterations=6, validate_every=100), tmp_path / "slowly", until=5, quiet=True)
    assert saves == [5]  # so few steps take no quarter of an hour
    monkeypatch.setattr("medssl.trainer.SAVE_SECONDS", 0)
    train(config(iterations=6, validate_every=100, save_every=2), tmp_path / "by_steps", until=5, quiet=True)
    assert saves[1:] == [2, 4, 5]
    train(config(iterations=6, validate_every=100), tmp_path / "often", until=5, quiet=True)
    assert saves[4:] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("workers", "device", "in_memory", "expected"),
    [(None, "cpu", True, 0), (3, "cpu", False, 3), (None, "cuda", True, 2)],
)
def test_readers(workers, device, in_memory, expected):
    assert choose_workers(workers, torch.device(device), in_memory=in_memory) == expected


def test_threads_are_no_more_than_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(available_cpus() + 3)
        prepare_device(torch.device("cpu"))
        assert torch.get_num_threads() == available_cpus()
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        prepare_device(torch.device("cpu"))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_run_from_before_patients_were_recorded_goes_on_and_learns_them(balls, config, tmp_path):
    run = train(config(), tmp_path / "run", until=1, quiet=True)
    split = json.loads((run / "splits.json").read_text())
    patients = split.pop("patients")
    (run / "splits.json").write_text(json.dumps(split))
    train(config(), run, resume=True, until=2, quiet=True)
    subjects = {id: case.subject for id, case in read_prepared(balls[1]).cases.items()}
    assert json.loads((run / "splits.json").read_text())["patients"] == patients == subjects


class TestWithBaseline:
    """`--with-baseline`, as the command line calls it."""

    @pytest.fixture
    def files(self, balls, splits, tmp_path):
        """A run that predicts by its teacher, as a user's file."""
        settings = plain_settings(balls, splits, "mean_teacher", iterations=6, validate_every=3)
        settings["method"]["consistency_weight"] = 0.3
        dump({**settings, "window": {"network": "teacher"}}, tmp_path / "config.yaml")
        return tmp_path

    def medssl(self, files, *words):
        return CliRunner().invoke(app, ["train", str(files / "config.yaml"), "--out", str(files / "run"), "--quiet",
                                        "--device", "cpu", *words])  # fmt: skip

    def test_it_is_the_supervised_run_of_the_same_settings(self, files, balls, splits):
        done = self.medssl(files, "--with-baseline")
        assert done.exit_code == 0, done.output
        assert f"its baseline in {files / 'run-baseline'}" in done.output.replace("\n", "")
        one, two = (load_checkpoint(files / name / "last.pt") for name in ("run", "run-baseline"))
        assert one["iteration"] == two["iteration"] == 6
        assert two["config"]["method"]["name"] == "supervised"
        changed = [key for key in one["config"] if one["config"][key] != two["config"][key]]
        assert changed == ["method", "train", "window"]
        assert two["config"]["train"] == {**one["config"]["train"], "unlabelled_batch": 0}
        alone = train(parse(RunConfig, plain_settings(balls, splits, iterations=6, validate_every=3)),
                      files / "alone", quiet=True)  # fmt: skip
        assert all(torch.equal(value, two["method"][name]) for name, value in weights(alone).items())

    def test_the_same_command_resumes_both(self, files):
        assert self.medssl(files, "--with-baseline", "--until", "2").exit_code == 0
        assert [load_checkpoint(files / f"{n}/last.pt")["iteration"] for n in ("run", "run-baseline")] == [2, 2]
        assert self.medssl(files, "--resume", "--until", "6").exit_code == 0  # the run alone
        assert self.medssl(files, "--with-baseline", "--resume").exit_code == 0
        assert [load_checkpoint(files / f"{n}/last.pt")["iteration"] for n in ("run", "run-baseline")] == [6, 6]
        steps = [row["step"] for row in read_metrics(files / "run-baseline" / "metrics.csv") if "lr" in row]
        assert steps == [1, 2, 3, 4, 5, 6]

    def test_a_report_takes_both(self, files):
        from medssl.report import write_report

        self.medssl(files, "--with-baseline")
        page = write_report([files / "run", files / "run-baseline"], files / "report").read_text()
        assert "mean_teacher, 2 labelled" in page
        assert "supervised, 2 labelled" in page

    def test_a_used_baseline_folder_is_found_before_the_run_is_trained(self, files):
        (files / "run-baseline").mkdir()
        (files / "run-baseline" / "notes.txt").write_text("mine")
        done = self.medssl(files, "--with-baseline")
        assert isinstance(done.exception, ConfigError)
        assert "run-baseline: not empty" in str(done.exception)
        assert not (files / "run").exists()

    @pytest.mark.parametrize("words", [(), ("--dry-run",)])
    def test_the_baseline_itself_has_none(self, files, balls, splits, words):
        dump(plain_settings(balls, splits), files / "config.yaml")
        done = self.medssl(files, "--with-baseline", *words)
        assert isinstance(done.exception, ConfigError)
        assert "supervised is the baseline itself" in str(done.exception)
        assert not (files / "run").exists()


def test_a_run_in_the_present_folder_has_its_baseline_beside_it(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert baseline_folder(Path()) == tmp_path / "run-baseline"


class TestRefusals:
    def test_resume_with_another_split(self, balls, config, splits, tmp_path):
        run = train(config(), tmp_path / "run", until=1, quiet=True)
        kept = (run / "splits.json").read_bytes()
        write_split(splits, make_split(read_prepared(balls[1]), Wish(labelled=2, val=2, test=2, seed=9)))
        with pytest.raises(ConfigError, match="another split"):
            train(config(), run, resume=True, quiet=True)
        assert (run / "splits.json").read_bytes() == kept

    def test_resume_with_files_that_changed_but_for_labels_that_training_does_not_see(self, tmp_path):
        raw = write_balls(tmp_path / "raw", labelled=6, unlabelled=1)
        dataset = prepare(raw, tmp_path / "prepared", BALLS, workers=0)
        split = make_split(dataset, Wish(labelled=2, val=1, test=1, seed=0))
        write_split(tmp_path / "splits.json", split)
        settings = plain_settings((raw, dataset.root), tmp_path / "splits.json", "mean_teacher")
        run = train(parse(RunConfig, settings), tmp_path / "run", until=1, quiet=True)

        def corrected(id):
            label = read_label(path := raw / "labels" / f"{id}.nii.gz")
            write_label(path, np.roll(label.array, 1, 0), label)
            prepare(raw, dataset.root, BALLS, workers=0)

        corrected(split.unlabelled[0])  # these two have a label, which nobody may see
        corrected(split.test[0])
        shutil.copy(raw / "labels" / "ball_00.nii.gz", raw / "labels" / "ball_06.nii.gz")  # somebody annotated it
        assert "ball_06" in split.unlabelled
        prepare(raw, dataset.root, BALLS, workers=0)
        train(parse(RunConfig, settings), run, resume=True, until=2, quiet=True)
        corrected(split.labelled[1])
        with pytest.raises(
            ConfigError, match=rf"files of 1 case have changed .* again: {split.labelled[1]}\. Begin a new run"
        ):
            train(parse(RunConfig, settings), run, resume=True, quiet=True)

        changed = next(id for id in split.unlabelled if id != "ball_06")
        image = read_image(path := raw / "images" / f"{changed}.nii.gz")
        write_image(path, image.array + 1, image.affine)
        prepare(raw, dataset.root, BALLS, workers=0)
        with pytest.raises(ConfigError, match=rf"files of 2 cases have changed .*{changed}"):
            train(parse(RunConfig, settings), run, resume=True, quiet=True)

    @pytest.mark.parametrize(
        ("window", "words"),
        [({"network": "teacher"}, "no teacher"), ({"patch": [11, 12, 8]}, "not divisible"),
         ({"largest_component": ["kernel"]}, "must name classes .*, got kernel")],
    )  # fmt: skip
    def test_window_that_validation_could_not_use(self, balls, splits, tmp_path, window, words):
        settings = {**plain_settings(balls, splits), "window": window}
        with pytest.raises(ConfigError, match=words):
            train(parse(RunConfig, settings), tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()

    def test_used_folder(self, config, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes.txt").write_text("mine")
        with pytest.raises(ConfigError, match="--resume"):
            train(config(), tmp_path / "run", quiet=True)

    def test_resume_with_other_settings(self, config, tmp_path):
        train(config(), tmp_path / "run", until=1, quiet=True)
        with pytest.raises(ConfigError, match=r"train\.lr: was 0\.01, now 0\.02"):
            train(config(lr=0.02), tmp_path / "run", resume=True, quiet=True)
        with pytest.raises(ConfigError, match=r"train\.iterations: was 40, now 80\n.*train\.start_from=.*run"):
            train(config(iterations=80), tmp_path / "run", resume=True, quiet=True)

    def test_another_recipe_than_prepared(self, balls, splits, tmp_path):
        settings = plain_settings(balls, splits)
        settings["data"]["recipe"]["spacing"] = [2, 2, 2]
        with pytest.raises(ConfigError, match="prepared with"):
            train(parse(RunConfig, settings), tmp_path / "run", quiet=True)

    def test_patch_that_the_strides_do_not_divide(self, config, tmp_path):
        with pytest.raises(ConfigError, match=r"\[12, 12, 7\] is not divisible"):
            train(config(patch=[12, 12, 7]), tmp_path / "run", quiet=True)

    def test_odd_batch_for_pairs(self, config, tmp_path):
        with pytest.raises(ConfigError, match="equal and even"):
            train(config("bcp", labelled_batch=3, unlabelled_batch=3), tmp_path / "run", quiet=True)

    def test_no_unlabelled_cases(self, balls, config, tmp_path):
        dataset = read_prepared(balls[1])
        free = [id for id, case in dataset.cases.items() if case.labelled]
        split = make_split(dataset, Wish(labelled=4, val=2, test=2, given={"unlabelled": []}))
        assert set(split.labelled) <= set(free)
        write_split(tmp_path / "none.json", split)
        settings = plain_settings(balls, tmp_path / "none.json", "bcp")
        with pytest.raises(ConfigError, match="the split has none"):
            train(parse(RunConfig, settings), tmp_path / "run", quiet=True)

    def test_damaged_checkpoint(self, config, tmp_path):
        train(config(), tmp_path / "run", until=1, quiet=True)
        (tmp_path / "run" / "last.pt").write_bytes(b"PK not a checkpoint")
        with pytest.raises(DataError, match=r"last\.pt"):
            train(config(), tmp_path / "run", resume=True, quiet=True)


def test_labelled_and_unlabelled_patches_differ(config, balls):
    settings = config("mean_teacher", labelled_batch=4, unlabelled_batch=4)
    data = open_data(settings)
    trainer = make_trainer(settings, balls[1], torch.device("cpu"))
    batch = next(trainer.batches(*make_streams(settings, data), 1))
    assert batch.image.shape == batch.unlabelled.shape == (4, 1, 12, 12, 8)
    assert batch.fine == (True, True, True)
    recipe = settings.data.recipe.model_copy(update={"spacing": (1.0, 1.0, 4.0)})
    thick = settings.model_copy(update={"data": settings.data.model_copy(update={"recipe": recipe})})
    batches = make_trainer(thick, balls[1], torch.device("cpu")).batches(*make_streams(thick, data), 1)
    assert next(batches).part(0, 2).fine == (True, True, False)
    assert len(np.unique(batch.image.numpy().round(4))) > 100
    assert not torch.equal(batch.image, batch.unlabelled)


def test_canaries_train_nobody_and_score_pseudo_labels(config, balls, tmp_path):
    """With another case's label for the canary, weights stay the same and its score does not."""
    one = train(config("mean_teacher", canaries=1, iterations=10), tmp_path / "one", quiet=True)
    settings = config("mean_teacher", canaries=1, iterations=10)
    data = open_data(settings)
    (canary,), (learned,) = canary_cases(settings, data), learned_cases(settings, data, "labelled")
    assert {canary, learned} == set(data.split.labelled)
    labelled, _ = make_streams(settings, data)
    assert labelled.ids == (learned,)

    prepared = tmp_path / "prepared"
    shutil.copytree(balls[1], prepared)
    cases = prepared / "cases"
    shutil.copy(cases / data.split.val[0] / "label.b2nd", cases / canary / "label.b2nd")
    moved = settings.model_copy(update={"data": settings.data.model_copy(update={"root": prepared})})
    two = train(moved, tmp_path / "two", quiet=True)
    ours, theirs = weights(one), weights(two)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows = [[row for row in read_metrics(run / "metrics.csv") if "canary/dice" in row] for run in (one, two)]
    assert [row["step"] for row in rows[0]] == [10]
    assert rows[0][0]["canary/dice"] != rows[1][0]["canary/dice"]


def test_canaries_score_what_patches_are_told_not_what_a_volume_is_predicted_as(config, tmp_path):
    """A teacher that has learned nothing sees many components, of which BCP tells the largest of each patch."""
    settings = config("bcp")
    trainer = make_trainer(settings, tmp_path, torch.device("cpu"))
    patch = np.random.default_rng(0).standard_normal((1, 12, 12, 8), np.float32)
    told = PseudoLabels(trainer, settings, settings.data.classes).probabilities(patch)
    assert set(np.unique(told)) == {0.0, 1.0}
    expected = trainer.method.eval().pseudo_label(torch.from_numpy(patch)[None]).target[0]
    np.testing.assert_array_equal(told.argmax(0), expected)
    predicted = predictor_of(trainer.method.teachers(), settings, trainer.device).probabilities(patch)
    pieces = [
        [ndimage.label(each.argmax(0) == value, np.ones((3, 3, 3)))[1] for value in (1, 2)]
        for each in (told, predicted)
    ]
    assert max(pieces[0]) == 1
    assert max(pieces[1]) > 1


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"supervised"}))
def test_to_score_canaries_disturbs_no_training_and_draws_no_dropout(config, tmp_path, method):
    settings = config(method)
    trainer = make_trainer(settings, tmp_path, torch.device("cpu"))
    trainer.method.train()
    before, modes = copy.deepcopy(trainer.method.state_dict()), [net.training for net in trainer.method.modules()]
    told = PseudoLabels(trainer, settings, settings.data.classes)
    patch = np.random.default_rng(0).standard_normal((1, 12, 12, 8), np.float32)
    np.testing.assert_array_equal(told.probabilities(patch), told.probabilities(patch))
    torch.testing.assert_close(trainer.method.state_dict(), before, rtol=0, atol=0)
    assert [net.training for net in trainer.method.modules()] == modes


def test_canaries_are_scored_by_what_they_are_told_and_drawn_by_the_seed(config, tmp_path, monkeypatch):
    class Blind(METHODS["mean_teacher"]):
        def pseudo_label(self, image):
            return Sample.of(image, torch.zeros_like(image[:, 0], dtype=torch.long))

    monkeypatch.setitem(METHODS, "mean_teacher", Blind)
    run = train(config("mean_teacher", iterations=4, validate_every=4, canaries=1), tmp_path / "run", quiet=True)
    assert [row["canary/dice"] for row in read_metrics(run / "metrics.csv") if "canary/dice" in row] == [0.0]
    drawn = [config("mean_teacher", canaries=1, seed=seed) for seed in range(10)]
    assert len({canary_cases(settings, open_data(settings))[0] for settings in drawn}) == 2


def test_no_scan_of_a_canarys_patient_trains_with_or_without_its_label(tmp_path):
    """Patients 0 to 3 with two scans each, ball_00 and ball_04 and so on, of which the second has no label."""
    raw = write_balls(tmp_path / "raw", labelled=4, unlabelled=4)
    lines = [f"ball_{number:02},{number % 4}" for number in range(8)]
    (raw / "patients.csv").write_text("\n".join(["case,subject", *lines, ""]))
    rule = parse(SubjectRule, {"table": "patients.csv"})
    prepare(raw, tmp_path / "prepared", BALLS.model_copy(update={"subject": rule}), workers=0)
    split = make_split(read_prepared(tmp_path / "prepared"), Wish(labelled=2, val=1, test=1))
    assert sorted(map(len, (split.labelled, split.unlabelled))) == [2, 2]
    write_split(tmp_path / "splits.json", split)
    folders = raw, tmp_path / "prepared"
    settings = parse(RunConfig, plain_settings(folders, tmp_path / "splits.json", "bcp", canaries=1))
    data = open_data(settings)
    (canary,) = canary_cases(settings, data)
    learned = {data.subject(id) for stream in make_streams(settings, data) for id in stream.ids}
    assert learned == {data.subject(id) for id in split.labelled} - {data.subject(canary)}


def test_canaries_leave_somebody_to_learn_from(config, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.canaries 2: no labelled case is left"):
        train(config("mean_teacher", canaries=2), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "settings", "training", "words"),
    [
        ("mean_teacher", {}, {"lr": 1e-12}, "a teacher has had its student's weights"),
        ("bcp", {"pretrain": 0.0, "ema_decay": 0.9999}, {"lr": 0.3}, "far from its student's"),
        ("bcp", {"pretrain": 0.0, "ema_decay": 0.0}, {}, "a teacher has had its student's weights"),
        ("bcp", {"pretrain": 0.0, "alpha": 0.0}, {}, "no unlabelled voxel has counted"),
        ("fixmatch", {"threshold": 0.8}, {}, "pseudo-labels assign class core to 0.00% of the voxels, labels to"),
        ("fixmatch", {"threshold": 0.999999}, {}, "no unlabelled voxel has counted"),
        ("fixmatch", {"threshold": 0.0}, {}, "every unlabelled voxel has counted"),
        ("uamt", {"threshold": 0.0}, {}, "raise it for uamt"),
        ("combined", {"pretrain": 0.0, "alpha": 0.0}, {}, "loss/pseudo has been exactly 0"),
        ("combined", {"pretrain": 0.0}, {}, None),
        ("bcp", {"pretrain": 0.0, "ema_decay": 0.5}, {}, None),
        ("mean_teacher", {}, {}, None),
    ],
)
def test_a_training_that_goes_wrong_says_so_and_a_healthy_one_says_nothing(
    balls, splits, tmp_path, capsys, method, settings, training, words
):
    plain = plain_settings(balls, splits, method, iterations=24, validate_every=24, **training)
    plain["method"].update(settings)
    run = train(parse(RunConfig, plain), tmp_path / "run", quiet=True)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning, step ")]
    assert (not said) if words is None else any(words in line for line in said)
    assert all("The likely cause: " in line for line in said)
    if words is not None:
        assert words in board_texts(run)


@pytest.mark.parametrize(("decay", "pretrain", "told"), [(0.9999999, 0.0, True), (0.99, 0.0, False), (0.5, 0.9, False)])
def test_a_teacher_that_will_stand_still_is_told_of(balls, splits, tmp_path, capsys, decay, pretrain, told):
    plain = plain_settings(balls, splits, "bcp", iterations=20)
    plain["method"].update(ema_decay=decay, pretrain=pretrain)
    train(parse(RunConfig, plain), tmp_path / "run", until=1)
    assert ("an EMA decay of 0.9999999, a teacher hardly changes in 20 steps" in capsys.readouterr().err) == told


def test_a_teacher_whom_nobody_teaches_is_told_of(balls, splits, config, tmp_path, monkeypatch, capsys):
    class Forgotten(METHODS["mean_teacher"]):
        def teachers(self):
            return [*super().teachers(), torch.nn.Identity()]

    for turn in (1, 2, 4, 20):
        plain = plain_settings(balls, splits, "combined", iterations=2000)
        plain["method"].update(turn=turn)
        train(parse(RunConfig, plain), tmp_path / str(turn), until=0)
    assert "follows no student" not in capsys.readouterr().err
    monkeypatch.setitem(METHODS, "mean_teacher", Forgotten)
    train(config("mean_teacher", iterations=2), tmp_path / "run")
    assert "a teacher follows no student" in capsys.readouterr().err


def board_of(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "events"), size_guidance={"tensors": 0, "scalars": 0}).Reload()


def board_texts(run):
    """All warnings that TensorBoard shows."""
    board = board_of(run)
    tags = [tag for tag in board.Tags()["tensors"] if "warning" in tag]
    return "\n".join(event.tensor_proto.string_val[0].decode() for tag in tags for event in board.Tensors(tag))


def test_canaries_of_a_method_without_pseudo_labels_are_scored_by_its_predictions(config, tmp_path, monkeypatch):
    class NoneMade(METHODS["mean_teacher"]):
        pseudo_label = Method.pseudo_label

    monkeypatch.setitem(METHODS, "mean_teacher", NoneMade)
    run = train(config("mean_teacher", iterations=4, validate_every=4, canaries=1), tmp_path / "run", quiet=True)
    assert [row for row in read_metrics(run / "metrics.csv") if "canary/dice" in row]


def test_the_last_validation_is_told_when_a_training_ends(config, tmp_path, capsys):
    run = train(config(iterations=4, validate_every=2), tmp_path / "run")
    scores = [row["val/dice"] for row in read_metrics(run / "metrics.csv") if "val/dice" in row]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"validation Dice {scores[-1]:.3f} after the last step, {max(scores):.3f} at best"


def test_gauges_stand_in_the_table_and_on_the_board(config, tmp_path):
    run = train(config("combined", iterations=12, canaries=1), tmp_path / "run", quiet=True)
    rows = read_metrics(run / "metrics.csv")
    gauges = {"stat/selected", "stat/gap", "stat/lag/0", "stat/pseudo/2", "stat/prior/2", "canary/dice"}
    assert gauges <= {key for row in rows for key in row}
    board = board_of(run)
    for name in gauges:
        expected = [row[name] for row in rows if name in row]
        assert [event.value for event in board.Scalars(name)] == pytest.approx(expected, rel=1e-5)


def test_mean_teacher_without_its_weight_trains_the_supervised_baseline(balls, splits, tmp_path):
    runs = []
    for method in ("supervised", "mean_teacher"):
        plain = plain_settings(balls, splits, method, iterations=8)
        plain["network"]["dropout"] = 0.0
        plain["method"] |= {"consistency_weight": 0.0} if method == "mean_teacher" else {}
        runs.append(weights(train(parse(RunConfig, plain), tmp_path / method, quiet=True)))
    supervised, taught = runs
    for name, value in supervised.items():
        torch.testing.assert_close(taught[name.replace("student.", "pair.student.")], value)


def test_a_run_says_what_seems_wrong_once_even_when_it_is_quiet(config, tmp_path, capsys):
    method = {"name": "mean_teacher", "consistency_weight": 0.0}
    settings = config("mean_teacher", iterations=40)
    settings = settings.model_copy(update={"method": parse(METHODS["mean_teacher"].Config, method)})
    train(settings, tmp_path / "run", until=30, quiet=True)
    first = capsys.readouterr().err
    assert first.count("loss/consistency has been exactly 0") == 1
    assert "warning, step 20: " in first
    train(settings, tmp_path / "run", resume=True, quiet=True)
    assert "loss/consistency" not in capsys.readouterr().err
