"""Folders of a dataset to a list of cases; nothing but names and `dataset.json` is read.

Two layouts are known. *MSD*: `dataset.json` lists the pairs of `imagesTr/` and `labelsTr/`; without
its list `training`, as nnU-Net writes it, files pair by name. *Folders*: `images/` and, where there
are labels, `labels/`, paired by name up to the suffix. An image without a label is an unlabelled case.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medssl.data.cases import Case, DatasetConfig, subjects_of
from medssl.data.nifti import case_id, is_volume, list_volumes
from medssl.data.volume import Source
from medssl.errors import DataError

DESCRIPTION = "dataset.json"


@dataclass(frozen=True)
class Layout:
    """What the folders hold, faults included: an id may occur twice, a label may lack its image."""

    cases: tuple[Case, ...]
    labels_without_image: tuple[Path, ...] = ()
    unlisted_labels: tuple[Path, ...] = ()
    """Labels of existing images that `dataset.json` does not list; their cases count as unlabelled."""
    absent_labels: tuple[tuple[str, Path], ...] = ()
    """Case ids and label files that `dataset.json` lists and that do not exist; likewise."""
    others: tuple[Path, ...] = ()
    """Files and folders among the images and labels that are not volumes of a known format."""


def read_cases(source: Path, dataset: DatasetConfig | None = None) -> list[Case]:
    """The cases of a dataset in either layout, in the order of `dataset.json` or of the file names.

    `dataset` brings the rule by which patients are found; without it each case is its own patient.

    Raises:
        DataError: neither layout is there, `dataset.json` does not fit, or a case has no patient.
    """
    return list(read_layout(source, dataset).cases)


def read_layout(source: Path, dataset: DatasetConfig | None = None) -> Layout:
    """As `read_cases`, together with what did not become a case."""
    source = Path(source)
    if (source / DESCRIPTION).is_file() and (source / "imagesTr").is_dir():
        layout = _read_msd(source)
    elif (source / "images").is_dir():
        layout = _pair(_volumes(source / "images"), _volumes(source / "labels"), case_id)
        layout = replace(layout, others=_others(source / "images", source / "labels"))
    else:
        raise DataError(_no_layout(source))
    subjects = subjects_of([case.id for case in layout.cases], dataset.subject if dataset else None, source)
    return replace(layout, cases=tuple(replace(case, subject=subjects[case.id]) for case in layout.cases))


def declared_classes(source: Path) -> tuple[str, ...] | None:
    """Class names by label value from `dataset.json`, or None where it names none.

    Both spellings are read: `{"0": "background"}` and `{"background": 0}`.

    Raises:
        DataError: the values are not 0, 1, 2 and so on.
    """
    return _names(Path(source), "labels")


def declared_channels(source: Path) -> tuple[str, ...] | None:
    """Names of the modalities from `dataset.json` (`modality` or `channel_names`), or None.

    Raises:
        DataError: the numbers are not 0, 1, 2 and so on.
    """
    return _names(Path(source), "channel_names") or _names(Path(source), "modality")


def _read_msd(source: Path) -> Layout:
    description = _read_description(source)
    images, labels = _volumes(source / "imagesTr"), _volumes(source / "labelsTr")
    others = _others(source / "imagesTr", source / "labelsTr")
    if "training" not in description:
        return replace(_pair(images, labels, _channel_id(images, "channel_names" in description)), others=others)

    cases, absent, used = [], [], set()
    for image, label in _entries(source, description["training"]):
        used |= {image, label}
        if label is not None and not label.is_file():
            absent.append((case_id(image), label))
            label = None
        cases.append(_case(case_id(image), image, label))
    cases += [_case(case_id(image), image, None) for image in images if image not in used]
    ids = {case.id for case in cases}
    spare = [label for label in labels if label not in used]
    return Layout(
        cases=tuple(cases),
        labels_without_image=tuple(label for label in spare if case_id(label) not in ids),
        unlisted_labels=tuple(label for label in spare if case_id(label) in ids),
        absent_labels=tuple(absent),
        others=others,
    )


def _pair(images: Sequence[Path], labels: Sequence[Path], id_of: Callable[[Path], str]) -> Layout:
    """Match by id; an id with two files becomes two cases, for `check` to find."""
    by_id: dict[str, list[Path | None]] = {}
    for label in labels:
        by_id.setdefault(case_id(label), []).append(label)
    ids = {id_of(image) for image in images}
    return Layout(
        cases=tuple(_case(id_of(i), i, label) for i in images for label in by_id.get(id_of(i)) or [None]),
        labels_without_image=tuple(label for label in labels if case_id(label) not in ids),
    )


def _case(id: str, image: Path, label: Path | None) -> Case:
    return Case(id, id, (Source(image),), None if label is None else Source(label))


def _channel_id(images: Sequence[Path], numbered: bool) -> Callable[[Path], str]:
    """nnU-Net ends the name of each image with the number of its channel, such as `_0000`; labels go without."""
    numbers = {match.group(1) for image in images if (match := re.search(r"_(\d{4})$", case_id(image)))}
    if not numbered or not numbers:
        return case_id
    if numbers != {"0000"}:
        raise DataError(
            f"{images[0].parent}: several files per case, numbered {', '.join(sorted(numbers))}; "
            "stack the modalities of each case into one 4D image"
        )
    return lambda image: case_id(image).removesuffix("_0000")


def _entries(source: Path, training: Any) -> Iterable[tuple[Path, Path | None]]:
    """Image and label of each entry of `training`; an entry without a label is an image's name or lacks the key."""
    if not isinstance(training, list):
        raise DataError(f"{source / DESCRIPTION}: `training` must be a list of entries with `image` and `label`")
    for number, entry in enumerate(training):
        entry = {"image": entry} if isinstance(entry, str) else entry
        image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        if not isinstance(image, str) or not isinstance(label, str | None):
            raise DataError(
                f"{source / DESCRIPTION}: entry {number} of `training` must name one `image` file and at most one "
                f"`label` file, found {entry!r}; several modalities belong into one 4D image"
            )
        yield source / image, source / label if label else None


