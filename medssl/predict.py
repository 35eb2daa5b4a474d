"""The job behind `medssl predict`: segment volumes with one or more trained runs, each volume on its own grid.

A model folder, which `medssl export` makes from runs, can be given wherever a run can.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medssl.config import merge, parse
from medssl.data.cases import LARGEST_VALUE, DatasetConfig
from medssl.data.dicom import first_image, is_series_folder
from medssl.data.grid import off_grid
from medssl.data.hdf5 import SUFFIXES as H5_SUFFIXES
from medssl.data.inspect import odd_geometry
from medssl.data.io import case_id, is_volume, list_volumes, read_image, stacked, write_label, write_shares
from medssl.data.layouts import dicom, modalities
from medssl.data.layouts.base import CHANNEL, is_named_as_labels
from medssl.data.looks import look_at
from medssl.data.prepared import files_behind, read_prepared, refuse_moved, stamp
from medssl.data.record import NAME, Record, add_image, differing, read_record
from medssl.data.splits import PARTS, read_split
from medssl.data.volume import Oddity, Source, Volume
from medssl.device import choose_device
from medssl.errors import ConfigError, DataError, InputError, OutOfMemoryError
from medssl.files import refuse_unwritable
from medssl.machine import available_memory
from medssl.predictor import Predictor
from medssl.prepare import BYTES_PER_VOXEL, most_voxels
from medssl.progress import Advance, track
from medssl.trained import Trained, is_model_folder, load_trained, refuse_unlike
from medssl.words import gib, how_many, some

UNCERTAINTY = "uncertainty"
PROBABILITIES = "probabilities"
"""Subfolders for these volumes, so that they are not mistaken for label maps."""


def predict(
    run: Path | str,
    images: Sequence[Path | str],
    out: Path | str,
    *,
    also: Sequence[Path | str] = (),
    part: str | None = None,
    prepared: Path | str | None = None,
    device: str = "auto",
    checkpoint: str = "best",
    window: dict[str, Any] | None = None,
    uncertainty: bool = False,
    probabilities: bool = False,
    own_values: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write a class map `<case>.nii.gz` for each image, and predictions.json, which records how they were made.

    If `out` already holds predictions made in the same way, only the missing cases are predicted; if none is missing,
    a line says so and nothing is written. Predictions by other weights, even if these replaced the weights at the same
    path, and predictions of images that have changed since, count as made differently and are refused.
    An image that cannot be read or is too large is skipped, and reported as an error after all others are written. A
    warning names the cases in which only background was predicted.

    Args:
        images: volume files and folders of a DICOM series, or folders of these; `FOLDER#UID` picks one of several
            series. Files whose names end in `_0000`, `_0001` and so on are the channels of one case, and so are files
            in a folder of their own that are named after the run's channels (see the layout `modalities`).
        also: other runs, whose class probabilities are averaged with those of the first.
        part: predict the raw images of a part of the run's own split, such as `test`, instead of `images`.
        prepared: with `part`, where the prepared dataset is now; None looks where it was when the run was trained.
        uncertainty: also write `uncertainty/<case>.nii.gz`, 1 minus the probability of each voxel's class.
        probabilities: also write `probabilities/<case>_<index>.nii.gz` for each class, numbered by its place in
            `classes` of predictions.json, background 0; `largest_component` does not change them.
        own_values: write the value that each class has in the dataset's label files instead of its class index.
            predictions.json then lists these values, and `evaluate` and `report` read the label maps by them.
        overwrite: predict all images again. Label maps written with other values are not overwritten, because some of
            them could be left behind and then be read wrongly.

    Raises:
        DataError: some images cannot be read; all of them are listed.
        OutOfMemoryError: some images are too large, and nothing else is wrong.
        ConfigError: nothing to predict, outputs that exist and were made differently while `overwrite` is not set,
            runs that do not fit together, or, with `own_values`, a class that does not have exactly one value.
    """
    run, out = Path(run), Path(out)
    place = out / NAME
    refuse_unwritable(place)
    predictor, record = load_predictor(run, choose_device(device), also=also, checkpoint=checkpoint, window=window)
    record = record.model_copy(
        update={
            "uncertainty": UNCERTAINTY if uncertainty else None,
            "probabilities": PROBABILITIES if probabilities else None,
            "own_values": _own_values(record) if own_values else (),
        }
    )
    sources = _of_part(run, part, prepared) if part else _of_images([*map(Path, images)], predictor.channels)
    for other in map(Path, also) if part else ():
        if _of_part(other, str(part), prepared).keys() != sources.keys():
            raise ConfigError(f"{other}: its {part} part has other cases than that of {run}; average runs of one split")
    targets = {id: out / f"{id}.nii.gz" for id in sources}
    named = {id: tuple(str(file.absolute()) for file in files) for id, files in sources.items()}
    _refuse_inputs(targets, sources)
    earlier = _earlier(place, record, overwrite)
    stamps = {id: _stamps(files) for id, files in sources.items()}
    missing = list(sources) if overwrite else _missing(targets, named, stamps, earlier)
    if not missing:
        print(f"medssl: all {len(sources)} predictions exist; use --overwrite to predict again", file=sys.stderr)
        return list(targets.values())
    faults: list[str] = []
    kinds: set[type[InputError]] = set()
    doubts: list[tuple[Source, Oddity]] = []
    blank: list[str] = []
    with track("predict", len(sources), done=len(sources) - len(missing)) as advance:
        for id in missing:
            predictor.looked = partial(_tell, advance, id)
            try:
                _refuse_unprintable(named[id])
                _tell_if_large(id, sources[id], predictor)
                image, odd = _read(sources[id])
                doubts += odd
                if predictor.likeness is not None:
                    doubts += [(sources[id][0], unlike) for unlike in predictor.likeness.oddities(look_at(image))]
                if probabilities:
                    classes, unsure, shares = predictor.segment_with_probabilities(image)
                elif uncertainty:
                    classes, unsure = predictor.segment_with_uncertainty(image)
                else:
                    classes = predictor.segment(image)
            except (DataError, OutOfMemoryError) as error:
                faults.append(f"  {id}  {error}".replace("\n", "\n  "))
                kinds.add(type(error))
                continue
            if not classes.any():
                blank.append(id)
            _remove(out, id)  # the record comes before the files, so no older file may remain under this name
            out.mkdir(parents=True, exist_ok=True)
            add_image(place, record, id, named[id], stamps[id])
            if uncertainty:
                write_shares(out / UNCERTAINTY / f"{id}.nii.gz", unsure, like=image)
            if probabilities:
                for index, share in enumerate(shares):
                    write_shares(out / PROBABILITIES / f"{id}_{index}.nii.gz", share, like=image)
            if own_values:
                classes = np.array(record.own_values, np.uint16)[classes]
            write_label(targets[id], classes, like=image)
            advance(id)
    _warn(doubts)
    if blank:
        print(f"medssl: only background was predicted in {len(blank)} of {how_many(len(missing), 'case')} "
              f"({some(blank)}); if you expect more, check that these scans match the training scans in modality, "
              "grey levels, orientation and spacing (`medssl check`)", file=sys.stderr)  # fmt: skip
    if faults:
        title = f"{len(faults)} of {len(sources)} cases cannot be predicted"
        others = f"; the other predictions are in {out}" if len(faults) < len(sources) else ""
        advice = "Correct these files and repeat the command, which predicts the missing cases; or leave them out."
        kind = OutOfMemoryError if kinds == {OutOfMemoryError} else DataError
        raise kind("\n".join([title + others, *faults, advice]))
    return list(targets.values())


