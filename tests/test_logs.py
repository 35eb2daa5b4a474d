"""What a run tells its boards, read back with the tools of those who show it; and that nobody else hears of it."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_train import plain_settings

from medssl.boards import TensorBoard
from medssl.config import dump, merge, parse
from medssl.data.draw import Wish, make_split
from medssl.data.prepared import read_prepared
from medssl.data.splits import write_split
from medssl.errors import DeviceError
from medssl.evaluate import evaluate_folders
from medssl.logs import RunLog, read_metrics
from medssl.predict import predict
from medssl.run import RunConfig
from medssl.train import train


@pytest.fixture
def splits(balls, tmp_path):
    path = tmp_path / "splits.json"
    write_split(path, make_split(read_prepared(balls[1]), Wish(labelled=2, val=2, test=2)))
    return path


@pytest.fixture
def config(balls, splits):
    def make(method="supervised", logging=None, **train_settings):
        settings = {"iterations": 6, "validate_every": 2, **train_settings}
        plain = plain_settings(balls, splits, method, **settings)
        return parse(RunConfig, {**plain, "logging": logging or {}})

    return make


def evaluated(run, raw, part="test", out=None):
    """Predict a part of the run's split, and score it into the run folder."""
    predict(run, [], run / part, part=part, device="cpu", overwrite=True)
    return evaluate_folders(run / part, raw / "labels", out or run / "scores.csv", workers=0, overwrite=True)


