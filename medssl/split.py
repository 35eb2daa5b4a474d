"""The job behind `medssl split`: divide a dataset as wished, published or declared, and write the splits."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from medssl.data.cases import namesakes
from medssl.data.draw import Wish, declared_parts, make_draws, make_folds, make_split, number_of
from medssl.data.lists import PublishedSplit, read_published_split
from medssl.data.prepared import PreparedDataset, read_prepared
from medssl.data.splits import PARTS, Part, Split, write_series, write_split
from medssl.data.strata import read_strata
from medssl.errors import ConfigError
from medssl.files import refuse_existing
from medssl.words import how_many


def split(
    prepared: Path | str,
    out: Path | str,
    wish: Wish,
    *,
    folds: int | None = None,
    draws: int | None = None,
    stratify: bool = False,
    published: Path | None = None,
    overwrite: bool = False,
) -> dict[Path, Split]:
    """Divide a prepared dataset, write its splits, and return them by file.

    Parts that the dataset itself declares are kept, except those that the wish names or counts.

    Args:
        out: the splits.json to write, or with `folds` or `draws` a folder for fold_0.json or draw_0.json and so on.
        folds: see `make_folds`.
        draws: see `make_draws`.
        stratify: draw within strata, which are read from the labels; see `Wish`.
        published: acdc, la, or a file of published lists, which are used except for what the wish names.

    Raises:
        ConfigError: options that cannot be combined, more cases wished for than there are, or existing files that may
            not be replaced.
        DataError: the dataset cannot be read, or the lists put a patient into two parts.
    """
    prepared, out = Path(prepared), Path(out)
    if folds is not None and draws is not None:
        raise ConfigError("--folds: the labelled patients of each fold are drawn only once, so leave out --draws")
    if published is not None and (folds or draws or stratify):
        raise ConfigError("--published: the lists fix all parts, so leave out --folds, --draws and --stratify")
    series = "fold" if folds is not None else "draw" if draws is not None else ""
    if not series:
        refuse_existing(out, overwrite)
    if published is not None:
        wish = _as_published(wish, read_published_split(Path(published)))
    dataset = read_prepared(prepared)
    _warn_of_namesakes(dataset)
    if published is None:
        wish = _as_declared(wish, dataset, validates=bool(folds))
    if stratify:
        wish = replace(wish, strata=read_strata(dataset))
    if folds is not None:
        made = make_folds(dataset, wish, folds)
    else:
        made = [make_split(dataset, wish)] if draws is None else make_draws(dataset, wish, draws)
    if series:
        return dict(zip(write_series(out, series, made, overwrite=overwrite), made, strict=True))
    write_split(out, made[0])
    return {out: made[0]}


def print_splits(splits: Mapping[Path, Split]) -> None:
    """Print how many cases each part of each split has, and what is unusual about the splits."""
    for path, made in splits.items():
        left_out = f", {len(made.left_out)} left out (in no list, or scans of validation and test patients)"
        print(f"{path}: " + ", ".join(f"{len(getattr(made, part))} {part}" for part in PARTS) + " cases"
              + left_out * bool(made.left_out))  # fmt: skip
        who = {made.patients[id] for id in made.labelled}
        everyone = who | {made.patients[id] for id in made.unlabelled}
        print(f"{path}: labels of {len(who)} of {len(everyone)} training patients are used")
    first, *others = splits
    out = first.parent if others else first
    for quirk in dict.fromkeys(quirk for made in splits.values() for quirk in made.quirks):
        print(f"{out}: {quirk.upper()}, as requested; reports will say so")


def _as_published(wish: Wish, lists: PublishedSplit) -> Wish:
    """Add published lists to a wish; its own lists take precedence."""
    number = number_of(wish.labelled, len(lists.train), f"training patients of {lists.name}")
    parts = lists.parts(number, without={name for names in wish.given.values() for name in names})
    if number not in lists.labelled:
        _warn(f"{lists.name} was not published with {number} labelled, only with "
              f"{', '.join(map(str, lists.labelled))}")  # fmt: skip
    if wish.val_is_test:
        parts.pop("val", None)
    return replace(wish, labelled=number, given={**parts, **wish.given})


def _as_declared(wish: Wish, dataset: PreparedDataset, *, validates: bool) -> Wish:
    """Add the parts that the dataset declares to a wish, except those that the wish names or counts.

    Args:
        validates: whether validation cases are chosen in another way, so that declared ones are not used.
    """
    counted = {"test": wish.test, "val": wish.val or validates or wish.val_is_test, "labelled": wish.labelled}
    declared: dict[Part, list[str]] = {}
    for part, ids in declared_parts(dataset).items():
        if part not in wish.given and not counted.get(part):
            declared[part] = ids
            _warn(f"using {how_many(len(ids), f'{part} case')} declared by the dataset itself")
    return replace(wish, given={**declared, **wish.given})


def _warn_of_namesakes(dataset: PreparedDataset) -> None:
    if alike := namesakes({case.id: case.subject for case in dataset.cases.values()}):
        _warn(f"{alike[0]} and {alike[1]} look like one patient, but each case counts as a patient of its own, so "
              "training and test may share patients. If patients have several scans, set data.subject and prepare "
              "again")  # fmt: skip


def _warn(text: str) -> None:
    print(f"medssl: {text}", file=sys.stderr)
