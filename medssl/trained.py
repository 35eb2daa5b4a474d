"""Networks that predict and their settings, from a run folder or from a model folder that `medssl export` wrote.

A model folder can be given to another site: model.yaml holds the settings that prediction needs, and weights.pt the
networks that predict, from one or several runs. Neither file contains a path or the name of a case or patient.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from medssl import __version__
from medssl.checkpoint import load_checkpoint, save_checkpoint, steps_of
from medssl.config import dump, load_yaml, parse
from medssl.data.likeness import Likeness
from medssl.errors import ConfigError, DataError
from medssl.predictor import Predictor, chosen_networks
from medssl.run import RunConfig, build_method, predictor_of

MODEL, WEIGHTS = "model.yaml", "weights.pt"
FORMAT = 1

_SHARED: dict[str, tuple[str, ...]] = {
    "data": ("name", "channels", "classes", "values", "ignore", "regions", "sides", "recipe"),
    "augment": ("preset", "flips"),
    "train": ("patch", "precision", "seed"),
}
"""The keys of these sections that a model folder holds; other sections are held completely or not at all."""


@dataclass(frozen=True)
class Trained:
    """The networks and settings of one run, as prediction needs them."""

    config: RunConfig
    networks: Sequence[nn.Module]
    """The networks that `config.window.network` selects."""
    checkpoint: str
    """Name of the file that they were saved in."""
    iteration: int
    """Training steps that they were saved after."""
    forerunners: int = 0
    """Number of patients that earlier runs, from which it was started, were trained on; 0 for a model folder, which
    does not record it."""

    likeness: Likeness | None = None
    """What its training scans are like; None if unknown."""

    def predictor(self, device: torch.device) -> Predictor:
        """Return a predictor with its networks on a device."""
        predictor = predictor_of([net.to(device) for net in self.networks], self.config, device)
        predictor.likeness = self.likeness
        return predictor


def is_model_folder(folder: Path) -> bool:
    """Return whether a folder is a model folder, as `medssl export` writes it."""
    return (folder / MODEL).is_file()


def load_trained(folder: Path, checkpoint: str = "best", window: Mapping[str, Any] | None = None) -> list[Trained]:
    """Load the networks of a run folder, or of each run in a model folder, on the CPU.

    Args:
        checkpoint: `best` (by validation Dice; `last` if nothing was validated) or `last`.
        window: settings of the `window` section that replace the run's.

    Raises:
        DataError: the folder is neither, or its files cannot be read.
        ConfigError: a model folder does not hold the checkpoint or the networks that are asked for.
    """
    if is_model_folder(folder):
        return _load_model(folder, checkpoint, window or {})
    return [_load_run(folder, checkpoint, window or {})]


def refuse_unlike(run: Path, ours: Trained, path: Path, theirs: Trained) -> None:
    """Raise a ConfigError if probabilities of the run at `path` cannot be averaged with those of `run`."""
    if apart := ours.config.data.difference(theirs.config.data, "classes", "channels", "recipe"):
        key, one, other = apart
        raise ConfigError(
            f"{path}: its data.{key} differs from that of {run}, so their probabilities cannot be averaged\n"
            f"  {other}\n  {one}"
        )


def save_model(folder: Path, runs: Sequence[Trained]) -> None:
    """Write model.yaml and weights.pt."""
    about = [
        {"checkpoint": one.checkpoint, "iteration": one.iteration, "settings": shared_settings(one.config),
         "likeness": one.likeness and one.likeness.model_dump(mode="json")}
        for one in runs
    ]  # fmt: skip
    dump({"format": FORMAT, "medssl": __version__, "runs": about}, folder / MODEL)
    save_checkpoint(folder / WEIGHTS, {"runs": [[net.state_dict() for net in one.networks] for one in runs]})


def shared_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that prediction needs, as plain values, without anything about patients or the machine."""
    plain = _without_paths(
        config.model_dump(include={"name", "data", "method", "network", "augment", "train", "window"})
    )
    for section, keys in _SHARED.items():
        plain[section] = {key: plain[section][key] for key in keys}
    made: dict[str, Any] = json.loads(json.dumps(plain))  # turns tuples into lists, since YAML has no tuples
    return made


