"""Several processes train as one would: the same losses, one set of files, and a way on after one is lost."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from test_train import plain_settings
from train_together import steps

from medssl.checkpoint import load_checkpoint
from medssl.config import dump, parse
from medssl.data.draw import Wish, make_split
from medssl.data.prepared import read_prepared
from medssl.data.splits import write_split
from medssl.logs import read_metrics
from medssl.run import RunConfig
from medssl.train import train

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in Linux's /proc")
HERE = Path(__file__).parent
BATCH = {"labelled_batch": 12, "unlabelled_batch": 12}  # for 1, 2 and 3 processes that pair patches
METHODS: dict[str, dict] = {  # settings of each; without the students' dropout, the one thing that processes draw apart
    "supervised": {"train": {"unlabelled_batch": 0}},
    "mean_teacher": {},
    "cps": {},
    # Some voxels of an untrained network must count, more in one process than in another, and none lie on the
    # threshold, where the last bit of a sum decides.
    "fixmatch": {"method": {"threshold": 0.4, "views": 2, "cutmix": 1.0}},
    "bcp": {},
    "bcp, weighted by voxel": {"method": {"name": "bcp", "weighting": "voxel", "pretrain": 0.05}},
    "ucf_mix": {},
    "rail": {},
    "umct": {"method": {"uncertainty": "entropy", "pretrain": 0.05}},
    "sss": {"method": {"threshold": 0.42, "backbone": "stand_in", "prompts": {"reliable": 0.34}}},
    "combined": {"method": {"pretrain": 0.05}},
}


PARTLY_ANNOTATED = ("supervised", "bcp", "bcp, weighted by voxel", "combined")
"""Weigh by voxels that are known, of which one process has more than another."""


def split_of(balls, tmp_path):
    path = tmp_path / "splits.json"
    write_split(path, make_split(read_prepared(balls[1]), Wish(labelled=2, val=3, test=2)))
    return path


@pytest.fixture
def splits(balls, tmp_path):
    return split_of(balls, tmp_path)


def settings_of(balls, splits, method, **train_settings):
    own = METHODS[method]
    train = {**BATCH, **own.get("train", {}), "precision": "fp32", **train_settings}
    settings = plain_settings(balls, splits, method, **train)
    settings["method"] |= own.get("method", {})
    settings["network"]["dropout"] = 0.0
    return settings


def torchrun(count, *words, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{HERE.parent}"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
        **options,
    )  # fmt: skip


def workers_of(pid):
    """The processes that a launcher started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"medssl" in Path(f"/proc/{child}/cmdline").read_bytes()]


def wait_for_rows(run, count, process):
    deadline = time.monotonic() + 120
    while not (run / "last.pt").exists() or len(read_metrics(run / "metrics.csv")) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dataset", "methods"), [("balls", tuple(METHODS)), ("partly_annotated", PARTLY_ANNOTATED)])
def test_losses_and_scores_are_those_of_one_process_with_the_joint_batch(request, tmp_path, count, dataset, methods):
    volumes = request.getfixturevalue(dataset)
    settings = {method: settings_of(volumes, split_of(volumes, tmp_path), method) for method in methods}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    process = torchrun(count, str(HERE / "train_together.py"), str(tmp_path / "settings.json"),
                       str(tmp_path / "results.json"))  # fmt: skip
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    together = json.loads((tmp_path / "results.json").read_text())
    assert together["processes"] == count
    assert not [name for name in together["threads"] if "gloo" in name], "these can abort a process that ends"
    for method in methods:
        alone = steps(settings[method], torch.device("cpu"), 6)
        for one, many in zip(alone["losses"], together[method]["losses"], strict=True):
            assert many == pytest.approx(one, abs=1e-5, rel=1e-5), method
        assert together[method]["scores"] == pytest.approx(alone["scores"], abs=1e-3)
        digests = together[method]["digests"]
        assert len(digests) == count
        assert len(set(digests)) == 1, f"{method}: processes hold different weights"


