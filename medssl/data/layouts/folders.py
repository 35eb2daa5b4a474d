"""`images/` and `labels/` (or `Images/`, `Labels/`), paired by file name without the suffix; labels are optional.

Images are volumes, files of one channel each (`_0000`, `_0001` and so on), or folders with a DICOM series.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medssl.data.dicom import is_series_folder
from medssl.data.layouts.base import (
    Layout,
    Reader,
    are_channels,
    channel_files,
    others,
    paired,
    refuse_labels_elsewhere,
    single_files,
    subfolder,
    subfolders,
    volumes,
    volumes_below,
)
from medssl.data.layouts.description import declared


def fits(source: Path) -> bool:
    return subfolder(source, "images").is_dir()


def read(source: Path) -> Layout:
    folders = subfolder(source, "images"), subfolder(source, "labels")
    images, labels = map(volumes, folders)
    if not labels:
        refuse_labels_elsewhere(subfolders(source))
    series = [folder for folder in subfolders(folders[0]) if is_series_folder(folder)]
    cases = channel_files(images) if are_channels(images, labels) else single_files(images)
    cases += [(folder.name, (folder,)) for folder in series]
    return replace(
        paired(cases, labels), others=(*others(folders, used=series), *volumes_below(source, without=folders))
    )


READER = Reader("folders", "images/ with labels/ beside it", fits, read, declared)
