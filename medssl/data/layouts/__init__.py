"""Read datasets as they are: turn a folder or a datalist into a list of cases.

Each layout is a file in this folder with a `READER`, listed in `LAYOUTS`. If several layouts fit, the first one in the
list is taken; `--layout` or `data.layout` names another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from medssl.data.cases import Case, DatasetConfig, subjects_of
from medssl.data.dicom import first_image
from medssl.data.io import case_id, is_volume, label_id
from medssl.data.layouts import acdc, datalist, dicom, folders, la, modalities, msd, nnunet, pairs, ssl4mis
from medssl.data.layouts.base import CHANNEL, Declared, Reader, subfolder, unreadable, volumes
from medssl.data.layouts.base import Layout as Layout
from medssl.data.volume import Oddity
from medssl.errors import ConfigError, DataError
from medssl.words import some

LAYOUTS: dict[str, Reader] = {
    layout.READER.name: layout.READER
    for layout in (datalist, nnunet, msd, acdc, la, folders, ssl4mis, dicom, modalities, pairs)
}
"""All layouts in the order of detection: specific ones come before general ones."""


def read_cases(source: Path, dataset: DatasetConfig | None = None, layout: str | None = None) -> list[Case]:
    """Return the cases of a dataset, in the order of its list or of the file names; see `read_layout`."""
    return list(read_layout(source, dataset, layout).cases)


def read_layout(source: Path, dataset: DatasetConfig | None = None, layout: str | None = None) -> Layout:
    """Return the cases of a dataset, and the files that did not become a case.

    `dataset` gives the rule that finds the patients. Without a rule, or if the layout itself names patients, they are
    those of the layout; in most layouts each case is its own patient.

    Args:
        source: a folder, or the file of a datalist.
        layout: a name in `LAYOUTS`. Default: the layout of `dataset`, or else the first one that fits.

    Raises:
        DataError: no layout fits, a list in the dataset is wrong, or a case has no patient.
        ConfigError: no layout has this name.
    """
    source = Path(source)
    reader = find_reader(source, layout or (dataset.layout if dataset else None))
    if reader is not dicom.READER:  # it checks all folders itself
        _refuse_unreadable(source)
    if dataset is None or reader.read_channels is None:
        found = reader.read(source)
    else:
        found = reader.read_channels(source, dataset.channels)
    found = replace(found, name=reader.name)
    if dataset is not None:
        with suppress(DataError, ConfigError):  # an unreadable declaration contradicts nothing
            said = reader.declared(source)
            if reader.read_channels is not None:  # their order comes from the configuration
                said = replace(said, channels=None)
            found = replace(found, contradictions=tuple(_contradictions(said, dataset)))
    rule = dataset.subject if dataset else None
    if rule is None or found.names_patients:
        return found
    folder = source.parent if source.is_file() else source
    subjects = subjects_of([case.id for case in found.cases], rule, folder)
    return replace(found, cases=tuple(replace(case, subject=subjects[case.id]) for case in found.cases))


def _contradictions(said: Declared, dataset: DatasetConfig) -> Iterator[Oddity]:
    theirs, ours = [name.lower() for name in said.channels or ()], [name.lower() for name in dataset.channels]
    if theirs != ours and sorted(theirs) == sorted(ours):
        found = f"the channels are {', '.join(theirs)} in the dataset, but {', '.join(ours)} in the configuration"
        yield Oddity("channel_order", found, "order data.channels as the files are numbered, _0000 first")
    named = said.config(dataset.name)
    if named is None:
        return
    values = {name.lower(): held for name, held in zip(named.classes, named.class_values, strict=True)}
    apart = [
        f"{name} is {', '.join(map(str, values[name.lower()]))} in the dataset, but "
        f"{', '.join(map(str, held))} in the configuration"
        for name, held in zip(dataset.classes, dataset.class_values, strict=True)
        if not set(held) & set(values.get(name.lower(), held))
    ]
    if apart:
        yield Oddity(
            "class_order", "; ".join(apart), "order data.classes by their values in the label files, or set data.values"
        )


def declared(source: Path, layout: str | None = None) -> Declared:
    """Return the channels, classes and regions that a dataset declares itself.

    Raises:
        DataError: as `read_layout`, or the declaration is wrong.
    """
    return find_reader(Path(source), layout).declared(Path(source))


def labels_beside(source: Path) -> tuple[Path, int]:
    """Return the folder of labels beside a folder of images, and how many images have a label there by name."""
    source = source.absolute()
    name = source.name.lower()
    if "images" not in name:
        return source, 0
    labels = subfolder(source.parent, name.replace("images", "labels"))
    names = {case_id(path) for path in volumes(source)}
    names |= {match[1] for name in names if (match := CHANNEL.fullmatch(name))}
    return labels, sum(label_id(path) in names for path in volumes(labels))


def find_reader(source: Path, name: str | None = None) -> Reader:
    """Return the layout of this name, or the first one that fits."""
    if name is not None and name not in LAYOUTS:
        raise ConfigError(f"layout {name!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    wanted = [LAYOUTS[name]] if name else list(LAYOUTS.values())
    possible = [reader for reader in wanted if source.is_file() == (reader is datalist.READER)]
    reader = next((reader for reader in possible if name or reader.fits(source)), None)
    if reader is None:
        raise DataError(_no_layout(source, wanted))
    return reader


def _refuse_unreadable(source: Path) -> None:
    """Raise a DataError for a folder without read permission, which readers would take for an empty one."""
    for _, inside, _ in os.walk(source, onerror=unreadable):
        inside[:] = [name for name in inside if not name.startswith(".")]


def _no_layout(source: Path, readers: list[Reader]) -> str:
    if source.is_file() and (is_volume(source) or first_image([source])):
        return f"{source}: a single file of a dataset; give the folder that holds the dataset"
    width = max(len(reader.name) for reader in readers)
    wanted = "\n".join(f"    {reader.name:{width}}  {reader.looks_for}" for reader in readers)
    return f"{source}: no dataset found\n  looked for, in this order\n{wanted}\n  found {_content(source)}"


def _content(source: Path) -> str:
    if source.is_file():
        return f"a file named *{source.suffix}"
    names = sorted(path.name + "/" * path.is_dir() for path in source.iterdir() if not path.name.startswith("."))
    return some(names, 8) or "nothing"
