"""Draw training patches: sample n of a run depends only on (seed, n).

The number of readers and processes, resuming and prefetching therefore change nothing. A stream that was built without
labels cannot return any: it never opens a label file.

Volumes that fit into memory are kept there, and threads cut patches from them. Larger sets stay on disk, and processes
read only the part of a volume that a patch covers.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from medssl.data.likeness import Likeness
from medssl.data.prepared import PreparedCase, PreparedDataset
from medssl.data.splits import Split
from medssl.errors import DataError, OutOfMemoryError
from medssl.machine import available_memory
from medssl.progress import ignore_signals

MEMORY_LIMIT = 4 * 2**30
"""Bytes of prepared volumes that a stream keeps in memory; larger sets are read from disk patch by patch."""
SHARE = 4
"""A stream takes at most 1/SHARE of the free memory, because there are two streams and networks need some too."""
OPEN_FILES = 64
"""Number of volumes whose files stay open, if the set is read from disk."""
AHEAD = 2
"""Number of batches that each reader prepares in advance."""

Patches = tuple[Tensor, ...]


class TrainingData:
    """The part of a dataset that training may read: no test case, and labels of `labelled` and `val` only."""

    def __init__(self, dataset: PreparedDataset, split: Split) -> None:
        self._dataset = dataset
        self.split = split

    def image(self, id: str) -> Any:
        """Return the image array of a training or validation case, `(M, x, y, z)`.

        Raises:
            DataError: the case is a test case or in no part.
        """
        return self._case(id).open_image()

    def label(self, id: str) -> Any:
        """Return the label array of a labelled or validation case, `(x, y, z)`.

        Raises:
            DataError: training must not read the label of this case.
        """
        return self._labelled_case(id).open_label()

    def centres(self, id: str) -> dict[int, NDArray[np.uint16]]:
        """Return voxels of each foreground class of a labelled or validation case, `(n, 3)` each.

        Raises:
            DataError: training must not read the label of this case.
        """
        return self._labelled_case(id).centres()

    @property
    def ignores(self) -> bool:
        """Whether labels may hold IGNORED, for voxels that nobody annotated."""
        return bool(self._dataset.config.ignore)

    @property
    def likeness(self) -> Likeness | None:
        """What the raw images of the split look like; None if some are not known, or there are too few."""
        cases = [self._case(id) for id in (*self.split.labelled, *self.split.unlabelled, *self.split.val)]
        looks = [case.look for case in cases if case.look is not None]
        return Likeness.of(looks) if len(looks) == len(cases) else None

    def subject(self, id: str) -> str:
        """Return the patient of a training or validation case."""
        return self._case(id).subject

    def _labelled_case(self, id: str) -> PreparedCase:
        if id not in self.split.labelled and id not in self.split.val:
            raise DataError(f"case {id}: training must not read its label, because the case is {self._place(id)}")
        return self._case(id)

    def _case(self, id: str) -> PreparedCase:
        if self.split.part_of(id) not in ("labelled", "unlabelled", "val"):
            raise DataError(f"case {id}: training must not read it, because it is {self._place(id)}")
        return self._dataset.cases[id]

    def _place(self, id: str) -> str:
        """Say where a case is in the split."""
        part = self.split.part_of(id)
        return f"in part {part}" if part else "left out of the split"


class PatchStream(Dataset[Patches]):
    """An endless list of random patches: each round takes every case once, in a new random order."""

    def __init__(
        self,
        data: TrainingData,
        ids: Sequence[str],
        patch: tuple[int, int, int],
        *,
        seed: tuple[int, ...],
        labels: bool,
        foreground: float = 0.0,
        class_weights: Sequence[float] | None = None,
        sharing: int = 1,
    ) -> None:
        """
        Args:
            patch: `(X, Y, Z)` voxels; a smaller volume is padded with zeros around it.
            labels: return `(image, label)`; otherwise `(image,)`, and no label file is opened.
            foreground: share of patches that are centred on a voxel of a random foreground class.
            class_weights: how often each foreground class is chosen, indexed by label value minus 1; None: equally.
            sharing: number of processes on this machine that each make such a stream.
        """
        self.data, self.ids, self.patch = data, tuple(ids), patch
        self.seed, self.labels, self.foreground, self.class_weights = seed, labels, foreground, class_weights
        size = sum(4 * int(np.prod(data.image(id).shape)) for id in self.ids)
        self.in_memory = size <= _room(sharing)
        self._remember()

    def __getitem__(self, n: int) -> Patches:
        """Return sample n, `(image,)` or `(image, label)`: float32 `(M, X, Y, Z)`, and `(X, Y, Z)` as stored."""
        id = self.case_of(n)
        rng = np.random.default_rng((*self.seed, 1, n))
        image = self._image(id)
        start = self._start(id, image.shape[1:], rng)
        patch = [_cut(image, start, self.patch, channels=True).astype(np.float32, copy=False)]
        if self.labels:
            patch.append(_cut(self._label(id), start, self.patch, channels=False))
        return tuple(torch.from_numpy(array) for array in patch)

    def case_of(self, n: int) -> str:
        """Return the id of the case that sample n is cut from."""
        round, place = divmod(n, len(self.ids))
        return self.ids[int(np.random.default_rng((*self.seed, 0, round)).permutation(len(self.ids))[place])]

    def batches(
        self, numbers: Sequence[Sequence[int]], workers: int = 0, *, pin: bool = False
    ) -> Generator[Patches, None, None]:
        """Yield batches of the samples with these numbers, in order.

        Args:
            workers: number of readers that work ahead, threads or processes; 0 reads on demand.
            pin: copy batches to pinned memory for the transfer to a GPU.
        """
        if not workers:
            yield from (self.batch(n, pin=pin) for n in numbers)
        elif self.in_memory:
            yield from _read_ahead(self, numbers, workers, pin)
        else:
            loader = DataLoader(
                self, batch_sampler=[list(n) for n in numbers], num_workers=workers, prefetch_factor=AHEAD,
                pin_memory=pin, multiprocessing_context="spawn",
                worker_init_fn=_leave_signals_to_the_trainer,
            )  # fmt: skip
            try:
                yield from loader
            except (OSError, EOFError) as error:
                if str(error).startswith("Caught "):  # raised inside a reader that is alive
                    raise
                raise _ReaderLostError(f"{type(error).__name__}: {error}") from error

    def batch(self, numbers: Sequence[int], *, pin: bool = False) -> Patches:
        """Return the samples with these numbers, stacked."""
        stacked: Sequence[Tensor] = default_collate([self[n] for n in numbers])
        return tuple(array.pin_memory() if pin else array for array in stacked)

    def _remember(self) -> None:
        """Keep all volumes in memory if they fit; otherwise keep only some files open."""
        keep = len(self.ids) if self.in_memory else OPEN_FILES
        self._image = lru_cache(keep)(self._open_image)
        self._label = lru_cache(keep)(self._open_label)
        self._centres = lru_cache(len(self.ids))(self.data.centres)

    def _open_image(self, id: str) -> Any:
        image = self.data.image(id)
        return np.asarray(image[...]) if self.in_memory else image

    def _open_label(self, id: str) -> Any:
        label = self.data.label(id)
        return np.asarray(label[...]) if self.in_memory else label

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_image", "_label", "_centres")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._remember()

    def _start(self, id: str, shape: Sequence[int], rng: np.random.Generator) -> list[int]:
        """The first voxel of the patch; negative if the volume is smaller and padding is needed."""
        room = [n - p for n, p in zip(shape, self.patch, strict=True)]
        if self.labels and rng.random() < self.foreground:
            of_class = self._of_a_class(id, rng)
            if len(of_class):
                centre = of_class[int(rng.integers(len(of_class)))]
                wanted = [int(c) - p // 2 for c, p in zip(centre, self.patch, strict=True)]
                return [min(max(w, 0), r) if r >= 0 else r // 2 for w, r in zip(wanted, room, strict=True)]
        return [int(rng.integers(r + 1)) if r >= 0 else r // 2 for r in room]

    def _of_a_class(self, id: str, rng: np.random.Generator) -> NDArray[np.uint16]:
        """Voxels of a random class of the case, `(n, 3)`; none if it has no class that may be drawn."""
        voxels = self._centres(id)
        weights = np.array([1.0 if self.class_weights is None else self.class_weights[value - 1] for value in voxels])
        if not weights.any():
            return np.empty((0, 3), np.uint16)
        chances = None if self.class_weights is None else weights / weights.sum()
        return list(voxels.values())[int(rng.choice(len(voxels), p=chances))]


def _room(sharing: int) -> int:
    """Bytes that a stream may keep in memory, if `sharing` processes make one each."""
    free = available_memory()
    return MEMORY_LIMIT if free is None else min(MEMORY_LIMIT, free // (SHARE * sharing))


class _ReaderLostError(RuntimeError):
    """A reading process had ended when its batch was fetched."""


@contextmanager
def ending_readers() -> Iterator[None]:
    """End all reading processes after an error, and say what to do if one was lost.

    Raises:
        OutOfMemoryError: a reading process ended, or had no room for its batch in shared memory.
    """
    try:
        yield
    except BaseException as error:
        # The frames hold the readers, which ignore SIGTERM, so Python would wait for them forever when it ends.
        with _deaf_to_readers():
            traceback.clear_frames(error.__traceback__)
        said = str(error).strip()
        if not isinstance(error, _ReaderLostError) and not (isinstance(error, RuntimeError) and _tells_of_loss(said)):
            raise
        raise OutOfMemoryError(
            f"a process that reads patches was lost ({said.splitlines()[-1]}). If memory ran out, lower train.workers. "
            "If shared memory ran out, start the container with --shm-size 16g or --ipc=host. train.workers=0 needs "
            "neither. `medssl doctor` shows how much there is; continue the run with --resume. "
            'A script of your own needs the guard `if __name__ == "__main__":`.'
        ) from None


def _tells_of_loss(said: str) -> bool:
    """Whether this is a message of torch about a reader that was killed or could not hand over its batch."""
    return "DataLoader worker (pid" in said or "shared memory" in said


@contextmanager
def _deaf_to_readers() -> Iterator[None]:
    """Let readers end without torch raising again that one was lost."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous)


