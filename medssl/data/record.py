"""Read and write predictions.json, which says how the label maps beside it were made and what their values mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from medssl.config import read_model
from medssl.data.cases import LARGEST_VALUE
from medssl.errors import DataError
from medssl.files import in_turn, write_json

NAME = "predictions.json"

OwnValue = Annotated[int, Field(strict=True, ge=-LARGEST_VALUE, le=LARGEST_VALUE)]


class Record(BaseModel):
    """The content of predictions.json; a file written by hand may hold `classes` only."""

    model_config = ConfigDict(frozen=True)

    run: str | None = None
    method: str | None = None
    checkpoint: str | None = None
    iteration: int | None = None
    weights: str | None = None
    """Digest of the networks, to recognise others at the same path; None in a file of an older version."""
    network: str | None = None
    classes: tuple[str, ...] = ()
    """Class names; label maps hold their positions in this list, or else `own_values`."""
    window: dict[str, Any] = {}
    values: dict[str, tuple[int, ...]] = {}
    ignore: tuple[int, ...] = ()
    regions: dict[str, tuple[str, ...]] = {}
    """`values`, `ignore` and `regions` of `DatasetConfig`, which evaluation needs to read references."""
    averaged: int = 1
    """How many runs the model folder was made from."""
    also: tuple[str, ...] = ()
    """Other runs that the probabilities are averaged with."""
    uncertainty: str | None = None
    probabilities: str | None = None
    """`uncertainty` and `probabilities`: folders beside the label maps; None if nothing was written."""
    own_values: tuple[OwnValue, ...] = ()
    """The value of each class in the label maps, if they do not hold positions in `classes`."""
    images: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = {}
    """The image files that each case was predicted from."""
    stamps: dict[str, tuple[tuple[int, int], ...]] = {}
    """Size and time of the last change (ns) of each of these files; empty in a file of an older version."""

    def to_plain(self) -> dict[str, Any]:
        """Return all values that are not defaults, as plain values."""
        return self.model_dump(mode="json", exclude_defaults=True)


def read_record(path: Path) -> Record:
    """Read predictions.json; an empty record if there is no such file.

    Raises:
        DataError: it cannot be read, or keys are wrong; all of them are listed.
    """
    return read_model(Record, path) if path.exists() else Record()


def write_record(path: Path, record: Record) -> None:
    """Write predictions.json whole or not at all."""
    write_json(path, record.to_plain())


def differing(earlier: Record, record: Record) -> list[str]:
    """Return the keys in which two records differ, except cases; missing `weights` in `earlier` count as equal."""
    keys = Record.model_fields.keys() - {"images", "stamps"} - (set() if earlier.weights else {"weights"})
    return sorted(key for key in keys if getattr(earlier, key) != getattr(record, key))


def add_image(path: Path, record: Record, id: str, files: tuple[str, ...], stamps: tuple[tuple[int, int], ...]) -> None:
    """Add a case to predictions.json, and keep cases that other processes of this machine added meanwhile."""
    with in_turn(path.parent):
        try:
            earlier = read_record(path)
        except DataError:
            earlier = record
        known = record if differing(earlier, record) else earlier
        more = {"images": {**known.images, id: files}, "stamps": {**known.stamps, id: stamps}}
        write_record(path, record.model_copy(update=more))