def _tell(advance: Advance, id: str, share: float) -> None:
    advance(id, min(share, 0.99))  # the case is not complete before its files are written


def load_predictor(
    run: Path | str,
    device: torch.device | str,
    *,
    also: Sequence[Path | str] = (),
    checkpoint: str = "best",
    window: dict[str, Any] | None = None,
) -> tuple[Predictor, Record]:
    """Return the predictor of one or several run folders, and the record for predictions.json.

    Args:
        also: other runs, whose probabilities are averaged with those of the first.
        checkpoint: `best` (by validation Dice; `last` if nothing was validated) or `last`.
        window: settings of the `window` section that replace the run's.

    Raises:
        ConfigError: the runs differ in classes, channels or recipe.
    """
    run = Path(run)
    found = load_trained(run, checkpoint, window)
    record = _record(run, found, also)
    for path in map(Path, also):
        others = load_trained(path, checkpoint, window)
        refuse_unlike(run, found[0], path, others[0])
        found += others
    predictor, *beside = [one.predictor(torch.device(device)) for one in found]
    predictor.others += beside
    return predictor, record.model_copy(update={"weights": _digest([net for one in found for net in one.networks])})


def _digest(networks: Sequence[nn.Module]) -> str:
    """Return a short hash of the networks' weights."""
    digest = hashlib.blake2b(digest_size=8)
    for net in networks:
        for tensor in net.state_dict().values():
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _record(run: Path, trained: Sequence[Trained], also: Sequence[Path | str]) -> Record:
    config = trained[0].config
    return Record(
        run=str(run.resolve()),
        method=config.method.name,
        checkpoint=trained[0].checkpoint,
        iteration=trained[0].iteration,
        network=config.window.network,
        classes=config.data.classes,
        window=config.window.model_dump(mode="json"),
        values=config.data.values,
        ignore=config.data.ignore,
        regions=config.data.regions,
        averaged=len(trained),
        also=tuple(str(Path(path).resolve()) for path in also),
    )


