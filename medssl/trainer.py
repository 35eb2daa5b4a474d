"""The training loop of all methods: optimisers, precision, EMA, logs and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medssl.augment import Augment, Draw
from medssl.checkpoint import load_checkpoint, save_checkpoint
from medssl.config import Settings
from medssl.data.cases import IGNORED
from medssl.data.likeness import Likeness
from medssl.data.patches import Patches, PatchStream, ending_readers
from medssl.device import Precision, autocast, choose_precision
from medssl.distributed import StopVote, here, is_first, wait_for_all
from medssl.ema import ema_update, lag
from medssl.errors import ConfigError, DivergedError, Interrupted
from medssl.finite import PATIENCE, Watch
from medssl.logs import RunLog
from medssl.machine import available_cpus
from medssl.methods.base import Method, StepResult
from medssl.networks import checkpoint_activations
from medssl.parts import processes
from medssl.parts.sample import Progress, TrainBatch
from medssl.parts.schedules import generator, mix, poly
from medssl.progress import stop_requested
from medssl.words import some

SAVE_SECONDS = 15 * 60
"""Seconds between saves of last.pt if `train.save_every` is not set."""
STOPPING = "stopping after this step or validation, then saving; press Ctrl-C again to stop at once without saving"
"""Printed at the first Ctrl-C."""


Seen = dict[str, dict[str, list[str]]]
"""For each dataset, the patients that runs `learned` from, and those by whose validation scores they were `chosen`."""


class TrainConfig(Settings):
    """The `train` section."""

    iterations: PositiveInt = 30_000
    """Number of optimiser steps. All schedules are fractions of it, so they keep their shape if you change it."""
    patch: tuple[PositiveInt, PositiveInt, PositiveInt] = (96, 96, 96)
    """Size of a training patch in voxels of the prepared data."""
    labelled_batch: PositiveInt = 2
    """Labelled patches per step, over all devices. Methods with copy-paste need an even number, equal to
    `unlabelled_batch`."""
    unlabelled_batch: NonNegativeInt = 2
    """Unlabelled patches per step, over all devices."""
    foreground: float = Field(0.0, ge=0, le=1)
    """Share of labelled patches that are centred on a foreground voxel, of a randomly chosen class. 0: random crops
    only, as in the literature."""
    class_weights: tuple[NonNegativeFloat, ...] | None = None
    """Relative frequency with which each foreground class, in the order of `data.classes`, is chosen for such a patch.
    null: all equally often. The losses do not use these weights."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd`: with Nesterov momentum 0.9. `adamw`: AdamW."""
    lr: PositiveFloat = 0.01
    """Learning rate at the first step."""
    schedule: Literal["poly", "constant"] = "poly"
    """Schedule of the learning rate. `poly`: `lr (1 - t/T)^0.9` at step t of T. `constant`: `lr` throughout."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay: an L2 penalty with `sgd`, decoupled with `adamw`."""
    max_grad_norm: PositiveFloat = 12.0
    """Largest gradient norm. Larger gradients are clipped to it, for each student separately."""
    precision: Precision = "auto"
    """Number format for training and prediction. `auto`: bf16 on GPUs that support it, fp16 on older GPUs, fp32 on the
    CPU."""
    start_from: Path | None = None
    """Folder of a run with the same method and `network` section; training starts with the last weights of all its
    networks, teachers included. null: new weights. Refused if the validation or test set has a patient from whom that
    run, or a run that it was started from, learned; or if the test set has one of their validation patients."""
    other_patients: bool = False
    """With `start_from`: treat patients of a dataset with another `data.name` as different people, even if their names
    are the same."""
    seed: NonNegativeInt = 1337
    """Seed for initial weights, patches, augmentation, dropout and copy-paste boxes."""
    tf32: bool = True
    """Use TF32 on a GPU for computations that are not in 16 bits."""
    deterministic: bool = False
    """On a GPU, use kernels that give bit-identical results on the same card model and torch version; slower. Torch
    warns of operations that have no such kernel. On a CPU, results are identical without this setting if the number of
    threads is the same."""
    accumulate: PositiveInt = 1
    """Parts into which the batch of a step is split. They are processed one after the other, which saves memory
    (gradient accumulation). A loss that sums over the batch then sums over a part."""
    activation_checkpointing: bool = False
    """Recompute the students' activations in the backward pass instead of storing them. Saves memory; about a third
    slower."""
    channels_last: bool = False
    """Use PyTorch's channels-last memory format for the networks."""
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """Mode of `torch.compile` for the networks; `off`: no compilation. `reduce-overhead` uses CUDA graphs. If the first
    step never ends, set the environment variable `TORCHINDUCTOR_COMPILE_THREADS=1`, which compiles without worker
    processes."""
    workers: NonNegativeInt | None = None
    """Workers that read patches, per process and stream (labelled, unlabelled). null: none on the CPU; on a GPU, two
    threads if the volumes fit in memory, otherwise up to eight processes."""
    canaries: NonNegativeInt = 0
    """Number of labelled cases kept out of training, with all scans of their patients. At each validation, the
    pseudo-labels that the method would give them are scored: a direct check of pseudo-label quality."""
    validate_every: PositiveInt | None = None
    """Steps between validations. null: a tenth of the run."""
    save_every: PositiveInt | None = None
    """Steps between saves of last.pt. null: every 15 minutes. last.pt is also saved after each validation and at the
    end."""
    log_every: PositiveInt = 20
    """Steps between rows of metrics.csv, and between checks that losses are finite."""