def sessions(logdir: Path) -> dict[str, dict]:
    """The rows of the HParams tab by name, asked from the code that serves it."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.backend_context import Context
    from tensorboard.plugins.hparams.list_session_groups import Handler

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    context = TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(logdir)), logdir=str(logdir))
    statuses = list(api_pb2.Status.values())
    request = api_pb2.ListSessionGroupsRequest(slice_size=100, allowed_statuses=statuses)
    groups = Handler(RequestContext(), Context(context), "", request).run().session_groups
    found = {}
    for group in groups:
        (session,) = group.sessions
        found[group.name] = {
            "status": api_pb2.Status.Name(session.status).removeprefix("STATUS_"),
            "settings": {k: getattr(v, v.WhichOneof("kind")) for k, v in group.hparams.items()},
            "metrics": {value.name.tag: value.value for value in session.metric_values},
        }
    return found


def events(run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "events"), size_guidance={"scalars": 0, "images": 0}).Reload()


def test_the_hparams_tab_compares_runs_by_settings_and_final_scores(config, balls, tmp_path):
    for method in ("supervised", "bcp"):
        run = train(config(method), tmp_path / "runs" / method, quiet=True)
        scores = {method: evaluated(run, balls[0])}
    rows = sessions(tmp_path / "runs")
    assert set(rows) == {"supervised/events", "bcp/events"}
    assert rows["bcp/events"]["settings"].items() >= {
        "method.name": "bcp", "method.alpha": 0.5, "train.lr": 0.01, "train.seed": 1337, "train.patch": "[12, 12, 8]",
        "augment.preset": "weak", "network.name": "unet", "data.labelled": 2, "data.unlabelled": 6,
    }.items()  # fmt: skip
    for name, row in rows.items():
        folder = tmp_path / "runs" / name.partition("/")[0]
        dice = [each["val/dice"] for each in read_metrics(folder / "metrics.csv") if "val/dice" in each]
        assert row["metrics"]["val/dice"] == pytest.approx(dice[-1], abs=1e-5)
        assert row["metrics"]["val/best_dice"] == pytest.approx(max(dice), abs=1e-5)
        assert row["status"] == "SUCCESS"
    mean = np.mean([np.mean([s.dice for s in scores["bcp"] if s.case == case]) for case in ids(scores["bcp"])])
    assert rows["bcp/events"]["metrics"]["test/dice"] == pytest.approx(mean, abs=1e-5)
    assert {"test/iou", "test/dice/shell", "test/dice/core", "test/missed"} <= set(rows["bcp/events"]["metrics"])


def ids(scores):
    return sorted({score.case for score in scores})


def test_a_stopped_run_says_so_and_a_resumed_one_is_one_whole_session(config, tmp_path):
    run = train(config(), tmp_path / "runs" / "run", until=3, quiet=True)
    (row,) = sessions(tmp_path / "runs").values()
    assert row["status"] == "FAILURE"
    assert row["settings"]["train.lr"] == 0.01
    train(config(), run, resume=True, quiet=True)
    (row,) = sessions(tmp_path / "runs").values()
    assert row["status"] == "SUCCESS"
    assert row["settings"]["train.lr"] == 0.01
    assert [point.step for point in events(run).Scalars("lr")] == [1, 2, 3, 4, 5, 6]
    assert [point.step for point in events(run).Scalars("val/best_dice")] == [2, 4, 6]


def test_boards_opened_in_quick_succession_are_read_in_order(tmp_path):
    for step in range(1, 4):  # within a second, names would sort by chance
        board = TensorBoard(tmp_path, resumed_at=step - 1)
        board.scalars(step, {"lr": 0.1})
        board.close(False)
    names = sorted(path.name for path in (tmp_path / "events").iterdir() if not path.name.endswith(".end"))
    seconds = [name.split(".")[3] for name in names]
    assert len(set(seconds)) == len(seconds) == 3
    assert [point.step for point in events(tmp_path).Scalars("lr")] == [1, 2, 3]


def test_steps_after_the_checkpoint_are_forgotten(config, tmp_path):
    run = train(config(), tmp_path / "run", until=3, quiet=True)
    log = RunLog(run, resumed_at=3, quiet=True)
    log.validation(5, {"dice": 0.125})  # and then the process is killed
    log.board.boards[0].writer.close()
    train(config(), run, resume=True, quiet=True)
    assert 0.125 not in [point.value for point in events(run).Scalars("val/dice")]
    assert [point.step for point in events(run).Scalars("val/dice")] == [2, 4, 6]


def test_what_a_power_cut_left_in_the_table_is_dropped(config, tmp_path):
    run = train(config(), tmp_path / "run", until=3, quiet=True)
    whole = read_metrics(run / "metrics.csv")
    with (run / "metrics.csv").open("ab") as file:
        file.write(bytes(40) + b"\n")
    assert read_metrics(run / "metrics.csv") == whole
    train(config(), run, resume=True, quiet=True)
    assert sorted({row["step"] for row in read_metrics(run / "metrics.csv")}) == [1, 2, 3, 4, 5, 6]


def test_a_start_that_saved_nothing_leaves_no_settings_behind(config, tmp_path):
    RunLog(tmp_path, quiet=True, settings={"train.lr": 0.5}).close()
    RunLog(tmp_path, quiet=True, settings={"train.lr": 0.25}).close(finished=True)
    (row,) = sessions(tmp_path).values()
    assert (row["settings"], row["status"]) == ({"train.lr": 0.25}, "SUCCESS")


def test_scores_that_are_no_test_are_not_shown_as_one(config, balls, tmp_path):
    run = train(config(), tmp_path / "run", quiet=True)
    evaluated(run, balls[0], part="val")
    evaluated(run, balls[0], out=run / "other.csv")
    assert not [tag for tag in events(run).Tags()["scalars"] if tag.startswith("test/")]
    evaluated(run, balls[0])
    assert events(run).Scalars("test/dice")[-1].step == 6


def test_scores_are_added_without_torch(config, balls, tmp_path):
    run = train(config(), tmp_path / "run", quiet=True)
    predict(run, [], run / "test", part="test", device="cpu")
    code = (
        "import sys; sys.modules['torch'] = None; from medssl.evaluate import evaluate_folders; "
        f"evaluate_folders({str(run / 'test')!r}, {str(balls[0] / 'labels')!r}, {str(run / 'scores.csv')!r}, workers=0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "test/dice" in events(run).Tags()["scalars"]


def test_scoring_a_stopped_run_leaves_it_stopped(config, balls, tmp_path):
    run = train(config(), tmp_path / "runs" / "run", until=4, quiet=True)
    evaluated(run, balls[0])
    (row,) = sessions(tmp_path / "runs").values()
    assert row["status"] == "FAILURE"
    assert "test/dice" in row["metrics"]


@pytest.mark.parametrize("shape", [(20, 30, 1), (300, 220, 3), (5, 6, 7)])
def test_pictures_of_flat_wide_and_small_volumes_are_shown(tmp_path, shape):
    from matplotlib.image import imread

    image = np.random.default_rng(0).normal(size=shape)[..., 0]
    label = np.zeros(shape[:2], int)
    label[2:4, 1:3] = 1
    log = RunLog(tmp_path, quiet=True)
    log.picture(4, "val/case", image, label, np.zeros_like(label))
    log.close()
    (picture,) = events(tmp_path).Images("val/case")
    assert picture.step == 4
    assert picture.width == 3 * shape[0] * max(1, 256 // shape[1])
    (tmp_path / "picture.png").write_bytes(picture.encoded_image_string)
    pixels = imread(tmp_path / "picture.png")[..., :3]
    assert pixels.shape == (picture.height, picture.width, 3)
    grey, reference, prediction = np.split(pixels, 3, axis=1)
    assert np.array_equal(grey, prediction)
    coloured = (reference != grey).any(-1).mean() * image.size
    assert coloured == pytest.approx(4)  # voxels of the label


def test_validation_shows_a_picture(config, tmp_path):
    run = train(config(), tmp_path / "run", quiet=True)
    (name,) = events(run).Tags()["images"]
    assert name.startswith("val/ball_")
    assert [picture.step for picture in events(run).Images(name)] == [2, 4, 6]


# Services


class TestMLflow:
    def runs(self, uri):
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        (experiment,) = [e for e in client.search_experiments() if e.name == "medssl"]
        return client, client.search_runs([experiment.experiment_id])

    def test_one_local_run_with_settings_scores_and_pictures(self, config, balls, tmp_path, monkeypatch):
        pytest.importorskip("mlflow", reason="mlflow is not installed")
        pytest.importorskip("sqlalchemy", reason="mlflow has no database here")
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.chdir(tmp_path)
        settings = config("bcp", logging={"mlflow": True})
        run = train(settings, tmp_path / "run", until=3, quiet=True)
        _, (found,) = self.runs(f"sqlite:///{run / 'mlflow.db'}")
        assert found.info.status == "KILLED"
        train(settings, run, resume=True, quiet=True)
        scores = evaluated(run, balls[0])
        client, (found,) = self.runs(f"sqlite:///{run / 'mlflow.db'}")
        assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
        assert found.data.params.items() >= {"method.name": "bcp", "train.lr": "0.01", "data.labelled": "2"}.items()
        assert [point.step for point in client.get_metric_history(found.info.run_id, "lr")] == [1, 2, 3, 4, 5, 6]
        mean = np.mean([np.mean([s.dice for s in scores if s.case == case]) for case in ids(scores)])
        assert found.data.metrics["test/dice"] == pytest.approx(mean, abs=1e-5)
        assert len(list((run / "mlflow").rglob("*.png"))) == 3
        assert not (tmp_path / "mlruns").exists()

    def test_a_named_store_holds_the_runs_side_by_side(self, config, tmp_path, monkeypatch):
        pytest.importorskip("mlflow", reason="mlflow is not installed")
        pytest.importorskip("sqlalchemy", reason="mlflow has no database here")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'all.db'}")
        for seed in (1, 2):
            train(config(logging={"mlflow": True}, seed=seed, iterations=2), tmp_path / f"run{seed}", quiet=True)
        _, found = self.runs(f"sqlite:///{tmp_path / 'all.db'}")
        assert {each.data.params["train.seed"] for each in found} == {"1", "2"}

    def test_a_store_that_cannot_be_opened_stops_before_training(self, config, tmp_path):
        pytest.importorskip("mlflow", reason="mlflow is not installed")
        logging = {"mlflow": True, "mlflow_uri": "nonsense://nowhere"}
        with pytest.raises(DeviceError, match=r"logging\.mlflow: cannot be opened"):
            train(config(logging=logging), tmp_path / "run", quiet=True)
        assert not (tmp_path / "run" / "last.pt").exists()


def test_wandb_writes_offline_under_one_id(config, balls, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    settings = config("bcp", logging={"wandb": True})
    run = train(settings, tmp_path / "run", until=3, quiet=True)
    train(settings, run, resume=True, quiet=True)
    evaluated(run, balls[0])
    wandb.teardown()  # its own process has then written everything
    id = json.loads((run / "boards.json").read_text())["wandb"]
    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [file.stem for file in files] == [f"run-{id}"] * 3
    records = [record for file in files for record in wandb_records(file)]

    def read(items):
        return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}

    history = [read(record.history.item) for record in records if record.HasField("history")]
    told = [read(record.config.update) for record in records if record.HasField("config")]
    exits = [record.exit.exit_code for record in records if record.HasField("exit")]
    assert [row["step"] for row in history if "lr" in row] == [1, 2, 3, 4, 5, 6]
    assert any("test/dice" in row for row in history)
    assert any(values.get("method.name") == "bcp" for values in told)
    assert exits == [1, 0, 0]


def wandb_records(path: Path):
    """The records of an offline file: blocks of 32 KiB, and in them pieces with their sizes and kinds."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(record)
            record = b""


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named_before_anything_is_written(config, balls, splits, tmp_path, name):
    """In a Python whose path leads to a package that is not there."""
    settings = plain_settings(balls, splits)
    dump({**settings, "logging": {name: True}}, tmp_path / "config.yaml")
    hide = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, package=None: None if name == {name!r} else find(name, package)\n"
        "from medssl.cli import main\n"
        f"sys.argv = ['medssl', 'train', {str(tmp_path / 'config.yaml')!r}, '--out', {str(tmp_path / 'run')!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 4, done.stderr
    assert f"pip install 'medssl[{name}]'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_service_that_fails_later_does_not_end_the_training(tmp_path, capsys):
    class Broken:
        def scalars(self, step, values):
            raise OSError("the server is gone")

    log = RunLog(tmp_path, quiet=True)
    log.board.boards.append(Broken())
    log.validation(1, {"dice": 0.5})
    log.validation(2, {"dice": 0.25})
    log.close(finished=True)
    assert capsys.readouterr().err.count("the server is gone") == 1
    assert [point.value for point in events(tmp_path).Scalars("val/dice")] == [0.5, 0.25]


