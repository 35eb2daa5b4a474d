"""The predictor, which turns a raw image into a class map on the image's own grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from medssl.config import Settings
from medssl.data.grid import Grid, Slab, class_type
from medssl.data.likeness import Likeness
from medssl.data.recipe import Prepared, Recipe
from medssl.data.volume import Volume, check_affine
from medssl.device import autocast, tell_once
from medssl.errors import ConfigError, DataError, OutOfMemoryError
from medssl.machine import available_memory
from medssl.methods.base import Method
from medssl.parts import processes
from medssl.parts.pseudo import largest_component
from medssl.windows import by_windows, rows_seen
from medssl.words import by, gib, how_many

MOST_FINER = 512
"""Most voxels that one voxel of an image may become; beyond that, its spacing is probably in another unit."""

Which = Literal["student", "teacher", "ensemble", "one-student", "one-teacher"]


class WindowConfig(Settings):
    """The `window` section: sliding-window prediction of whole volumes."""

    network: Which = "student"
    """Networks that predict. `student`: the mean of all students. `teacher`: the mean of all teachers. `ensemble`: the
    mean of all students and teachers. `one-student`, `one-teacher`: only the first of its kind."""
    patch: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Size of a window in voxels. null: that of the training patch."""
    overlap: float = Field(0.5, ge=0, lt=1)
    """Overlap of neighbouring windows, as a share of the window."""
    stride: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Distance between neighbouring windows in voxels along each axis. It replaces `overlap`. null: follows from
    `overlap`."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    """How overlapping windows are combined. `gaussian`: voxels near the centre of a window have more weight.
    `constant`: plain mean."""
    batch: PositiveInt = 4
    """Windows per forward pass."""
    mirror: bool = False
    """Also predict each window mirrored along every combination of the axes that training mirrored (`augment.flips`),
    and average. Two, four or eight times the work. nnU-Net does so by default."""
    largest_component: tuple[str, ...] = ()
    """Classes of which only the largest connected component is kept in the output."""


class Predictor:
    """Trained networks with their recipe and window settings, which segment raw images on the images' own grids."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        recipe: Recipe,
        window: WindowConfig,
        *,
        patch: tuple[int, int, int],
        channels: Sequence[str],
        classes: Sequence[str],
        device: torch.device,
        precision: torch.dtype | None = None,
        flips: Sequence[int] = (),
        mirrored: Mapping[int, int] | None = None,
    ) -> None:
        """
        Args:
            patch: `(X, Y, Z)` voxels of a window, unless `window.patch` is set.
            flips: axes that training mirrored, for `window.mirror`.
            mirrored: for each class that becomes another in a mirrored image (such as left and right), that class.

        Raises:
            ConfigError: `window` names a class that does not exist, or asks for mirroring and there is no axis for it.
        """
        self.networks, self.recipe, self.window = list(networks), recipe, window
        self.others: list[Predictor] = []
        """Predictors of other runs, whose probabilities are averaged with this one's at equal weight."""
        self.likeness: Likeness | None = None
        """What the training scans of its networks are like; None if unknown."""
        self.looked: Callable[[float], None] = lambda share: None
        """Called from time to time with the share of a volume that has been predicted."""
        self.patch, self.device, self.precision = window.patch or patch, device, precision
        self.channels, self.classes = tuple(channels), tuple(classes)
        thick = [axis for axis in flips if self.patch[axis] > 1]  # a single slice has no mirror image along itself
        self.mirrors = _mirrors(thick) if window.mirror else [()]
        self.in_a_mirror = [(mirrored or {}).get(place, place) for place in range(len(classes))]
        if window.mirror and not thick:
            raise ConfigError(
                "window.mirror: needs an axis that training mirrored (augment.preset, augment.flips) and along which "
                "a window has several voxels; there is none, so set it to false"
            )
        unknown = set(window.largest_component) - set(classes)
        if unknown:
            raise ConfigError(
                f"window.largest_component: must name classes ({', '.join(classes)}), got {', '.join(sorted(unknown))}"
            )

    def probabilities(
        self,
        image: NDArray[np.float32],
        axis: int = 0,
        rows: range | None = None,
        looked: Callable[[float], None] | None = None,
    ) -> NDArray[np.float32]:
        """Return the mean class probabilities of the networks, `(M, x, y, z)` to `(C, x, y, z)`, on the prepared grid.

        With `self.others`, each predictor's mean over its networks has the same weight.

        Args:
            rows: the rows wanted along `axis`; None for all.
            looked: called with the share of them that has been predicted; None calls `self.looked`.

        Raises:
            OutOfMemoryError: they need more memory than is free; the system would kill the process without a message.
        """
        shape = image.shape[1:]
        rows = range(shape[axis]) if rows is None else rows
        self._refuse_beyond_memory(shape, axis, rows)
        count, looked = 1 + len(self.others), looked or self.looked
        probs = self._own_probabilities(image, axis, rows, _within(looked, 0, count))
        for place, other in enumerate(self.others, 1):
            probs += other._own_probabilities(image, axis, rows, _within(looked, place, count))
        probs /= count
        return probs

    @torch.no_grad()
    def _own_probabilities(
        self, image: NDArray[np.float32], axis: int, rows: range, looked: Callable[[float], None]
    ) -> NDArray[np.float32]:
        modes = [net.training for net in self.networks]
        for net in self.networks:
            net.eval()
        probs = by_windows(
            image, self._fitting, self.device, patch=self.patch, batch=self.window.batch, overlap=self._overlap(),
            blend=self.window.blend, axis=axis, rows=rows, looked=looked,
        )  # fmt: skip
        for net, mode in zip(self.networks, modes, strict=True):
            net.train(mode)
        return probs

    def slabs(self, image: NDArray[np.float32]) -> Iterator[Slab]:
        """Yield what `probabilities` returns in the pieces of `cut`, one after the other.

        Raises:
            OutOfMemoryError: even a piece half a window long needs more memory than is free.
        """
        axis, pieces = self.cut(image.shape[1:])
        for place, rows in enumerate(pieces):
            looked = _within(self.looked, place, len(pieces))
            yield Slab(self.probabilities(image, axis, rows, looked), axis, rows.start)

    def cut(self, shape: tuple[int, ...]) -> tuple[int, list[range]]:
        """Return the axis with the most windows, and its rows in as few pieces as possible.

        Each piece should fit into half of the free memory. With `recipe.resize` the axis is always the last one. Each
        piece begins with the last row of the one before; windows that reach into two pieces are predicted twice.
        """
        free = _free_memory()
        axis = 2 if self.recipe.resize else max(range(3), key=lambda axis: shape[axis] / self.patch[axis])
        pieces = [range(shape[axis])]
        for count in range(2, min(shape[axis], 2 * shape[axis] // self.patch[axis])):
            if free is None or max(self._bytes(shape, axis, rows) for rows in pieces) <= free // 2:
                break
            ends = [number * (shape[axis] - 1) // count for number in range(count + 1)]
            pieces = [range(start, end + 1) for start, end in itertools.pairwise(ends)]
        return axis, pieces

    def _refuse_beyond_memory(self, shape: tuple[int, ...], axis: int, rows: range) -> None:
        needed, free = self._bytes(shape, axis, rows), _free_memory()
        if free is not None and needed > free:
            part = (*shape[:axis], len(rows), *shape[axis + 1 :])
            of = "" if part == shape else f" of {by(shape)}"
            raise OutOfMemoryError(
                f"probabilities of {len(self.classes)} classes for {by(part)}{of} voxels need "
                f"{gib(needed)} of memory, and {gib(free)} are free; crop the image to the region of interest, "
                "use a machine with more memory, or train at a coarser data.recipe.spacing"
            )

    def _bytes(self, shape: tuple[int, ...], axis: int, rows: range) -> int:
        """Return the bytes that the probabilities of some rows need, with the count of windows beside them."""
        seen = rows_seen(rows, shape[axis], self.patch[axis], self._overlap()[axis])
        covered = [max(n, side) for n, side in zip(shape, self.patch, strict=True)]
        covered[axis] = max(len(seen), self.patch[axis])
        own = 4 * (len(self.classes) + 1) * math.prod(covered)
        return own + max((other._bytes(shape, axis, rows) for other in self.others), default=0)

    def likeliest(self, image: NDArray[np.float32]) -> NDArray[np.unsignedinteger[Any]]:
        """Return the most likely class of each voxel of a prepared image, `(M, x, y, z)` to `(x, y, z)`."""
        classes = np.empty(image.shape[1:], class_type(len(self.classes) - 1))
        for slab in self.slabs(image):
            classes[(slice(None),) * slab.axis + (slice(slab.start, slab.stop),)] = slab.probs.argmax(0)
            del slab  # frees its memory before the next one is predicted
        return classes

    def segment(self, image: Volume) -> NDArray[np.unsignedinteger[Any]]:
        """Return the class of each voxel of a raw image, `(X, Y, Z)` on its own grid."""
        prepared = self._prepared(image)
        return self._cleaned(self.recipe.undo(self.slabs(prepared.image), prepared.grid))

    def segment_with_uncertainty(
        self, image: Volume
    ) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.floating[Any]]]:
        """Return what `segment` returns, and the uncertainty of each voxel: 1 minus the probability of its class.

        Where `largest_component` turned a voxel into background, it is the probability of the class that was removed.
        """
        prepared = self._prepared(image)
        return self._cleaned_with_uncertainty(self.slabs(prepared.image), prepared.grid)

    def segment_with_probabilities(
        self, image: Volume
    ) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.floating[Any]], Iterator[NDArray[np.float32]]]:
        """Return what `segment_with_uncertainty` returns, and an iterator over the classes' probabilities `(X, Y, Z)`.

        These are the probabilities before `largest_component`; over all classes they sum to 1.
        """
        prepared = self._prepared(image)
        probs = self.probabilities(prepared.image)
        classes, uncertainty = self._cleaned_with_uncertainty([Slab(probs)], prepared.grid)
        return classes, uncertainty, self.recipe.undo_by_class(probs, prepared.grid)

    def _cleaned_with_uncertainty(
        self, slabs: Iterable[Slab], grid: Grid
    ) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.floating[Any]]]:
        classes, certainty = self.recipe.undo_with_certainty(slabs, grid)
        cleaned = self._cleaned(classes)
        return cleaned, np.where(cleaned == classes, 1 - certainty, certainty)

    def _prepared(self, image: Volume) -> Prepared:
        named, axes = image.path or "image", image.array.ndim
        if axes not in (3, 4):
            raise DataError(f"{named}: must have the axes (X, Y, Z) or (X, Y, Z, M), got {axes} axes")
        check_affine(image.path, image.affine)
        channels = len(image.channels)
        if channels != len(self.channels):
            wanted = f"{len(self.channels)} ({', '.join(self.channels)})"
            raise DataError(f"{named}: has {how_many(channels, 'channel')}, but the network was trained on {wanted}")
        odd = [number for number, channel in enumerate(image.channels) if not np.isfinite(channel).all()]
        if odd:
            which = f"channel {odd[0]} " if channels > 1 else ""
            raise DataError(f"{named}: {which}holds NaN or Inf voxels; see `medssl check`")
        own = image.shape
        resampled = self.recipe.uncropped(own, image.affine)
        if self.recipe.resize is None and math.prod(resampled) > MOST_FINER * math.prod(own):
            spacing = by(float(f"{side:.3g}") for side in image.spacing)
            raise DataError(
                f"{named}: its {by(own)} voxels of {spacing} mm would become {by(resampled)} at the spacing that the "
                "network was trained on; check that the header gives the spacing in mm, or leave the image out"
            )
        return self.recipe.apply(image)

    def _overlap(self) -> list[float]:
        """Return the overlap from which MONAI computes the wanted stride, the whole part of `patch * (1 - overlap)`."""
        if self.window.stride is None:
            return [self.window.overlap] * 3
        return [max(0.0, 1 - (step + 0.5) / side) for step, side in zip(self.window.stride, self.patch, strict=True)]

    def _fitting(self, windows: Tensor) -> Tensor:
        """Return what `_forward` returns, with fewer windows at a time if the GPU has too little memory for all.

        Raises:
            OutOfMemoryError: it has too little memory for a single window.
        """
        while True:
            size = min(self.window.batch, len(windows))
            try:
                parts = [self._forward(part) for part in torch.split(windows, size)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise OutOfMemoryError(
                        f"{self.device} has too little memory for one window of {by(self.patch)} voxels and "
                        f"{len(self.classes)} classes ({str(error).splitlines()[0]}); check what else runs on it, or "
                        "use another --device, such as cpu"
                    ) from None
            self.window = self.window.model_copy(update={"batch": size // 2})
            torch.cuda.empty_cache()  # outside of `except`, where the error no longer keeps tensors alive
            tell_once(
                f"{self.device} has too little memory for {how_many(size, 'window')} at once; continuing with "
                f"{size // 2}"
            )

    def _forward(self, windows: Tensor) -> Tensor:
        """Return the class probabilities of windows, averaged over their mirror images."""
        first, *others = self.mirrors
        total = self._mirrored(windows, first)
        for axes in others:
            total += self._mirrored(windows, axes)
        return total / len(self.mirrors)

    def _mirrored(self, windows: Tensor, axes: Sequence[int]) -> Tensor:
        """Return the networks' mean probabilities of windows mirrored along axes, mirrored back.

        Along an odd number of axes, the classes of the left and right side change places.
        """
        space = [2 + axis for axis in axes]
        windows = windows.flip(space) if space else windows
        total = self._softmax(self.networks[0], windows)
        for net in self.networks[1:]:
            total += self._softmax(net, windows)
        probs = (total / len(self.networks)).flip(space)
        return probs[:, self.in_a_mirror] if len(axes) % 2 else probs

    def _softmax(self, net: nn.Module, windows: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            logits: Tensor = net(windows)
        return logits.float().softmax(1)

    def _cleaned(self, classes: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.unsignedinteger[Any]]:
        if not self.window.largest_component:
            return classes
        clean = largest_component(torch.from_numpy(classes.astype(np.int64))[None], len(self.classes))[0].numpy()
        listed = [self.classes.index(name) for name in self.window.largest_component]
        dropped = np.isin(classes, listed) & (clean == 0)
        return np.where(dropped, 0, classes).astype(classes.dtype)


def _free_memory() -> int | None:
    """Return the free bytes for this process, its share if several predict at once; None if unknown."""
    free = available_memory()
    return None if free is None else free // processes.count()


def _within(looked: Callable[[float], None], place: int, count: int) -> Callable[[float], None]:
    """Return a callback for one of `count` equal parts, which reports its progress as a share of the whole."""
    return lambda share: looked((place + share) / count)


def _mirrors(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return every subset of the axes, the empty one first."""
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


def chosen_networks(method: Method, which: Which) -> list[nn.Module]:
    """Return the networks of a method that `which` selects.

    Raises:
        ConfigError: the method has no teacher.
    """
    students, teachers = list(method.students()), list(method.teachers())
    if which in ("teacher", "ensemble", "one-teacher") and not teachers:
        raise ConfigError(f"window.network: {which} was asked for, but this method has no teacher")
    chosen = {"student": students, "teacher": teachers, "ensemble": students + teachers}
    return chosen[which] if which in chosen else chosen[which.removeprefix("one-")][:1]