class TestLostProcess:
    def start(self, balls, splits, tmp_path, *launcher, iterations):
        settings = settings_of(balls, splits, "bcp", iterations=iterations, save_every=4, validate_every=100_000,
                               labelled_batch=4, unlabelled_batch=4)  # fmt: skip
        dump(settings, tmp_path / "config.yaml")
        run = tmp_path / "run"
        words = ["-m", "medssl", "train", str(tmp_path / "config.yaml"), "--out", str(run), "--device", "cpu"]
        return settings, run, torchrun(2, *launcher, *words)

    def test_ends_the_job_with_a_message_and_resume_goes_on(self, balls, splits, tmp_path):
        settings, run, process = self.start(balls, splits, tmp_path, iterations=100_000)
        wait_for_rows(run, 6, process)
        os.kill(workers_of(process.pid)[1], signal.SIGKILL)
        said = process.communicate(timeout=120)[0]
        assert process.returncode != 0
        assert "another process of this training ended" in said
        assert "Go on with --resume" in said
        reached = load_checkpoint(run / "last.pt")["iteration"]
        assert reached >= 4
        assert not [path for path in run.iterdir() if "partial" in path.name]
        train(parse(RunConfig, settings), run, resume=True, until=reached + 2, device="cpu", quiet=True)
        assert load_checkpoint(run / "last.pt")["iteration"] == reached + 2

    def test_tells_so_though_the_launcher_ends_the_others_meanwhile(self, tmp_path):
        script = """
            import os, signal, sys, time
            from medssl.distributed import joined
            from medssl.errors import DeviceError
            try:
                with joined("cpu"):
                    try:
                        raise RuntimeError("Gloo: connection closed by peer")
                    finally:
                        os.kill(os.getpid(), signal.SIGTERM)
                        time.sleep(10)
            except DeviceError as error:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
                sys.exit(f"told: {error}")
        """
        (tmp_path / "lost.py").write_text(textwrap.dedent(script))
        process = torchrun(1, str(tmp_path / "lost.py"))
        said = process.communicate(timeout=120)[0]
        assert "told: process 0 of 1: another process of this training ended" in said

    def test_does_not_make_the_launcher_write_into_a_foreign_folder(self, balls, splits, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_text("mine")
        _, run, process = self.start(balls, splits, tmp_path, "--max-restarts", "1", iterations=4)
        said = process.communicate(timeout=180)[0]
        assert process.returncode != 0
        assert "not empty" in said
        assert (run / "config.yaml").read_text() == "mine"

    @pytest.mark.slow
    def test_is_replaced_where_the_launcher_may_restart(self, balls, splits, tmp_path):
        _, run, process = self.start(balls, splits, tmp_path, "--max-restarts", "1", iterations=40)
        wait_for_rows(run, 6, process)
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        said = process.communicate(timeout=180)[0]
        assert process.returncode == 0, said
        assert said.count(f"run in {run}") == 1
        assert load_checkpoint(run / "last.pt")["iteration"] == 40
        steps_logged = [row["step"] for row in read_metrics(run / "metrics.csv") if "lr" in row]
        assert steps_logged == sorted(set(steps_logged))


def test_sigterm_stops_all_processes_at_one_step_saved(balls, splits, tmp_path):
    _, run, process = TestLostProcess().start(balls, splits, tmp_path, iterations=100_000)
    wait_for_rows(run, 3, process)
    os.kill(workers_of(process.pid)[1], signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert "stopped at step" in said
    stopped = load_checkpoint(run / "last.pt")["iteration"]
    assert f"stopped at step {stopped}" in said
    assert [row["step"] for row in read_metrics(run / "metrics.csv")][-1] == stopped


def test_batches_that_cannot_be_shared_are_refused(balls, splits, tmp_path):
    dump(settings_of(balls, splits, "bcp", labelled_batch=2, unlabelled_batch=2), tmp_path / "config.yaml")
    process = torchrun(2, "-m", "medssl", "train", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run"),
                       "--device", "cpu")  # fmt: skip
    said = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert "train.labelled_batch must be a multiple of 4, got 2: it is divided into 2 parts" in said
    assert not (tmp_path / "run").exists()
