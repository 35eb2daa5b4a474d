"""The job behind `medssl export`: trained runs as a folder that one can hand to another site."""

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
    """Write a model folder, which `medssl predict` takes in the place of the run, or a MONAI bundle, and return it.

    Both hold the networks that predict, the settings that they need, and a model card; no name of a patient or case and
    no path, no optimiser, no log.

    Args:
        also: other runs, whose class probabilities are averaged with the first one's.
        checkpoint: `best` (by validation Dice; `last` where nothing was validated) or `last`.
        window: settings of the `window` section that replace the run's, as `network`.
        monai: write a MONAI bundle, which runs without medssl.
        overwrite: replace an exported folder.

    Raises:
        ConfigError: the folder exists and is not to be replaced, or is another's; runs that do not fit together,
            or that a bundle cannot express.
        DataError: no run folder, or one of its files cannot be read.
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
        raise ConfigError(f"{out}: holds {foreign[0]}, so it is no exported folder to replace; choose another place")
    if inside and not (is_model_folder(out) or (out / METADATA).is_file()):
        raise ConfigError(f"{out}: holds neither {MODEL} nor {METADATA}, so it is no exported folder to replace; "
                          "choose another place")  # fmt: skip


def _of_run(run: Path, checkpoint: str, window: dict[str, Any] | None) -> Trained:
    if is_model_folder(run):
        raise ConfigError(f"{run}: is a model folder already; export the run that it was made of")
    (trained,) = load_trained(run, checkpoint, window)
    return trained
