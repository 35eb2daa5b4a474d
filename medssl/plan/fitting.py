"""The largest patch with which a step of a method fits into memory."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any

from medssl.config import parse, update
from medssl.errors import OutOfMemoryError
from medssl.memory import USABLE, Memory, estimate, parts_of_batch
from medssl.plan.choices import Choices, plain
from medssl.plan.sections import network_section, optimiser
from medssl.plan.shapes import Shape
from medssl.run import RunConfig
from medssl.words import by


class Fitting:
    """Finds the largest patch with which a step of a method fits into memory."""

    def __init__(self, choices: Choices, theirs: dict[str, Any], vram: float) -> None:
        """
        Args:
            choices: the settings that are chosen before the patch, by section.
            theirs: the settings of the method file.
            vram: GiB of the GPU; 0 for a CPU.
        """
        self.data, self.theirs, self.vram = plain(choices), theirs, vram
        self.name = theirs["method"].get("name")
        self._known: dict[tuple[Shape, int, str], Memory] = {}

    def run(self, shape: Shape, parts: int = 1, precision: str | None = None) -> RunConfig:
        """Return the settings of a run with a patch, as `train` would get them."""
        values = {
            **self.data,
            "network": plain(network_section(shape, self.vram)),
            "train": {**optimiser(self.vram), "patch": list(shape.patch), "accumulate": parts},
        }
        run = over(values, self.theirs)
        run["train"]["precision"] = precision or ("bf16" if self.vram else "fp32")
        return parse(RunConfig, run)

    def memory(self, shape: Shape, parts: int, precision: str | None = None) -> Memory:
        """Return the memory that a step needs, with 16 bits per number on GPUs and 32 on CPUs."""
        run = self.run(shape, parts, precision)
        key = (shape, parts, run.train.precision)
        if key not in self._known:
            self._known[key] = estimate(run, device="cpu")
        return self._known[key]

    def fits(self, shape: Shape, parts: int) -> bool:
        """Whether a step fits the budget."""
        return not self.vram or self.memory(shape, parts).total <= USABLE * self.vram * 2**30

    def largest(self, candidates: Sequence[Shape]) -> tuple[Shape, RunConfig]:
        """Return the largest patch that fits, with the batch in the fewest parts with which it fits.

        Raises:
            OutOfMemoryError: no patch fits.
        """
        parts = parts_of_batch(self.run(candidates[-1])) if self.vram else [1]
        places = range(1 if self.fits(candidates[0], parts[-1]) else len(candidates))  # the first one usually fits
        place = bisect.bisect_left(places, True, key=lambda n: self.fits(candidates[n], parts[-1]))
        if place == len(candidates):
            least = math.ceil(10 * self.memory(candidates[-1], parts[-1]).total / USABLE / 2**30) / 10
            raise OutOfMemoryError(
                f"no step of {self.name} fits into {self.vram:g} GiB: the smallest patch, {by(candidates[-1].patch)} "
                f"voxels, needs {least} GiB. Plan for more memory, another --method, or a CPU (--vram 0)"
            )
        shape = candidates[place]
        return shape, self.run(shape, next(count for count in parts if self.fits(shape, count)))

    def told(self, memory: Memory) -> str:
        """Return the estimate in words."""
        where = f"; the plan uses at most {USABLE:.0%} of {self.vram:g} GiB" if self.vram else " of main memory"
        return f"A step of {self.name} needs {memory}{where}."

    def on_cpu(self, shape: Shape, run: RunConfig) -> list[str]:
        """Return the estimate for a CPU in words if the plan is for a GPU."""
        if not self.vram:
            return []
        memory = self.memory(shape, run.train.accumulate, "fp32")
        return [f"The same step on a CPU needs {memory.total / 2**30:.1f} GiB; --vram 0 plans for a CPU."]


def over(values: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return settings with those of a method file merged over them, as `train` does."""
    merged: dict[str, Any] = {}
    update(merged, values)
    update(merged, theirs)
    return merged
