"""The training loop, the only one: it knows optimisers, precision, EMA, logs and checkpoints, and no method."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from medssl.augment import Augment
from medssl.checkpoint import load_checkpoint, save_checkpoint
from medssl.config import Settings
from medssl.data.patches import PatchStream
from medssl.device import Precision, autocast, choose_precision
from medssl.ema import ema_update
from medssl.errors import DivergedError, Interrupted
from medssl.logs import RunLog
from medssl.methods.base import Method, StepResult
from medssl.parts.sample import Progress, TrainBatch
from medssl.parts.schedules import generator, poly

PATIENCE = 5
"""Steps in a row with a non-finite loss before the run is stopped."""


class TrainConfig(Settings):
    """The `train` section."""

    iterations: PositiveInt = 30_000
    """Optimiser steps. Every schedule is a fraction of this, so halving it keeps their shape."""
    patch: tuple[PositiveInt, PositiveInt, PositiveInt] = (96, 96, 96)
    """Voxels of a training patch on the prepared grid."""
    labelled_batch: PositiveInt = 2
    """Labelled patches in a step; copy-paste pairs them, so it wants an even number."""
    unlabelled_batch: NonNegativeInt = 2
    """Unlabelled patches in a step."""
    foreground: float = Field(0.0, ge=0, le=1)
    """Share of labelled patches centred on a foreground voxel; 0 is the plain random crop of the literature."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` with Nesterov momentum 0.9."""
    lr: PositiveFloat = 0.01
    schedule: Literal["poly", "constant"] = "poly"
    """`poly` is `lr (1 - t/T)^0.9`."""
    weight_decay: float = Field(1e-4, ge=0)
    max_grad_norm: PositiveFloat = 12.0
    """Each student's gradient is clipped to this by itself."""
    precision: Precision = "auto"
    """`auto`: bf16 on a GPU that has it, fp16 on an older one, fp32 on the CPU."""
    seed: NonNegativeInt = 1337
    """Decides weights, patches, augmentation and boxes."""
    workers: NonNegativeInt = 0
    """Processes that read patches; 0 reads in the training process, best for data that fit in memory."""
    validate_every: PositiveInt | None = None
    """Steps between validations; null divides the run into ten."""
    log_every: PositiveInt = 20
    """Steps between rows of metrics.csv."""


