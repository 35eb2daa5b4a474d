"""nnU-Net's raw data: `imagesTr/CASE_0000.nii.gz`, a file for each channel, and `labelsTr/CASE.nii.gz`.

Images and labels are paired by name. Cases without a label, and all cases in `imagesUn/`, are unlabelled. `imagesTs/`
is not read. If `dataset.json` has a key `dataset`, which lists the files of each case, it replaces the folders.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from medssl.data.io import case_id
from medssl.data.layouts.base import Layout, Reader, case, channel_files, others, paired, volumes
from medssl.data.layouts.description import NAME, declared, read_description
from medssl.errors import DataError

FOLDERS = ("imagesTr", "imagesUn", "labelsTr")


def fits(source: Path) -> bool:
    description = read_description(source / NAME)
    if "dataset" in description:
        return True
    if description and "training" not in description and (source / "imagesTr").is_dir():
        return True
    return any(case_id(image).endswith("_0000") for image in volumes(source / "imagesTr"))


def read(source: Path) -> Layout:
    listed = read_description(source / NAME).get("dataset")
    if listed is not None:
        return _listed(source, listed)
    images = channel_files([*volumes(source / "imagesTr"), *volumes(source / "imagesUn")])
    found = others(source / folder for folder in FOLDERS)
    return replace(paired(images, volumes(source / "labelsTr")), others=found)


def _listed(source: Path, listed: Any) -> Layout:
    cases = []
    for id, entry in listed.items() if isinstance(listed, dict) else ():
        images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        images = images if isinstance(images, list) else []
        if not images or not all(isinstance(image, str) for image in images) or not isinstance(label, str | None):
            raise DataError(
                f"{source / NAME}: case {id} of `dataset` must have a list of `images` and at most one `label`, "
                f"found {entry!r}"
            )
        files, label = [_expanded(source, image) for image in images], label and _expanded(source, label)
        cases.append(case(id, files, label or None))
    return Layout(tuple(cases))


def _expanded(source: Path, listed: str) -> Path:
    """Return the path of a listed file, which may hold environment variables such as ${nnUNet_raw}."""
    if (source / listed).exists():
        return source / listed
    path = os.path.expandvars(listed)
    if unset := re.search(r"\$\{?[A-Za-z_]\w*\}?", path):
        raise DataError(f"{source / NAME}: {listed}: the environment variable {unset[0]} is not set; set it and repeat")
    return source / path


READER = Reader("nnunet", "imagesTr/ with a file CASE_0000 for each channel, and labelsTr/", fits, read, declared)