def _own_values(record: Record) -> tuple[int, ...]:
    """Return the value of each class in the label files that a run was trained on.

    Raises:
        ConfigError: a class has no value, several, or one that a label map cannot hold.
    """
    data = parse(DatasetConfig, {"name": "", "classes": record.classes, "values": record.values})
    named = dict(zip(data.classes, data.class_values, strict=True))
    odd = [f"{name} {list(values)}" for name, values in named.items() if len(values) != 1 or values[0] < 0]
    if odd:
        raise ConfigError(
            f"--own-values: each class must have exactly one value from 0 to {LARGEST_VALUE}; data.values of "
            f"{record.run} has {', '.join(odd)}"
        )
    return tuple(value for values in named.values() for value in values)


def _missing(
    targets: Mapping[str, Path],
    named: Mapping[str, tuple[str, ...]],
    stamps: Mapping[str, tuple[tuple[int, int], ...]],
    earlier: Record,
) -> list[str]:
    """Return the cases that earlier calls have not predicted yet.

    Raises:
        ConfigError: a file was not predicted from these images, or they have changed since.
    """
    existing = [id for id, path in targets.items() if path.exists()]
    if strange := [id for id in existing if earlier.images.get(id) != named[id]]:
        made = earlier.images.get(strange[0])
        told = f"was predicted from {', '.join(made)}" if made else f"{NAME} does not list it, so it may be yours"
        advice = "choose another folder or --overwrite" if earlier.images else "choose another folder"
        raise ConfigError(
            f"{targets[strange[0]]}: exists, and {told} ({how_many(len(strange), 'such file')}); {advice}"
        )
    if changed := [id for id in existing if earlier.stamps.get(id, stamps[id]) != stamps[id]]:
        raise ConfigError(
            f"{targets[changed[0]]}: the image of this case has changed since it was predicted "
            f"({how_many(len(changed), 'such case')}: {some(changed)}); choose another folder or --overwrite"
        )
    return [id for id in targets if id not in existing]


def _refuse_inputs(targets: Mapping[str, Path], sources: Mapping[str, Sequence[Source]]) -> None:
    """Raise a ConfigError if a label map would overwrite one of the images."""
    images = {source.path.resolve() for files in sources.values() for source in files}
    if lost := [path for path in targets.values() if path.resolve() in images]:
        raise ConfigError(
            f"{lost[0]}: is one of the images, and its label map would overwrite it; choose another output folder"
        )


def _stamps(files: Sequence[Source]) -> tuple[tuple[int, int], ...]:
    """Return size and time of change of an image's files, to notice when they are written again."""
    paths = [path for path in files_behind(file.path for file in files) if not path.name.startswith(".")]
    return tuple(stamp(path)[1:3] for path in paths)


def _remove(out: Path, id: str) -> None:
    """Delete what an earlier call wrote for a case."""
    for path in (out / f"{id}.nii.gz", out / UNCERTAINTY / f"{id}.nii.gz"):
        path.unlink(missing_ok=True)
    for place in itertools.count():
        path = out / PROBABILITIES / f"{id}_{place}.nii.gz"
        if not path.exists():
            return
        path.unlink()


