"""Logging of a run's numbers and pictures to TensorBoard and, if switched on, to MLflow and Weights & Biases.

This module does not load torch, so that an evaluation can add its scores without it. No network is contacted unless
the settings or an environment variable of the service ask for it.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from medssl.config import Settings
from medssl.environment import keep_quiet
from medssl.errors import DeviceError
from medssl.files import read_object, write_json

Setting = str | bool | int | float

_SERVICES = ("mlflow", "wandb")
_IDS = "boards.json"
_END = ".end"  # suffix of an event file that holds only the end of a session


class LoggingConfig(Settings):
    """The `logging` section: services that a run is logged to, besides metrics.csv and TensorBoard. It may change when
    a run is resumed."""

    mlflow: bool = False
    """Log to MLflow. Needs `medssl[mlflow]`."""
    mlflow_uri: str | None = None
    """Server or store for MLflow. null: the one in the environment variable MLFLOW_TRACKING_URI if it is set, otherwise
    `mlflow.db` in the run folder."""
    wandb: bool = False
    """Log to Weights & Biases. Needs `medssl[wandb]`."""
    wandb_mode: Literal["offline", "online"] | None = None
    """`offline`: write to the run folder, for a later `wandb sync`. `online`: send to the server during the run. null:
    the environment variable WANDB_MODE if it is set, otherwise `offline`."""
    project: str = "medssl"
    """Name of the MLflow experiment and of the Weights & Biases project for the runs."""


class Board(Protocol):
    """A place that shows a run's settings, numbers and pictures, such as TensorBoard or MLflow."""

    def settings(self, values: Mapping[str, Setting]) -> None:
        """Log the settings of the run, under dotted names such as `train.lr`."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the named numbers of a step."""

    def image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Log a picture `(row, column, 3)` of a step."""

    def text(self, step: int, name: str, words: str) -> None:
        """Log a sentence of a step."""

    def close(self, finished: bool | None = None) -> None:
        """Write everything to its place and log whether training finished.

        None: nothing was trained. The state of the run stays as it was, except that Weights & Biases marks it finished.
        """


class TensorBoard:
    """Writes the run's `events` folder for TensorBoard.

    In the HParams tab a run is one row: its settings, and the last value of each scalar. TensorBoard keeps the first
    session end that it reads. So the end is written to a file of its own, which is deleted when the run is resumed.
    """

    def __init__(self, run: Path, resumed_at: int | None = None) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.folder = run / "events"
        if resumed_at == 0:
            shutil.rmtree(self.folder, ignore_errors=True)  # of a start that saved no checkpoint
        if resumed_at is not None:
            for path in self.folder.glob(f"*{_END}"):
                path.unlink()
        self._wait_for_a_new_second()
        self.writer = EventFileWriter(str(self.folder))
        if resumed_at:
            self._drop_from(resumed_at + 1)

    def settings(self, values: Mapping[str, Setting]) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        # With an empty trial id, TensorBoard names the group after the run. Otherwise it averages runs of equal
        # settings.
        self._add(self.writer, 0, hparams_pb(dict(values), trial_id=""))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._add(self.writer, step, summary)

    def image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        from matplotlib.image import imsave
        from tensorboard.compat.proto.summary_pb2 import Summary

        png = io.BytesIO()
        imsave(png, image, format="png")
        picture = Summary.Image(
            height=image.shape[0], width=image.shape[1], colorspace=3, encoded_image_string=png.getvalue()
        )
        self._add(self.writer, step, Summary(value=[Summary.Value(tag=name, image=picture)]))

    def text(self, step: int, name: str, words: str) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        about = create_summary_metadata(name, "")
        value = Summary.Value(tag=name, metadata=about, tensor=make_tensor_proto([words.encode()]))
        self._add(self.writer, step, Summary(value=[value]))

    def close(self, finished: bool | None = None) -> None:
        self.writer.close()
        if finished is not None:
            self._end(finished)

    def _end(self, finished: bool) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        status = api_pb2.STATUS_SUCCESS if finished else api_pb2.STATUS_FAILURE
        end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        content = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
        value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=content, tensor=metadata.NULL_TENSOR)
        writer = EventFileWriter(str(self.folder), filename_suffix=_END)
        self._add(writer, 0, Summary(value=[value]))
        writer.close()

    def _wait_for_a_new_second(self) -> None:
        """Wait until the clock shows a later second than the newest event file.

        The names of event files contain whole seconds. Files of the same second sort at random, and readers then mix up
        their steps.
        """
        written = [path.stat().st_mtime for path in self.folder.glob("*tfevents*")]
        while written and int(time.time()) <= int(max(written)):
            time.sleep(0.02)

    def _drop_from(self, step: int) -> None:
        """Tell readers to discard what an interrupted run logged from `step` on; these steps are logged again."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        self.writer.add_event(Event(wall_time=time.time(), step=step, session_log=start))

    def _add(self, writer: Any, step: int, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


class MLflow:
    """Writes to a run of MLflow; a resumed training continues the same run."""

    def __init__(self, run: Path, config: LoggingConfig, resumed_at: int | None = None) -> None:
        keep_quiet()
        from mlflow import MlflowClient

        asked = config.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
        store = run.resolve() / "mlflow.db"
        self.client = MlflowClient(asked or f"sqlite:///{store.as_posix()}")
        known = _read_ids(run).get("mlflow")
        if known is None:
            experiment = self._experiment(config.project, None if asked else (run.resolve() / "mlflow").as_uri())
            known = self.client.create_run(experiment, run_name=run.resolve().name).info.run_id
            _note_id(run, "mlflow", known)
        elif resumed_at is not None:
            self.client.update_run(known, status="RUNNING")
        self.id = known

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self.client.get_experiment_by_name(name)
        return str(self.client.create_experiment(name, artifacts) if found is None else found.experiment_id)

    def settings(self, values: Mapping[str, Setting]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in values.items()]
        for start in range(0, len(params), 100):  # MLflow accepts at most 100 parameters per call
            self.client.log_batch(self.id, params=params[start : start + 100])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.id, metrics=[Metric(_plain(k), v, now, step) for k, v in values.items()])

    def image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        self.client.log_image(self.id, image, key=_plain(name), step=step)

    def text(self, step: int, name: str, words: str) -> None:
        self.client.set_tag(self.id, f"{name}.{step}", words)

    def close(self, finished: bool | None = None) -> None:
        if finished is not None:
            self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