class Trainer:
    """Runs the training steps of a method, and saves checkpoints from which the run continues bit for bit.

    Several processes may run the same trainer, each on its share of every batch; the first one writes files.
    """

    def __init__(
        self,
        method: Method,
        config: TrainConfig,
        run: Path,
        device: torch.device,
        augment: Augment,
        plain_config: dict[str, Any],
    ) -> None:
        self.method, self.config, self.run, self.device = fitted(method, config, device), config, run, device
        self.augment, self.plain_config = augment, plain_config
        self.optimizer = make_optimizer(method, config)
        self.statistics = [buffer for buffer in self.method.buffers() if buffer.is_floating_point()]
        """Buffers of batch norm or of a method; a forward pass changes them, so a step that is not finite would spoil
        them for good."""
        self.precision = choose_precision(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.forward = spread(method, device)
        self.watch = Watch(device)
        self.iteration = 0
        self.best = -1.0
        self.waited = 0.0
        """Seconds spent waiting for patches since the last row of metrics.csv or validation."""
        self.likeness: Likeness | None = None
        """Usual spacing, size and grey levels of the scans that the run learns from."""
        self.seen_before: Seen = {}
        """Patients seen by the runs from which the initial weights come."""
        self.steps_before = 0
        """Steps of these runs."""

    def fit(
        self,
        labelled: PatchStream,
        unlabelled: PatchStream | None,
        validate: Callable[[], dict[str, float]],
        log: RunLog,
        until: int | None = None,
    ) -> None:
        """Train from the current iteration to the end, or save and stop after step `until`.

        Args:
            validate: returns the scores on the validation cases, among them `dice`; empty if there are none.

        Raises:
            Interrupted: Ctrl-C or SIGTERM arrived; the step was finished and saved.
            DivergedError: losses or gradients were not finite in several steps in a row.
            OutOfMemoryError: a process that reads patches was lost.
        """
        config = self.config
        last = config.iterations if until is None else min(until, config.iterations)
        every = config.validate_every or max(1, config.iterations // 10)
        batches, saved = self.batches(labelled, unlabelled, last), time.monotonic()
        with (
            ending_readers(),
            closing(batches),
            closing(StopVote()) as vote,
            stop_requested(STOPPING if is_first() else "") as stop,
            log.progress(self.iteration, config.iterations),
        ):
            while self.iteration < last:
                lr, result = self.lr, self.train_step(next(batches))
                log.advance(self.iteration)
                if self.iteration % config.log_every == 0 or self.iteration == 1:
                    self.check(lambda step: _cases(labelled, unlabelled, config, step))
                    result = averaged(result)
                    result = StepResult(result.losses, {**result.stats, **self.lags()})
                    log.step(self.iteration, result, lr, self.waited, self.watch.skipped())
                    self.waited = 0.0
                is_due = self.iteration % every == 0 or self.iteration == config.iterations
                if is_due:
                    self.validate(validate, log)
                    self.waited = 0.0
                elif self.wants_saving(saved):
                    is_due = True
                    log.flush()
                if is_due and self.iteration < last:
                    self.save("last.pt")
                    saved = time.monotonic()
                if vote(stop.is_set()):
                    log.flush()
                    self.save("last.pt")
                    wait_for_all()
                    raise Interrupted(f"stopped at step {self.iteration}, saved in {self.run}; go on with --resume")
            self.check(lambda step: _cases(labelled, unlabelled, config, step), wait=True)
            self.save("last.pt")
            if vote(stop.is_set()):
                raise Interrupted(f"stopped after the last step, {self.iteration}, saved in {self.run}")

    def wants_saving(self, saved: float) -> bool:
        """Whether to save between validations.

        Args:
            saved: `time.monotonic()` of the last save.
        """
        every = self.config.save_every
        return self.iteration % every == 0 if every else time.monotonic() - saved > SAVE_SECONDS

    def train_step(self, batch: TrainBatch) -> StepResult:
        """Take one optimiser step with the students, then let teachers follow. Nothing here waits for the device."""
        progress = self.progress(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        if not all(student.training for student in self.method.students()):
            self.method.train()
        self.optimizer.zero_grad(set_to_none=True)  # None, not 0: the optimiser then skips a resting student
        before = [buffer.clone() for buffer in self.statistics]
        results = [self.backward(batch, progress, part) for part in range(self.config.accumulate)]
        result = mean(results)
        self.iteration += 1

        self.scaler.unscale_(self.optimizer)
        norms = [  # one group per student, clipped separately
            torch.nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm)
            for group in self.optimizer.param_groups
        ]
        # In fp16 the scaler itself skips a step whose gradients overflow, and lowers its scale.
        bad = self.watch.note(self.iteration, result.losses, [] if self.scaler.is_enabled() else norms)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # fused optimisers then leave the weights alone
            self.optimizer.step()
        for buffer, old in zip(self.statistics, before, strict=True):
            buffer.copy_(torch.where(bad > 0, old, buffer))
        for follow in self.method.followers(progress):
            ema_update(follow.teacher, follow.students, follow.decay)
        return result

    def backward(self, batch: TrainBatch, progress: Progress, part: int) -> StepResult:
        """Compute losses and gradients of one part of a batch; with the last part, processes average gradients."""
        parts = self.config.accumulate
        share = processes.rank() * parts + part
        seed_global(mix(self.config.seed, 2, self.iteration, share), self.device)  # dropout
        rng = generator(self.config.seed, 3, self.iteration)  # so a resumed run draws the same boxes
        is_last = part == parts - 1
        with nullcontext() if is_last or processes.count() == 1 else self.forward.no_sync():  # type: ignore[attr-defined]
            with autocast(self.device, self.precision):
                result: StepResult = self.forward(batch.part(part, parts), progress, rng)
            loss = torch.stack(list(result.losses.values())).sum() / parts
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return result

    def lags(self) -> dict[str, Tensor]:
        """Return `lag/N`, the relative distance of teacher N from the students that it followed in the last step; empty
        in a first stage, in which teachers are copies."""
        progress = self.progress(self.iteration - 1)
        if self.method.pretraining(progress):
            return {}
        places = {id(teacher): place for place, teacher in enumerate(self.method.teachers())}
        follows = [follow for follow in self.method.followers(progress) if id(follow.teacher) in places]
        return {f"lag/{places[id(follow.teacher)]}": lag(follow.teacher, follow.students) for follow in follows}

    @property
    def lr(self) -> float:
        """The learning rate of the current step; it depends on the step alone."""
        if self.config.schedule == "constant":
            return self.config.lr
        return self.config.lr * poly(self.progress(min(self.iteration, self.config.iterations)))

    def progress(self, iteration: int) -> Progress:
        """Return the place of a step in the run, from which schedules are computed."""
        return Progress(iteration, self.config.iterations, self.steps_before)

    def batches(
        self, labelled: PatchStream, unlabelled: PatchStream | None, last: int
    ) -> Generator[TrainBatch, None, None]:
        """Yield this process's share of each batch, augmented, from the current iteration up to step `last`."""
        ours = self.shares(labelled, self.config.labelled_batch, last)
        theirs = None if unlabelled is None else self.shares(unlabelled, self.config.unlabelled_batch, last)
        x, y, z = map(bool, self.augment.fine)
        fine = x, y, z
        for numbers, patches in ours:
            image, label = self.augment.apply(patches[0], self.draws(labelled, numbers), patches[1])
            assert label is not None
            known = None
            if labelled.data.ignores:
                known = label != IGNORED
                label = label * known
            if theirs is None or unlabelled is None:
                yield TrainBatch(image, label, image[:0], (), known=known, fine=fine)
                continue
            numbers, patches = next(theirs)
            strong, weak = self.augment.views(patches[0], self.draws(unlabelled, numbers))
            seeds = tuple(mix(*unlabelled.seed, 4, n) for n in numbers)
            yield TrainBatch(image, label, strong, seeds, weak, known, fine)

    def shares(self, stream: PatchStream, size: int, last: int) -> Generator[tuple[range, Patches], None, None]:
        """Yield sample numbers and patches of this process's share of each batch, on the device."""
        rank, count = processes.rank(), processes.count()
        numbers = [range(i * size + rank, (i + 1) * size, count) for i in range(self.iteration, last)]
        workers = choose_workers(self.config.workers, self.device, in_memory=stream.in_memory)
        with closing(stream.batches(numbers, workers, pin=self.device.type == "cuda")) as batches:
            for n in numbers:
                began = time.monotonic()
                patches = next(batches)
                self.waited += time.monotonic() - began
                yield n, on_device(patches, self.device)

    def draws(self, stream: PatchStream, numbers: Sequence[int]) -> list[Draw]:
        """Return the random changes that augmentation makes to samples; they depend on seed and sample number alone."""
        return [self.augment.draw(*stream.seed, 2, n) for n in numbers]

    def check(self, cases: Callable[[int], str], *, wait: bool = False) -> None:
        """Raise a DivergedError if losses or gradients were not finite in several steps in a row.

        Args:
            cases: returns the ids of the cases in the batch of a step, counted from 0.
            wait: see `Watch.found`.
        """
        found = self.watch.found(wait=wait)
        if found is None:
            return
        step, losses = found
        names = [f"{name} = {value:g}" for name, value in losses.items() if not math.isfinite(value)]
        raise DivergedError(
            f"step {step}: {', '.join(names) or 'a gradient is not finite'}; {PATIENCE} or more steps in a row were "
            f"not finite. Cases of this step: {cases(step - 1)}. Check them with `medssl check`, lower train.lr, or "
            "set train.precision=fp32."
        )

    def validate(self, validate: Callable[[], dict[str, float]], log: RunLog) -> None:
        """Score the validation cases, and save best.pt if their Dice is the highest so far."""
        scores = validate()
        if not scores:
            return
        log.validation(self.iteration, scores)
        if scores["dice"] > self.best:
            self.best = scores["dice"]
            self.save("best.pt")

    def save(self, name: str) -> None:
        """Write a checkpoint with all that is needed to resume and to predict; only the first process writes."""
        if not is_first():
            return
        save_checkpoint(
            self.run / name,
            {
                "iteration": self.iteration,
                "best": self.best,
                "seen_before": self.seen_before,
                "steps_before": self.steps_before,
                "likeness": self.likeness and self.likeness.model_dump(mode="json"),
                "config": self.plain_config,
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
        )

    def begin_with(self, path: Path) -> dict[str, Any]:
        """Load the networks of another run and its record of earlier runs; return its settings.

        Raises:
            ConfigError: its networks differ from this run's.
        """
        values = load_checkpoint(path)
        try:
            self.method.load_state_dict(values["method"])
        except RuntimeError as error:
            theirs, ours = (plain["method"]["name"] for plain in (values["config"], self.plain_config))
            raise ConfigError(
                f"{path}: its networks (method {theirs}) do not fit this run (method {ours}); train.start_from needs "
                f"the same method and `network` section\n  {_first_fault(error)}"
            ) from None
        self.seen_before = values.get("seen_before", {})
        self.steps_before = values.get("steps_before", 0) + values["iteration"]
        settings: dict[str, Any] = values["config"]
        return settings

    def load(self, path: Path) -> None:
        """Restore the state of a run from a checkpoint that `save` wrote."""
        values = load_checkpoint(path)
        self.method.load_state_dict(values["method"])
        self.optimizer.load_state_dict(values["optimizer"])
        if values["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(values["scaler"])
        self.iteration, self.best = values["iteration"], values["best"]
        self.seen_before = values.get("seen_before", {})
        self.steps_before = values.get("steps_before", 0)


def _first_fault(error: RuntimeError) -> str:
    """Return the first of the faults that torch lists below a heading."""
    return [*str(error).splitlines(), ""][1].strip()


def fitted(method: Method, config: TrainConfig, device: torch.device) -> Method:
    """Move a method to its device and make it ready to train: memory format, checkpointing, compilation."""
    method = method.to(device)
    method.equip(device)
    if processes.count() > 1 and device.type == "cuda":
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)  # type: ignore[no-untyped-call]
    if config.channels_last:
        method = method.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if config.activation_checkpointing:
        for student in method.students():
            checkpoint_activations(student)
    if config.compile != "off":
        for net in (*method.students(), *method.teachers()):
            net.compile(mode=config.compile)
    return method


def spread(method: Method, device: torch.device) -> Callable[..., StepResult]:
    """Return the method's step; with several processes, one that averages gradients over them."""
    if processes.count() == 1:
        return method.step
    return DistributedDataParallel(
        _Step(method), device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True,
        find_unused_parameters=len(method.learners()) > 1,  # some may rest
    )  # fmt: skip


class _Step(nn.Module):
    """Wraps a method's step as the forward pass of a module."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: TrainBatch, progress: Progress, rng: torch.Generator) -> StepResult:
        return self.method.step(batch, progress, rng)


def mean(results: Sequence[StepResult]) -> StepResult:
    """Return the mean over the parts of a step."""
    if len(results) == 1:
        return results[0]
    losses, stats = [r.losses for r in results], [r.stats for r in results]
    return StepResult(
        {name: torch.stack([each[name] for each in losses]).mean(0) for name in losses[0]},
        {name: torch.stack([each[name] for each in stats]).mean(0) for name in stats[0]},
    )


def averaged(result: StepResult) -> StepResult:
    """Return the mean over all processes, detached; all values are exchanged in one tensor."""
    values = {**result.losses, **result.stats}
    packed = torch.stack([value.detach().float() for value in values.values()])
    packed = processes.total(packed) / processes.count()
    split = len(result.losses)
    return StepResult(
        dict(zip(result.losses, packed[:split], strict=True)), dict(zip(result.stats, packed[split:], strict=True))
    )


def seed_global(seed: int, device: torch.device) -> None:
    """Seed the generator of dropout on a device; `torch.manual_seed` would seed every device, which takes time."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def on_device(patches: Patches, device: torch.device) -> Patches:
    """Move patches to a device, without waiting if they are in pinned memory."""
    return tuple(patch.to(device, non_blocking=True) for patch in patches)


def choose_workers(workers: int | None, device: torch.device, *, in_memory: bool) -> int:
    """Return the number of workers that read patches; see `TrainConfig.workers`."""
    if workers is not None:
        return workers
    if device.type != "cuda":
        return 0
    streams = 2 * here()
    return 2 if in_memory else max(1, min(8, available_cpus() // streams))


def make_optimizer(method: Method, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser, with one parameter group per student and helper.

    Raises:
        TypeError: the method has weights that require gradients but would never be updated.
    """
    groups = [{"params": list(net.parameters())} for net in method.learners()]
    held = {id(parameter) for group in groups for parameter in group["params"]}
    idle = [name for name, p in method.named_parameters() if p.requires_grad and id(p) not in held]
    if idle:
        raise TypeError(f"{type(method).__name__}: {some(idle)} require gradients but belong to no student and no "
                        "helper; return their network from `helpers`, or call requires_grad_(False)")  # fmt: skip
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay, fused=True)
    sgd = torch.optim.SGD(groups, config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay, fused=True)
    for group in sgd.param_groups:
        for parameter in group["params"]:  # otherwise a skipped first step would leave it unset
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def _cases(labelled: PatchStream, unlabelled: PatchStream | None, config: TrainConfig, iteration: int) -> str:
    """Return the ids of the cases in the batch of step `iteration`, counted from 0."""
    sizes = [(labelled, config.labelled_batch), (unlabelled, config.unlabelled_batch)]
    ids = [s.case_of(iteration * size + k) for s, size in sizes if s is not None for k in range(size)]
    return ", ".join(dict.fromkeys(ids))
