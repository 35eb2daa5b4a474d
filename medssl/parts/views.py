"""Views: how a network sees an image, and how its prediction is mapped back to the image.

A view does not depend on the network and is not random. `Viewed` applies it in training and at inference alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

MOST_GAIN = 20.0
"""Largest amplification of a band; fainter bands are mostly rounding errors."""


class View(Protocol):
    """A transform of images for a network, with the inverse for its logits."""

    def apply(self, image: Tensor) -> Tensor:
        """Return the network's input for `(B, M, X, Y, Z)`."""

    def undo(self, logits: Tensor) -> Tensor:
        """Return the network's logits `(B, C, ...)` on the axes of the image, `(B, C, X, Y, Z)`."""


@dataclass(frozen=True)
class Identity:
    """The unchanged image."""

    def apply(self, image: Tensor) -> Tensor:
        return image

    def undo(self, logits: Tensor) -> Tensor:
        return logits


@dataclass(frozen=True)
class Axes:
    """The image with its axes in another order.

    The sides of the patch and the spacing must suit the network in that order.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    """Image axes (0 is X) that become the first, second and third axis of the network's input."""

    def __post_init__(self) -> None:
        if sorted(self.order) != [0, 1, 2]:
            raise ValueError(f"order must name each of the axes 0, 1 and 2 once, got {self}")

    def apply(self, image: Tensor) -> Tensor:
        return image.permute(0, 1, *(2 + axis for axis in self.order))

    def undo(self, logits: Tensor) -> Tensor:
        return logits.permute(0, 1, *(2 + self.order.index(axis) for axis in range(3)))


@dataclass(frozen=True)
class Band:
    """The low or the high frequencies of an image, with a share of the other band.

    The result has the standard deviation of the image in each volume and modality, because high frequencies are often
    ten times fainter than low ones. It is computed in float32.
    """

    which: Literal["low", "high"]
    split: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Low and high frequencies of `(B, M, X, Y, Z)`, which sum to the image."""
    leak: float = 0.0
    """Factor on the other band: 0 gives the band alone, 1 the image itself."""

    def apply(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            low, high = self.split(image)
            kept, other = (low, high) if self.which == "low" else (high, low)
            return _as_loud_as(image, torch.add(kept, other, alpha=self.leak))

    def undo(self, logits: Tensor) -> Tensor:
        return logits


class Viewed(nn.Module):
    """A network behind a view: its input is the image, its output has the axes of the image.

    Training patches and inference windows are thus treated alike. The view has no weights, so networks behind different
    views can follow each other. The names of the weights are those of the network with the prefix `net.`.
    """

    def __init__(self, net: nn.Module, view: View) -> None:
        super().__init__()
        self.net, self.view = net, view

    def forward(self, image: Tensor) -> Tensor:
        return self.view.undo(cast(Tensor, self.net(self.view.apply(image))))


def bare(net: nn.Module) -> nn.Module:
    """Return the network behind all its views."""
    return bare(net.net) if isinstance(net, Viewed) else net


def _as_loud_as(image: Tensor, band: Tensor) -> Tensor:
    """The band, amplified to the image's standard deviation in each volume and modality."""
    wanted, own = (torch.std(x, (2, 3, 4), keepdim=True, correction=0) for x in (image, band))
    gain = wanted / torch.maximum(own, wanted / MOST_GAIN).clamp_min(torch.finfo(image.dtype).tiny)
    return torch.where(wanted > 0, band * gain, band)
