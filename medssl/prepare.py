"""The job behind `medssl prepare`: turn raw volumes into a prepared folder, in several processes, resumable.

Each case is read once: a worker checks it and, if nothing is wrong, prepares it into `unfinished/`. The cases move to
their final places once all are ready, so that a fault in any case leaves the folder as it was.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from medssl.config import flatten
from medssl.data.cases import Case, DatasetConfig
from medssl.data.check import report_of, survey
from medssl.data.findings import Facts, Finding, require_usable
from medssl.data.inspect import Expected, check_case
from medssl.data.io import read_grid, stacked
from medssl.data.labels import as_classes
from medssl.data.looks import look_at
from medssl.data.prepared import (
    CASES,
    UNFINISHED,
    PreparedDataset,
    Sources,
    holds,
    is_begun,
    is_current,
    read_prepared,
    refresh,
    settings_digest,
    stored_sources,
    write_case,
    write_dataset,
)
from medssl.data.recipe import Recipe
from medssl.data.volume import Source
from medssl.engines import Engine, as_finished_on_ray
from medssl.errors import ConfigError, DataError, Interrupted, OutOfMemoryError
from medssl.files import alone_in
from medssl.machine import available_cpus, available_memory
from medssl.progress import as_finished, stop_requested, track
from medssl.words import gib, how_many

BYTES_PER_VOXEL = 40
"""Most memory that a worker needs per voxel, counted before or after resampling; benchmarks/prepare.py measures it."""
BYTES_PER_WORKER = 200 * 2**20
"""Memory that a worker needs in addition."""
FEW_VOXELS = 4_000_000
"""Datasets with fewer voxels are prepared in this process by default, which is faster."""
ELSEWHERE = "Choose another folder, or replace it with --overwrite."


def prepare(
    source: Path | str,
    out: Path | str,
    config: DatasetConfig,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    engine: Engine = "local",
    address: str | None = None,
) -> PreparedDataset:
    """Check and prepare a dataset; cases that are already prepared are kept.

    Args:
        workers: number of processes; 0 works in this one, None uses all cores; never more than memory allows.
        overwrite: replace a prepared folder that was made with other settings or from another dataset.
        engine: `local`, or `ray` for the cluster at `address`, whose machines must all see both folders.

    Raises:
        DataError: some cases cannot be used; all are listed, and the folder is left as it was.
        ConfigError: `out` holds something else or another dataset, or another process is preparing into it.
        Interrupted: stopped by Ctrl-C or SIGTERM; finished cases are kept.
    """
    source, out = Path(source), Path(out)
    if engine == "ray":
        source, out = source.resolve(), out.resolve()
    with alone_in(out) as is_new:
        with _left_as_it_was_if_refused(out, is_new):
            before = _refuse_foreign(out, config, overwrite)
            _clear_up(out)
            layout, expected = survey(source, config)
            if before is not None and not overwrite:
                _refuse_other_dataset(before, source, layout.cases)
            settings = settings_digest(config)
            todo = [Task(case, out, config, expected) for case in layout.cases if not is_current(out, case, settings)]
            if report_of(source, layout, expected, [], is_all=False).errors:
                _refuse(out)  # the volumes are still checked, so that all faults are reported together
            outcomes = _run(todo, out, workers, engine, address)
            found = [(Facts(task.case.id), outcome.found or []) for task, outcome in zip(todo, outcomes, strict=True)]
            report = report_of(source, layout, expected, found, is_all=False)
            require_usable(report)
        for task, outcome in zip(todo, outcomes, strict=True):
            if outcome.found is None:
                refresh(out, task.case, outcome.sources)
        if report.findings:
            print(f"{source}: {len(report.findings)} warnings; `medssl check {source}` lists them", file=sys.stderr)
        write_dataset(out, config, layout.cases, source)
        dataset = read_prepared(out)
        if before is not None and (left := sorted(before.cases.keys() - dataset.cases.keys())):
            print(f"{out}: dropped {how_many(len(left), 'case')} not found in {source}: {', '.join(left)}; split "
                  "again\n"
                  f"{out / CASES}: still has their arrays, which you may delete", file=sys.stderr)  # fmt: skip
        _warn_of_equal_images(out, layout.cases)
        return dataset


def changed_cases(source: Path, out: Path, config: DatasetConfig) -> list[str]:
    """Return the cases that `prepare` would prepare again or drop from a finished folder; none if there is no such
    folder.

    Raises:
        ConfigError: `out` holds something else, or was prepared with other settings.
    """
    before = _refuse_foreign(out, config, overwrite=False) if out.exists() else None
    if before is None:
        return []
    settings, cases = settings_digest(config), survey(source, config)[0].cases
    kept = {c.id for c in cases if is_current(out, c, settings) or holds(out, c, Sources.of(c, config))}
    return sorted({case.id for case in cases}.union(before.cases) - kept)


def _warn_of_equal_images(out: Path, cases: Sequence[Case]) -> None:
    """Warn of different patients with identical image files; `check` compares voxels, and so finds more."""
    same: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        if (sources := stored_sources(out, case)) is not None:
            same.setdefault(sources.of_images(case), []).append(case)
    alike = [" = ".join(case.id for case in group) for group in same.values() if len({c.subject for c in group}) > 1]
    if alike:
        print(f"{out}: different patients have equal images, so training and test may share them: {', '.join(alike)}; "
              "keep one case, or make them one patient with data.subject", file=sys.stderr)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What a worker needs to prepare a case."""

    case: Case
    out: Path
    config: DatasetConfig
    expected: Expected


