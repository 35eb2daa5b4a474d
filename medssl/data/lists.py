"""Import and export splits of others: published lists in `configs/split/`, nnU-Net's splits_final.json, and folders of
`*.list` files with one id per line."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from medssl.config import Settings, bundled, config_path, merge, parse
from medssl.data.draw import Amount, Wish, declared_apart, make_split, number_of, shuffled
from medssl.data.names import read_id_list, resolve_names
from medssl.data.prepared import PreparedDataset
from medssl.data.splits import PARTS, Part, Split, refuse_file, write_split
from medssl.errors import ConfigError, DataError
from medssl.files import read_json, whole_file, write_json

TRAIN = "train"
"""A list of training cases, with or without labels."""
FILES = (TRAIN, *PARTS)
RECORD = "split.json"
"""File beside exported lists: the split of medssl, with its seed and quirks, which lists cannot express."""


class PublishedSplit(Settings):
    """A split from the literature, by patients, or by cases if each patient has one."""

    name: str
    source: str
    """Where the lists were published."""
    train: tuple[str, ...]
    """In the published order: the first ones are labelled."""
    val: tuple[str, ...] = ()
    """Empty if the literature has no validation set."""
    test: tuple[str, ...]
    labelled: tuple[PositiveInt, ...]
    """Published numbers of labelled names in `train`."""

    def parts(self, labelled: int, without: Collection[str] = ()) -> dict[Part, list[str]]:
        """Return the lists by part: the first `labelled` names of `train` are labelled, the others unlabelled.

        Args:
            without: names that are left out, because the caller uses them elsewhere.

        Raises:
            ConfigError: `labelled` is less than 1, or more than `train` has.
        """
        if not 1 <= labelled <= len(self.train):
            published = ", ".join(map(str, self.labelled))
            raise ConfigError(
                f"--labelled {labelled}: must be from 1 to {len(self.train)} for {self.name}; published are {published}"
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
    """Read a file in the form of `configs/split/`; a word such as `acdc` names one that is part of the package.

    Raises:
        ConfigError: it cannot be read, or one of its keys is wrong.
    """
    if path.parent == Path() and not path.suffix:
        named = bundled(f"split/{path}.yaml")
        if named is None and not path.is_file():
            known = bundled("split/acdc.yaml")
            names = sorted(file.stem for file in known.parent.glob("*.yaml")) if known else []
            raise ConfigError(f"--published {path}: no such lists; choose one of {', '.join(names)}, or give a file")
        path = named or path
    return parse(PublishedSplit, merge([config_path(path)]))


def import_split(
    dataset: PreparedDataset,
    source: Path,
    *,
    fold: int | None = None,
    labelled: Amount = "all",
    seed: int = 0,
    renamed_frames: bool = False,
    rest_unlabelled: bool = False,
) -> Split:
    """Import a split from nnU-Net's splits_final.json or from a folder of lists.

    In a training list, cases with a label become labelled and the others unlabelled. The folder holds `train`, or
    `labelled` and `unlabelled`, and `val` and `test`, each as `.list` or `.txt`; if `labelled` exists, `train` is not
    read. Cases that no list names are left out.

    Args:
        fold: the entry of splits_final.json; not needed if it has only one.
        labelled: how many patients of the training list keep their labels; a share is one of all training patients,
            as in `Wish`. The first ones of a `train.list`, whose order is a published one; from other lists, drawn by
            `seed`.
        renamed_frames: see `Wish`.
        rest_unlabelled: cases that no list names become unlabelled, unless their patient validates or tests.

    Raises:
        ConfigError: there is no list, the fold does not exist, or a name is unknown.
        DataError: the file cannot be read, or the lists divide a patient or name a case twice.
    """
    if source.is_dir():
        if fold is not None:
            raise ConfigError(f"--fold {fold}: {source} holds lists, which have no folds; leave --fold out")
        lists = _read_lists(source)
    else:
        lists = _read_nnunet(source, fold)
    pool = "labelled" if "labelled" in lists else TRAIN
    ids = resolve_names(dataset, lists, renamed_frames=renamed_frames)
    order = None if source.is_dir() and pool == TRAIN else seed
    training = [*ids[pool], *ids.get("unlabelled", ())]
    if rest_unlabelled:
        held = {dataset.cases[id].subject for part in ("val", "test") for id in ids.get(part, ())}
        held |= declared_apart(dataset).keys()
        training += [id for id, case in dataset.cases.items() if case.subject not in held]
    total = len({dataset.cases[id].subject for id in training})
    keep, others = _keep_labels(dataset, ids.pop(pool), labelled, total, order, f"training patients of {source}")
    given: dict[Part, Sequence[str]] = {part: ids.get(part, []) for part in PARTS}
    given |= {"labelled": keep, "unlabelled": [*others, *given["unlabelled"]]}
    if rest_unlabelled:
        del given["unlabelled"]
    split = make_split(dataset, Wish(seed=seed, given=given), where=str(source))
    is_drawn = labelled != "all" and order is not None
    quirks = ("renamed frames", *split.quirks) if renamed_frames else split.quirks
    return split.model_copy(update={"seed": seed if is_drawn else None, "quirks": quirks})


def export_nnunet(splits: Sequence[Split], path: Path) -> None:
    """Write splits_final.json with one fold per split, in which `train` holds the labelled cases only.

    So nnU-Net learns from the same labels as medssl. It ignores `unlabelled` and `test`, from which `import_split`
    restores the whole split, and `seed` and `quirks`, which are for human readers.

    Raises:
        ConfigError: a split validates on its test cases.
    """
    for split in splits:
        _refuse_test_as_val(split)
    names = {TRAIN: "labelled", "val": "val", "unlabelled": "unlabelled", "test": "test"}
    folds = []
    for split in splits:
        lists = {name: list(getattr(split, part)) for name, part in names.items()}
        folds.append({**lists, "seed": split.seed, "quirks": list(split.quirks)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, folds)


def export_lists(split: Split, folder: Path) -> None:
    """Write a `.list` for each part, train.list, and the split itself as RECORD.

    train.list holds the labelled cases, then the unlabelled ones.

    Raises:
        ConfigError: the split validates on its test cases.
    """
    _refuse_test_as_val(split)
    refuse_file(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lists: dict[str, tuple[str, ...]] = {part: getattr(split, part) for part in PARTS}
    lists[TRAIN] = (*split.labelled, *split.unlabelled)
    for name, ids in lists.items():
        with whole_file(folder / f"{name}.list") as partial:
            partial.write_text("".join(f"{id}\n" for id in ids), encoding="utf-8")
    write_split(folder / RECORD, split)


def _refuse_test_as_val(split: Split) -> None:
    if "selection on test" in split.quirks:
        raise ConfigError("the split validates on its test cases, which files of other tools cannot express; "
                          "export a split that was made without --val-is-test")  # fmt: skip


def _read_lists(folder: Path) -> dict[str, list[str]]:
    files: dict[str, Path] = {}
    for name in FILES:
        paths = [path for end in ("list", "txt") if (path := folder / f"{name}.{end}").is_file()]
        if len(paths) > 1:
            raise ConfigError(f"{folder}: has {paths[0].name} and {paths[1].name}; keep one")
        if paths:
            files[name] = paths[0]
    if "labelled" in files:
        files.pop(TRAIN, None)
    elif TRAIN not in files:
        files[TRAIN] = folder / f"{TRAIN}_slices.list"
        if not files[TRAIN].is_file():
            raise ConfigError(f"{folder}: has neither {TRAIN}.list nor labelled.list (or .txt), so no case would train")
    return {name: read_id_list(path) for name, path in files.items()}


def _read_nnunet(path: Path, fold: int | None) -> dict[str, list[str]]:
    folds = read_json(path)
    if not (isinstance(folds, list) and folds and all(map(_is_fold, folds))):
        raise DataError(f"{path}: expected a list of folds, each {{\"train\": [...], \"val\": [...]}}, as nnU-Net "
                        "writes it; a splits.json of medssl needs no import")  # fmt: skip
    if fold is None and len(folds) > 1:
        raise ConfigError(f"{path}: has {len(folds)} folds; choose one with --fold, 0 to {len(folds) - 1}")
    if not 0 <= (fold or 0) < len(folds):
        raise ConfigError(f"--fold {fold}: must be from 0 to {len(folds) - 1} for {path}")
    return {name: names for name, names in folds[fold or 0].items() if name in FILES}


def _is_fold(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and {TRAIN, "val"} <= value.keys()
        and all(isinstance(value[name], list) and all(isinstance(id, str) for id in value[name])
                for name in FILES if name in value)
    )  # fmt: skip


def _keep_labels(
    dataset: PreparedDataset, ids: Sequence[str], amount: Amount, total: int, seed: int | None, of: str
) -> tuple[list[str], list[str]]:
    """Cases that keep their label, and the other ones: by patient, in the given order or shuffled by `seed`.

    Args:
        amount: of patients; a share is one of `total`.
    """
    patients: Mapping[str, None] = dict.fromkeys(dataset.cases[id].subject for id in ids)
    annotated = {dataset.cases[id].subject for id in ids if dataset.cases[id].labelled}
    able = [patient for patient in (patients if seed is None else shuffled(patients, seed)) if patient in annotated]
    number = len(able) if amount == "all" else number_of(amount, total, of)
    if number > len(able):
        raise ConfigError(f"--labelled: {number} patients wanted, only {len(able)} {of} have labels")
    chosen = set(able[:number])
    keep = [id for id in ids if dataset.cases[id].labelled and dataset.cases[id].subject in chosen]
    kept = set(keep)
    return keep, [id for id in ids if id not in kept]
