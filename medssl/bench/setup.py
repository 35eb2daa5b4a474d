"""What must be there before the runs: the prepared data, splits, and the settings of each run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from medssl.bench.matrix import ALL, Bench, BenchConfig, Cell
from medssl.config import config_path, dump, flatten, merge
from medssl.data.draw import Wish, make_split
from medssl.data.lists import read_published_split
from medssl.data.prepared import PreparedDataset, read_prepared
from medssl.data.record import NAME, read_record
from medssl.data.splits import PARTS, Part, Split, changed_content, content_of, load_split, read_split, write_split
from medssl.errors import ConfigError
from medssl.files import whole_file
from medssl.logs import read_metrics, training_seconds
from medssl.prepare import changed_cases, prepare
from medssl.words import some


def prepared_dataset(matrix: Bench) -> PreparedDataset:
    """The dataset that the settings name, or the bench's own, prepared now where it is not."""
    data, source = matrix.data(), matrix.config.source
    assert data.root is not None  # _settings gave one
    if source is not None and data.root == matrix.out / "prepared":
        if (matrix.out / "runs").exists() and (changed := changed_cases(source, data.root, data)):
            raise ConfigError(
                f"{source}: not what the runs in {matrix.out} learned from or were scored on, for {len(changed)} cases "
                f"have changed: {some(changed)}; choose another --out, or remove these runs"
            )
        return prepare(source, data.root, data)
    if source is None and not data.root.exists():
        raise ConfigError("nothing to run on: name the raw dataset with --set source=FOLDER, or a prepared one with "
                          "--set settings.data.root=FOLDER")  # fmt: skip
    return read_prepared(data.root)


def write_splits(matrix: Bench, dataset: PreparedDataset) -> None:
    """Write the splits that are not there yet, and check those that are."""
    config = matrix.config
    held = _held_out(config, dataset)
    for path, cell in {matrix.split(cell): cell for cell in matrix.cells}.items():
        wanted = _split_of(cell, config, dataset, held)
        if not path.exists():
            write_split(path, wanted)
            continue
        there = read_split(path, dataset)
        if other := [part for part in PARTS if set(getattr(there, part)) != set(getattr(wanted, part))]:
            raise ConfigError(f"{path}: has other {' and '.join(other)} cases than are asked for; choose another --out")


def refuse_changed(matrix: Bench, dataset: PreparedDataset) -> None:
    """Raise a ConfigError where runs learned from other files of a case than the prepared dataset was made from."""
    changed: set[str] = set()
    for path in (matrix.run(cell) / "splits.json" for cell in matrix.cells):
        if path.exists():
            held = load_split(path)
            if held.sha256 == dataset.sha256:
                changed.update(changed_content(held.content, content_of(dataset, held)))
    if changed:
        raise ConfigError(
            f"{dataset.root}: not what the runs in {matrix.out} learned from, for {len(changed)} cases have changed: "
            f"{some(sorted(changed))}; choose another --out, or remove these runs"
        )


def refuse_foreign(out: Path) -> None:
    """Raise a ConfigError where a first bench in a folder would replace what somebody else wrote there."""
    names = ("bench.yaml", "runs.csv", "cases.csv", "comparison.csv", "curves.csv", "report")
    if not (out / "configs").is_dir() and (there := [out / name for name in names if (out / name).exists()]):
        raise ConfigError(f"{there[0]}: exists, and is of no bench; choose another --out")


def _held_out(config: BenchConfig, dataset: PreparedDataset) -> dict[Part, tuple[str, ...]]:
    """Validation and test cases, the same for the whole matrix."""
    lists = _lists(config)
    for part in ("val", "test"):
        if part not in lists and getattr(config, part) is None:
            raise ConfigError(f"{part}: say how many {config.count}")
    wish = Wish(labelled=1, val=config.val or 0, test=config.test or 0, seed=config.draws[0], unit=config.count,
                given={part: lists[part] for part in ("val", "test") if part in lists})  # fmt: skip
    base = make_split(dataset, wish)
    return {"val": base.val, "test": base.test}