class Trainer:
    """Runs a method's steps, and saves so that the run can go on bit for bit."""

    def __init__(
        self,
        method: Method,
        config: TrainConfig,
        run: Path,
        device: torch.device,
        augment: Augment,
        plain_config: dict[str, Any],
    ) -> None:
        self.method, self.config, self.run, self.device = method.to(device), config, run, device
        self.augment, self.plain_config = augment, plain_config
        self.optimizer = make_optimizer(method, config)
        self.precision = choose_precision(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.iteration = 0
        self.best = -1.0
        self.bad_steps = 0

    def fit(
        self,
        labelled: PatchStream,
        unlabelled: PatchStream | None,
        validate: Callable[[], dict[str, float]],
        log: RunLog,
        until: int | None = None,
    ) -> None:
        """Train from the current iteration to the end, or stop, saved, after step `until`.

        Args:
            validate: scores on the validation cases, `dice` among them; empty where there are none.

        Raises:
            Interrupted: Ctrl-C or SIGTERM arrived; the step was finished and saved.
            DivergedError: losses were not finite several steps in a row.
        """
        last = min(until or self.config.iterations, self.config.iterations)
        every = self.config.validate_every or max(1, self.config.iterations // 10)
        batches = self.batches(labelled, unlabelled, last)
        with _stop_requested() as stop, log.progress(self.iteration, self.config.iterations):
            while self.iteration < last:
                started = time.monotonic()
                batch = next(batches)
                result = self.train_step(batch, lambda: _cases(labelled, unlabelled, self.config, self.iteration - 1))
                lr = self.optimizer.param_groups[0]["lr"]
                log.step(self.iteration, self.config.log_every, result, lr, time.monotonic() - started)
                if self.iteration % every == 0 or self.iteration == self.config.iterations:
                    self.validate(validate, log)
                    self.save("last.pt")
                if stop():
                    self.save("last.pt")
                    raise Interrupted(f"stopped at step {self.iteration}, saved in {self.run}; go on with --resume")
        self.save("last.pt")

    def train_step(self, batch: TrainBatch, cases: Callable[[], str] = lambda: "?") -> StepResult:
        """Students take one optimiser step, then teachers follow."""
        progress = Progress(self.iteration, self.config.iterations)
        torch.manual_seed(generator(self.config.seed, 2, self.iteration).initial_seed())  # dropout
        rng = generator(self.config.seed, 3, self.iteration)  # so a resumed run draws the same boxes
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

        self.method.train()
        with autocast(self.device, self.precision):
            result = self.method.step(batch, progress, rng)
        loss = torch.stack(list(result.losses.values())).sum()
        self.iteration += 1

        self.optimizer.zero_grad(set_to_none=True)  # None, not 0: a resting student is skipped
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        norms = [  # one group a student: each is clipped by itself
            torch.nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm)
            for group in self.optimizer.param_groups
        ]
        if self.is_finite(result, loss, norms, cases):
            self.scaler.step(self.optimizer)
            for follow in self.method.followers(progress):
                ema_update(follow.teacher, follow.students, follow.decay)
        self.scaler.update()
        return result

    @property
    def lr(self) -> float:
        """The learning rate of the current step, a function of the step alone."""
        if self.config.schedule == "constant":
            return self.config.lr
        return self.config.lr * poly(Progress(min(self.iteration, self.config.iterations), self.config.iterations))

    def batches(self, labelled: PatchStream, unlabelled: PatchStream | None, last: int) -> Iterator[TrainBatch]:
        """Augmented batches from the current iteration on."""
        first, workers = self.iteration, self.config.workers
        ours = labelled.batches(self.config.labelled_batch, first, last, workers)
        theirs = None if unlabelled is None else unlabelled.batches(self.config.unlabelled_batch, first, last, workers)
        for i in range(first, last):
            image, label = self.augmented(next(ours), labelled, i * self.config.labelled_batch)
            assert label is not None
            extra = image[:0]
            if theirs is not None and unlabelled is not None:
                extra, _ = self.augmented(next(theirs), unlabelled, i * self.config.unlabelled_batch)
            yield TrainBatch(image, label, extra)

    def augmented(self, patches: Sequence[Tensor], stream: PatchStream, first: int) -> tuple[Tensor, Tensor | None]:
        """Patches on the device, augmented by draws that belong to their sample numbers."""
        moved = [patch.to(self.device, non_blocking=True) for patch in patches]
        draws = [self.augment.draw(*stream.seed, 2, n) for n in range(first, first + len(moved[0]))]
        return self.augment.apply(moved[0], draws, moved[1] if len(moved) > 1 else None)

    def validate(self, validate: Callable[[], dict[str, float]], log: RunLog) -> None:
        """Score the validation cases and keep the best weights."""
        scores = validate()
        if not scores:
            return
        log.validation(self.iteration, scores)
        if scores["dice"] > self.best:
            self.best = scores["dice"]
            self.save("best.pt")

    def is_finite(self, result: StepResult, loss: Tensor, norms: Sequence[Tensor], cases: Callable[[], str]) -> bool:
        """Whether a step may be taken: one with a non-finite loss or gradient is left out, several in a row are fatal.

        The scaler of fp16 leaves out overflowing gradients by itself, and lowers its scale.
        """
        judged = [loss] if self.scaler.is_enabled() else [loss, *norms]
        if all(torch.isfinite(value) for value in judged):
            self.bad_steps = 0
            return True
        self.bad_steps += 1
        if self.bad_steps >= PATIENCE:
            names = [f"{name} = {value.item():g}" for name, value in result.losses.items() if not value.isfinite()]
            raise DivergedError(
                f"step {self.iteration}: {', '.join(names) or 'a gradient is not finite'}, {PATIENCE} steps in a row; "
                f"cases of this step: {cases()}. Check them with `medssl check`, lower train.lr, or set "
                "train.precision: fp32."
            )
        return False

    def save(self, name: str) -> None:
        """Write everything that the run needs to go on, and that `predict` needs."""
        save_checkpoint(
            self.run / name,
            {
                "iteration": self.iteration,
                "best": self.best,
                "config": self.plain_config,
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
        )

    def load(self, path: Path) -> None:
        """Take up a run where `save` left it."""
        values = load_checkpoint(path)
        self.method.load_state_dict(values["method"])
        self.optimizer.load_state_dict(values["optimizer"])
        if values["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(values["scaler"])
        self.iteration, self.best = values["iteration"], values["best"]


def make_optimizer(method: Method, config: TrainConfig) -> torch.optim.Optimizer:
    """One parameter group per student."""
    groups = [{"params": list(student.parameters())} for student in method.students()]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)


def _cases(labelled: PatchStream, unlabelled: PatchStream | None, config: TrainConfig, iteration: int) -> str:
    """Ids of the cases that step `iteration` was made of."""
    sizes = [(labelled, config.labelled_batch), (unlabelled, config.unlabelled_batch)]
    ids = [s.case_of(iteration * size + k) for s, size in sizes if s is not None for k in range(size)]
    return ", ".join(dict.fromkeys(ids))


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into an answer to a question; a second Ctrl-C interrupts at once."""
    asked = False

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    previous = {}
    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            previous[signum] = signal.signal(signum, ask)
    except ValueError:
        pass  # not in the main thread: whoever runs us there handles signals
    try:
        yield lambda: asked
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
