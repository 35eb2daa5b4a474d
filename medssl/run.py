"""A run: its settings, its folder, and its method built from them.

run/config.yaml   the resolved settings      run/metrics.csv   one row per logged step
run/splits.json   who trained, who did not   run/events/       TensorBoard
run/env.json      versions and machine       run/last.pt best.pt
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import SerializeAsAny, field_validator
from torch import nn

from medssl import __version__
from medssl.augment import AugmentConfig
from medssl.config import Settings, merge, parse
from medssl.data.cases import DatasetConfig
from medssl.device import choose_precision
from medssl.errors import ConfigError
from medssl.methods import METHODS
from medssl.methods.base import Method, MethodConfig
from medssl.networks import NetworkConfig, check_patch, make_network
from medssl.predictor import Predictor, WindowConfig, chosen_networks
from medssl.trainer import TrainConfig


class RunConfig(Settings):
    """Everything that decides a run."""

    name: str = ""
    """What reports call the method; empty: `method.name`. It tells variants of one method apart."""
    data: DatasetConfig
    method: SerializeAsAny[MethodConfig]
    network: NetworkConfig = NetworkConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    window: WindowConfig = WindowConfig()

    @field_validator("method", mode="before")
    @classmethod
    def _of_its_class(cls, value: Any) -> Any:
        return parse_method(value) if isinstance(value, dict) else value

    def to_plain(self) -> dict[str, Any]:
        """Plain values, as config.yaml and checkpoints hold them."""
        return self.model_dump(mode="json")


def load_run_config(files: Sequence[Path], overrides: Sequence[str] = ()) -> RunConfig:
    """Merge YAML files and overrides into the settings of a run.

    Raises:
        ConfigError: unknown or ill-typed keys, all listed; an unknown method.
    """
    return parse(RunConfig, merge(files, overrides))


def parse_method(values: dict[str, Any]) -> MethodConfig:
    """The `method` section as the settings of the class that its name stands for."""
    name = values.get("name")
    if name not in METHODS:
        raise ConfigError(f"method.name: {name!r} is not a method; there are {', '.join(METHODS)}")
    return parse(METHODS[name].Config, values, where="method")


def build_method(config: RunConfig) -> Method:
    """The method with freshly initialised networks, on the CPU, the same ones for the same seed."""
    channels, classes = len(config.data.channels), len(config.data.classes)

    def make_net(**changes: Any) -> nn.Module:
        network = config.network.changed(**changes)
        for patch in (config.train.patch, config.window.patch or config.train.patch):
            check_patch(patch, network)
        return make_network(network, channels, classes)

    torch.manual_seed(config.train.seed)
    return METHODS[config.method.name](config.method, make_net)


def make_predictor(method: Method, config: RunConfig, device: torch.device) -> Predictor:
    """The predictor of a method in memory, as its settings say."""
    networks = chosen_networks(method, config.window.network)
    data, precision = config.data, choose_precision(config.train.precision, device)
    return Predictor(networks, data.recipe, config.window, patch=config.train.patch, channels=len(data.channels),
                     classes=data.classes, device=device, precision=precision)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions and machine, for env.json."""
    cuda = torch.cuda.is_available()
    return {
        "medssl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": version("monai"),
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }
