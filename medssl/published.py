"""Numbers that others published, to stand beside ours and never among them.

A file of `configs/published/` holds one dataset: where its numbers were read, and a row per method and number of
labelled patients. Figures are those printed there; nobody here ran them.
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
    """Where a number was read."""

    name: str
    """The table, log or note, with its paper or repository."""
    address: str
    """`arXiv 2305.00673`, or the repository as `owner/name`."""


class PublishedRow(Settings):
    """One method with one number of labelled patients, as printed; None where nothing was printed or read.

    Figures are decimals, so that `str` gives back the printed digits.
    """

    dataset: str
    method: str
    labelled: PositiveInt
    """Patients, not scans."""
    unlabelled: NonNegativeInt
    """Patients; 0 where a method learns from labels alone."""
    dice: Percent
    """In percent, as `jaccard`; the mean over foreground classes."""
    jaccard: Percent | None = None
    hd95: Distance | None = None
    asd: Distance | None = None
    unit: Literal["voxels"] = "voxels"
    """Of `hd95` and `asd`: no source takes spacing into account."""
    paper: str
    """The method's own paper, such as `arXiv 2305.00673`; empty where the source is all there is."""
    source: Citation
    secondary: bool
    """The number was read in another paper's table, log or note, not in what the method's authors published."""
    protocol: str
    """How it came about: the split, how weights were chosen, what else makes it incomparable."""


class _Entry(Settings):
    """A row as a file holds it."""

    method: str
    labelled: PositiveInt
    unlabelled: NonNegativeInt | None = None
    """The patients of the training list that are not labelled, unless said otherwise."""
    printed: str
    """The figures as printed: `88.02` for Dice alone, or `Dice / Jaccard / 95HD / ASD`."""
    paper: str = ""
    source: str
    secondary: bool = False
    remark: str = ""

    @model_validator(mode="after")
    def _one_or_four(self) -> _Entry:
        if not re.fullmatch(r"\d+\.\d+( / \d+\.\d+){3}|\d+\.\d+", self.printed):
            raise ValueError(f"printed: expected `Dice` or `Dice / Jaccard / 95HD / ASD`, found {self.printed!r}")
        return self


class _Table(Settings):
    """A file of `configs/published/`."""

    dataset: str
    train: PositiveInt
    """Patients of the training list, labelled and unlabelled together."""
    protocol: str
    """What holds for every row."""
    sources: dict[str, Citation]
    rows: tuple[_Entry, ...]

    @model_validator(mode="after")
    def _known_sources(self) -> _Table:
        unknown = {row.source for row in self.rows} ^ self.sources.keys()
        if unknown:
            raise ValueError(f"sources and rows do not fit: {', '.join(sorted(unknown))}")
        return self

    def row(self, entry: _Entry) -> PublishedRow:
        """An entry with what the file says once for all."""
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
    """What was published on a dataset, fewest labels first and then in the order of its file.

    Args:
        dataset: `data.name`; one of which medssl holds no table gives an empty list.

    Raises:
        ConfigError: the file of that dataset is broken.
    """
    path = bundled(f"published/{dataset}.yaml")
    if path is None:
        return []
    table = parse(_Table, merge([path]), where=str(path))
    return sorted(map(table.row, table.rows), key=lambda row: row.labelled)