class WandB:
    """Writes to a run of Weights & Biases; a resumed training continues the same run."""

    def __init__(self, run: Path, config: LoggingConfig, resumed_at: int | None = None) -> None:
        keep_quiet()
        import wandb

        known = _read_ids(run).get("wandb")
        if known is None:
            known = uuid4().hex
            _note_id(run, "wandb", known)
        mode: Any = config.wandb_mode or os.environ.get("WANDB_MODE") or "offline"
        settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True)
        self.run = wandb.init(
            project=config.project, name=run.resolve().name, id=known, resume="allow", mode=mode,
            dir=str(run), settings=settings,
        )  # fmt: skip
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")  # W&B's own step counter cannot go back on resuming

    def settings(self, values: Mapping[str, Setting]) -> None:
        self.run.config.update(dict(values), allow_val_change=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        import wandb

        self.run.log({"step": step, name: wandb.Image(image)})

    def text(self, step: int, name: str, words: str) -> None:
        self.run.log({"step": step, name: words})

    def close(self, finished: bool | None = None) -> None:
        self.run.finish(exit_code=1 if finished is False else 0)


class Boards:
    """All boards of a run as one.

    If MLflow or Weights & Biases fails during the run, it is dropped with a warning and the run goes on. Errors of
    TensorBoard, which writes to the run folder, are raised.
    """

    def __init__(self, boards: Sequence[Board]) -> None:
        self.boards = list(boards)

    def settings(self, values: Mapping[str, Setting]) -> None:
        self._tell(lambda board: board.settings(values))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._tell(lambda board: board.scalars(step, values))

    def image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        self._tell(lambda board: board.image(step, name, image))

    def text(self, step: int, name: str, words: str) -> None:
        self._tell(lambda board: board.text(step, name, words))

    def close(self, finished: bool | None = None) -> None:
        self._tell(lambda board: board.close(finished))

    def _tell(self, what: Callable[[Board], None]) -> None:
        for board in list(self.boards):
            try:
                what(board)
            except Exception as error:  # clients of services raise errors of many types
                if isinstance(board, TensorBoard):
                    raise
                self.boards.remove(board)
                print(f"{type(board).__name__}: logging failed and stops; the run goes on: {error}", file=sys.stderr)


def open_boards(run: Path, config: LoggingConfig, resumed_at: int | None = None) -> Boards:
    """Open the boards of an existing run folder.

    Args:
        resumed_at: the step after which training starts or resumes. TensorBoard discards the log of later steps.
            None: add to the run without training it.

    Raises:
        DeviceError: a package is missing, or a service cannot be opened.
    """
    check_packages(config)
    boards: list[Board] = [TensorBoard(run, resumed_at)]
    for name, kind in (("mlflow", MLflow), ("wandb", WandB)):
        if getattr(config, name):
            try:
                boards.append(kind(run, config, resumed_at))
            except Exception as error:  # clients of services raise errors of many types
                raise DeviceError(
                    f"logging.{name}: cannot be opened: {error}\n"
                    f"Correct the logging settings, or switch {name} off with --set logging.{name}=false"
                ) from error
    return Boards(boards)


def check_packages(config: LoggingConfig) -> None:
    """Check that the packages of all services that are switched on are installed.

    Raises:
        DeviceError: a package is missing; the message names the extra that installs it.
    """
    for name in _SERVICES:
        if getattr(config, name) and find_spec(name) is None:
            raise DeviceError(
                f"logging.{name}: the package {name} is not installed; run pip install 'medssl[{name}]', "
                f"or switch {name} off with --set logging.{name}=false"
            )


def _plain(name: str) -> str:
    """Return the name with characters that MLflow does not allow replaced by underscores."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _read_ids(run: Path) -> dict[str, str]:
    path = run / _IDS
    return read_object(path) if path.exists() else {}


def _note_id(run: Path, service: str, id: str) -> None:
    """Store the id that a service gave to a run."""
    write_json(run / _IDS, {**_read_ids(run), service: id})