def _read(files: Sequence[Source]) -> tuple[Volume, list[tuple[Source, Oddity]]]:
    """Return the image of a case, and what is odd about the geometry of its files."""
    volumes = [read_image(file) for file in files]
    image, first = stacked(volumes), volumes[0]
    doubts = [(file, odd) for file, volume in zip(files, volumes, strict=True) for odd in odd_geometry(volume)]
    doubts += [(file, odd) for file, other in zip(files[1:], volumes[1:], strict=True)
               if (odd := off_grid(first, other, "other channel"))]  # fmt: skip
    return image, doubts


def _refuse_unprintable(files: Sequence[str]) -> None:
    for file in files:
        try:
            file.encode()
        except UnicodeEncodeError:
            raise DataError(f"{file}: its name is not valid UTF-8; rename the file") from None


def _tell_if_large(id: str, files: Sequence[Source], predictor: Predictor) -> None:
    """Warn if a case may need more memory than is free, because the system kills such a process without a message."""
    need, free = BYTES_PER_VOXEL * most_voxels(files, predictor.recipe), available_memory()
    if free is not None and need > free:
        print(f"medssl: case {id} may need {gib(need)} of memory, and {gib(free)} are free; if the process is killed, "
              "use a machine with more memory or crop the scan", file=sys.stderr)  # fmt: skip


def _warn(doubts: Sequence[tuple[Source, Oddity]]) -> None:
    """Print each kind of oddity once, with the first file that has it."""
    kinds: dict[str, list[tuple[Source, Oddity]]] = {}
    for file, odd in doubts:
        kinds.setdefault(odd.code, []).append((file, odd))
    for (file, odd), *others in kinds.values():
        count = f" ({1 + len(others)} such files)" if others else ""
        print(f"medssl: {file}: {odd.found}{count}; {odd.fix}", file=sys.stderr)


def _earlier(place: Path, record: Record, overwrite: bool) -> Record:
    """Return the record of what was predicted into this folder before in the same way; without cases if nothing was."""
    if not place.exists():
        return record
    try:
        earlier = read_record(place)
    except DataError:
        if overwrite:
            return record
        raise
    keys = differing(earlier, record)
    if not keys:
        return earlier
    if earlier.own_values != record.own_values:
        raise ConfigError(
            f"{place}: the label maps in this folder hold other values (see --own-values); choose another folder"
        )
    if overwrite:
        return record
    raise ConfigError(
        f"{place}: the predictions in this folder were made differently ({', '.join(keys)}); choose another folder or "
        "--overwrite"
    )


def _of_images(images: Sequence[Path], channels: Sequence[str]) -> dict[str, tuple[Source, ...]]:
    """Return the files of each case among volumes, folders of them, and folders with files named after the channels."""
    by_name = {path: modalities.cases_in(path, channels) for path in images if path.is_dir()}
    rest = [path for path in images if not by_name.get(path)]
    found = _by_id(_expand(rest), len(channels)) if rest or not images else {}
    for case in itertools.chain(*by_name.values()):
        files = tuple(source.absolute() for source in case.images)
        if (other := found.setdefault(case.id, files)) != files:
            raise DataError(f"{files[0]} and {other[0]} both belong to case {case.id}; predict them into two folders")
    return found


def _expand(paths: Sequence[Path]) -> list[tuple[str, Source]]:
    """Return the name and place of each volume or series that the paths stand for."""
    found: list[tuple[str, Source]] = []
    are_folders = len(paths) > 1 and all(path.is_dir() for path in paths)
    for source in (Source.parse(str(path)) for path in paths):
        path = source.path
        if path.is_dir():
            own = path.absolute().name
            inside = [(own, source)] if is_series_folder(path) else _inside(path)
            if are_folders and len(inside) == 1 and inside[0][1].path.is_dir():  # a folder per patient, one series each
                inside = [(own, inside[0][1])]
            found += inside
        elif not path.exists():
            raise DataError(f"{path}: no such file or folder")
        elif is_volume(path) or path.name.lower().endswith(H5_SUFFIXES):
            found.append((case_id(path), source))
        elif first_image([path]):
            raise DataError(f"{path}: is one file of a DICOM series; name its folder instead, {path.parent}")
        else:
            raise DataError(f"{path}: is neither a folder nor a volume file")
    if not found:
        below = [str(inner) for path in paths for inner in sorted(path.glob("*/"))
                 if list_volumes(inner) and not is_named_as_labels(inner)]  # fmt: skip
        hint = f"; name the folder that holds them: {some(below)}" if below else ""
        raise DataError(f"{', '.join(map(str, paths)) or 'IMAGES'}: no volumes to predict{hint}")
    return found


