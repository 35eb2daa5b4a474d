"""A run that begins with the weights of another: what it takes over, and whom it may not validate or test."""

from __future__ import annotations

import sys
from pathlib import Path

from medssl.data.splits import Part, Split, load_split
from medssl.distributed import is_first
from medssl.errors import ConfigError, DataError
from medssl.run import RunConfig
from medssl.trained import is_model_folder
from medssl.trainer import Seen, Trainer
from medssl.words import some


def start(trainer: Trainer, config: RunConfig, split: Split) -> None:
    """Begin with the weights of `train.start_from`, if none of those whom they come from validates or tests here.

    Raises:
        ConfigError: some do, or the networks are others.
        DataError: it is not there.
    """
    run = config.train.start_from
    if run is None:
        return
    if is_model_folder(run):
        raise ConfigError(
            f"train.start_from: {run} is a model folder, which has only the networks that predict, and not whom they "
            "saw; name the run folder that it was exported from"
        )
    if not (run / "last.pt").exists():
        raise DataError(
            f"train.start_from: {run / 'last.pt'}, looked for in {Path.cwd()}, is not there; name the folder of a run "
            "that has a last.pt"
        )
    data = trainer.begin_with(run / "last.pt")["data"]
    theirs, ours = data["classes"], list(config.data.classes)
    if theirs != ours and is_first():
        print(
            f"medssl: train.start_from: {run} was trained for {', '.join(theirs)}; here, in the same places, are "
            f"{', '.join(ours)}",
            file=sys.stderr,
        )
    follows = trainer.method.followers(trainer.progress(0))
    if follows and all(follow.decay == 0 for follow in follows) and is_first():
        print(
            f"medssl: train.start_from: stage one of {config.method.name} begins anew and makes teachers copies of "
            "their students; --set method.pretrain=0 leaves it out, and keeps the teachers that were taken over",
            file=sys.stderr,
        )
    trainer.seen_before = _joined(trainer.seen_before, data["name"], load_split(run / "splits.json"), split)
    _refuse_seen(trainer.seen_before, config, split)


def _joined(before: Seen, dataset: str, earlier: Split, split: Split) -> Seen:
    """Whom a run saw in its dataset, beside whom it says that its forerunners saw."""

    def patients(*parts: Part) -> set[str]:
        ids = {id for part in parts for id in getattr(earlier, part)}
        return {earlier.patients.get(id, split.patients.get(id, id)) for id in ids}  # an old file has no patients

    known = before.get(dataset, {})
    now = {"learned": patients("labelled", "unlabelled"), "chosen": patients("val")}
    return {**before, dataset: {use: sorted(people.union(known.get(use, ()))) for use, people in now.items()}}


def _refuse_seen(seen: Seen, config: RunConfig, split: Split) -> None:
    """Raise a ConfigError where somebody who was seen validates or tests, and is not said to be somebody else."""
    here = config.data.name
    for dataset, people in seen.items():
        if dataset != here and config.train.other_patients:
            continue
        learned, chosen = set(people["learned"]), set(people["chosen"])
        for part, known in (("val", learned), ("test", learned | chosen)):
            shared = sorted({split.patients[id] for id in getattr(split, part)} & known)
            if not shared:
                continue
            cure = "make a split in which they train, or start afresh"
            if dataset != here:
                cure += f"; if those of {dataset} are other people, say so with --set train.other_patients=true"
            raise ConfigError(
                f"train.start_from: {config.train.start_from}, or a run that it was started from, trained on or was "
                f"chosen by {some(shared)} of {dataset}, whom the split has in its part {part}; {cure}"
            )
