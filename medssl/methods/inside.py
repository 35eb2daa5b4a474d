"""Forward passes that change something inside the network: active dropout, or decoder channels dropped or weighted.

Noise is drawn from one seed per volume, so it does not depend on the number of devices that share a batch. Weights,
modes and the global random state do not change. A compiled network is run uncompiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from medssl.parts.agreement import by_agreement
from medssl.parts.perturb import dropped
from medssl.parts.schedules import mix


def dropout_layers(net: nn.Module) -> list[_DropoutNd]:
    """The dropout layers of a network whose rate is above 0."""
    return [module for module in net.modules() if isinstance(module, _DropoutNd) and module.p > 0]


def decoder_blocks(net: nn.Module) -> list[nn.Module]:
    """The decoder blocks, which join coarse and skipped features, as marked by `medssl.networks`."""
    return [module for module in net.modules() if hasattr(module, "encoded")]


def with_dropout(net: nn.Module, image: Tensor, seeds: Sequence[int]) -> Tensor:
    """Logits with active dropout, whatever mode the network is in."""

    def hook(number: int, whole: bool) -> Any:
        return lambda layer, inputs, output: dropped(inputs[0], layer.p, _apart(seeds, number), channels=whole)

    layers = enumerate(dropout_layers(net))
    return _hooked(net, image, [
        layer.register_forward_hook(hook(number, not isinstance(layer, nn.Dropout))) for number, layer in layers
    ])  # fmt: skip


def with_fewer_channels(net: nn.Module, image: Tensor, rate: float, seeds: Sequence[int]) -> Tensor:
    """Logits of a network whose decoder receives the encoder's features with a share of their channels dropped.

    The encoder's features are the skipped ones and the coarsest ones. The encoder itself and the decoder's own features
    are complete.
    """

    def hook(number: int) -> Any:
        return lambda block, inputs: tuple(
            _first_dropped(features, n, rate, _apart(seeds, number, place))
            for place, (features, n) in enumerate(zip(inputs, block.encoded, strict=True))
        )

    blocks = enumerate(decoder_blocks(net))
    return _hooked(net, image, [block.register_forward_pre_hook(hook(number)) for number, block in blocks])


def _first_dropped(features: Tensor, channels: int, rate: float, seeds: Sequence[int]) -> Tensor:
    if channels == 0:
        return features
    fewer = dropped(features[:, :channels], rate, seeds, channels=True)
    return fewer if channels == features.shape[1] else torch.cat([fewer, features[:, channels:]], 1)


def with_agreeing_channels(net: nn.Module, image: Tensor, views: int, strength: float) -> Tensor:
    """Logits of a network whose decoder weights its coarse and skipped channels by how far views agree on them.

    Args:
        image: `(V B, M, X, Y, Z)`, all B volumes in the first of V views, then in the second, and so on.
        strength: see `by_agreement`; 0 changes nothing.
    """

    def hook(block: nn.Module, inputs: Any) -> Any:
        return tuple(by_agreement(features, views, strength) for features in inputs)

    blocks = decoder_blocks(net) if strength > 0 else []
    return _hooked(net, image, [block.register_forward_pre_hook(hook) for block in blocks])


def _apart(seeds: Sequence[int], *place: int) -> list[int]:
    """Seeds that differ between places in the network."""
    return [mix(seed, *place) for seed in seeds]


def _hooked(net: nn.Module, image: Tensor, handles: Sequence[RemovableHandle]) -> Tensor:
    compiled = getattr(net, "_compiled_call_impl", None) is not None  # compiled code ignores later hooks
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            return cast(Tensor, net(image))
    finally:
        for handle in handles:
            handle.remove()
