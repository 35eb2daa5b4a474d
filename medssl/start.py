"""Start a run from the weights of another (`train.start_from`), and keep its validation and test patients unseen."""

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
    """Load the weights of the run `train.start_from`, if no patient that they come from validates or tests.

    Raises:
        ConfigError: one does, or the networks differ.
        DataError: that run has no last.pt.
    """
    run = config.train.start_from
    if run is None:
        return
    if is_model_folder(run):
        raise ConfigError(
            f"train.start_from: {run} is a model folder, which has only the networks that predict, and no record of "
            "the patients that they learned from; name the run folder that it was exported from"
        )
    if not (run / "last.pt").exists():
        raise DataError(
            f"train.start_from: {run / 'last.pt'} does not exist (current folder: {Path.cwd()}); name the folder of a "
            "run that has a last.pt"
        )
    data = trainer.begin_with(run / "last.pt")["data"]
    theirs, ours = data["classes"], list(config.data.classes)
    if theirs != ours and is_first():
        print(
            f"medssl: train.start_from: {run} was trained for the classes {', '.join(theirs)}; in this run, the same "
            f"network outputs stand for {', '.join(ours)}",
            file=sys.stderr,
        )
    follows = trainer.method.followers(trainer.progress(0))
    if follows and all(follow.decay == 0 for follow in follows) and is_first():
        print(
            f"medssl: train.start_from: the first stage of {config.method.name} runs again and replaces the loaded "
            "teachers by copies of their students; --set method.pretrain=0 skips it and keeps them",
            file=sys.stderr,
        )
    trainer.seen_before = _joined(trainer.seen_before, data["name"], load_split(run / "splits.json"), split)
    _refuse_seen(trainer.seen_before, config, split)


def _joined(before: Seen, dataset: str, earlier: Split, split: Split) -> Seen:
    """Add the patients whom a run saw in its dataset to those whom the runs before it saw."""

    def patients(*parts: Part) -> set[str]:
        ids = {id for part in parts for id in getattr(earlier, part)}
        return {earlier.patients.get(id, split.patients.get(id, id)) for id in ids}  # old files lack patients

    known = before.get(dataset, {})
    now = {"learned": patients("labelled", "unlabelled"), "chosen": patients("val")}
    return {**before, dataset: {use: sorted(people.union(known.get(use, ()))) for use, people in now.items()}}


def _refuse_seen(seen: Seen, config: RunConfig, split: Split) -> None:
    """Raise a ConfigError if a patient learned from before validates, or one seen before in any way tests.

    With `train.other_patients`, patients of other datasets do not count.
    """
    here = config.data.name
    for dataset, people in seen.items():
        if dataset != here and config.train.other_patients:
            continue
        learned, chosen = set(people["learned"]), set(people["chosen"])
        for part, known in (("val", learned), ("test", learned | chosen)):
            shared = sorted({split.patients[id] for id in getattr(split, part)} & known)
            if not shared:
                continue
            cure = "make a split in which they train, or leave out train.start_from"
            if dataset != here:
                cure += f"; if the patients of {dataset} are other people, use --set train.other_patients=true"
            raise ConfigError(
                f"train.start_from: the {part} set has {some(shared)} of {dataset}, whom {config.train.start_from}, or "
                f"a run that it was started from, used for training or validation; {cure}"
            )
