"""The log of a run: metrics.csv, boards such as TensorBoard, and a progress bar or plain lines."""

from __future__ import annotations

import csv
import itertools
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from medssl.device import Readback
    from medssl.methods.base import StepResult
from medssl.boards import LoggingConfig, Setting, open_boards
from medssl.config import merge, parse
from medssl.data.splits import load_split
from medssl.errors import DataError, DeviceError
from medssl.files import whole_file
from medssl.palette import CLASS_COLOURS, grey_window
from medssl.progress import progress_bar
from medssl.scores import Scores, summarise
from medssl.watchman import Watchman
from medssl.words import duration

PLAIN_SECONDS = 10.0
"""Least time between two progress lines if the output is not a terminal."""
PICTURE_HEIGHT = 256
"""Pictures of small volumes are enlarged to about this height in pixels."""
_COLOURS = np.array([list(bytes.fromhex(colour[1:])) for colour in CLASS_COLOURS], np.float32) / 255


class RunLog:
    """Writes the scalars and pictures of a run.

    Rows after step `resumed_at` are dropped, because the resumed run writes them again. Boards list `settings` beside
    the scores. A watchman, if given, checks every row; its warnings are printed even if `quiet` is set.
    """

    def __init__(
        self,
        run: Path,
        *,
        resumed_at: int = 0,
        quiet: bool = False,
        config: LoggingConfig | None = None,
        settings: Mapping[str, Setting] | None = None,
        watchman: Watchman | None = None,
    ) -> None:
        self.path, self.quiet = run / "metrics.csv", quiet
        self.rows = [row for row in _read_rows(self.path) if int(row["step"]) <= resumed_at]
        self.columns = list(dict.fromkeys(["step", *(key for row in self.rows for key in row)]))
        self._rewrite()
        self.board = open_boards(run, config or LoggingConfig(), resumed_at)
        if settings:
            self.board.settings(settings)
        validated = [float(row["val/dice"]) for row in self.rows if "val/dice" in row]
        self.dice, self.best = (validated[-1], max(validated)) if validated else (math.nan, -1.0)
        self.watchman = watchman
        if watchman is not None:
            for seen in read_metrics(self.path):
                watchman.look(seen)
        self._bar: Any = None
        self._task: Any = None
        self._waiting: tuple[int, list[str], Readback, dict[str, float]] | None = None

    @contextmanager
    def progress(self, done: int, total: int) -> Iterator[None]:
        """Show how far the run is: with a bar on a terminal, in plain lines elsewhere."""
        self._printed, self._first, self._total = time.monotonic(), done, total
        self._started = self._noted = time.monotonic()
        self._noted_at = done
        if self.quiet or not sys.stderr.isatty():
            yield
            return
        with progress_bar() as self._bar:
            self._task = self._bar.add_task("train", total=total, completed=done, note="")
            yield
        self._bar = None

    def advance(self, iteration: int) -> None:
        """Move the progress bar to a step that is done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=iteration)

    def step(
        self, iteration: int, result: StepResult, lr: float, waited: float = 0.0, skipped: Tensor | None = None
    ) -> None:
        """Log a training step. Its values are written once the device has computed them; nothing here waits for that.

        Args:
            waited: seconds spent waiting for patches since the step or validation that was logged before.
            skipped: share of the steps since then that were skipped as not finite, a scalar.
        """
        self.flush()
        values = {f"loss/{k}": v for k, v in result.losses.items()} | {f"stat/{k}": v for k, v in result.stats.items()}
        import torch

        from medssl.device import Readback

        now = time.monotonic()
        seconds, steps = now - self._noted, max(1, iteration - self._noted_at)
        self._noted, self._noted_at = now, iteration
        if skipped is not None:
            values["skipped"] = skipped
        packed = torch.stack([v.detach().float() for v in values.values()])
        facts = {"lr": lr, "seconds_per_step": seconds / steps, "waiting": min(1.0, waited / max(seconds, 1e-9))}
        if packed.is_cuda:
            facts["gpu_gib"] = torch.cuda.max_memory_reserved(packed.device) / 2**30
        self._waiting = iteration, list(values), Readback(packed), facts
        if not packed.is_cuda:
            self.flush()

    def flush(self) -> None:
        """Write the logged step that still waits for the device, if any."""
        if self._waiting is None:
            return
        (iteration, names, packed, facts), self._waiting = self._waiting, None
        values = dict(zip(names, packed.tolist(), strict=True))
        if values.get("skipped") == 0:  # nearly always; the table then has no such column
            del values["skipped"]
        self._write(iteration, {**values, **facts})
        for words in [] if self.watchman is None else self.watchman.look({**values, **facts}):
            self._warn(iteration, words)
        self._show(iteration, " ".join(f"{k.split('/')[1]} {v:.3f}" for k, v in values.items() if "loss/" in k))

    def canaries(self, iteration: int, scores: dict[str, float]) -> None:
        """Log the scores of pseudo-labels on the canaries."""
        self.flush()
        self._write(iteration, {f"canary/{k}": v for k, v in scores.items()})
        self._noted, self._noted_at = time.monotonic(), iteration

    def validation(self, iteration: int, scores: dict[str, float]) -> None:
        """Log the scores of a validation."""
        self.flush()
        self._write(iteration, {f"val/{k}": v for k, v in scores.items()})
        self.dice, self.best = scores["dice"], max(self.best, scores["dice"])
        self.board.scalars(iteration, {"val/best_dice": self.best})
        self._noted, self._noted_at = time.monotonic(), iteration

    def picture(self, iteration: int, name: str, image: NDArray[Any], *labels: NDArray[Any]) -> None:
        """Log a grey slice `(X, Y)` beside the same slice overlaid with each label map `(X, Y)`."""
        self.flush()
        low, high = grey_window(image)
        grey = np.clip((image - low) / (high - low), 0, 1)[..., None].repeat(3, -1)
        panels = [grey]
        for label in labels:
            colour = _COLOURS[(label.astype(np.int64) - 1) % len(_COLOURS)]
            panels.append(np.where(label[..., None] > 0, 0.55 * grey + 0.45 * colour, grey))
        strip = np.concatenate([np.rot90(p) for p in panels], axis=1)
        zoom = max(1, PICTURE_HEIGHT // strip.shape[0])
        strip = strip.repeat(zoom, axis=0).repeat(zoom, axis=1)
        self.board.image(iteration, name, (255 * strip).round().astype(np.uint8))

    def close(self, finished: bool = False) -> None:
        """Write what is pending and close the boards; if training finished, print the last and best validation Dice."""
        self.flush()
        self.board.close(finished)
        if finished and not self.quiet and not math.isnan(self.dice):
            print(f"validation Dice {self.dice:.3f} after the last step, {self.best:.3f} at best", file=sys.stderr)

    def _write(self, iteration: int, values: dict[str, float]) -> None:
        new = {"step": str(iteration), **{k: f"{v:.6g}" for k, v in values.items()}}
        unknown = [name for name in new if name not in self.columns]
        self.columns += unknown
        self.rows.append(new)
        if unknown:
            self._rewrite()  # rare: at the first steps, validations and stages
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="").writerow(new)
        self.board.scalars(iteration, values)

    def _warn(self, iteration: int, words: str) -> None:
        self.board.text(iteration, "warning", words)
        say = partial(print, file=sys.stderr, flush=True) if self._bar is None else self._bar.console.print
        say(f"warning, step {iteration}: {words}")

    def _rewrite(self) -> None:
        with whole_file(self.path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def _show(self, iteration: int, losses: str) -> None:
        dice = "" if math.isnan(self.dice) else f"  val Dice {self.dice:.3f}"
        if self._bar is not None:
            self._bar.update(self._task, note=losses + dice)
            return
        now = time.monotonic()
        if self.quiet or (now - self._printed < PLAIN_SECONDS and iteration != self._total):
            return
        self._printed = now
        left = (now - self._started) / max(1, iteration - self._first) * (self._total - iteration)
        print(f"step {iteration}/{self._total}  {losses}{dice}  {duration(left)} left", file=sys.stderr, flush=True)


class NoLog(RunLog):
    """A log that writes and prints nothing, for every process but the first."""

    def __init__(self) -> None:
        self.quiet = True

    @contextmanager
    def progress(self, done: int, total: int) -> Iterator[None]:
        yield

    def advance(self, iteration: int) -> None: ...
    def flush(self) -> None: ...
    def step(
        self, iteration: int, result: StepResult, lr: float, waited: float = 0.0, skipped: Tensor | None = None
    ) -> None: ...
    def canaries(self, iteration: int, scores: dict[str, float]) -> None: ...
    def validation(self, iteration: int, scores: dict[str, float]) -> None: ...
    def picture(self, iteration: int, name: str, image: NDArray[Any], *labels: NDArray[Any]) -> None: ...
    def close(self, finished: bool = False) -> None: ...


def log_test_scores(run: Path, scores: Scores) -> None:
    """Show the scores of a run's test cases on its boards, beside its settings.

    Nothing happens if `run` is not a run folder, or if a case was used for training or validation, so that the scores
    are not those of a test. If the package of a service is missing, TensorBoard alone gets the scores, with a note.
    """
    files = [run / name for name in ("config.yaml", "splits.json", "metrics.csv")]
    if not all(path.is_file() for path in files) or not (run / "events").is_dir():
        return
    parts = load_split(files[1])
    if {score.case for score in scores} & {
        case for part in ("labelled", "unlabelled", "val") for case in getattr(parts, part)
    }:
        return
    config = parse(LoggingConfig, merge([files[0]]).get("logging", {}), where="logging")
    try:
        board = open_boards(run, config)
    except DeviceError as error:
        print(f"test scores are logged to TensorBoard only: {error}", file=sys.stderr)
        board = open_boards(run, LoggingConfig())
    last = max((int(row["step"]) for row in _read_rows(files[2])), default=0)
    board.scalars(last, _test_means(scores))
    board.close()


def _test_means(scores: Scores) -> dict[str, float]:
    """Return the means over cases, where they are defined, and how often a class was missed altogether."""
    summary = summarise(scores)
    means = {f"test/{metric}": summary.overall.spread(metric).mean for metric in scores.metrics}
    means |= {f"test/dice/{row.class_name}": row.dice.mean for row in summary.classes}
    return {name: mean for name, mean in means.items() if mean is not None} | {"test/missed": summary.overall.missed}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the rows of metrics.csv as numbers, without empty cells."""
    return [{k: float(v) for k, v in row.items() if v} for row in _read_rows(path)]


def training_seconds(metrics: Sequence[Mapping[str, float]]) -> float:
    """Return the seconds that the steps of a run took, without validations; untimed last steps count as average."""
    rows = [row for row in metrics if "seconds_per_step" in row]
    if not rows:
        return 0.0
    starts = [0.0, *(row["step"] for row in rows)]
    timed = sum(row["seconds_per_step"] * (row["step"] - start) for row, start in zip(rows, starts, strict=False))
    return timed * max(row["step"] for row in metrics) / rows[-1]["step"]


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line short
    table = csv.DictReader(whole.splitlines())
    if whole and "step" not in (table.fieldnames or []):
        raise DataError(f"{path}: expected a column `step`, as `medssl train` writes it")
    rows = [{k: v for k, v in row.items() if v and k} for row in table]
    return list(itertools.takewhile(lambda row: row.get("step", "").isdecimal(), rows))  # a power cut may leave zeros
