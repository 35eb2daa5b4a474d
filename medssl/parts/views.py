"""Views: what a network is shown of an image, and how its prediction comes back.

A view knows no network and draws nothing: it is the same in training and at inference, which `Viewed` sees to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

MOST_GAIN = 20.0
"""How many times a band is amplified at most; what is fainter is noise of the arithmetic."""


class View(Protocol):
    """One way of looking at images."""

    def apply(self, image: Tensor) -> Tensor:
        """What the network is shown of `(B, M, X, Y, Z)`."""

    def undo(self, logits: Tensor) -> Tensor:
        """The network's `(B, C, ...)` on the image's own axes, `(B, C, X, Y, Z)`."""


@dataclass(frozen=True)
class Identity:
    """The image as it is."""

    def apply(self, image: Tensor) -> Tensor:
        return image

    def undo(self, logits: Tensor) -> Tensor:
        return logits


@dataclass(frozen=True)
class Axes:
    """The axes in another order.

    A network behind it must be able to take the sides, and the spacing, in that order.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    """Which axis of the image (0 is X) becomes the first, second and third that the network sees."""

    def __post_init__(self) -> None:
        if sorted(self.order) != [0, 1, 2]:
            raise ValueError(f"order must name each of the axes 0, 1 and 2 once, got {self}")

    def apply(self, image: Tensor) -> Tensor:
        return image.permute(0, 1, *(2 + axis for axis in self.order))

    def undo(self, logits: Tensor) -> Tensor:
        return logits.permute(0, 1, *(2 + self.order.index(axis) for axis in range(3)))


@dataclass(frozen=True)
class Band:
    """The low or the high frequencies of an image, with some of the others.

    Each volume's band is brought to the standard deviation of the image it comes from: high frequencies are often ten
    times fainter than low ones. All is in float32.
    """

    which: Literal["low", "high"]
    split: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Low and high frequencies of `(B, M, X, Y, Z)`, which sum to the image."""
    leak: float = 0.0
    """How much of the other band is mixed in: 0 is the band alone, 1 the image itself."""

    def apply(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            low, high = self.split(image)
            kept, other = (low, high) if self.which == "low" else (high, low)
            return _as_loud_as(image, torch.add(kept, other, alpha=self.leak))

    def undo(self, logits: Tensor) -> Tensor:
        return logits


class Viewed(nn.Module):
    """A network behind a view: what goes in is the image, what comes out lies on the image's axes.

    Training patches and inference windows are thus treated alike. The view has no weights, so that networks behind
    different views can follow each other; the names of the weights are those of the network after `net.`.
    """

    def __init__(self, net: nn.Module, view: View) -> None:
        super().__init__()
        self.net, self.view = net, view

    def forward(self, image: Tensor) -> Tensor:
        return self.view.undo(cast(Tensor, self.net(self.view.apply(image))))


def bare(net: nn.Module) -> nn.Module:
    """The network behind its views."""
    return bare(net.net) if isinstance(net, Viewed) else net


def _as_loud_as(image: Tensor, band: Tensor) -> Tensor:
    """The band, amplified to the image's standard deviation in each volume and modality."""
    wanted, own = (torch.std(x, (2, 3, 4), keepdim=True, correction=0) for x in (image, band))
    gain = wanted / torch.maximum(own, wanted / MOST_GAIN).clamp_min(torch.finfo(image.dtype).tiny)
    return torch.where(wanted > 0, band * gain, band)
