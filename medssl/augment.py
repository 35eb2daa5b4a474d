"""Batched augmentation on the training device.

What is *drawn* for a sample depends only on its seed, and what is *applied* depends only on the draw. Geometry moves
image and label alike; intensity changes the image only.

Nothing waits for the device: parameters are copied there in one small transfer, and samples are selected by index. A
sample's result does not depend on the rest of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medssl.config import EACH_ONCE, Settings
from medssl.data.cases import IGNORED
from medssl.data.grid import THICK_SLICE_RATIO
from medssl.parts.grey import bent, blurred
from medssl.parts.schedules import generator
from medssl.parts.warp import CONTROL_POINTS, places_of, turned, uploaded, warp

NORMAL_NUMBERS = 2**22
"""Smallest length of the table of normal random numbers that noise is taken from."""

_PLANES = [(0, 1), (0, 2), (1, 2)]


class AugmentConfig(Settings):
    """The `augment` section; use the same for every method of a comparison."""

    preset: Literal["none", "weak", "strong"] = "strong"
    """`none`: no augmentation. `weak`, as in the semi-supervised literature: flips, quarter turns where sides and
    spacings are equal, slight changes of contrast and brightness, slight noise. `strong`, as in nnU-Net: also rotation,
    scaling, elastic deformation, gamma, blur, low resolution and stronger noise. With few labels, `strong` gains more
    points of Dice than most methods do."""
    flips: Annotated[tuple[Literal[0, 1, 2], ...], EACH_ONCE] = (0, 1, 2)
    """Axes along which patches may be mirrored (0 is X). Left and right classes are then swapped, see `data.sides`."""


@dataclass(frozen=True)
class Draw:
    """Augmentation of one sample; the defaults change nothing. Flips come first, intensity last."""

    flips: tuple[int, ...] = ()
    turns: tuple[tuple[int, int, int], ...] = ()
    """`(axis, axis, quarter turns)`."""
    matrix: NDArray[np.float64] | None = None
    """`(3, 3)`, output position to input position in voxels about the centre; None is the identity."""
    elastic: NDArray[np.float64] | None = None
    """`(3, P, P, P)`, displacement of the input position at each control point of a cubic B-spline, in voxels."""
    blur: float | None = None
    """Standard deviation in voxels, along all axes without thick slices."""
    zoom: float | None = None
    """Factor of a temporary reduction of the resolution, along the same axes."""
    gamma: float | None = None
    contrast: float = 1.0
    brightness: float = 0.0
    noise: float = 0.0
    """Standard deviation of the noise."""
    noise_seed: int = 0


class Augment:
    """Draws and applies the augmentation of an `AugmentConfig` for patches of a given size."""

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
            spacing: in mm along each axis, None where it differs between cases; such axes count as equally spaced.
            classes: number of classes in labels, including the background.
            ignores: whether labels may also contain IGNORED.
            mirrored: for each class with a left and a right form, the class that it becomes in a mirror image.
        """
        self.config, self.patch = config, tuple(patch)
        self.values = [*range(1, classes), *([IGNORED] if ignores else [])]
        self.turnable = [(a, b) for a, b in _PLANES if patch[a] == patch[b] and spacing[a] == spacing[b]]
        known = [s for s in spacing if s is not None]
        self.spacing = np.array([min(known, default=1.0) if s is None else s for s in spacing])
        self.fine = (self.spacing <= THICK_SLICE_RATIO * self.spacing.min()) & (np.array(self.patch) > 1)
        """Axes without thick slices, along which patches are rotated, scaled, deformed and blurred."""
        self.mirrored = dict(mirrored or {})
        self._in_a_mirror: dict[torch.device, Tensor] = {}
        self._banks: dict[tuple[torch.device, int], Tensor] = {}

    def draw(self, *seed: int) -> Draw:
        """Draw the augmentation of one sample from its seed."""
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
            label: `(B, X, Y, Z)` integer classes on the same grid, possibly with IGNORED.

        Returns:
            New tensors, the label as int64. With the preset `none`, the image itself and the label as int64.
        """
        if self.config.preset == "none":
            return image, None if label is None else label.long()
        rows, label = self._moved(image, draws, label)
        return self._shaded(rows, draws), label

    def views(self, image: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor | None]:
        """Augment a batch without labels, and return it also as it was before its grey levels were changed.

        Returns:
            Both `(B, M, X, Y, Z)`; the second is None with the preset `none`.
        """
        if self.config.preset == "none":
            return image, None
        rows, _ = self._moved(image, draws, None)
        return self._shaded(rows, draws), torch.stack(rows)

    def move(self, linear: Tensor, draws: Sequence[Draw], label: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Apply only the geometry, to any data on the image's grid.

        Args:
            linear: `(B, K, X, Y, Z)` float, interpolated linearly: images, probabilities, weights, masks. K may be 0.
            draws: one per sample.
            label: `(B, X, Y, Z)` integer classes; the class with the largest interpolated share wins.

        Returns:
            New tensors, the label as int64.
        """
        rows, label = self._moved(linear, draws, label)
        return torch.stack(rows), label

    def shade(self, image: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Apply only the changes of intensity, `(B, M, X, Y, Z)` float to a new tensor.

        Each channel has its own mean and range.
        """
        return self._shaded(list(image), draws)

    def _matrix(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw a scaling and rotation in mm, as a matrix for voxel positions.

        Axes with thick slices are left out, because the scan has no data between the slices to rotate into view.
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
        """Draw displacements of the control points, up to a fraction of the shortest side, none across thick slices."""
        sides = [n * s for n, s, fine in zip(self.patch, self.spacing, self.fine, strict=True) if fine and n > 1]
        moves = rng.uniform(-1, 1, (3, *3 * [CONTROL_POINTS])) * reach * min(sides, default=0.0)
        return np.asarray(moves * (self.fine / self.spacing)[:, None, None, None])

    def _moved(self, linear: Tensor, draws: Sequence[Draw], label: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Apply the geometry. Samples of `linear` are views where none was drawn; the label is a new tensor."""
        if linear.dim() != 5 or len(draws) != len(linear):
            raise ValueError(f"expected (B, K, X, Y, Z) and B draws, got {tuple(linear.shape)} and {len(draws)}")
        if label is not None and label.shape != (len(linear), *linear.shape[2:]):
            raise ValueError(f"label must be {(len(linear), *linear.shape[2:])}, got {tuple(label.shape)}")
        rows = _turned(linear, draws)
        labels = [] if label is None else self._sided(_turned(label, draws), draws)
        which = [i for i, draw in enumerate(draws) if draw.matrix is not None or draw.elastic is not None]
        # All samples at once; on a CPU one by one, so that they fit its cache.
        groups = [[i] for i in which] if linear.device.type == "cpu" else [which] if which else []
        for group in groups:
            with torch.autocast(linear.device.type, enabled=False):
                matrices, elastics = [draws[i].matrix for i in group], [draws[i].elastic for i in group]
                places = places_of(matrices, elastics, linear.shape[2:], linear.device)
                classes = [labels[i] for i in group if labels]
                warped, winners = warp([rows[i] for i in group], classes, places, self.values)
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

    def _sided(self, labels: list[Tensor], draws: Sequence[Draw]) -> list[Tensor]:
        """Swap left and right classes in samples that were mirrored along an odd number of axes.

        An even number of mirrored axes is a rotation. Axes of a single voxel do not count.
        """
        if not self.mirrored:
            return labels
        device = labels[0].device
        if device not in self._in_a_mirror:
            places = [self.mirrored.get(place, place) for place in range(IGNORED + 1)]
            self._in_a_mirror[device] = torch.tensor(places).to(device)
        other = self._in_a_mirror[device]
        mirrors = [sum(self.patch[axis] > 1 for axis in draw.flips) for draw in draws]
        return [
            other[row.long()].to(row.dtype) if count % 2 else row for row, count in zip(labels, mirrors, strict=True)
        ]

    def _shaded(self, rows: list[Tensor], draws: Sequence[Draw]) -> Tensor:
        """Apply the changes of intensity to samples `(M, X, Y, Z)`, which gives a new batch."""
        image = torch.stack([_filtered(row, draw, self.fine) for row, draw in zip(rows, draws, strict=True)])
        mean = image.mean((2, 3, 4), keepdim=True)
        tones = np.array([(1 - draw.contrast, draw.brightness) for draw in draws])
        [tones_there] = uploaded([tones.reshape(-1, 2, 1, 1, 1, 1)], image.device)
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
        """Table of normal random numbers, the same on every device; a draw says where in it the noise starts."""
        length = max(NORMAL_NUMBERS, least)
        if (device, length) not in self._banks:
            self._banks[device, length] = torch.randn(length, generator=generator(length)).to(device)
        return self._banks[device, length]


def _turned(batch: Tensor, draws: Sequence[Draw]) -> list[Tensor]:
    """Flip and turn the samples of a batch exactly."""
    return [turned(row, draw.flips, draw.turns) for row, draw in zip(batch, draws, strict=True)]


def _filtered(row: Tensor, draw: Draw, fine: Sequence[bool]) -> Tensor:
    """Apply blur, low resolution and gamma to one sample, `(M, X, Y, Z)`."""
    if draw.blur is not None:
        row = blurred(row, draw.blur, fine)
    if draw.zoom is not None:
        sides = zip(row.shape[1:], fine, strict=True)
        small = [max(1, round(n * draw.zoom)) if is_fine else n for n, is_fine in sides]
        low = F.interpolate(row[None], size=small, mode="trilinear", align_corners=False)  # "nearest" would shift it
        row = F.interpolate(low, size=row.shape[1:], mode="trilinear", align_corners=False)[0]
    if draw.gamma is not None:
        row = bent(row, draw.gamma)
    return row