def _lists(config: BenchConfig, labelled: int = 1) -> dict[Part, list[str]]:
    """Published names by part; nothing where the matrix is drawn."""
    if config.published is None:
        return {}
    lists = read_published_split(config_path(config.published))
    val = lists.val or lists.train[max(0, len(lists.train) - (config.val or 0)) :]
    parts = lists.parts(labelled, without=val)
    if len(parts["labelled"]) < labelled:
        raise ConfigError(f"labelled: {labelled}, and {lists.name} has {len(lists.train) - len(val)} beside val")
    return {**parts, "val": list(val)}


def _split_of(cell: Cell, config: BenchConfig, dataset: PreparedDataset, held: Mapping[Part, Sequence[str]]) -> Split:
    lists = {} if cell.labelled is None else _lists(config, cell.labelled)
    wish = Wish(labelled=cell.labelled or ALL, seed=cell.draw, unit=config.count, given={**lists, **held})
    return make_split(dataset, wish)


def write_configs(matrix: Bench) -> None:
    """Write the settings of all runs; one that has begun must have had the same."""
    changed = _changed_scoring(matrix)
    for cell, settings in matrix.settings.items():
        path, plain = matrix.config_file(cell), settings.to_plain()
        before = merge([path]) if path.exists() else plain
        if before != plain and matrix.run(cell).exists():
            changed.append(f"  {path}: {', '.join(k for k in plain if before.get(k) != plain[k])}")
    if changed:
        raise ConfigError(
            f"{matrix.out}: {len(changed)} files tell of runs with other settings (those named)\n"
            + "\n".join(changed[:10])
            + "\nChoose another --out, or remove these runs and files."
        )
    (matrix.out / "configs").mkdir(parents=True, exist_ok=True)
    dump(matrix.config.model_dump(mode="json"), matrix.out / "bench.yaml")
    for cell, settings in matrix.settings.items():
        dump(settings.to_plain(), matrix.config_file(cell))


def _changed_scoring(matrix: Bench) -> list[str]:
    """Runs that are finished and were scored in another way than is asked for now, as their predictions tell."""
    found = []
    for cell in matrix.cells:
        path = matrix.run(cell) / "test" / NAME
        if matrix.is_untimed(cell) or not (matrix.is_done(cell) and path.exists()):
            continue
        made, window = read_record(path), matrix.settings[cell].window
        names = [matrix.run(source).name for source in matrix.sources(cell) or [cell]]
        there = flatten({**made.to_plain(), "runs": [Path(run).name for run in (made.run or "", *made.also)]})
        asked = {
            "checkpoint": f"{matrix.config.checkpoint}.pt",
            "network": matrix.network(cell) or window.network,
            "window.mirror": matrix.mirrors(cell) or window.mirror,
            "runs": names,
        }
        if keys := [key for key, now in asked.items() if there.get(key, now) != now]:
            found.append(f"  {path}: {', '.join(keys)}")
    return found


def write_untrained(matrix: Bench, cell: Cell) -> None:
    """The run folder of a row of others' runs: the first one's split and machine, and the time of all their steps."""
    run, sources = matrix.run(cell), [matrix.run(source) for source in matrix.sources(cell)]
    run.mkdir(parents=True, exist_ok=True)
    dump(matrix.settings[cell].to_plain(), run / "config.yaml")
    for name in ("splits.json", "env.json"):
        shutil.copyfile(sources[0] / name, run / name)
    steps = matrix.settings[cell].train.iterations
    seconds = sum(training_seconds(read_metrics(source / "metrics.csv")) for source in sources) / steps
    with whole_file(run / "metrics.csv") as partial:
        partial.write_text(f"step,seconds_per_step\n{steps},{seconds:.6g}\n")


def finished(matrix: Bench) -> list[Path]:
    """The folders of the runs that are trained and scored."""
    return [matrix.run(cell) for cell in matrix.cells if matrix.is_done(cell)]
