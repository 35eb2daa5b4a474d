"""MONAI's 3D U-Nets, built from settings."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from medssl.config import Settings, parse
from medssl.errors import ConfigError
from medssl.parts.views import Axes, Viewed

GROUPS = 8
"""Number of groups with `norm: group`."""
PerAxis = PositiveInt | tuple[PositiveInt, PositiveInt, PositiveInt]


class NetworkConfig(Settings):
    """The `network` section. A stride or kernel is one number for all axes, or a list of three, one per axis, for thick
    slices."""

    name: Literal["dynunet", "unet"] = "dynunet"
    """`dynunet`: two convolutions per level, starting at full resolution, as in nnU-Net. `unet`: MONAI's light U-Net,
    whose first convolution already downsamples; several times faster, slightly coarser."""
    channels: tuple[PositiveInt, ...] = Field((32, 64, 128, 256, 320), min_length=2)
    """Feature maps at each level, finest level first."""
    strides: tuple[PerAxis, ...] = (2, 2, 2, 2)
    """Downsampling factor from each level to the next; one entry fewer than `channels`."""
    kernels: tuple[PerAxis, ...] = (3,)
    """Kernel size at each level, odd. A single entry applies to all levels."""
    flat_levels: int = Field(0, ge=0)
    """Number of levels, from the finest, whose kernels are one voxel thick along the network's third axis."""
    axes: tuple[int, int, int] = (0, 1, 2)
    """Image axes (0 is X) that the network takes as its first, second and third axis. Kernels refer to the network's
    axes, strides to the image's."""
    norm: Literal["instance", "batch", "group"] = "instance"
    """Normalisation layer. With several processes, `batch` works on GPUs only."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that an activation of a student is dropped in training. UA-MT and UMCT need it to measure
    uncertainty."""
    residual_units: int = Field(0, ge=0)
    """Convolutions per level that a residual connection spans; 0: no residual connections. `dynunet` allows 0 or 2 and
    uses them in its encoder only."""

    @model_validator(mode="after")
    def _lengths(self) -> NetworkConfig:
        if len(self.strides) != len(self.channels) - 1:
            raise ValueError(
                f"strides: must have {len(self.channels) - 1} entries, one fewer than channels, got {len(self.strides)}"
            )
        if len(self.kernels) not in (1, len(self.channels)):
            raise ValueError(
                f"kernels: must have 1 entry or {len(self.channels)}, one per level, got {len(self.kernels)}"
            )
        if self.name == "dynunet" and len(self.channels) < 3:
            raise ValueError(f"channels: must have at least 3 entries for dynunet, got {len(self.channels)}")
        if self.name == "dynunet" and self.residual_units not in (0, 2):
            raise ValueError(f"residual_units: must be 0 or 2 for dynunet, got {self.residual_units}")
        if any(side % 2 == 0 for kernel in self.kernels for side in _triple(kernel)):
            raise ValueError(f"kernels: sizes must be odd, got {list(self.kernels)}")
        if self.norm == "group" and any(count % GROUPS for count in self.channels):
            raise ValueError(f"channels: must be multiples of {GROUPS} for norm group, got {list(self.channels)}")
        if sorted(self.axes) != [0, 1, 2]:
            raise ValueError(f"axes must name each of 0, 1 and 2 once, got {list(self.axes)}")
        if self.name == "unet" and len(set(self.level_kernels)) > 1:
            raise ValueError(
                "kernels, flat_levels: unet must have the same kernel at all levels; use dynunet for different kernels"
            )
        return self

    @property
    def level_kernels(self) -> list[tuple[int, int, int]]:
        """The kernel of each level, along the network's axes."""
        kernels = [_triple(kernel) for kernel in self.kernels] * (len(self.channels) if len(self.kernels) == 1 else 1)
        return [(x, y, 1 if level < self.flat_levels else z) for level, (x, y, z) in enumerate(kernels)]

    @property
    def total_stride(self) -> tuple[int, int, int]:
        """Product of the strides along each image axis, by which the sides of a patch must be divisible."""
        total = [1, 1, 1]
        for stride in self.strides:
            total = [t * s for t, s in zip(total, _triple(stride), strict=True)]
        return total[0], total[1], total[2]

    def changed(self, **changes: Any) -> NetworkConfig:
        """Return these settings with some values replaced.

        Raises:
            ConfigError: an unknown setting, or values that do not fit together.
        """
        return parse(NetworkConfig, {**self.model_dump(), **changes}, where="network")


