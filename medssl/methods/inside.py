"""Forward passes with something done inside the network: dropout where it predicts, and a decoder whose channels are
missing or weighed.

Noise is drawn from one seed per volume, so it is the same on however many devices a batch is spread. Weights, modes and
global random state are left alone, and so is a compiled network, which is run as it was before compilation.
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
    """The layers of a network that drop something."""
    return [module for module in net.modules() if isinstance(module, _DropoutNd) and module.p > 0]


def decoder_blocks(net: nn.Module) -> list[nn.Module]:
    """The blocks that put coarse and skipped features together, as `medssl.networks` marks them."""
    return [module for module in net.modules() if hasattr(module, "encoded")]


def with_dropout(net: nn.Module, image: Tensor, seeds: Sequence[int]) -> Tensor:
    """Logits with live dropout, whatever mode the network is in."""

    def hook(number: int, whole: bool) -> Any:
        return lambda layer, inputs, output: dropped(inputs[0], layer.p, _apart(seeds, number), channels=whole)

    layers = enumerate(dropout_layers(net))
    return _hooked(net, image, [
        layer.register_forward_hook(hook(number, not isinstance(layer, nn.Dropout))) for number, layer in layers
    ])  # fmt: skip


def with_fewer_channels(net: nn.Module, image: Tensor, rate: float, seeds: Sequence[int]) -> Tensor:
    """Logits of a decoder that gets the encoder's features with a share of the channels missing.

    These are the skipped features and the coarsest ones. The encoder is whole, and so are the decoder's own features.
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
    """Logits of a decoder whose channels, coarse and skipped ones, weigh by how far views agree on them.

    Args:
        image: `(V B, M, X, Y, Z)`, B volumes as each of the V views shows them.
        strength: see `by_agreement`; 0 leaves the network as it is.
    """

    def hook(block: nn.Module, inputs: Any) -> Any:
        return tuple(by_agreement(features, views, strength) for features in inputs)

    blocks = decoder_blocks(net) if strength > 0 else []
    return _hooked(net, image, [block.register_forward_pre_hook(hook) for block in blocks])


def _apart(seeds: Sequence[int], *place: int) -> list[int]:
    """Other seeds for each place in the network."""
    return [mix(seed, *place) for seed in seeds]


def _hooked(net: nn.Module, image: Tensor, handles: Sequence[RemovableHandle]) -> Tensor:
    compiled = getattr(net, "_compiled_call_impl", None) is not None  # such code does not look at hooks that came later
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            return cast(Tensor, net(image))
    finally:
        for handle in handles:
            handle.remove()
