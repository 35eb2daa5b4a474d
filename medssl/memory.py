"""Estimate the memory that a training step needs, without a GPU, and change a run until it fits into a budget.

The step runs on fake tensors, which have shapes, types and lifetimes but no values. Forward and backward passes of any
size therefore take about a second and no memory, and the bytes that are alive at every operation are added up.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medssl.device import autocast, choose_device, choose_precision
from medssl.errors import ConfigError, OutOfMemoryError
from medssl.methods import METHODS
from medssl.methods.base import Method
from medssl.networks import checkpoint_activations
from medssl.parts.sample import Progress, TrainBatch
from medssl.parts.schedules import generator
from medssl.run import RunConfig, build_method

CONTEXT = 3 * 2**28
"""Bytes that a process takes besides its tensors: the CUDA context with the kernels of torch, cuDNN and cuBLAS. An
assumption, not yet checked on a GPU."""
CHANNEL_BLOCK = 16
"""A convolution is assumed to hold two copies of feature maps, in a layout whose channels come in blocks of this size
(in blocks of 1 if it is transposed). This holds for oneDNN on CPUs, except that bf16 computed in fp32 takes more. For
cuDNN it is an assumption, not yet checked on a GPU."""
USABLE = 0.9
"""Share of a budget that an estimate may fill; the rest is for fragmentation and for what an estimate cannot see."""
SMALLEST_SIDE = 16
"""Voxels below which no side of a patch is reduced."""

_CPU = torch.device("cpu")
_ATEN = torch.ops.aten
_TRANSPOSED = {_ATEN.convolution.default: 6, _ATEN.convolution_backward.default: 7}
"""Index of the argument that says whether a convolution is transposed."""


@dataclass(frozen=True)
class Memory:
    """Bytes in use on each device at the peak of a training step."""

    weights: int
    """Students, teachers and their buffers."""
    gradients: int
    optimiser: int
    activations: int
    """All other tensors: the batch, what backward needs, predictions of teachers, losses."""
    workspace: int
    """Memory outside tensors: the device's context, and copies inside a convolution."""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.gradients + self.optimiser + self.activations + self.workspace

    def __str__(self) -> str:
        parts = ", ".join(f"{field.name} {getattr(self, field.name) / 2**30:.2f}" for field in fields(self))
        return f"{_gib(self.total)} ({parts})"


def estimate(config: RunConfig, *, device: str = "auto", processes: int = 1) -> Memory:
    """Estimate the memory of a training step, without allocating any of it.

    `train.compile` and `train.channels_last` count as off. With several processes, call this before they join.

    Args:
        config: settings whose batch sizes `train` would accept.
        device: decides what `train.precision: auto` means.
        processes: number of processes that share each batch.
    """
    precision = choose_precision(config.train.precision, choose_device(device))
    train, parts = config.train, config.train.accumulate * processes
    with _fake_tensors():
        method = build_method(config).train()
        if train.activation_checkpointing:
            for student in method.students():
                checkpoint_activations(student)
        for module in method.modules():
            if isinstance(module, nn.GroupNorm):  # always fp32: autocast does so on GPUs, not on CPUs
                module.register_forward_pre_hook(lambda _, images: (images[0].float(),))
        batch = _batch(config, processes)
        learned = [p for net in method.learners() for p in net.parameters()]
        weights, gradients = _bytes(chain(method.parameters(), method.buffers())), _bytes(learned)
        peaks = []
        for iteration in (0, train.iterations - 1):
            for parameter in learned:  # gradients of earlier parts, or buckets that processes share
                parameter.grad = torch.zeros_like(parameter) if parts > 1 else None
            peaks.append(_peak(method, batch, Progress(iteration, train.iterations), precision))
    live, workspace = (max(both) for both in zip(*peaks, strict=True))
    return Memory(
        weights=weights,
        gradients=gradients,
        optimiser={"sgd": 1, "adamw": 2}[train.optimizer] * gradients,
        activations=max(0, live - weights - gradients),
        workspace=CONTEXT + workspace,
    )


def fit(
    config: RunConfig, budget_bytes: int, *, device: str = "auto", processes: int = 1
) -> tuple[RunConfig, list[str]]:
    """Change the settings until a step fits into a budget; return them with a line per change that says why.

    First the batch is split into more parts (gradient accumulation), then activations are recomputed (activation
    checkpointing), then the patch is reduced, each time by one total stride of the network along its longest side in
    millimetres. The same arguments give the same answer. See `estimate` for them.

    Raises:
        OutOfMemoryError: none of these changes makes a step fit.
    """
    reasons: list[str] = []
    while (needed := estimate(config, device=device, processes=processes).total) > USABLE * budget_bytes:
        smaller = _smaller(config, processes)
        if smaller is None:
            least = math.ceil(10 * needed / USABLE / 2**30) / 10
            raise OutOfMemoryError(
                f"no training step fits into {_gib(budget_bytes)}; the smallest needs {least} GiB, with "
                f"train.accumulate {config.train.accumulate} and train.patch {list(config.train.patch)}. Use a lighter "
                "network, smaller batches, or a device with more memory."
            )
        reasons.append(f"{smaller[0]}: a step needs {_gib(needed)}, more than {USABLE:.0%} of {_gib(budget_bytes)}")
        config = smaller[1]
    return config, reasons