def _volumes(folder: Path) -> list[Path]:
    return list_volumes(folder) if folder.is_dir() else []


def _others(*folders: Path) -> tuple[Path, ...]:
    """What lies beside the volumes and is neither hidden nor the voxels of a `.mhd` header."""
    return tuple(
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if not is_volume(path) and not path.name.startswith(".") and path.suffix.lower() not in (".raw", ".zraw")
    )


def _names(source: Path, key: str) -> tuple[str, ...] | None:
    values = _read_description(source).get(key)
    if not values:
        return None
    where = f"{source / DESCRIPTION}: `{key}`"
    if isinstance(values, list):
        values = dict(enumerate(values))
    if not isinstance(values, dict):
        raise DataError(f"{where} must map numbers to names, found {values!r}")
    numbered = (
        values if all(str(number).isdecimal() for number in values) else {v: k for k, v in _single(where, values)}
    )
    names = {int(number): str(name) for number, name in numbered.items()}
    if sorted(names) != list(range(len(values))):
        raise DataError(f"{where} must number its names 0, 1, 2 and so on, found {values}")
    return tuple(names[number] for number in sorted(names))


def _single(where: str, values: dict[str, Any]) -> Iterable[tuple[str, int]]:
    for name, number in values.items():
        if not str(number).isdecimal():
            raise DataError(f"{where} must give {name!r} one whole number, found {number!r}; regions are not supported")
        yield name, int(number)


def _read_description(source: Path) -> dict[str, Any]:
    path = source / DESCRIPTION
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected keys such as `labels` and `training`, found a {type(values).__name__}")
    return values


def _no_layout(source: Path) -> str:
    if not source.is_dir():
        return f"{source}: {'a file, not a folder' if source.exists() else 'no such folder'}"
    names = sorted(path.name + "/" * path.is_dir() for path in source.iterdir() if not path.name.startswith("."))
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return (
        f"{source}: no dataset found\n"
        "  looked for images/ with labels/ beside it, or dataset.json with imagesTr/ and labelsTr/\n"
        f"  found {found or 'nothing'}"
    )
