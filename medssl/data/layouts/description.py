"""Read what a `dataset.json` declares: channels, classes, regions and the value of voxels that nobody annotated.

It may have the form of MSD (`{"1": "tumour"}`, `modality`), of nnU-Net (`{"tumour": 1}`, `channel_names`) or of
nnU-Net's regions (`{"whole": [1, 2], "core": 2}`). nnU-Net scores regions only, so values that belong to the same
regions cannot be told apart and become one class. A list that overlaps no other is a class with several values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medssl.data.layouts.base import Declared
from medssl.errors import DataError
from medssl.files import read_object

NAME = "dataset.json"
IGNORE = "ignore"


def read_description(path: Path) -> dict[str, Any]:
    """Return the content of a `dataset.json`; an empty one if there is no such file.

    Raises:
        DataError: it is not a JSON object.
    """
    if not path.is_file():
        return {}
    return read_object(path)


def declared(source: Path) -> Declared:
    """Return what the `dataset.json` of a folder declares; nothing if there is none."""
    return declared_in(source / NAME)


def declared_in(path: Path) -> Declared:
    """Return what one file in the form of a `dataset.json` declares.

    Raises:
        DataError: it cannot be read; `labels` or channels do not map numbers and names; no class has value 0.
    """
    description = read_description(path)
    channels = _channels(path, description.get("channel_names") or description.get("modality"))
    labels = description.get("labels")
    if not labels:
        return Declared(channels=channels)
    where = f"{path}: `labels`"
    named = _values_by_name(where, labels)
    ignore = named.pop(IGNORE, frozenset())
    if ignore & frozenset().union(*named.values()):
        raise DataError(f"{where} gives {IGNORE!r} a value that another name also has, found {labels}")
    classes = _classes(where, named)
    values = {name: tuple(sorted(held)) for place, (name, held) in enumerate(classes.items()) if held != {place}}
    regions = {name: _members(held, classes) for name, held in named.items() if 0 not in held}
    if regions.keys() <= classes.keys():
        regions = {}  # each region is one class, so there are no unions
    return Declared(channels, tuple(classes), values, tuple(sorted(ignore)), regions)


def _values_by_name(where: str, labels: Any) -> dict[str, frozenset[int]]:
    """Label values of each name, in the order of the file."""
    if isinstance(labels, list):
        labels = {str(number): name for number, name in enumerate(labels)}
    if not isinstance(labels, dict):
        raise DataError(f"{where} must map numbers to names, found {labels!r}")
    named: dict[str, frozenset[int]] = {}
    for key, value in labels.items():
        name, numbers = (value, key) if str(key).isdecimal() and isinstance(value, str) else (key, value)
        numbers = numbers if isinstance(numbers, list) else [numbers]
        if not numbers or not all(str(number).isdecimal() for number in numbers):
            raise DataError(f"{where} must give {name!r} a whole number or a list of them, found {value!r}")
        named[str(name)] = named.get(str(name), frozenset()) | {int(number) for number in numbers}
    return named


def _classes(where: str, named: Mapping[str, frozenset[int]]) -> dict[str, frozenset[int]]:
    """The smallest groups of values that the names tell apart, in the order of their values."""
    holders: dict[int, frozenset[str]] = {
        value: frozenset(name for name, held in named.items() if value in held)
        for value in sorted(frozenset().union(*named.values()))
    }
    if 0 not in holders:
        raise DataError(f"{where} must give the background the value 0, found only {sorted(holders)}")
    classes: dict[str, frozenset[int]] = {}
    for names in dict.fromkeys(holders.values()):
        held = frozenset(value for value, others in holders.items() if others == names)
        classes[_name(held, names, named, classes)] = held
    if len(classes) < 2:
        raise DataError(f"{where} must name at least one class beside the background, found {list(classes)}")
    return classes


def _name(
    held: frozenset[int], names: frozenset[str], named: Mapping[str, frozenset[int]], taken: Mapping[str, Any]
) -> str:
    """Name a class after the region that it is, or as the rest of the smallest region around it, or by its values."""
    smallest = min(sorted(names), key=lambda name: len(named[name]))
    if named[smallest] == held:
        return smallest
    rest = f"rest of {smallest}"
    return rest if rest not in {*taken, *named} else f"label {'+'.join(map(str, sorted(held)))}"


def _members(held: frozenset[int], classes: Mapping[str, frozenset[int]]) -> tuple[str, ...]:
    return tuple(name for name, values in classes.items() if values <= held)


def _channels(path: Path, names: Any) -> tuple[str, ...] | None:
    if not names:
        return None
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, dict) or sorted(names) != sorted(map(str, range(len(names)))):
        raise DataError(f"{path}: the channels must be numbered 0, 1, 2 and so on, found {names!r}")
    return tuple(str(names[str(number)]) for number in range(len(names)))