@dataclass(frozen=True)
class Outcome:
    """What a worker found and did."""

    sources: Sources
    found: list[Finding] | None
    """None if the case is already stored and its files were only moved or touched."""


def prepare_case(task: Task) -> Outcome:
    """Check one case and, unless it or another is faulty, store it among the unfinished ones."""
    sources = Sources.of(task.case, task.config)
    if holds(task.out, task.case, sources):
        return Outcome(sources, None)
    checked = check_case(task.case, task.expected)
    if checked.is_usable and not _refusal(task.out).exists():
        image = stacked([image for image in checked.images if image is not None])
        label = None if checked.label is None else as_classes(checked.label, task.config)
        write_case(task.out, task.case, task.config.recipe.apply(image, label), sources, look_at(image))
    return Outcome(sources, checked.findings)


def _run(todo: Sequence[Task], out: Path, workers: int | None, engine: Engine, address: str | None) -> list[Outcome]:
    """Carry out the tasks and return their outcomes; after the first fault the others are only checked."""
    if not todo:
        return []
    voxels = [most_voxels(task.case.images, task.config.recipe) for task in todo]
    most, largest = max((count, task.case.id) for count, task in zip(voxels, todo, strict=True))
    need = BYTES_PER_WORKER + BYTES_PER_VOXEL * most
    finished: Generator[tuple[Task, Outcome], None, None]
    if engine == "ray":
        finished = as_finished_on_ray(prepare_case, todo, address=address, memory=need)
    else:
        finished = as_finished(prepare_case, todo, _workers(voxels, workers, need, largest))
    (out / UNFINISHED).mkdir(parents=True, exist_ok=True)
    outcomes: dict[int, Outcome] = {}
    words = "stopping after the cases in progress; press Ctrl-C again to stop at once"
    with stop_requested(words) as stop, closing(finished), track("prepare", len(todo)) as advance:
        stopped = Interrupted(f"{out}: stopped; finished cases are kept. Run the same command again to go on")
        try:
            for task, outcome in finished:
                outcomes[id(task)] = outcome
                advance(task.case.id)
                if any(finding.severity == "error" for finding in outcome.found or []):
                    _refuse(out)
                if stop.is_set() and len(outcomes) < len(todo):
                    raise stopped
        except OutOfMemoryError:
            if stop.is_set():  # the signal that asked us to stop also ended the workers
                raise stopped from None
            raise
    return [outcomes[id(task)] for task in todo]


