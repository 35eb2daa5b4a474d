"""Batched augmentation on the training device.

What is *drawn* for a sample is a function of its seed alone, and what is *applied* is a function of the draw. Geometry
moves image and label alike; intensity touches the image only.

Nothing waits for the device: parameters go there in one small copy, and the samples that drew an
operation are picked as views, by number. A sample's result does not depend on the rest of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medssl.config import Settings
from medssl.data.cases import IGNORED
from medssl.data.recipe import THICK_SLICE_RATIO
from medssl.parts.grey import bent, smoothed
from medssl.parts.schedules import generator

CONTROL_POINTS = 6
"""Control points of an elastic deformation along an axis; the patch spans the middle three of their five intervals."""
CLASSES_AT_ONCE = 8
"""Classes that are warped together; more need no more memory, only time."""
SLAB = 2**16
"""Voxels that a CPU interpolates at once, so that what they need stays in its cache."""
NORMAL_NUMBERS = 2**22
"""The least length of the bank that noise is read from."""

_PLANES = [(0, 1), (0, 2), (1, 2)]


class AugmentConfig(Settings):
    """The `augment` section; the same for every method of a comparison."""

    preset: Literal["none", "weak", "strong"] = "weak"
    """`weak`, as published: flips and quarter turns where the grid allows, slight contrast, brightness and
    noise. `strong` adds rotation, scaling, elastic deformation, gamma, blur, low resolution and more noise."""
    flips: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)
    """Axes that may be mirrored; left and right classes then change places, see `data.sides`."""


@dataclass(frozen=True)
class Draw:
    """What happens to one sample; by default nothing. Flips come first, intensity last."""

    flips: tuple[int, ...] = ()
    turns: tuple[tuple[int, int, int], ...] = ()
    """`(axis, axis, quarter turns)`."""
    matrix: NDArray[np.float64] | None = None
    """`(3, 3)`, output position to input position in voxels about the centre; None is the identity."""
    elastic: NDArray[np.float64] | None = None
    """`(3, P, P, P)`, how far each control point of a cubic B-spline moves the input position, in voxels."""
    blur: float | None = None
    """Sigma in voxels."""
    zoom: float | None = None
    """Resolution to go down to and come back from, as a fraction."""
    gamma: float | None = None
    contrast: float = 1.0
    brightness: float = 0.0
    noise: float = 0.0
    """Standard deviation."""
    noise_seed: int = 0


class Augment:
    """Draws and applies what an `AugmentConfig` allows on a given patch."""

    def __init__(
        self,
        config: AugmentConfig,
        patch: Sequence[int],
        spacing: Sequence[float | None],
        classes: int,
        *,
        ignores: bool = False,
        mirrored: Mapping[int, int] | None = None,
    ) -> None:
        """
        Args:
            patch: `(X, Y, Z)` voxels; where two sides and spacings are equal, quarter turns keep the grid.
            spacing: millimetres per axis, None where it differs by case; those axes count as equally spaced.
            classes: of labels, background included.
            ignores: whether labels may hold IGNORED beside them.
            mirrored: the class that a class is in a mirror, for those of which it is another.
        """
        self.config, self.patch = config, tuple(patch)
        self.values = [*range(1, classes), *([IGNORED] if ignores else [])]
        self.turnable = [(a, b) for a, b in _PLANES if patch[a] == patch[b] and spacing[a] == spacing[b]]
        known = [s for s in spacing if s is not None]
        self.spacing = np.array([min(known, default=1.0) if s is None else s for s in spacing])
        self.fine = (self.spacing <= THICK_SLICE_RATIO * self.spacing.min()) & (np.array(self.patch) > 1)
        self.mirrored = dict(mirrored or {})
        self._in_a_mirror: dict[torch.device, Tensor] = {}
        self._banks: dict[tuple[torch.device, int], Tensor] = {}

    def draw(self, *seed: int) -> Draw:
        """The fate of one sample, a function of the seed."""
        if self.config.preset == "none":
            return Draw()
        rng = np.random.default_rng(seed)
        strong = self.config.preset == "strong"

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * rng.random()

        def maybe(chance: float, low: float, high: float) -> float | None:
            hit, value = rng.random() < chance, uniform(low, high)
            return value if hit and strong else None

        reach = 0.25 if strong else 0.1
        bend = maybe(0.2, 0.0, 0.07)
        return Draw(
            flips=tuple(axis for axis in self.config.flips if rng.random() < 0.5),
            turns=tuple((a, b, int(uniform(0, 4))) for a, b in self.turnable),
            contrast=uniform(1 - reach, 1 + reach),
            brightness=uniform(-reach, reach),
            gamma=maybe(0.3, 0.7, 1.5),
            blur=maybe(0.2, 0.5, 1.0),
            zoom=maybe(0.2, 0.5, 1.0),
            noise=uniform(0, 0.15 if strong and rng.random() < 0.3 else 0.05),
            noise_seed=int(rng.integers(2**62)),
            matrix=self._matrix(rng) if strong and rng.random() < 0.5 else None,
            elastic=None if bend is None else self._elastic(rng, bend),
        )

    def apply(self, image: Tensor, draws: Sequence[Draw], label: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Augment a batch: `move`, then `shade` the image.

        Args:
            image: `(B, M, X, Y, Z)` float.
            draws: one per sample.
            label: `(B, X, Y, Z)` integer classes on the same grid, IGNORED being one of them if need be.

        Returns:
            New tensors, the label as int64; under the preset `none` what came in.
        """
        if self.config.preset == "none":
            return image, None if label is None else label.long()
        rows, label = self._moved(image, draws, label)
        return self._shaded(rows, draws), label

    def views(self, image: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor | None]:
        """A batch without labels augmented, and as it was when its grey levels were yet to change.

        Returns:
            Both `(B, M, X, Y, Z)`; the second is None under the preset `none`.
        """
        if self.config.preset == "none":
            return image, None
        rows, _ = self._moved(image, draws, None)
        return self._shaded(rows, draws), torch.stack(rows)

    def move(self, linear: Tensor, draws: Sequence[Draw], label: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Geometry alone, for whatever lies on the image's grid.

        Args:
            linear: `(B, K, X, Y, Z)` float to interpolate linearly: images, probabilities, weights, masks. K may be 0.
            draws: one per sample.
            label: `(B, X, Y, Z)` integer classes; the class with the largest interpolated share wins.

        Returns:
            New tensors, the label as int64.
        """
        rows, label = self._moved(linear, draws, label)
        return torch.stack(rows), label

    def shade(self, image: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Intensity alone, `(B, M, X, Y, Z)` float to a new tensor; each channel has its own mean and range."""
        return self._shaded(list(image), draws)

    def _matrix(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A random scaling and rotation in millimetres, as a change of voxel positions.

        Thick slices stay where they are: what lies between them was never seen, so it cannot be turned into view.
        """
        matrix = np.diag(np.where(self.fine, rng.uniform(0.85, 1.25), 1.0))
        for a, b in _PLANES:
            angle = math.radians(rng.uniform(-15, 15)) if self.fine[a] and self.fine[b] else 0.0
            rotation = np.eye(3)
            rotation[a, a] = rotation[b, b] = math.cos(angle)
            rotation[a, b], rotation[b, a] = -math.sin(angle), math.sin(angle)
            matrix = matrix @ rotation
        return np.asarray(matrix * self.spacing / self.spacing[:, None])

    def _elastic(self, rng: np.random.Generator, reach: float) -> NDArray[np.float64]:
        """Random moves of the control points, up to a fraction of the shortest side, none across thick slices."""
        sides = [n * s for n, s, fine in zip(self.patch, self.spacing, self.fine, strict=True) if fine and n > 1]
        moves = rng.uniform(-1, 1, (3, *3 * [CONTROL_POINTS])) * reach * min(sides, default=0.0)
        return np.asarray(moves * (self.fine / self.spacing)[:, None, None, None])

    def _moved(self, linear: Tensor, draws: Sequence[Draw], label: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Samples of `linear`, views of it where nothing was drawn, and the label, a new tensor."""
        rows = [_turned(row, draw) for row, draw in zip(linear, draws, strict=True)]
        pairs = [] if label is None else zip(label, draws, strict=True)
        labels = [self._sided(_turned(row, draw), draw) for row, draw in pairs]
        which = [i for i, draw in enumerate(draws) if draw.matrix is not None or draw.elastic is not None]
        # All at once, but one by one on a CPU, for the sake of its cache.
        groups = [[i] for i in which] if linear.device.type == "cpu" else [which] if which else []
        for group in groups:
            with torch.autocast(linear.device.type, enabled=False):
                places = _places([draws[i] for i in group], linear.shape[2:], linear.device)
                warped, winners = self._warped([rows[i] for i in group], [labels[i] for i in group if labels], places)
            for k, i in enumerate(group):
                rows[i] = warped[k].to(linear.dtype)
                if winners is not None:
                    labels[i] = winners[k]
        if label is None:
            return rows, None
        moved = torch.empty_like(label, dtype=torch.int64, memory_format=torch.contiguous_format)
        for target, row in zip(moved, labels, strict=True):
            target.copy_(row)
        return rows, moved

    def _sided(self, label: Tensor, draw: Draw) -> Tensor:
        """Mirroring makes a left one a right one; along an even number of axes it is a turn, and they stay."""
        if not self.mirrored or len(draw.flips) % 2 == 0:
            return label
        if label.device not in self._in_a_mirror:
            places = [self.mirrored.get(place, place) for place in range(IGNORED + 1)]
            self._in_a_mirror[label.device] = torch.tensor(places).to(label.device)
        return self._in_a_mirror[label.device][label.long()].to(label.dtype)

    def _warped(self, rows: list[Tensor], labels: list[Tensor], places: Tensor) -> tuple[Tensor, Tensor | None]:
        """Samples at `(S, 3, X, Y, Z)` places: `(S, K, X, Y, Z)` linear, `(S, X, Y, Z)` classes where there are labels.

        Interpolated classes add up to one, so background is what the others leave and needs no plane of its own.
        """
        channels, label = len(rows[0]), torch.stack(labels) if labels else places.new_empty(0)
        classes = self.values if labels else []
        chunks = [classes[start : start + CLASSES_AT_ONCE] for start in range(0, len(classes), CLASSES_AT_ONCE)]
        first, *others = chunks or [[]]
        planes = _empty_planes(places, channels + len(first))
        _fill_one_hot(planes[:, channels:], label, first)
        for k, row in enumerate(rows):
            planes[k, :channels] = row
        planes = _sampled(planes, places)

        def shares() -> Iterable[tuple[int, Tensor]]:
            yield from zip(first, planes[:, channels:].detach().unbind(1), strict=True)
            for chunk in others:
                one_hot = _empty_planes(places, len(chunk))
                _fill_one_hot(one_hot, label, chunk)
                yield from zip(chunk, _sampled(one_hot, places).unbind(1), strict=True)

        return planes[:, :channels], _largest(shares(), _empty_planes(places, 1)[:, 0]) if labels else None

    def _shaded(self, rows: list[Tensor], draws: Sequence[Draw]) -> Tensor:
        """Intensity changes of samples `(M, X, Y, Z)`, as a new batch."""
        image = torch.stack([_filtered(row, draw) for row, draw in zip(rows, draws, strict=True)])
        mean = image.mean((2, 3, 4), keepdim=True)
        tones = np.array([(1 - draw.contrast, draw.brightness) for draw in draws])
        [tones_there] = _upload([tones.reshape(-1, 2, 1, 1, 1, 1)], image.device)
        shift = (mean * tones_there[:, 0] + tones_there[:, 1]).to(image.dtype)
        numbers = self._normal_numbers(image.device, 2 * image[0].numel())
        for sample, move, draw in zip(image, shift, draws, strict=True):
            torch.add(move, sample, alpha=draw.contrast, out=sample)  # x c + (1 - c) mean + b
            if draw.noise:
                sign, start = draw.noise_seed % 2 * 2 - 1, draw.noise_seed // 2 % (len(numbers) - sample.numel() + 1)
                noise = numbers[start : start + sample.numel()].view(sample.shape)
                sample.add_(noise, alpha=sign * draw.noise)
        return image

    def _normal_numbers(self, device: torch.device, least: int) -> Tensor:
        """A bank of normal numbers, the same on every device; samples read theirs from where their draw says."""
        length = max(NORMAL_NUMBERS, least)
        if (device, length) not in self._banks:
            self._banks[device, length] = torch.randn(length, generator=generator(length)).to(device)
        return self._banks[device, length]


def _upload(arrays: Sequence[NDArray[np.float64]], device: torch.device) -> list[Tensor]:
    """Small arrays as float32 tensors on the device, in one copy that nobody waits for."""
    packed = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]).astype(np.float32))
    if device.type == "cuda":
        packed = packed.pin_memory()
    parts = torch.split(packed.to(device, non_blocking=True), [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _turned(array: Tensor, draw: Draw) -> Tensor:
    """Exact flips, then quarter turns, as one permutation and one flip; the last three axes are space."""
    source, mirrored = [0, 1, 2], [axis in draw.flips for axis in range(3)]
    for a, b, quarters in draw.turns:
        if quarters in (1, 2):
            mirrored[b] = not mirrored[b]
        if quarters in (2, 3):
            mirrored[a] = not mirrored[a]
        if quarters in (1, 3):
            source[a], source[b] = source[b], source[a]
            mirrored[a], mirrored[b] = mirrored[b], mirrored[a]
    first = array.ndim - 3
    if source != [0, 1, 2]:
        array = array.permute(*range(first), *(first + axis for axis in source))
    if any(mirrored):
        array = array.flip([first + axis for axis in range(3) if mirrored[axis]])
    return array


def _places(draws: Sequence[Draw], shape: Sequence[int], device: torch.device) -> Tensor:
    """`(S, 3, X, Y, Z)`, the voxel position that each voxel is taken from, the nearest one inside the volume."""
    offsets = [np.arange(n) - (n - 1) / 2 for n in shape]
    ramps = np.stack([np.eye(3) if draw.matrix is None else draw.matrix for draw in draws])[..., None]
    centre = np.array([[(n - 1) / 2] for n in shape])
    bent = {i: draw.elastic for i, draw in enumerate(draws) if draw.elastic is not None}
    control = np.array(list(bent.values())).reshape(-1, 3, *3 * [CONTROL_POINTS])
    packed = [ramps[:, :, 0] * offsets[0] + centre, ramps[:, :, 1] * offsets[1], ramps[:, :, 2] * offsets[2]]
    x, y, z, moves, *bases = _upload([*packed, control, *map(_spline_basis, shape)], device)

    places = x[..., None, None] + y[..., None, :, None] + z[..., None, None, :]
    if bent:
        for i, move in zip(bent, _upsampled(moves, bases), strict=True):
            places[i].add_(move)
    for axis, size in enumerate(shape):
        places[:, axis].clamp_(0, size - 1)
    return places


def _upsampled(control: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """`(S, 3, P, P, P)` control points to `(S, 3, X, Y, Z)`, axis by axis, the smallest products first."""
    x, y, z = bases
    lines = y @ (control @ z.T)  # (S, 3, P, Y, Z)
    return (x @ lines.flatten(3)).view(*lines.shape[:2], len(x), *lines.shape[3:])


@lru_cache(maxsize=16)
def _spline_basis(size: int) -> NDArray[np.float64]:
    """`(size, P)` weights of a uniform cubic B-spline's control points at the voxels of an axis; rows add up to 1."""
    intervals = CONTROL_POINTS - 3
    place = np.linspace(0, intervals, size)
    first = np.minimum(place.astype(int), intervals - 1)
    t = place - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    basis = np.zeros((size, CONTROL_POINTS))
    basis[np.arange(size)[:, None], first[:, None] + np.arange(4)] = weights
    return basis


def _sampled(planes: Tensor, places: Tensor) -> Tensor:
    """Planes `(S, K, X, Y, Z)` at `(S, 3, X, Y, Z)` places, linearly interpolated; on a CPU S is 1."""
    sizes = planes.shape[2:]
    if planes.device.type == "cpu":
        slabs = torch.split(places[0], max(1, SLAB // (sizes[1] * sizes[2])), 1)
        return torch.cat([_sampled_by_slices(planes[0], slab) for slab in slabs], 1)[None]
    grid = torch.stack([_relative(places[:, axis], sizes[axis]) for axis in (2, 1, 0)], -1)
    return F.grid_sample(planes, grid, padding_mode="border", align_corners=True)


def _sampled_by_slices(volume: Tensor, places: Tensor) -> Tensor:
    """A volume `(K, X, Y, Z)` at `(3, X', Y, Z)` places through two dimensions, to a thousandth of a voxel.

    On a CPU torch interpolates images several times as fast as volumes. So the slices, one below the other, make
    one tall image, which is read in the slice before each place and in the one after it.
    """
    channels, x_size, y_size, z_size = volume.shape
    x, y, z = places
    before = x.floor()
    tall = volume.reshape(channels, -1, z_size).expand(len(x), -1, -1, -1)  # a slice of the result for each thread
    column = _relative(z, z_size)

    def bilinear(slices: Tensor) -> Tensor:
        row = _relative(torch.add(y, slices, alpha=y_size), x_size * y_size)
        grid = torch.stack([column, row]).movedim(0, -1)
        return F.grid_sample(tall, grid, padding_mode="border", align_corners=True)  # (X', K, Y, Z)

    after = bilinear(before + 1)  # beyond the last slice it counts nothing
    return bilinear(before).lerp_(after, (x - before)[:, None]).movedim(1, 0)


def _relative(position: Tensor, size: int) -> Tensor:
    """Positions in [0, size - 1] as `grid_sample` counts them, in [-1, 1]."""
    return (position * (2 / max(size - 1, 1))).sub_(1)


def _empty_planes(places: Tensor, channels: int) -> Tensor:
    return places.new_empty(len(places), channels, *places.shape[2:])


def _fill_one_hot(planes: Tensor, label: Tensor, classes: Sequence[int]) -> None:
    """Write where a label `(S, X, Y, Z)` holds each class into float planes `(S, C, X, Y, Z)`."""
    for channel, value in enumerate(classes):
        torch.eq(label, value, out=planes[:, channel])


def _largest(shares: Iterable[tuple[int, Tensor]], rest: Tensor) -> Tensor:
    """The class with the largest share; background, class 0, has what the others leave, and wins ties.

    Several times as fast as `argmax` over a channel axis on a CPU, and no such axis is ever whole.
    """
    rest.fill_(1)
    best, winner = torch.zeros_like(rest), torch.zeros_like(rest, dtype=torch.int16)
    for value, share in shares:  # rising, so a later winner has the larger number
        torch.maximum(winner, (share > best).to(torch.int16).mul_(value), out=winner)
        torch.maximum(best, share, out=best)
        rest.sub_(share)
    return winner.mul_(best > rest)


def _filtered(row: Tensor, draw: Draw) -> Tensor:
    """Blur, low resolution and gamma of one sample, `(M, X, Y, Z)`."""
    if draw.blur is not None:
        row = smoothed(row[None], 3 * [draw.blur])[0]
    if draw.zoom is not None:
        small = [max(1, round(n * draw.zoom)) for n in row.shape[1:]]
        low = F.interpolate(row[None], size=small, mode="nearest")
        row = F.interpolate(low, size=row.shape[1:], mode="trilinear", align_corners=False)[0]
    if draw.gamma is not None:
        row = bent(row, draw.gamma)
    return row