def _without_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_paths(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if not isinstance(value, Path)
    }


def _load_run(run: Path, checkpoint: str, window: Mapping[str, Any]) -> Trained:
    path = run / f"{checkpoint}.pt"
    if checkpoint == "best" and not path.exists() and (run / "last.pt").exists():
        path = run / "last.pt"
    if (run / "configs" / "metadata.json").is_file():
        raise DataError(
            f"{run}: is a MONAI bundle, which MONAI runs (see its docs/README.md); name the run that it was made from"
        )
    if not path.exists() and not (run / "config.yaml").exists():
        raise DataError(
            f"{run}: is neither a run folder ({path.name}, config.yaml) nor a model folder ({MODEL}); name the run "
            "before the images: `medssl predict RUN IMAGES`"
        )
    values = load_checkpoint(path)
    config = _with_window(values["config"], window)
    method = build_method(config)
    method.load_state_dict(values["method"])
    _tell_if_unfinished(run, path, values["iteration"], config.train.iterations)
    return Trained(
        config,
        chosen_networks(method, config.window.network),
        checkpoint=path.name,
        iteration=values["iteration"],
        likeness=_likeness_of(values),
        forerunners=sum(len(people["learned"]) for people in values.get("seen_before", {}).values()),
    )


def _tell_if_unfinished(run: Path, path: Path, step: int, planned: int) -> None:
    last, weights = run / "last.pt", "weights"
    if path != last:
        if not last.exists():
            return  # only the best weights were copied
        step, weights = steps_of(last), f"best weights, of step {step}"
    if step < planned:
        print(f"medssl: {run} is not finished ({step} of {planned} steps); using its {weights}", file=sys.stderr)


def _load_model(folder: Path, checkpoint: str, window: Mapping[str, Any]) -> list[Trained]:
    path = folder / MODEL
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
        about = list(values["runs"]) if values["format"] == FORMAT else []
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not as `medssl export` writes it ({type(error).__name__}: {error})") from None
    if not about:
        raise DataError(f"{path}: expected format {FORMAT}, found {values['format']!r}; this is medssl {__version__}")
    try:
        weights = load_checkpoint(folder / WEIGHTS)["runs"]
        return [_exported(folder, *each, checkpoint, window) for each in zip(about, weights, strict=True)]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{folder}: {MODEL} and {WEIGHTS} do not match, or `medssl export` did not write them "
                        f"({type(error).__name__}: {error})") from None  # fmt: skip


def _exported(
    folder: Path, about: Mapping[str, Any], states: Sequence[Any], checkpoint: str, window: Mapping[str, Any]
) -> Trained:
    """Build one run of a model folder from its entry in model.yaml and its networks' weights."""
    held = about["settings"]["window"]["network"]
    if (wanted := window.get("network", held)) != held:
        raise ConfigError(f"{folder}: holds only the networks of --network {held}; export the run with "
                          f"--network {wanted}")  # fmt: skip
    if checkpoint == "last" and about["checkpoint"] != "last.pt":
        raise ConfigError(f"{folder}: holds only the weights of {about['checkpoint']}; export the run with "
                          "--checkpoint last")  # fmt: skip
    config = _with_window(about["settings"], window)
    networks = chosen_networks(build_method(config), config.window.network)
    for net, state in zip(networks, states, strict=True):
        net.load_state_dict(state)
    return Trained(config, networks, checkpoint=about["checkpoint"], iteration=about["iteration"],
                   likeness=_likeness_of(about))  # fmt: skip


def _likeness_of(values: Mapping[str, Any]) -> Likeness | None:
    plain = values.get("likeness")
    return None if plain is None else parse(Likeness, plain, where="likeness")


def _with_window(plain: Mapping[str, Any], window: Mapping[str, Any]) -> RunConfig:
    return parse(RunConfig, {**plain, "window": {**plain["window"], **window}})
