"""Measure how long a training step takes on this machine, for several runs.

A sweep is a short version of the run: `STEPS` steps from its first to its last, with the trainer and the prepared data.
Schedules are fractions of a run, so a sweep spends the same share in each stage as the run does, and networks that take
turns do so. Sweeps of the runs alternate, so that other load on the machine affects all of them.
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
"""Steps of a sweep; a multiple of 17, so that a stage of 2/17 of a run, as in BCP, has a whole number of steps."""
SWEEPS = 3
"""Timed sweeps of each run, after one to warm up."""


def time_steps(runs: Mapping[str, RunConfig], device: str = "auto") -> dict[str, float]:
    """Return the seconds that a step of each run takes, the median over its sweeps.

    Reading of patches and augmentation are included, validation and logs are not.

    Args:
        runs: settings by name; their data must be prepared and split.
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
    """Return the seconds that a step in the middle of a run takes on noise of the right shape; no prepared data needed.

    The second of two steps is timed; the first is to warm up.
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
    """Return the seconds of a step. An extra step comes first, in which the readers of patches start."""
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
