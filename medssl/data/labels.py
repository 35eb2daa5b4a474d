"""Map the values of label files to classes, and read predictions and references for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl.data.cases import IGNORED, DatasetConfig
from medssl.data.grid import aligned
from medssl.data.io import read_label
from medssl.data.record import NAME, read_record
from medssl.data.volume import Source, Volume
from medssl.errors import DataError
from medssl.words import by

NUMBERED = "give each segment the same value in every file; 3D Slicer can export labelmaps with a colour table"


def read_classes(source: Path | Source, config: DatasetConfig | None) -> Volume:
    """Read a label file and map its values to classes; without `config`, keep its own values.

    Raises:
        DataError: as `read_label` and `as_classes`.
    """
    label = read_label(source)
    if config is not None and (odd := misnamed(label, config.classes, config.places)):
        raise DataError(f"{label.path}: {'; '.join(odd)}; {NUMBERED}")
    return label if config is None or config.is_plain else as_classes(label, config)


def misnamed(label: Volume, classes: Sequence[str], places: Mapping[int, int]) -> list[str]:
    """Report values to which the file gives the name of another class; 3D Slicer numbers segments as drawn."""
    named = {name.lower(): place for place, name in enumerate(classes)}
    meant = {**dict(enumerate(classes)), IGNORED: "ignored"}
    return [
        f"the file calls value {value} {name}, but by the settings it is {meant.get(places.get(value, -1), 'no class')}"
        for value, name in label.segments
        if named.get(name.lower(), places.get(value)) != places.get(value) and (label.array == value).any()
    ]


def read_prediction(source: Path | Source) -> Volume:
    """Read a predicted label map; its values become positions of classes if predictions.json lists `own_values`.

    Raises:
        DataError: as `read_label`; predictions.json cannot be read, or does not list a value of the label map.
    """
    label, path = read_label(source), source.path if isinstance(source, Source) else source
    try:
        own = read_record(path.parent / NAME).own_values
    except DataError as error:
        raise DataError(f"{error}; without it, the meaning of the values in {path} is unknown") from None
    if not own:
        return label
    found = mapped(label.array, {value: place for place, value in enumerate(own)})
    if found.min() < 0:
        odd = ", ".join(map(str, np.unique(label.array[found < 0])[:10]))
        known = ", ".join(map(str, own))
        raise DataError(f"{path}: the label map holds {odd}; own_values in {path.parent / NAME} are {known}")
    return replace(label, array=found)


def read_pair(
    prediction: Path | Source, reference: Path | Source, config: DatasetConfig | None
) -> tuple[Volume, Volume]:
    """Read a prediction and its reference for comparison, along the axes of the prediction.

    In voxels that nobody annotated in the reference, both become background.

    Raises:
        DataError: as `read_prediction` and `read_classes`, or their shapes differ.
    """
    ours = read_prediction(prediction)
    theirs = aligned(read_classes(reference, config), ours)
    if ours.shape != theirs.shape:
        raise DataError(f"{prediction}: {by(ours.shape)} voxels, but the reference {reference} has {by(theirs.shape)}")
    if config is None or not config.ignore:
        return ours, theirs
    known = theirs.array != IGNORED
    return replace(ours, array=ours.array * known), replace(theirs, array=theirs.array * known)


def as_classes(label: Volume, config: DatasetConfig) -> Volume:
    """Return the label map with positions in `config.classes` as its values, and IGNORED where nobody annotated.

    Raises:
        DataError: it holds a value that stands for no class.
    """
    places = config.places
    found = mapped(label.array, places)
    if found.min() < 0:
        unknown = np.unique(label.array[found < 0])
        raise DataError(
            f"{label.path}: the label holds {', '.join(map(str, unknown[:10]))}, which stands for no class; "
            f"data.classes and data.values define {', '.join(map(str, sorted(places)))}. "
            f"Correct the label, or give the value to a class under data.values in a file for --config, such as "
            f"`NAME: [{unknown[0]}]`"
        )
    return replace(label, array=found)


def mapped(array: NDArray[np.int32], places: Mapping[int, int]) -> NDArray[np.int32]:
    """Return the position of each value in `places`, or -1 if it has none."""
    low, high = min(places, default=0) - 1, max(places, default=0) + 1  # neither has a place, nor has any value beyond
    if all(places.get(value) == value for value in range(low + 1, high)) and low < array.min() and array.max() < high:
        return array
    table = np.full(high - low + 1, -1, np.int32)
    for value, place in places.items():
        table[value - low] = place
    found: NDArray[np.int32] = table[np.clip(array, low, high) - low]
    return found
