"""The job behind `medssl export`: write trained runs as a folder that can be given to another site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medssl.errors import ConfigError
from medssl.export.bundle import FOLDERS, METADATA, write_bundle
from medssl.export.card import README, write_card
from medssl.files import refuse_existing, whole_folder
from medssl.trained import MODEL, WEIGHTS, Trained, is_model_folder, load_trained, refuse_unlike, save_model

RUN_BUNDLE = (
    "python -m monai.bundle run --bundle_root {0} --config_file {0}/configs/inference.json --dataset_dir SCANS "
    "--output_dir predictions"
)


def export(
    run: Path | str,
    out: Path | str,
    *,
    also: Sequence[Path | str] = (),
    checkpoint: str = "best",
    window: dict[str, Any] | None = None,
    monai: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a model folder, which `medssl predict` takes like a run, or a MONAI bundle, and return its path.

    Both hold the networks that predict, the settings that they need, and a model card, but no name of a patient or
    case, no path, no optimiser state and no log.

    Args:
        also: other runs, whose class probabilities are averaged with those of the first.
        checkpoint: `best` (by validation Dice; `last` if nothing was validated) or `last`.
        window: settings of the `window` section that replace the run's, such as `network`.
        monai: write a MONAI bundle, which runs without medssl.
        overwrite: replace an exported folder.

    Raises:
        ConfigError: the folder exists and `overwrite` is not set; it is not an exported folder; or runs do not fit
            together, or cannot be expressed as a bundle.
        DataError: `run` or one of `also` is not a run folder, or one of its files cannot be read.
    """
    run, out = Path(run), Path(out)
    _refuse_place(out, overwrite)
    runs = [(path, _of_run(path, checkpoint, window)) for path in map(Path, (run, *also))]
    for path, trained in runs[1:]:
        refuse_unlike(run, runs[0][1], path, trained)
    all_trained, name = [trained for _, trained in runs], out.resolve().name
    with whole_folder(out) as folder:
        if monai:
            write_bundle(folder, all_trained)
            write_card(folder / "docs" / README, runs, command=RUN_BUNDLE.format(name))
        else:
            save_model(folder, all_trained)
            write_card(folder / README, runs, command=f"medssl predict {name} SCANS -o predictions")
    return out


def _refuse_place(out: Path, overwrite: bool) -> None:
    refuse_existing(out, overwrite)
    if out.is_file():
        raise ConfigError(f"{out}: is a file; name a folder")
    inside = {path.name for path in out.iterdir()} if out.exists() else set()
    if foreign := sorted(inside - {MODEL, WEIGHTS, README, *FOLDERS}):
        raise ConfigError(
            f"{out}: holds {foreign[0]}, so it is not an exported folder and is not replaced; choose another folder"
        )
    if inside and not (is_model_folder(out) or (out / METADATA).is_file()):
        raise ConfigError(f"{out}: holds neither {MODEL} nor {METADATA}, so it is not an exported folder and is not "
                          "replaced; choose another folder")  # fmt: skip


def _of_run(run: Path, checkpoint: str, window: dict[str, Any] | None) -> Trained:
    if is_model_folder(run):
        raise ConfigError(f"{run}: is a model folder already; export the run that it was made from")
    (trained,) = load_trained(run, checkpoint, window)
    return trained
