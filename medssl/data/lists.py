"""Published lists of patients, as the files of `configs/split/` hold them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pydantic import PositiveInt

from medssl.config import Settings, merge, parse
from medssl.data.splits import Part
from medssl.errors import ConfigError


class PublishedSplit(Settings):
    """Who trained, validated and tested in the literature: patients, or cases where a patient has one."""

    name: str
    source: str
    """Where the lists were published."""
    train: tuple[str, ...]
    """In the published order: the first ones are the labelled ones."""
    val: tuple[str, ...] = ()
    """Empty where the literature has no validation set."""
    test: tuple[str, ...]
    labelled: tuple[PositiveInt, ...]
    """How many of `train` were labelled in what was published."""

    def parts(self, labelled: int, without: Collection[str] = ()) -> dict[Part, list[str]]:
        """The lists by part, with the first `labelled` names of `train` labelled and its others unlabelled.

        Args:
            without: names that are left out, because the caller uses them elsewhere.

        Raises:
            ConfigError: `train` has fewer names, or none is wanted.
        """
        if not 1 <= labelled <= len(self.train):
            published = ", ".join(map(str, self.labelled))
            raise ConfigError(
                f"--labelled {labelled}: {self.name} has 1 to {len(self.train)}; published are {published}"
            )
        found: dict[Part, list[str]] = {
            "labelled": list(self.train[:labelled]),
            "unlabelled": list(self.train[labelled:]),
            "test": list(self.test),
        }
        if self.val:
            found["val"] = list(self.val)
        return {part: [name for name in names if name not in without] for part, names in found.items()}


def read_published_split(path: Path) -> PublishedSplit:
    """Read a file of `configs/split/`.

    Raises:
        ConfigError: it cannot be read, or a key of it is wrong.
    """
    return parse(PublishedSplit, merge([path]))