def test_who_is_told_may_change_on_resuming(config, tmp_path):
    run = train(config(), tmp_path / "run", until=1, quiet=True)
    train(config(logging={"project": "other"}), run, resume=True, until=2, quiet=True)
    assert merge([run / "config.yaml"])["logging"]["project"] == "other"


GUARD = """
import os, socket

def check(host):
    if host not in (None, "", "localhost", "127.0.0.1", "::1"):
        with open(os.environ["CONTACTS"], "a") as file:
            file.write(f"{host}\\n")
        raise OSError(f"out of bounds: {host}")

class Socket(socket.socket):
    def connect(self, address):
        check(address[0] if isinstance(address, tuple) else None)  # a path names a socket of this machine
        return super().connect(address)

    def connect_ex(self, address):
        check(address[0] if isinstance(address, tuple) else None)
        return super().connect_ex(address)

def getaddrinfo(host, *rest, real=socket.getaddrinfo, **more):
    check(host)
    return real(host, *rest, **more)

socket.socket, socket.getaddrinfo = Socket, getaddrinfo
"""


@pytest.mark.parametrize("services", [(), ("mlflow",), ("wandb",)])
def test_nothing_contacts_a_network_unless_asked(balls, splits, tmp_path, services):
    """Every look for a host that is not this one is noted and fails."""
    for name in services:
        pytest.importorskip(name, reason=f"{name} is not installed")
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    dump({**plain_settings(balls, splits, iterations=3, validate_every=2),
          "logging": dict.fromkeys(services, True)}, tmp_path / "config.yaml")  # fmt: skip
    here = str(Path(__file__).parents[1])
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "WANDB_"))}
    path = os.pathsep.join([str(tmp_path / "guard"), here])
    env |= {"CONTACTS": str(tmp_path / "contacts"), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def python(*words):
        return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, cwd=tmp_path)

    tried = python("-c", "import urllib.request; urllib.request.urlopen('http://medssl.invalid')")
    assert "out of bounds" in tried.stderr  # the guard is there
    (tmp_path / "contacts").unlink()
    done = python("-m", "medssl", "train", "config.yaml", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "contacts").exists(), (tmp_path / "contacts").read_text()
    for name in services:
        assert (tmp_path / "run" / {"mlflow": "mlflow.db", "wandb": "wandb"}[name]).exists()
