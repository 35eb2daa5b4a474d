"""How long a step of each of several runs takes on this machine.

A sweep is the run in small: `STEPS` steps from its first to its last, by the trainer and on the prepared data.
Schedules are fractions of a run, so that a sweep spends as large a share in each stage as the run does, and networks
that take turns take them. Runs are swept in turns, so that what else the machine does at times meets them all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch

from medssl.data.patches import PatchStream
from medssl.device import choose_device, wait_for
from medssl.parts.sample import TrainBatch
from medssl.progress import track
from medssl.run import RunConfig
from medssl.train import make_streams, make_trainer, open_data
from medssl.trainer import Trainer

STEPS = 34
"""Steps of a sweep; of so many, stages of 2/17 of a run, as BCP has one, take a whole number."""
SWEEPS = 3
"""Timed sweeps of each run, after one that warms up."""


def time_steps(runs: Mapping[str, RunConfig], device: str = "auto") -> dict[str, float]:
    """Seconds of a step of each run, data and augmentation included, validation and logs not: the median of its sweeps.

    Args:
        runs: settings by name; their data is prepared and split.
    """
    ready = {name: _ready(settings, choose_device(device)) for name, settings in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    with track("time steps", len(runs) * (1 + SWEEPS)) as advance:
        for _ in range(1 + SWEEPS):
            for name, (trainer, streams) in ready.items():
                found[name].append(_sweep(trainer, *streams))
                advance(name)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}


def time_on_noise(settings: RunConfig, device: str = "auto") -> float:
    """Seconds of a step on noise of the right shape, from the middle of a run, where no data are prepared yet.

    The first of two steps warms up.
    """
    trainer = make_trainer(settings, Path(), choose_device(device))
    train, data, place = settings.train, settings.data, trainer.device
    image = torch.randn(train.labelled_batch, len(data.channels), *train.patch, device=place)
    label = torch.randint(len(data.classes), (train.labelled_batch, *train.patch), device=place)
    unlabelled = torch.randn(train.unlabelled_batch, *image.shape[1:], device=place)
    batch = TrainBatch(image, label, unlabelled, tuple(range(train.unlabelled_batch)))
    trainer.iteration = train.iterations // 2
    for _ in range(2):
        started = time.perf_counter()
        trainer.train_step(batch)
        wait_for(place)
    return time.perf_counter() - started


Streams = tuple[PatchStream, PatchStream | None]


def _ready(settings: RunConfig, device: torch.device) -> tuple[Trainer, Streams]:
    short = settings.model_copy(update={"train": settings.train.model_copy(update={"iterations": STEPS})})
    return make_trainer(short, Path(), device), make_streams(short, open_data(short))


def _sweep(trainer: Trainer, labelled: PatchStream, unlabelled: PatchStream | None) -> float:
    """Seconds of a step. One step more comes before, in which the readers of patches start."""
    trainer.iteration = 0
    with closing(trainer.batches(labelled, unlabelled, STEPS + 1)) as batches:
        trainer.train_step(next(batches))
        trainer.iteration = 0
        wait_for(trainer.device)
        started = time.perf_counter()
        for batch in batches:
            trainer.train_step(batch)
        wait_for(trainer.device)
    return (time.perf_counter() - started) / STEPS
