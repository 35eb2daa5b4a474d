"""Training patches: sample n of a run is a function of (seed, n) alone.

Worker count, resuming and prefetching therefore change nothing. A stream that was built without
labels has none to give: it never opens a label file.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medssl.data.prepared import PreparedCase, PreparedDataset
from medssl.data.splits import Split
from medssl.errors import DataError

MEMORY_LIMIT = 2 * 2**30
"""Bytes of prepared volumes that a stream, in each of its workers, keeps in memory; larger sets are read in patches."""
CENTRES = 10_000
"""Voxels of a class that a case remembers as centres of patches."""


class TrainingData:
    """What training may see of a dataset: no test case, and labels of `labelled` and `val` only."""

    def __init__(self, dataset: PreparedDataset, split: Split) -> None:
        self._dataset = dataset
        self.split = split

    def image(self, id: str) -> Any:
        """The image array of a training or validation case, `(M, x, y, z)`.

        Raises:
            DataError: the case is a test case or in no part.
        """
        return self._case(id).open_image()

    def label(self, id: str) -> Any:
        """The label array of a labelled or validation case, `(x, y, z)`.

        Raises:
            DataError: training may not see this case's label.
        """
        if id not in self.split.labelled and id not in self.split.val:
            raise DataError(f"case {id}: training may not read its label, it is {self.split.part_of(id) or 'unlisted'}")
        return self._case(id).open_label()

    def _case(self, id: str) -> PreparedCase:
        part = self.split.part_of(id)
        if part not in ("labelled", "unlabelled", "val"):
            raise DataError(f"case {id}: training may not see it, it is {part or 'left out of the split'}")
        return self._dataset.cases[id]


class PatchStream(Dataset[tuple[Tensor, ...]]):
    """An endless list of random patches: every case once per round, in an order drawn anew each round."""

    def __init__(
        self,
        data: TrainingData,
        ids: Sequence[str],
        patch: tuple[int, int, int],
        *,
        seed: tuple[int, ...],
        labels: bool,
        foreground: float = 0.0,
    ) -> None:
        """
        Args:
            patch: `(X, Y, Z)` voxels; a smaller volume is padded with zeros around it.
            labels: give `(image, label)`; otherwise `(image,)`, and no label file is opened.
            foreground: share of patches that are centred on a voxel of a random foreground class.
        """
        self.data, self.ids, self.patch = data, tuple(ids), patch
        self.seed, self.labels, self.foreground = seed, labels, foreground
        size = sum(4 * int(np.prod(data.image(id).shape)) for id in self.ids)
        keep = len(self.ids) if size <= MEMORY_LIMIT else 0
        self._image = lru_cache(keep)(self._read_image) if keep else lambda id: self.data.image(id)
        self._label = lru_cache(keep)(self._read_label) if keep else lambda id: self.data.label(id)
        self._voxels = lru_cache(len(self.ids))(self._foreground_voxels)

    def __getitem__(self, n: int) -> tuple[Tensor, ...]:
        id = self.case_of(n)
        rng = np.random.default_rng((*self.seed, 1, n))
        image = self._image(id)
        start = self._start(id, image.shape[1:], rng)
        patch = [_cut(image, start, self.patch, channels=True).astype(np.float32, copy=False)]
        if self.labels:
            patch.append(_cut(self._label(id), start, self.patch, channels=False).astype(np.int64))
        return tuple(torch.from_numpy(array) for array in patch)

    def case_of(self, n: int) -> str:
        """The id of the case that sample n is cut from."""
        round, place = divmod(n, len(self.ids))
        return self.ids[int(np.random.default_rng((*self.seed, 0, round)).permutation(len(self.ids))[place])]

    def batches(self, size: int, first: int, last: int, workers: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Batches number `first` to `last - 1` of the run, collated."""
        loader: DataLoader[Any] = DataLoader(
            self, batch_size=size, sampler=range(first * size, last * size), num_workers=workers,
            pin_memory=torch.cuda.is_available(), multiprocessing_context="spawn" if workers else None,
            worker_init_fn=_leave_signals_to_the_trainer,
        )  # fmt: skip
        yield from loader

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_image", "_label", "_voxels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(  # type: ignore[misc]  # caches hold no state: build them anew in the worker
            state["data"], state["ids"], state["patch"], seed=state["seed"], labels=state["labels"],
            foreground=state["foreground"],
        )  # fmt: skip

    def _start(self, id: str, shape: Sequence[int], rng: np.random.Generator) -> list[int]:
        """The first voxel of the patch; negative where the volume is smaller and padding is needed."""
        room = [n - p for n, p in zip(shape, self.patch, strict=True)]
        if self.labels and rng.random() < self.foreground:
            voxels = self._voxels(id)
            if voxels:
                of_class = voxels[int(rng.integers(len(voxels)))]
                centre = of_class[int(rng.integers(len(of_class)))]
                wanted = [int(c) - p // 2 for c, p in zip(centre, self.patch, strict=True)]
                return [min(max(w, 0), r) if r >= 0 else r // 2 for w, r in zip(wanted, room, strict=True)]
        return [int(rng.integers(r + 1)) if r >= 0 else r // 2 for r in room]

    def _foreground_voxels(self, id: str) -> list[NDArray[Any]]:
        """Voxel indices of each foreground class that the case holds, thinned out where there are very many."""
        label = np.asarray(self._label(id)[...])
        found = [np.argwhere(label == value).astype(np.int32) for value in np.unique(label) if value > 0]
        return [voxels[:: 1 + len(voxels) // CENTRES].copy() for voxels in found]

    def _read_image(self, id: str) -> NDArray[np.float32]:
        return np.asarray(self.data.image(id)[...])

    def _read_label(self, id: str) -> NDArray[np.integer[Any]]:
        return np.asarray(self.data.label(id)[...])


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A terminal sends Ctrl-C to every process; a worker that died of it would keep the trainer from saving."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def _cut(array: Any, start: Sequence[int], patch: Sequence[int], *, channels: bool) -> NDArray[Any]:
    """Slice a patch, zeros where it reaches outside; only the part inside is read."""
    shape = array.shape[1:] if channels else array.shape
    inside = tuple(slice(max(s, 0), min(s + p, n)) for s, p, n in zip(start, patch, shape, strict=True))
    pads = [(max(-s, 0), max(s + p - n, 0)) for s, p, n in zip(start, patch, shape, strict=True)]
    found = np.asarray(array[(slice(None), *inside)] if channels else array[inside])
    if not any(before or after for before, after in pads):
        return np.ascontiguousarray(found)
    return np.pad(found, [(0, 0), *pads] if channels else pads)