def parts_of_batch(config: RunConfig, processes: int = 1) -> list[int]:
    """Return the values of `train.accumulate` that the batches and the method allow, fewest parts first.

    Raises:
        ConfigError: no value gives the method as many unlabelled patches as it needs in each part.
    """
    train, method = config.train, METHODS[config.method.name]
    common = math.gcd(train.labelled_batch, train.unlabelled_batch if method.needs_unlabelled else 0)
    most = common // (processes * (2 if method.even_batch else 1))
    fewest = config.method.fewest_unlabelled if method.needs_unlabelled else 0
    found = [parts for parts in range(1, most + 1)
             if most % parts == 0 and train.unlabelled_batch >= processes * parts * fewest]  # fmt: skip
    if not found and fewest > train.unlabelled_batch // processes:
        name, size = config.method.name, train.unlabelled_batch
        raise ConfigError(f"train.unlabelled_batch {size}: with its current settings, method {name} mixes unlabelled "
                          f"patches and needs {fewest} in each process")  # fmt: skip
    return found


def _smaller(config: RunConfig, processes: int) -> tuple[str, RunConfig] | None:
    """Return the next change that saves memory, in words, and the settings with it; None if there is no other."""
    train = config.train
    more = next((parts for parts in parts_of_batch(config, processes) if parts > train.accumulate), None)
    if more is not None:
        return _with(config, "accumulate", more)
    if not train.activation_checkpointing and config.network.norm != "batch":
        return _with(config, "activation_checkpointing", True)

    strides, spacing = config.network.total_stride, config.data.recipe.spacing
    extents = [
        side * (mm or 1) if side - stride >= max(2 * stride, SMALLEST_SIDE) else 0
        for side, mm, stride in zip(train.patch, spacing, strides, strict=True)
    ]
    if not any(extents):
        return None
    patch, longest = list(train.patch), extents.index(max(extents))
    patch[longest] -= strides[longest]
    return _with(config, "patch", tuple(patch))


def _with(config: RunConfig, key: str, value: Any) -> tuple[str, RunConfig]:
    """Change a key of the `train` section; return the change in words, and the settings with it."""
    words = [list(v) if isinstance(v, tuple) else v for v in (getattr(config.train, key), value)]
    train = config.train.model_copy(update={key: value})
    return f"train.{key} {words[0]} -> {words[1]}", config.model_copy(update={"train": train})


def _batch(config: RunConfig, processes: int) -> TrainBatch:
    """Return the first part of a process's share of a batch; as in training, it keeps the other parts alive."""
    train, shape = config.train, (len(config.data.channels), *config.train.patch)
    labelled = math.ceil(train.labelled_batch / processes)
    unlabelled = math.ceil(train.unlabelled_batch / processes) if METHODS[config.method.name].needs_unlabelled else 0
    label = torch.zeros(labelled, *train.patch, dtype=torch.int64)
    seeds = tuple(range(unlabelled))
    batch = TrainBatch(torch.zeros(labelled, *shape), label, torch.zeros(unlabelled, *shape), seeds)
    return batch.part(0, train.accumulate)


def _peak(method: Method, batch: TrainBatch, progress: Progress, precision: torch.dtype | None) -> tuple[int, int]:
    """Return the most bytes alive in one part of a step, and how many more there are while a convolution runs."""
    with _LiveBytes() as live:
        live.count(chain([batch.image, batch.label, batch.unlabelled], method.parameters(), method.buffers()))
        live.count(p.grad for p in method.parameters() if p.grad is not None)
        with autocast(_CPU, precision):
            result = method.step(batch, progress, generator(0))
        torch.stack(list(result.losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    return live.peak, max(0, live.peak_in_convolutions - live.peak)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of storages that operations have read or written and that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, int] = {}
        self.live = self.peak = self.peak_in_convolutions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _ATEN._local_scalar_dense.default:
            return 0  # the value that a method gets from item() or bool()
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        self.count(tensors)
        self.peak = max(self.peak, self.live)
        if func in _TRANSPOSED:
            block = 1 if args[_TRANSPOSED[func]] else CHANNEL_BLOCK
            copies = sorted(_in_blocks(tensor, block) for tensor in tensors if tensor.ndim == 5)
            self.peak_in_convolutions = max(self.peak_in_convolutions, self.live + sum(copies[-2:]))
        return out

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Count storages that were not seen before, until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.sizes:
                self.sizes[key] = storage.nbytes()
                self.live += self.sizes[key]
                weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self.sizes.pop(key)


class _ReadAsZeros(TorchFunctionMode):
    """Gives zeros to a method that reads a fake tensor as an array."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.numpy, Tensor.__array__):
            return np.zeros(tuple(args[0].shape), str(args[0].dtype).removeprefix("torch."))
        return func(*args, **(kwargs or {}))


@contextmanager
def _fake_tensors() -> Iterator[None]:
    """Inside this context, new tensors have no values."""
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), _ReadAsZeros():
        warnings.simplefilter("ignore")
        yield


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _in_blocks(tensor: Tensor, block: int) -> int:
    """Return the bytes of a copy of `(B, C, X, Y, Z)` whose channels come in blocks."""
    channels = tensor.shape[1]
    return tensor.nbytes // channels * math.ceil(channels / block) * block


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