def make_network(config: NetworkConfig, channels: int, classes: int) -> nn.Module:
    """Return a randomly initialised network from `(B, channels, X, Y, Z)` to logits `(B, classes, X, Y, Z)`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks import nets

    name, arguments = monai_network(config, channels, classes)
    net: nn.Module = getattr(nets, name)(**arguments)
    net.made_from = config  # type: ignore[assignment]  # for an export, which has only the network
    for block, encoded in _decoder(net, config):
        block.encoded = encoded  # type: ignore[assignment]  # for methods that perturb features
    return net if config.axes == (0, 1, 2) else Viewed(net, Axes(config.axes))


def monai_network(config: NetworkConfig, channels: int, classes: int) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of MONAI's network class, for axes in the order of `config.axes`."""
    strides = [tuple(_triple(stride)[axis] for axis in config.axes) for stride in config.strides]
    kernels = config.level_kernels
    norm = {"instance": ("instance", {"affine": True}), "batch": "batch", "group": ("group", {"num_groups": GROUPS})}
    shared = {"spatial_dims": 3, "in_channels": channels, "out_channels": classes}
    if config.name == "unet":
        return "UNet", {
            **shared, "channels": config.channels, "strides": strides, "kernel_size": kernels[0],
            "up_kernel_size": kernels[0], "num_res_units": config.residual_units, "norm": norm[config.norm],
            "dropout": config.dropout,
        }  # fmt: skip
    return "DynUNet", {
        **shared, "filters": config.channels, "kernel_size": kernels, "strides": [(1, 1, 1), *strides],
        "upsample_kernel_size": strides, "norm_name": norm[config.norm], "dropout": config.dropout or None,
        "res_block": config.residual_units > 0,
    }  # fmt: skip


def _decoder(net: nn.Module, config: NetworkConfig) -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    """Decoder blocks of a MONAI U-Net, which join coarse and skipped features, the finest first.

    Each comes with the number of leading channels of each of its inputs that are the encoder's. At the coarsest block,
    all channels are.
    """
    from monai.networks.blocks import UnetUpBlock
    from monai.networks.layers.simplelayers import SkipConnection

    joined = [  # in a UNet, a block gets both in one input
        after
        for module in net.modules()
        if isinstance(module, nn.Sequential)
        for skip, after in pairwise(module)
        if isinstance(skip, SkipConnection)
    ]
    apart = [module for module in net.modules() if isinstance(module, UnetUpBlock)][::-1]  # in a DynUNet, in two
    blocks = joined or apart
    for block, (fine, coarse) in zip(blocks, pairwise(config.channels), strict=True):
        reached = coarse if block is blocks[-1] else 0
        yield block, (fine + reached,) if joined else (reached, fine)


def checkpoint_activations(net: nn.Module) -> None:
    """Make each block of a network keep only its inputs in training, and recompute the rest in the backward pass.

    Losses, gradients (also with dropout) and the names of weights do not change. Nor does a forward pass without
    gradients or in evaluation mode.

    Raises:
        ConfigError: the network has batch norm, whose running statistics would be updated twice.
    """
    if any(isinstance(module, _BatchNorm) for module in net.modules()):
        raise ConfigError(
            "train.activation_checkpointing computes each block twice, and network.norm: batch would count each batch "
            "twice in its running statistics; use network.norm: instance or group"
        )
    for block in _blocks(net):
        block.forward = functools.partial(_forward, block)  # a copy of the network gets a partial of its own block


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The outermost blocks of layers in a MONAI U-Net."""
    from monai.networks.blocks import Convolution, ResidualUnit, UnetBasicBlock, UnetResBlock, UnetUpBlock

    for child in net.children():
        if isinstance(child, (UnetBasicBlock, UnetResBlock, UnetUpBlock, ResidualUnit, Convolution)):
            yield child
        else:
            yield from _blocks(child)


def _forward(block: nn.Module, *inputs: torch.Tensor) -> Any:
    forward = functools.partial(type(block).forward, block)
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, *inputs, use_reentrant=False)
    return forward(*inputs)


def check_patch(patch: tuple[int, int, int], config: NetworkConfig) -> None:
    """Check that a patch or window passes through the network and keeps its size.

    Raises:
        ConfigError: it does not.
    """
    stride = config.total_stride
    if any(side % s for side, s in zip(patch, stride, strict=True)):
        fitting = tuple(max(s, round(side / s) * s) for side, s in zip(patch, stride, strict=True))
        raise ConfigError(
            f"patch {list(patch)} is not divisible by the network's strides {list(stride)}; "
            f"the nearest patch that is: {list(fitting)}"
        )
    if config.norm == "instance" and tuple(patch) == stride:
        raise ConfigError(
            f"patch {list(patch)} becomes a single voxel after the network's strides {list(stride)}, and instance "
            "norm needs more than one; enlarge the patch or use fewer strides"
        )


def count_parameters(net: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def _triple(value: PerAxis) -> tuple[int, int, int]:
    return (value, value, value) if isinstance(value, int) else value