def _read_ahead(
    stream: PatchStream, numbers: Sequence[Sequence[int]], workers: int, pin: bool
) -> Generator[Patches, None, None]:
    """Yield batches in order, read in advance by threads."""
    on_gpu = (torch.cuda.set_device, (torch.cuda.current_device(),)) if pin else (None, ())
    pool = ThreadPoolExecutor(workers, "patches", *on_gpu)
    try:
        waiting = deque(pool.submit(stream.batch, n, pin=pin) for n in numbers[: AHEAD * workers])
        for i in range(len(numbers)):
            done = waiting.popleft().result()
            if i + AHEAD * workers < len(numbers):
                waiting.append(pool.submit(stream.batch, numbers[i + AHEAD * workers], pin=pin))
            yield done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ignore signals: a terminal sends Ctrl-C to every process, and without its readers the trainer could not save."""
    ignore_signals()


def _cut(array: Any, start: Sequence[int], patch: Sequence[int], *, channels: bool) -> NDArray[Any]:
    """Cut a patch, with zeros outside the volume; only the part inside is read."""
    shape = array.shape[1:] if channels else array.shape
    inside = tuple(slice(max(s, 0), min(s + p, n)) for s, p, n in zip(start, patch, shape, strict=True))
    pads = [(max(-s, 0), max(s + p - n, 0)) for s, p, n in zip(start, patch, shape, strict=True)]
    found = np.asarray(array[(slice(None), *inside)] if channels else array[inside])
    if not any(before or after for before, after in pads):
        return np.ascontiguousarray(found)
    return np.pad(found, [(0, 0), *pads] if channels else pads)
