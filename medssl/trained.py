"""Networks that predict and their settings, from a run folder or from the model folder that `medssl export` makes.

A model folder is what another site may have: model.yaml holds the settings that prediction needs, weights.pt the
networks that predict, of one run or of several. In neither stands a name of a case or patient, or a path.
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
"""Of these sections, the keys that a model folder has; of others all or none."""


@dataclass(frozen=True)
class Trained:
    """What one run brings to a prediction."""

    config: RunConfig
    networks: Sequence[nn.Module]
    """Those that `config.window.network` names."""
    checkpoint: str
    """The file that they were saved in."""
    iteration: int
    """Steps that they had learned for."""
    forerunners: int = 0
    """Patients from whom the runs learned that it was started from; unknown, and 0, from a model folder."""

    likeness: Likeness | None = None
    """What the scans that it learned from are like."""

    def predictor(self, device: torch.device) -> Predictor:
        """The predictor of its networks."""
        predictor = predictor_of([net.to(device) for net in self.networks], self.config, device)
        predictor.likeness = self.likeness
        return predictor


def is_model_folder(folder: Path) -> bool:
    """Whether `medssl export` made it."""
    return (folder / MODEL).is_file()


def load_trained(folder: Path, checkpoint: str = "best", window: Mapping[str, Any] | None = None) -> list[Trained]:
    """What a run folder holds, or each of the runs that a model folder was made of; on the CPU.

    Args:
        checkpoint: `best` (by validation Dice; `last` where nothing was validated) or `last`.
        window: settings of the `window` section that replace the run's.

    Raises:
        DataError: it is neither, or its files cannot be read.
        ConfigError: a model folder was made of another checkpoint or of other networks than are asked for.
    """
    if is_model_folder(folder):
        return _load_model(folder, checkpoint, window or {})
    return [_load_run(folder, checkpoint, window or {})]


def refuse_unlike(run: Path, ours: Trained, path: Path, theirs: Trained) -> None:
    """Raise a ConfigError where probabilities of the run at `path` have no mean with those of `run`."""
    if apart := ours.config.data.difference(theirs.config.data, "classes", "channels", "recipe"):
        key, one, other = apart
        raise ConfigError(
            f"{path}: its {key} are not those of {run}, so their probabilities have no mean\n  {other}\n  {one}"
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
    """The settings that prediction needs, as plain values; nothing that tells of patients or of a machine."""
    plain = _without_paths(
        config.model_dump(include={"name", "data", "method", "network", "augment", "train", "window"})
    )
    for section, keys in _SHARED.items():
        plain[section] = {key: plain[section][key] for key in keys}
    made: dict[str, Any] = json.loads(json.dumps(plain))  # lists, as YAML has no tuples
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
        raise DataError(f"{run}: is a MONAI bundle, which MONAI runs (its docs/README.md); name the run it is made of")
    if not path.exists() and not (run / "config.yaml").exists():
        raise DataError(
            f"{run}: no run folder, as it holds neither {path.name} nor config.yaml, and no model folder, as it holds "
            f"no {MODEL}; the run comes before the images: `medssl predict RUN IMAGES`"
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
            return  # the weights were copied alone
        step, weights = steps_of(last), f"best weights, of step {step},"
    if step < planned:
        done = f"after {step} of {planned} steps"
        print(f"medssl: {run} is not finished: these are its {weights} {done}", file=sys.stderr)


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
        raise DataError(f"{folder}: {MODEL} and {WEIGHTS} do not fit each other, or are not of `medssl export` "
                        f"({type(error).__name__}: {error})") from None  # fmt: skip


def _exported(
    folder: Path, about: Mapping[str, Any], states: Sequence[Any], checkpoint: str, window: Mapping[str, Any]
) -> Trained:
    """One run of a model folder: what is told of it, and its networks' weights."""
    held = about["settings"]["window"]["network"]
    if (wanted := window.get("network", held)) != held:
        raise ConfigError(f"{folder}: holds the networks of --network {held} alone, not those of {wanted}; "
                          "export the run with it")  # fmt: skip
    if checkpoint == "last" and about["checkpoint"] != "last.pt":
        raise ConfigError(f"{folder}: was made of {about['checkpoint']}, so there is no --checkpoint last; "
                          "export the run with it")  # fmt: skip
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
