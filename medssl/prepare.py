"""The job behind `medssl prepare`: raw volumes to a prepared folder, in processes, resumable."""

from __future__ import annotations

import sys
from itertools import repeat
from pathlib import Path

from medssl.data.cases import Case, DatasetConfig
from medssl.data.check import check
from medssl.data.findings import require_usable
from medssl.data.labels import as_classes
from medssl.data.nifti import read_image, read_label
from medssl.data.prepared import (
    PreparedDataset,
    case_digest,
    read_prepared,
    stored_digest,
    write_case,
    write_dataset,
)
from medssl.errors import ConfigError, DataError
from medssl.progress import mapper, tracked


def prepare(
    source: Path,
    out: Path,
    config: DatasetConfig,
    *,
    workers: int = 2,
    overwrite: bool = False,
) -> PreparedDataset:
    """Check a dataset, then write its prepared folder; cases that are stored already are kept.

    Args:
        workers: processes; 0 works in this one.
        overwrite: replace a prepared folder that was made with other settings.

    Raises:
        DataError: cases that cannot be used, all listed, before anything is written.
        ConfigError: `out` holds something else.
    """
    _refuse_foreign(out, config, overwrite)
    report = check(source, config, workers=workers)
    require_usable(report)
    cases = report.cases
    if report.findings:
        print(f"{source}: {len(report.findings)} warnings; `medssl check {source}` lists them", file=sys.stderr)
    (out / "cases").mkdir(parents=True, exist_ok=True)
    digests = {case.id: case_digest(case, config) for case in cases}
    todo = [case for case in cases if stored_digest(out, case.id) != digests[case.id]]
    if todo:
        (out / "dataset.json").unlink(missing_ok=True)
    with mapper(workers if len(todo) > 1 else 0) as apply:
        done = apply(prepare_case, todo, repeat(out), repeat(config), [digests[case.id] for case in todo])
        tracked("prepare", [case.id for case in todo], done)
    write_dataset(out, config, [case.id for case in cases])
    return read_prepared(out)


def prepare_case(case: Case, out: Path, config: DatasetConfig, digest: str) -> str:
    """Read, prepare and store one case; its id comes back."""
    label = None if case.label is None else as_classes(read_label(case.label), config)
    write_case(out, case, config.recipe.apply(read_image(*case.images), label), digest)
    return case.id


def _refuse_foreign(out: Path, config: DatasetConfig, overwrite: bool) -> None:
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / "cases").is_dir():
        raise ConfigError(f"{out}: not empty and not a prepared folder; choose another place")
    try:
        found = read_prepared(out).config
    except DataError:
        return  # an unfinished folder: go on with it
    wanted = config.model_copy(update={"root": None, "splits": None, "layout": None})
    if found != wanted and not overwrite:
        there, now = found.model_dump(mode="json"), wanted.model_dump(mode="json")
        lines = [f"  data.{key}: there {there[key]}, now {now[key]}" for key in now if there[key] != now[key]]
        raise ConfigError(
            f"{out}: prepared before with other settings\n" + "\n".join(lines) + "\n"
            "Choose another folder, or replace it with --overwrite."
        )
