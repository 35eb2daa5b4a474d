"""A run: its settings, its folder, and its method built from them.

run/config.yaml   the resolved settings      run/metrics.csv   one row per logged step
run/splits.json   the cases of each part     run/events/       TensorBoard
run/env.json      versions and machine       run/last.pt best.pt
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, SerializeAsAny, field_validator, model_validator
from torch import nn

from medssl.augment import AugmentConfig
from medssl.boards import LoggingConfig
from medssl.config import Settings, merge, parse
from medssl.data.cases import DatasetConfig
from medssl.device import choose_precision
from medssl.errors import ConfigError
from medssl.methods import METHODS
from medssl.methods.base import Method, MethodConfig
from medssl.networks import NetworkConfig, check_patch, make_network
from medssl.predictor import Predictor, WindowConfig, chosen_networks
from medssl.trainer import TrainConfig


class ProtocolConfig(Settings):
    """The `protocol` section: the published protocol that the other sections follow. It is recorded and reported, and
    changes nothing in the run."""

    name: str
    """Name of the protocol in reports."""
    sources: tuple[str, ...] = Field(min_length=1)
    """Sources from which the protocol was taken."""
    convention: Literal["ssl4mis"]
    """Metric convention of the protocol's published numbers; see `medssl evaluate`."""
    departures: tuple[str, ...] = ()
    """Differences from the published settings that remain because medssl has no such setting. Reports list them."""


class RunConfig(Settings):
    """All settings of a run, and in `logging` where it is logged."""

    name: str = ""
    """Name of the method in reports; it tells variants of one method apart. Empty: `method.name`."""
    data: DatasetConfig
    method: SerializeAsAny[MethodConfig]
    network: NetworkConfig = NetworkConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    window: WindowConfig = WindowConfig()
    protocol: ProtocolConfig | None = None
    """The published protocol that the other sections follow, if any."""
    logging: LoggingConfig = LoggingConfig()

    @field_validator("method", mode="before")
    @classmethod
    def _of_its_class(cls, value: Any) -> Any:
        return parse_method(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _a_weight_for_each_class(self) -> RunConfig:
        weights, names = self.train.class_weights, self.data.classes[1:]
        if weights is not None and (len(weights) != len(names) or not any(weights)):
            raise ValueError(f"`train.class_weights` must have a number for each of {', '.join(names)}, at least one "
                             f"above 0, got {list(weights)}")  # fmt: skip
        return self

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, as config.yaml and checkpoints hold them."""
        return self.model_dump(mode="json")


def load_run_config(files: Sequence[Path | str], overrides: Sequence[str] = ()) -> RunConfig:
    """Merge YAML files and overrides into the settings of a run.

    Raises:
        ConfigError: unknown or ill-typed keys, all listed; an unknown method.
    """
    return parse(RunConfig, merge(files, overrides))


def parse_method(values: dict[str, Any]) -> MethodConfig:
    """Return the `method` section as the settings of the method that it names.

    Raises:
        ConfigError: an unknown method, or unknown or ill-typed keys.
    """
    name = values.get("name")
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"method.name: {name!r} is not a method; there are {', '.join(METHODS)}")
    return parse(METHODS[name].Config, values, where="method")


def build_method(config: RunConfig) -> Method:
    """Return the method with new networks on the CPU; the same seed gives the same weights."""
    channels, classes = len(config.data.channels), len(config.data.classes)
    settings = config.method.on_grid(config.data.recipe.nominal_spacing)

    def make_net(**changes: Any) -> nn.Module:
        network = config.network.changed(**changes)
        for patch in (config.train.patch, config.window.patch or config.train.patch):
            check_patch(patch, network)
        return make_network(network, channels, classes)

    torch.manual_seed(config.train.seed)
    return METHODS[config.method.name](settings, make_net)


def make_predictor(method: Method, config: RunConfig, device: torch.device) -> Predictor:
    """Return the predictor of a method in memory, with the settings of a run."""
    return predictor_of(chosen_networks(method, config.window.network), config, device)


def predictor_of(networks: Sequence[nn.Module], config: RunConfig, device: torch.device) -> Predictor:
    """Return the predictor of networks that are already on the device, with the settings of a run."""
    data, precision = config.data, choose_precision(config.train.precision, device)
    flips = () if config.augment.preset == "none" else config.augment.flips
    return Predictor(networks, data.recipe, config.window, patch=config.train.patch, channels=data.channels,
                     classes=data.classes, device=device, precision=precision, flips=flips,
                     mirrored=data.mirrored_places)  # fmt: skip