def _inside(folder: Path) -> list[tuple[str, Source]]:
    """Return the volume files of a folder and the DICOM series beside them; without volume files, the series at any
    depth, named as `prepare` names them."""
    files = list_volumes(folder)
    if not files:
        return list(dict.fromkeys((case.id, case.images[0]) for case in dicom.read(folder).cases))
    series = sorted(path for path in folder.iterdir() if path.is_dir() and is_series_folder(path))
    return [*((case_id(path), Source(path)) for path in files), *((path.name, Source(path)) for path in series)]


def _by_id(sources: Sequence[tuple[str, Source]], channels: int) -> dict[str, tuple[Source, ...]]:
    """Return the files of each case. If all names end like `_0000`, one number for each channel, they are grouped."""
    names = [name for name, _ in sources]
    matches = [CHANNEL.fullmatch(name) for name in names]
    numbers = {match.group(2) for match in matches if match is not None}
    is_numbered = None not in matches and numbers == {f"{number:04}" for number in range(channels)}
    by_name: dict[str, Source] = {}
    for name, source in sources:
        if by_name.setdefault(name, source) is not source:
            raise DataError(f"{source} and {by_name[name]} are both named {name}; predict them into two folders")
    if not is_numbered:
        _refuse_channels(by_name, channels)
    found: dict[str, tuple[Source, ...]] = {}
    for name, source in sorted(by_name.items()):
        id = name.rpartition("_")[0] if is_numbered else name
        found[id] = (*found.get(id, ()), source)
    few = [f"{files[0]}: case {id} has {len(files)} of {channels} channels" for id, files in found.items()
           if is_numbered and len(files) != channels]  # fmt: skip
    if few:
        raise DataError("\n".join([*few, "Add the missing files, or name the images of the other cases only."]))
    return found


def _refuse_channels(by_name: dict[str, Source], channels: int) -> None:
    """Raise a DataError if a case has files numbered from `_0000` on, but not as many as the run has channels."""
    for id in sorted(name.removesuffix("_0000") for name in by_name if name.endswith("_0000")):
        files = sorted(name for name in by_name if CHANNEL.fullmatch(name) and name.rpartition("_")[0] == id)
        if (channels > 1 or f"{id}_0001" in by_name) and 1 < len(files) != channels:
            raise DataError(
                f"{by_name[files[0]]}: case {id} has files of {len(files)} channels ({', '.join(files)}), but the run "
                f"was trained on {channels}; name only the files of those, or rename them if each is a case of its own"
            )


def _of_part(run: Path, part: str, prepared: Path | str | None) -> dict[str, tuple[Source, ...]]:
    if part not in PARTS:
        raise ConfigError(f"--part {part}: expected one of {', '.join(PARTS)}")
    if is_model_folder(run):
        raise ConfigError(f"--part {part}: {run} is a model folder, which has no split; name the images to segment")
    data = parse(DatasetConfig, merge([run / "config.yaml"]).get("data", {}), where=f"{run / 'config.yaml'}: data")
    dataset = read_prepared(Path(prepared or _root_of(run, data)))
    if prepared and (apart := data.difference(dataset.config, "classes", "values", "channels")):
        key, here, there = apart
        raise ConfigError(
            f"--prepared: {prepared} is another dataset than the one of {run}: its data.{key} is {there}, that of the "
            f"run is {here}"
        )
    split = read_split(run / "splits.json", dataset)
    ids: Sequence[str] = getattr(split, part)
    if not ids:
        raise DataError(f"{run / 'splits.json'}: the {part} part is empty")
    found = {id: dataset.cases[id].images for id in ids}
    refuse_moved(dataset.root, [file for files in found.values() for file in files])
    return found


def _root_of(run: Path, data: DatasetConfig) -> Path:
    """Return the folder of the prepared dataset that a run was trained on."""
    path, root = run / "config.yaml", data.root
    if root is None:
        raise DataError(f"{path}: data.root is not set; give the prepared dataset with --prepared")
    if not root.exists():
        place = "" if root.is_absolute() else f" in {Path.cwd()}"
        raise DataError(f"{path}: data.root is {root}, which does not exist{place}; say with --prepared where it is")
    return root
