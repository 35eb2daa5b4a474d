"""Published results of other groups, shown beside those of medssl but kept apart from them.

A file of `configs/published/` holds one dataset: the sources of its numbers, and a row per method and number of
labelled patients. The figures are copied as printed; none of them was measured with medssl.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from medssl.config import Settings, bundled, merge, parse

Percent = Annotated[Decimal, Field(ge=0, le=100)]
Distance = Annotated[Decimal, Field(ge=0)]


class Citation(Settings):
    """The source in which a number was read."""

    name: str
    """The table, log or note, with its paper or repository."""
    address: str
    """`arXiv 2305.00673`, or the repository as `owner/name`."""


class PublishedRow(Settings):
    """The printed results of one method with one number of labelled patients; None where nothing was printed or read.

    Figures are decimals, so that `str` gives the printed digits.
    """

    dataset: str
    method: str
    labelled: PositiveInt
    """Patients, not scans."""
    unlabelled: NonNegativeInt
    """Patients; 0 where a method uses labelled patients only."""
    dice: Percent
    """In percent, like `jaccard`; the mean over foreground classes."""
    jaccard: Percent | None = None
    hd95: Distance | None = None
    asd: Distance | None = None
    unit: Literal["voxels"] = "voxels"
    """Of `hd95` and `asd`: no source takes spacing into account."""
    paper: str
    """The method's own paper, such as `arXiv 2305.00673`; empty if none is known apart from the source."""
    source: Citation
    secondary: bool
    """Whether the number was read in a table, log or note of others than the method's authors."""
    protocol: str
    """How the number was obtained: the split, how weights were chosen, and whatever else limits a comparison."""


class _Entry(Settings):
    """A row as written in a file."""

    method: str
    labelled: PositiveInt
    unlabelled: NonNegativeInt | None = None
    """None: all patients of the training list that are not labelled."""
    printed: str
    """The figures as printed: `88.02` for Dice alone, or `Dice / Jaccard / 95HD / ASD`."""
    paper: str = ""
    source: str
    secondary: bool = False
    remark: str = ""

    @model_validator(mode="after")
    def _one_or_four(self) -> _Entry:
        if not re.fullmatch(r"\d+\.\d+( / \d+\.\d+){3}|\d+\.\d+", self.printed):
            raise ValueError(f"printed: expected `Dice` or `Dice / Jaccard / 95HD / ASD`, got {self.printed!r}")
        return self


class _Table(Settings):
    """A file of `configs/published/`."""

    dataset: str
    train: PositiveInt
    """Patients of the training list, labelled and unlabelled together."""
    protocol: str
    """The part of the protocol that holds for every row."""
    sources: dict[str, Citation]
    rows: tuple[_Entry, ...]

    @model_validator(mode="after")
    def _known_sources(self) -> _Table:
        unknown = {row.source for row in self.rows} ^ self.sources.keys()
        if unknown:
            raise ValueError(f"sources and rows must name the same sources, but differ in {', '.join(sorted(unknown))}")
        return self

    def row(self, entry: _Entry) -> PublishedRow:
        """Return an entry as a full row, with what the file states once for all rows."""
        dice, *others = map(Decimal, entry.printed.split(" / "))
        jaccard, hd95, asd = others or (None, None, None)
        rest = self.train - entry.labelled
        return PublishedRow(
            dataset=self.dataset,
            method=entry.method,
            labelled=entry.labelled,
            unlabelled=rest if entry.unlabelled is None else entry.unlabelled,
            dice=dice,
            jaccard=jaccard,
            hd95=hd95,
            asd=asd,
            paper=entry.paper,
            source=self.sources[entry.source],
            secondary=entry.secondary,
            protocol="; ".join(filter(None, (self.protocol, entry.remark))),
        )


def published_rows(dataset: str) -> list[PublishedRow]:
    """Return the published results on a dataset, fewest labels first and then in the order of its file.

    Args:
        dataset: `data.name`; the list is empty if medssl has no table for it.

    Raises:
        ConfigError: the file of the dataset is invalid.
    """
    path = bundled(f"published/{dataset}.yaml")
    if path is None:
        return []
    table = parse(_Table, merge([path]), where=str(path))
    return sorted(map(table.row, table.rows), key=lambda row: row.labelled)
