"""Datasets as they come, read unchanged: a folder or a datalist to a list of cases.

A layout is a file of this folder with a `READER`, and a line in `LAYOUTS`. When several fit, the first one there is
taken; `--layout` or `data.layout` names another.
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
"""In the order of detection: what only one layout has comes before what many have."""


def read_cases(source: Path, dataset: DatasetConfig | None = None, layout: str | None = None) -> list[Case]:
    """The cases of a dataset, in the order of its list or of the file names; see `read_layout`."""
    return list(read_layout(source, dataset, layout).cases)


def read_layout(source: Path, dataset: DatasetConfig | None = None, layout: str | None = None) -> Layout:
    """The cases of a dataset, together with what did not become a case.

    `dataset` brings the rule by which patients are found. Without it, or where the layout itself names patients, they
    are as the layout has them; most have each case as its own patient.

    Args:
        source: a folder, or the file of a datalist.
        layout: a name of `LAYOUTS`; otherwise that of `dataset`, otherwise the first that fits.

    Raises:
        DataError: no layout is there, a list in it does not fit, or a case has no patient.
        ConfigError: no layout has this name.
    """
    source = Path(source)
    reader = find_reader(source, layout or (dataset.layout if dataset else None))
    if reader is not dicom.READER:  # which looks at all folders by itself
        _refuse_unreadable(source)
    if dataset is None or reader.read_channels is None:
        found = reader.read(source)
    else:
        found = reader.read_channels(source, dataset.channels)
    found = replace(found, name=reader.name)
    if dataset is not None:
        with suppress(DataError, ConfigError):  # what cannot be read contradicts nobody
            said = reader.declared(source)
            if reader.read_channels is not None:  # their order is that of the configuration
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
        found = f"the dataset has the channels {', '.join(theirs)}, the configuration {', '.join(ours)}"
        yield Oddity("channel_order", found, "put data.channels into the order of the files, that of _0000 first")
    named = said.config(dataset.name)
    if named is None:
        return
    values = {name.lower(): held for name, held in zip(named.classes, named.class_values, strict=True)}
    apart = [
        f"{name} is {', '.join(map(str, values[name.lower()]))} in the dataset, {', '.join(map(str, held))} here"
        for name, held in zip(dataset.classes, dataset.class_values, strict=True)
        if not set(held) & set(values.get(name.lower(), held))
    ]
    if apart:
        yield Oddity(
            "class_order", "; ".join(apart), "put data.classes into the order of their values, or set data.values"
        )


def declared(source: Path, layout: str | None = None) -> Declared:
    """Channels, classes and regions that a dataset declares itself.

    Raises:
        DataError: as `read_layout`, or a declaration that does not fit.
    """
    return find_reader(Path(source), layout).declared(Path(source))


def labels_beside(source: Path) -> tuple[Path, int]:
    """The folder of labels beside a folder of images, and how many of these have a label there, by their names."""
    source = source.absolute()
    name = source.name.lower()
    if "images" not in name:
        return source, 0
    labels = subfolder(source.parent, name.replace("images", "labels"))
    names = {case_id(path) for path in volumes(source)}
    names |= {match[1] for name in names if (match := CHANNEL.fullmatch(name))}
    return labels, sum(label_id(path) in names for path in volumes(labels))


def find_reader(source: Path, name: str | None = None) -> Reader:
    """The layout of this name, or the first that fits."""
    if name is not None and name not in LAYOUTS:
        raise ConfigError(f"layout {name!r}: known are {', '.join(LAYOUTS)}")
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    wanted = [LAYOUTS[name]] if name else list(LAYOUTS.values())
    possible = [reader for reader in wanted if source.is_file() == (reader is datalist.READER)]
    reader = next((reader for reader in possible if name or reader.fits(source)), None)
    if reader is None:
        raise DataError(_no_layout(source, wanted))
    return reader


def _refuse_unreadable(source: Path) -> None:
    """Raise a DataError for a folder that may not be read, which readers would take for an empty one."""
    for _, inside, _ in os.walk(source, onerror=unreadable):
        inside[:] = [name for name in inside if not name.startswith(".")]


def _no_layout(source: Path, readers: list[Reader]) -> str:
    if source.is_file() and (is_volume(source) or first_image([source])):
        return f"{source}: one file of a dataset; name the folder that holds all"
    width = max(len(reader.name) for reader in readers)
    wanted = "\n".join(f"    {reader.name:{width}}  {reader.looks_for}" for reader in readers)
    return f"{source}: no dataset found\n  looked for, in this order\n{wanted}\n  found {_content(source)}"


def _content(source: Path) -> str:
    if source.is_file():
        return f"a file named *{source.suffix}"
    names = sorted(path.name + "/" * path.is_dir() for path in source.iterdir() if not path.name.startswith("."))
    return some(names, 8) or "nothing"
