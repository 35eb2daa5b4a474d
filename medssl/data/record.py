"""predictions.json: how the label maps beside it were made, and what their values mean."""

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
    """What predictions.json tells, as far as it is known: one written by hand may hold `classes` alone."""

    model_config = ConfigDict(frozen=True)

    run: str | None = None
    method: str | None = None
    checkpoint: str | None = None
    iteration: int | None = None
    weights: str | None = None
    """A digest of the networks, so that others in the same place are told from them; None in a record of before."""
    network: str | None = None
    classes: tuple[str, ...] = ()
    """The name of each place; label maps hold these places, or else `own_values`."""
    window: dict[str, Any] = {}
    values: dict[str, tuple[int, ...]] = {}
    ignore: tuple[int, ...] = ()
    regions: dict[str, tuple[str, ...]] = {}
    """These three as in `DatasetConfig`: what evaluation needs to read references."""
    averaged: int = 1
    """How many runs the model folder was made of."""
    also: tuple[str, ...] = ()
    """Other runs that the probabilities are averaged with."""
    uncertainty: str | None = None
    probabilities: str | None = None
    """Folders beside the label maps; None where nothing was written."""
    own_values: tuple[OwnValue, ...] = ()
    """The value of each place in the label maps, where they hold no places."""
    images: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = {}
    """The files that each case was predicted from."""
    stamps: dict[str, tuple[tuple[int, int], ...]] = {}
    """Size of each of these files, and when it was last changed, in nanoseconds; none in a record of before."""

    def to_plain(self) -> dict[str, Any]:
        """What is known, as plain values."""
        return self.model_dump(mode="json", exclude_defaults=True)


def read_record(path: Path) -> Record:
    """What predictions.json holds; nothing is known where there is none.

    Raises:
        DataError: it cannot be read, or every key that does not fit.
    """
    return read_model(Record, path) if path.exists() else Record()


def write_record(path: Path, record: Record) -> None:
    """Write predictions.json whole or not at all."""
    write_json(path, record.to_plain())


def differing(earlier: Record, record: Record) -> list[str]:
    """In what one differs from another, cases aside; what an earlier version did not note is as it is now."""
    keys = Record.model_fields.keys() - {"images", "stamps"} - (set() if earlier.weights else {"weights"})
    return sorted(key for key in keys if getattr(earlier, key) != getattr(record, key))


def add_image(path: Path, record: Record, id: str, files: tuple[str, ...], stamps: tuple[tuple[int, int], ...]) -> None:
    """Note one case more in predictions.json, beside those that other processes of this machine noted meanwhile."""
    with in_turn(path.parent):
        try:
            earlier = read_record(path)
        except DataError:
            earlier = record
        known = record if differing(earlier, record) else earlier
        more = {"images": {**known.images, id: files}, "stamps": {**known.stamps, id: stamps}}
        write_record(path, record.model_copy(update=more))
