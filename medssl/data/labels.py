"""Values of label files to classes: several to one, some to nobody's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medssl.data.cases import DatasetConfig
from medssl.data.volume import Volume
from medssl.errors import DataError


def as_classes(label: Volume, config: DatasetConfig) -> Volume:
    """The label map with the places of `config.classes` as its values, and IGNORED where nobody annotated.

    Raises:
        DataError: it holds a value that stands for no class.
    """
    places = config.places
    low, high = int(label.array.min()), int(label.array.max())
    table = np.full(high - low + 1, -1, np.int32)
    for value, place in places.items():
        if low <= value <= high:
            table[value - low] = place
    mapped = table[label.array - low]
    if mapped.min() < 0:
        unknown = np.unique(label.array[mapped < 0])
        raise DataError(
            f"{label.path}: the label holds {', '.join(map(str, unknown[:10]))}, which stands for no class; "
            f"data.classes and data.values know {', '.join(map(str, sorted(places)))}"
        )
    return replace(label, array=mapped)
