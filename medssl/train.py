"""The job behind `medssl train`: settings and a prepared dataset in, a run folder out."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medssl.augment import Augment
from medssl.checkpoint import load_checkpoint
from medssl.config import dump
from medssl.data.patches import PatchStream, TrainingData
from medssl.data.prepared import PreparedDataset, read_prepared
from medssl.data.splits import Split, read_split, write_split
from medssl.device import choose_device, prepare_device
from medssl.distributed import gathered, is_first, joined, launch, launched, restarts
from medssl.errors import ConfigError, DataError
from medssl.files import write_json
from medssl.logs import NoLog, RunLog
from medssl.memory import estimate, fit
from medssl.methods import METHODS
from medssl.methods.base import Method
from medssl.metrics import dice
from medssl.networks import count_parameters
from medssl.parts import processes
from medssl.run import RunConfig, build_method, environment, make_predictor
from medssl.trainer import Trainer


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    until: int | None = None,
    memory: float | None = None,
    quiet: bool = False,
) -> Path:
    """Train a run to its end and return its folder.

    Args:
        out: the run folder, which must be new or empty unless `resume` is set.
        resume: go on from `out`'s last.pt; the settings must be those it was started with.
        until: stop, saved, after this step.
        memory: GiB of each device that a step may need; settings are changed until it does, see `medssl.memory.fit`.

    Raises:
        ConfigError: settings that do not fit the data, the method or the run that is resumed.
        OutOfMemoryError: no change makes a step fit into `memory`.
        DataError, DeviceError, DivergedError, Interrupted: as their names say.
    """
    if memory is not None:
        config = fitting(config, memory, device=device, quiet=quiet)
    with joined(device) as chosen:
        return _train(config, out, chosen, resume=resume or _is_ours(out), until=until, quiet=quiet)


def _train(config: RunConfig, out: Path, device: torch.device, *, resume: bool, until: int | None, quiet: bool) -> Path:
    data = open_data(config)
    trainer = make_trainer(config, out, device)
    out_is_used = out.exists() and any(out.iterdir())
    if resume and (out / "last.pt").exists():
        _check_same(config, data.split, out)
        trainer.load(out / "last.pt")
    elif out_is_used and not resume:
        raise ConfigError(f"{out}: not empty; go on with --resume, or choose another folder")
    if len(set(gathered([trainer.iteration]))) > 1:  # also: nobody writes before all have looked
        raise DataError(f"{out}: the processes see different checkpoints; do all machines share this folder?")
    log: RunLog = NoLog()
    if is_first():
        out.mkdir(parents=True, exist_ok=True)
        dump(config.to_plain(), out / "config.yaml")
        write_split(out / "splits.json", data.split)
        write_json(out / "env.json", {**environment(), "launch": launch(), "processes": processes.count()})
        log = RunLog(out, resumed_at=trainer.iteration, quiet=quiet)

    labelled, unlabelled = make_streams(config, data)
    try:
        validate = functools.partial(validate_cases, trainer, config, data, log)
        trainer.fit(labelled, unlabelled, validate, log, until)
    finally:
        log.close()
    return out


def fitting(config: RunConfig, memory: float, *, device: str = "auto", quiet: bool = False) -> RunConfig:
    """The settings, changed so that a step needs at most `memory` GiB of each device; the changes are said."""
    _check_batches(config, METHODS[config.method.name])
    kind = "auto" if device == "cuda" else device  # whose precision counts; no process has its own GPU yet
    config, reasons = fit(config, int(memory * 2**30), device=kind, processes=launched())
    if not quiet and os.environ.get("RANK", "0") == "0":
        for reason in reasons:
            print(f"to fit the memory: {reason}", file=sys.stderr)
    return config


def dry_run(config: RunConfig, *, device: str = "auto") -> dict[str, Any]:
    """Resolve everything, run two batches from the middle of the run, write nothing; the facts come back."""
    data = open_data(config)
    trainer = make_trainer(config, Path(), choose_device(device))
    labelled, unlabelled = make_streams(config, data)
    trainer.iteration = config.train.iterations // 2  # past what a method does first
    batches = trainer.batches(labelled, unlabelled, trainer.iteration + 2)
    trainer.train_step(next(batches))
    started = time.monotonic()
    result = trainer.train_step(next(batches))
    losses = {name: loss.item() for name, loss in result.losses.items()}
    return {
        "device": str(trainer.device),
        "parameters": {f"student {i}": count_parameters(s) for i, s in enumerate(trainer.method.students())},
        "teachers": len(trainer.method.teachers()),
        "labelled, unlabelled, val": [len(p) for p in (data.split.labelled, data.split.unlabelled, data.split.val)],
        "losses": losses,
        "seconds_per_step": round(time.monotonic() - started, 3),
        "memory": {
            "estimated_for_a_step_gib": round(estimate(config, device=device).total / 2**30, 2),
            "peak_of_this_process_gib": round(_peak_memory(trainer.device) / 2**30, 2),
        },
    }


def open_data(config: RunConfig) -> TrainingData:
    """The prepared dataset and split as training may see them.

    Raises:
        ConfigError: no root, or the dataset was prepared with other classes, channels or recipe.
    """
    if config.data.root is None:
        raise ConfigError("data.root: the prepared folder is not given; add --set data.root=PREPARED")
    dataset = read_prepared(config.data.root)
    _check_prepared(config, dataset)
    split = read_split(config.data.splits or config.data.root / "splits.json", dataset)
    return TrainingData(dataset, split)


def make_trainer(config: RunConfig, out: Path, device: torch.device) -> Trainer:
    """A trainer with fresh weights, once the settings fit together."""
    prepare_device(device, tf32=config.train.tf32)
    method = build_method(config)
    _check_batches(config, method)
    _check_norm(config, device)
    make_predictor(method, config, device)  # validation must not be the first to find its settings wrong
    augment = Augment(config.augment, config.train.patch, config.data.recipe.spacing, len(config.data.classes))
    return Trainer(method, config.train, out, device, augment, config.to_plain())


def make_streams(config: RunConfig, data: TrainingData) -> tuple[PatchStream, PatchStream | None]:
    """Labelled and, where the method looks at them, unlabelled patches."""
    train, split = config.train, data.split
    stream = functools.partial(PatchStream, data, patch=train.patch)
    labelled = stream(split.labelled, seed=(train.seed, 0), labels=True, foreground=train.foreground)
    if not METHODS[config.method.name].needs_unlabelled:
        return labelled, None
    if not split.unlabelled:
        raise ConfigError(f"method {config.method.name} learns from unlabelled cases, and the split has none")
    return labelled, stream(split.unlabelled, seed=(train.seed, 1), labels=False)


def validate_cases(trainer: Trainer, config: RunConfig, data: TrainingData, log: RunLog) -> dict[str, float]:
    """Mean foreground Dice over the validation cases, by sliding window on the prepared grid.

    A class absent in both reference and prediction is left out of a case's mean. Processes share the cases.
    """
    predictor = make_predictor(trainer.method, config, trainer.device)
    names = config.data.classes[1:]
    scores: list[tuple[int, list[float | None]]] = []
    mine = list(enumerate(data.split.val))[processes.rank() :: processes.count()]
    for number, id in mine:
        image, reference = np.asarray(data.image(id)[...]), np.asarray(data.label(id)[...])
        prediction = predictor.probabilities(image).argmax(0)
        per_class = [dice(prediction == value, reference == value) for value in range(1, len(names) + 1)]
        scores.append((number, per_class))
        if number == 0:
            middle = int(np.argmax((reference > 0).sum((0, 1))))
            log.picture(trainer.iteration, f"val/{id}", image[0, :, :, middle], reference[:, :, middle],
                        prediction[:, :, middle])  # fmt: skip
    table = [per_class for _, per_class in sorted(gathered(scores), key=lambda row: row[0])]
    columns = [[value for value in column if value is not None] for column in zip(*table, strict=True)]
    means = {f"dice/{name}": float(np.mean(c)) for name, c in zip(names, columns, strict=False) if c}
    return {"dice": float(np.mean(list(means.values()))), **means} if means else {}


def _is_ours(out: Path) -> bool:
    """Whether torchrun started this process again after this launch had begun the run in `out`."""
    if restarts() == 0 or launch() is None or not (out / "env.json").exists():
        return False
    return bool(json.loads((out / "env.json").read_text()).get("launch") == launch())


def _check_prepared(config: RunConfig, dataset: PreparedDataset) -> None:
    for key in ("classes", "channels", "recipe"):
        here, there = getattr(config.data, key), getattr(dataset.config, key)
        if here != there:
            raise ConfigError(
                f"data.{key}: {dataset.root} was prepared with\n  {there}\nand the configuration says\n  {here}\n"
                "Prepare again, or use the configuration it was prepared with."
            )


def _check_batches(config: RunConfig, method: Method | type[Method]) -> None:
    """Streams that the method can use, and parts of them that it can use by themselves."""
    train, name = config.train, config.method.name
    if method.needs_unlabelled and train.unlabelled_batch == 0:
        raise ConfigError(f"train.unlabelled_batch is 0, and method {name} learns from unlabelled cases")
    batches = {"labelled_batch": train.labelled_batch}
    if method.needs_unlabelled:
        batches["unlabelled_batch"] = train.unlabelled_batch
    if method.even_batch and (train.labelled_batch % 2 or train.labelled_batch != train.unlabelled_batch):
        raise ConfigError(
            f"method {name} pairs patches: train.labelled_batch and train.unlabelled_batch must be "
            f"equal and even, got {train.labelled_batch} and {train.unlabelled_batch}"
        )
    parts, unit = processes.count() * train.accumulate, 2 if method.even_batch else 1
    for key, size in batches.items():
        if size % (parts * unit):
            raise ConfigError(
                f"train.{key} {size} cannot be shared by {processes.count()} processes in {train.accumulate} parts"
                + (f", each a multiple of {unit} as method {name} wants" if unit > 1 else "")
                + f"; a multiple of {parts * unit} can"
            )


def _check_norm(config: RunConfig, device: torch.device) -> None:
    if config.network.norm == "batch" and processes.count() > 1 and device.type != "cuda":
        raise ConfigError("network.norm: batch is averaged over processes on GPUs only; use instance or group")


def _check_same(config: RunConfig, split: Split, out: Path) -> None:
    """Refuse to resume with another split or other settings; the data may have moved."""
    if json.loads((out / "splits.json").read_text()) != split.model_dump(mode="json"):
        raise ConfigError(f"{out}: was started with another split (its splits.json); resume with that one")
    then, now = load_checkpoint(out / "last.pt")["config"], config.to_plain()
    free = ("name", "data.root", "data.splits", "train.workers", "train.save_every")
    changed = [key for key in _flat(now) if key not in free
               and _flat(then).get(key) != _flat(now)[key]]  # fmt: skip
    if changed:
        lines = [f"  {key}: was {_flat(then).get(key)}, now {_flat(now)[key]}" for key in changed]
        raise ConfigError(f"{out}: cannot be resumed with other settings\n" + "\n".join(lines))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # not known without another package
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
