"""The job behind `medssl split`: a wish, with the lists that were published or that the dataset declares, to files."""

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
    """Divide a prepared dataset and write its splits; they come back by their files.

    What the dataset itself declares is given, but for parts that the wish names or counts.

    Args:
        out: the splits.json to write, or with `folds` or `draws` a folder for fold_0.json or draw_0.json and so on.
        folds: see `make_folds`.
        draws: see `make_draws`.
        stratify: wish for strata, read from the labels.
        published: acdc, la, or a file of published lists, which are given but for what the wish names.

    Raises:
        ConfigError: wishes that do not go together, more than there is, or files that are not to be replaced.
        DataError: the dataset cannot be read, or the lists divide a patient.
    """
    prepared, out = Path(prepared), Path(out)
    if folds is not None and draws is not None:
        raise ConfigError("--folds: their labelled patients are drawn once, so leave out --draws")
    if published is not None and (folds or draws or stratify):
        raise ConfigError("--published: the lists name everybody, so leave out --folds, --draws and --stratify")
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
    """Say whom each split holds, and what about them is unusual."""
    for path, made in splits.items():
        left_out = f", {len(made.left_out)} left out (of no part, or of patients who validate or test)"
        print(f"{path}: " + ", ".join(f"{len(getattr(made, part))} {part}" for part in PARTS) + " cases"
              + left_out * bool(made.left_out))  # fmt: skip
        who = {made.patients[id] for id in made.labelled}
        everyone = who | {made.patients[id] for id in made.unlabelled}
        print(f"{path}: {len(who)} of {len(everyone)} training patients have labels that train")
    first, *others = splits
    out = first.parent if others else first
    for quirk in dict.fromkeys(quirk for made in splits.values() for quirk in made.quirks):
        print(f"{out}: {quirk.upper()}, as asked; reports will say so")


def _as_published(wish: Wish, lists: PublishedSplit) -> Wish:
    """The wish with what was published as given; its own lists win."""
    number = number_of(wish.labelled, len(lists.train), f"training patients of {lists.name}")
    parts = lists.parts(number, without={name for names in wish.given.values() for name in names})
    if number not in lists.labelled:
        _warn(f"{number} labelled of {lists.name} were not published; {', '.join(map(str, lists.labelled))} were")
    if wish.val_is_test:
        parts.pop("val", None)
    return replace(wish, labelled=number, given={**parts, **wish.given})


def _as_declared(wish: Wish, dataset: PreparedDataset, *, validates: bool) -> Wish:
    """The wish with what the dataset declares as given, where it asks for nothing else.

    Args:
        validates: others than those declared will validate.
    """
    counted = {"test": wish.test, "val": wish.val or validates or wish.val_is_test, "labelled": wish.labelled}
    declared: dict[Part, list[str]] = {}
    for part, ids in declared_parts(dataset).items():
        if part not in wish.given and not counted.get(part):
            declared[part] = ids
            _warn(f"{len(ids)} {part} cases as the dataset itself declares them")
    return replace(wish, given={**declared, **wish.given})


def _warn_of_namesakes(dataset: PreparedDataset) -> None:
    if alike := namesakes({case.id: case.subject for case in dataset.cases.values()}):
        _warn(f"{alike[0]} and {alike[1]} look like one patient, but each case counts as a patient of its own. If "
              "patients have several scans, say by data.subject how to tell them, and prepare again; the split may put "
              "a patient on both sides")  # fmt: skip


def _warn(text: str) -> None:
    print(f"medssl: {text}", file=sys.stderr)