def _workers(voxels: Sequence[int], wanted: int | None, need: int, largest: str) -> int:
    """Return how many processes to use: as many as wanted, but no more than there are cases or than memory holds."""
    if wanted is None and sum(voxels) < FEW_VOXELS:
        return 0
    count = min(available_cpus() if wanted is None else wanted, len(voxels))
    free = available_memory()
    if free is None or count * need <= free:
        return count
    fitting = max(1, free // need)
    print(
        f"prepare: using {min(count, fitting)} of {count} processes, because case {largest} may need {gib(need)} and "
        f"only {gib(free)} are free",
        file=sys.stderr,
    )
    return min(count, fitting)


def most_voxels(images: Sequence[Source], recipe: Recipe) -> int:
    """Return the voxels of a case as stored or as prepared, whichever are more; 0 if it is unreadable, which the check
    reports."""
    try:
        (x, y, z, *more), affine = read_grid(images[0])
        more.append(len(images))
        prepared = recipe.uncropped((x, y, z), affine)
    except (DataError, ValueError, ArithmeticError):
        return 0
    return math.prod(more) * max(x * y * z, math.prod(prepared))


@contextmanager
def _left_as_it_was_if_refused(out: Path, is_new: bool) -> Iterator[None]:
    """If the block raises a DataError or ConfigError, remove what it began; an earlier unfinished folder stays."""
    was_begun = (out / UNFINISHED).exists()
    try:
        yield
    except (DataError, ConfigError):
        _refusal(out).unlink(missing_ok=True)
        if not was_begun:
            shutil.rmtree(out / UNFINISHED, ignore_errors=True)
        if is_new:
            shutil.rmtree(out, ignore_errors=True)
        raise


def _clear_up(out: Path) -> None:
    """Remove the partial files of a process that was killed."""
    for rest in (_refusal(out), *(out / UNFINISHED).glob(".partial-*")):
        rest.unlink() if rest.is_file() else shutil.rmtree(rest, ignore_errors=True)


def _refusal(out: Path) -> Path:
    """Return the file that tells workers, on any machine, that a case is faulty and the others need only be checked."""
    return out / UNFINISHED / ".refused"


def _refuse(out: Path) -> None:
    _refusal(out).parent.mkdir(parents=True, exist_ok=True)
    _refusal(out).touch()


def _refuse_foreign(out: Path, config: DatasetConfig, overwrite: bool) -> PreparedDataset | None:
    """Return the dataset in a finished folder, None if it is empty or unfinished; refuse a folder of something else."""
    if not any(out.iterdir()):
        return None
    if not is_begun(out):
        raise ConfigError(f"{out}: not empty and not a prepared folder; choose another place")
    try:
        before = read_prepared(out)
    except DataError:
        return None  # an unfinished folder: go on with it
    wanted = config.model_copy(update={"root": None, "splits": None, "layout": None})
    if before.config != wanted and not overwrite:
        there, now = (flatten(config.model_dump(mode="json"), "data.") for config in (before.config, wanted))
        keys = [key for key in there | now if there.get(key) != now.get(key)]
        lines = [f"  {key}: there {there.get(key)}, now {now.get(key)}" for key in keys]
        raise ConfigError(f"{out}: prepared before with other settings\n" + "\n".join(lines) + f"\n{ELSEWHERE}")
    return before


def _refuse_other_dataset(before: PreparedDataset, source: Path, cases: Sequence[Case]) -> None:
    """Refuse a source in another place, unless it holds cases of the earlier one with equal files: then it was moved or
    copied."""
    if before.source in (None, source.resolve()):
        return
    known = [case for case in cases if case.id in before.cases]
    found = "has none of its cases" if not known else None
    for case in known:
        stored = stored_sources(before.root, case)
        if stored is None or stored.content != Sources.of(case, before.config).content:
            found = f"holds other files for case {case.id}"
            break
    if found:
        raise ConfigError(f"{before.root}: prepared before from {before.source}\n  {source} {found}\n{ELSEWHERE}")
