"""The Medical Segmentation Decathlon: `dataset.json` lists the pairs of `imagesTr/` and `labelsTr/`.

Images that it does not list are unlabelled cases. `imagesTs/` is not read: these are the test images of the challenge,
whose labels are withheld.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medssl.data.io import case_id, label_id
from medssl.data.layouts.base import Layout, Reader, case, others, volumes
from medssl.data.layouts.description import NAME, declared, read_description
from medssl.errors import DataError


def fits(source: Path) -> bool:
    return (source / NAME).is_file() and (source / "imagesTr").is_dir()


def read(source: Path) -> Layout:
    cases, absent, used = [], [], set()
    for images, label in _entries(source, read_description(source / NAME).get("training", [])):
        used |= {*images, label}
        id = case_id(images[0])
        if label is not None and not label.is_file():
            absent.append((id, label))
            label = None
        cases.append(case(id, images, label))
    cases += [case(case_id(image), [image], None) for image in volumes(source / "imagesTr") if image not in used]
    ids = {case.id for case in cases}
    spare = [label for label in volumes(source / "labelsTr") if label not in used]
    return Layout(
        cases=tuple(cases),
        labels_without_image=tuple(label for label in spare if label_id(label) not in ids),
        unlisted_labels=tuple(label for label in spare if label_id(label) in ids),
        absent_labels=tuple(absent),
        others=others((source / "imagesTr", source / "labelsTr")),
    )


def _entries(source: Path, training: Any) -> Iterable[tuple[list[Path], Path | None]]:
    """Images and label of each entry of `training`; without a label, it is a file name or has no key `label`."""
    if not isinstance(training, list):
        raise DataError(f"{source / NAME}: `training` must be a list of entries with `image` and `label`")
    for number, entry in enumerate(training):
        entry = {"image": entry} if isinstance(entry, str) else entry
        images, label = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        images = images if isinstance(images, list) else [images]
        if not images or not all(isinstance(image, str) for image in images) or not isinstance(label, str | None):
            raise DataError(
                f"{source / NAME}: entry {number} of `training` must name one `image` file, or a list of one for each "
                f"modality, and at most one `label` file, found {entry!r}"
            )
        yield [source / image for image in images], source / label if label else None


READER = Reader("msd", "dataset.json with imagesTr/ and labelsTr/", fits, read, declared)
