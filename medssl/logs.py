"""What a run tells: metrics.csv, TensorBoard, and a progress bar or plain lines."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from medssl.device import Readback
    from medssl.methods.base import StepResult
from medssl.errors import DataError
from medssl.files import whole_file
from medssl.progress import progress_bar
from medssl.watchman import Watchman

PLAIN_SECONDS = 10.0
"""Off a terminal, the least time between two progress lines."""
PICTURE_HEIGHT = 256
"""Pictures of small volumes are enlarged to about this many pixels."""
_COLOURS = np.array([[0, 0, 0], [230, 75, 60], [60, 160, 230], [90, 200, 110], [240, 180, 60]], np.float32) / 255


class RunLog:
    """Writes one run's scalars and pictures; rows after `resumed_at` are dropped, for they will come again.

    Where a watchman is given, it looks at every row; what it says is printed even when the rest is quiet.
    """

    def __init__(
        self, run: Path, *, resumed_at: int = 0, quiet: bool = False, watchman: Watchman | None = None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path, self.quiet = run / "metrics.csv", quiet
        self.rows = [row for row in _read_rows(self.path) if int(row["step"]) <= resumed_at]
        self.columns = list(dict.fromkeys(["step", *(key for row in self.rows for key in row)]))
        self._rewrite()
        self.board = SummaryWriter(str(run / "events"), purge_step=resumed_at + 1)  # type: ignore[no-untyped-call]
        self.dice = next((float(row["val/dice"]) for row in reversed(self.rows) if "val/dice" in row), math.nan)
        self.watchman = watchman
        if watchman is not None:
            for values in read_metrics(self.path):
                watchman.look(values)
        self._bar: Any = None
        self._task: Any = None
        self._waiting: tuple[int, list[str], Readback, dict[str, float]] | None = None

    @contextmanager
    def progress(self, done: int, total: int) -> Iterator[None]:
        """Show how far the run is, on a terminal with a bar."""
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
        """Show that a step is done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=iteration)

    def step(self, iteration: int, result: StepResult, lr: float) -> None:
        """Note one training step. Its values are written once the device has them, which nobody waits for."""
        self.flush()
        values = {f"loss/{k}": v for k, v in result.losses.items()} | {f"stat/{k}": v for k, v in result.stats.items()}
        import torch

        from medssl.device import Readback

        now = time.monotonic()
        seconds = (now - self._noted) / max(1, iteration - self._noted_at)
        self._noted, self._noted_at = now, iteration
        packed = torch.stack([v.detach().float() for v in values.values()])
        self._waiting = iteration, list(values), Readback(packed), {"lr": lr, "seconds_per_step": seconds}
        if not packed.is_cuda:
            self.flush()

    def flush(self) -> None:
        """Write what waits for the device."""
        if self._waiting is None:
            return
        (iteration, names, packed, facts), self._waiting = self._waiting, None
        values = dict(zip(names, packed.tolist(), strict=True))
        self._write(iteration, {**values, **facts})
        for words in [] if self.watchman is None else self.watchman.look(values):
            self._warn(iteration, words)
        self._show(iteration, " ".join(f"{k.split('/')[1]} {v:.3f}" for k, v in values.items() if "loss/" in k))

    def canaries(self, iteration: int, scores: dict[str, float]) -> None:
        """Note how pseudo-labels score on the canaries."""
        self.flush()
        self._write(iteration, {f"canary/{k}": v for k, v in scores.items()})
        self._noted, self._noted_at = time.monotonic(), iteration

    def validation(self, iteration: int, scores: dict[str, float]) -> None:
        """Note the scores of a validation."""
        self.flush()
        self._write(iteration, {f"val/{k}": v for k, v in scores.items()})
        self.dice = scores["dice"]
        self._noted, self._noted_at = time.monotonic(), iteration

    def picture(self, iteration: int, name: str, image: NDArray[Any], *labels: NDArray[Any]) -> None:
        """A grey slice `(X, Y)` beside the same slice under each label map `(X, Y)`."""
        low, high = np.percentile(image, [1, 99])
        grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1)[..., None].repeat(3, -1)
        panels = [grey]
        for label in labels:
            colour = _COLOURS[np.where(label > 0, (label - 1) % (len(_COLOURS) - 1) + 1, 0)]
            panels.append(np.where(label[..., None] > 0, 0.55 * grey + 0.45 * colour, grey))
        strip = np.concatenate([np.rot90(p) for p in panels], axis=1)
        zoom = max(1, PICTURE_HEIGHT // strip.shape[0])
        strip = strip.repeat(zoom, axis=0).repeat(zoom, axis=1)
        self.board.add_image(name, strip, iteration, dataformats="HWC")  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush everything."""
        self.flush()
        self.board.close()  # type: ignore[no-untyped-call]

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
        for name, value in values.items():
            self.board.add_scalar(name, value, iteration)  # type: ignore[no-untyped-call]

    def _warn(self, iteration: int, words: str) -> None:
        self.board.add_text("warning", words, iteration)  # type: ignore[no-untyped-call]
        say = partial(print, file=sys.stderr, flush=True) if self._bar is None else self._bar.console.print
        say(f"warning, step {iteration}: {words}")

    def _rewrite(self) -> None:
        with whole_file(self.path) as unfinished, unfinished.open("w", newline="") as file:
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
        print(f"step {iteration}/{self._total}  {losses}{dice}  {_clock(left)} left", file=sys.stderr, flush=True)


class NoLog(RunLog):
    """The log of a process that leaves writing and speaking to the first one."""

    def __init__(self) -> None:
        self.quiet = True

    @contextmanager
    def progress(self, done: int, total: int) -> Iterator[None]:
        yield

    def advance(self, iteration: int) -> None: ...
    def flush(self) -> None: ...
    def step(self, iteration: int, result: StepResult, lr: float) -> None: ...
    def canaries(self, iteration: int, scores: dict[str, float]) -> None: ...
    def validation(self, iteration: int, scores: dict[str, float]) -> None: ...
    def picture(self, iteration: int, name: str, image: NDArray[Any], *labels: NDArray[Any]) -> None: ...
    def close(self) -> None: ...


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv as numbers, empty cells left out."""
    return [{k: float(v) for k, v in row.items() if v} for row in _read_rows(path)]


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line short
    table = csv.DictReader(whole.splitlines())
    if whole and "step" not in (table.fieldnames or []):
        raise DataError(f"{path}: expected a column `step`, as `medssl train` writes it")
    return [{k: v for k, v in row.items() if v and k} for row in table]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
