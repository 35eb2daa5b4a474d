"""Preparation of a bench: the prepared data, the splits, and the settings of each run."""

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
from medssl.words import how_many, some, some_lines


def prepared_dataset(matrix: Bench) -> PreparedDataset:
    """Return the prepared dataset that the settings name, or the bench's own, which is prepared if necessary."""
    data, source = matrix.data(), matrix.config.source
    assert data.root is not None  # own_settings sets it
    if source is not None and data.root == matrix.out / "prepared":
        if (matrix.out / "runs").exists() and (changed := changed_cases(source, data.root, data)):
            raise ConfigError(
                f"{source}: {how_many(len(changed), 'case')} changed after the runs in {matrix.out} were trained or "
                f"scored: {some(changed)}; choose another --out, or remove these runs"
            )
        return prepare(source, data.root, data)
    if source is None and not data.root.exists():
        raise ConfigError(
            f"{data.root}: no prepared dataset found; name the raw dataset with --set source=FOLDER, or a prepared one "
            "with --set settings.data.root=FOLDER"
        )
    return read_prepared(data.root)


def write_splits(matrix: Bench, dataset: PreparedDataset) -> None:
    """Write the splits with digests of their test cases; check the parts of existing ones."""
    config = matrix.config
    held = _held_out(config, dataset)
    for path, cell in {matrix.split(cell): cell for cell in matrix.cells}.items():
        wanted = _split_of(cell, config, dataset, held)
        there = read_split(path, dataset) if path.exists() else None
        if there and (other := [part for part in PARTS if set(getattr(there, part)) != set(getattr(wanted, part))]):
            raise ConfigError(
                f"{path}: its {' and '.join(other)} cases are not those that the bench file gives now; choose another "
                "--out"
            )
        split = (there or wanted).model_copy(update={"content": _tested(dataset, wanted)})
        if split != there:
            write_split(path, split)


def refuse_changed(matrix: Bench, dataset: PreparedDataset) -> None:
    """Raise a ConfigError if the files of a case changed after a run was trained with it or scored on it."""
    runs, splits = matrix.out / "runs", {cell.split: matrix.split(cell) for cell in matrix.cells}
    # Test cases count once any run of their split is scored, also one that this call leaves out.
    scored = [path for name, path in splits.items() if any(runs.glob(f"*__{name}__*/scores.csv"))]
    trained = [matrix.run(cell) / "splits.json" for cell in matrix.cells]
    changed: set[str] = set()
    for digests, paths in ((content_of, trained), (_tested, scored)):
        for path in paths:
            if path.exists() and (held := load_split(path)).sha256 == dataset.sha256:
                changed.update(changed_content(held.content, digests(dataset, held)))
    if changed:
        raise ConfigError(
            f"{dataset.root}: {how_many(len(changed), 'case')} changed after the runs in {matrix.out} were trained or "
            f"scored: {some(sorted(changed))}; choose another --out, or remove these runs"
        )


def _tested(dataset: PreparedDataset, split: Split) -> dict[str, str]:
    """Digests of the files of the test cases."""
    return {id: dataset.cases[id].content for id in split.test}


def refuse_foreign(out: Path) -> None:
    """Raise a ConfigError if a first bench in a folder would replace files that are not from a bench."""
    names = ("bench.yaml", "runs.csv", "cases.csv", "comparison.csv", "comparison-hd95.csv", "curves.csv", "report")
    if not (out / "configs").is_dir() and (there := [out / name for name in names if (out / name).exists()]):
        raise ConfigError(f"{there[0]}: exists already, but {out} holds no earlier bench; choose another --out")


def _held_out(config: BenchConfig, dataset: PreparedDataset) -> dict[Part, tuple[str, ...]]:
    """The validation and test cases, which are the same for the whole matrix."""
    lists = _lists(config)
    for part in ("val", "test"):
        if part not in lists and getattr(config, part) is None:
            raise ConfigError(f"{part}: must be a number of {config.count}, got null")
    wish = Wish(labelled=1, val=config.val or 0, test=config.test or 0, seed=config.draws[0], unit=config.count,
                given={part: lists[part] for part in ("val", "test") if part in lists})  # fmt: skip
    base = make_split(dataset, wish)
    return {"val": base.val, "test": base.test}


def _lists(config: BenchConfig, labelled: int = 1) -> dict[Part, list[str]]:
    """The names of the published split by part; empty if splits are drawn."""
    if config.published is None:
        return {}
    lists = read_published_split(config_path(config.published))
    val = lists.val or lists.train[max(0, len(lists.train) - (config.val or 0)) :]
    parts = lists.parts(labelled, without=val)
    if len(parts["labelled"]) < labelled:
        raise ConfigError(
            f"labelled: must be at most {len(lists.train) - len(val)}, got {labelled}; the other training names of "
            f"{lists.name} are used for validation"
        )
    return {**parts, "val": list(val)}


def _split_of(cell: Cell, config: BenchConfig, dataset: PreparedDataset, held: Mapping[Part, Sequence[str]]) -> Split:
    lists = {} if cell.labelled is None else _lists(config, cell.labelled)
    wish = Wish(labelled=cell.labelled or ALL, seed=cell.draw, unit=config.count, given={**lists, **held})
    return make_split(dataset, wish)


def write_configs(matrix: Bench) -> None:
    """Write the settings of all runs; raise a ConfigError if a run that has begun has other settings."""
    changed = _changed_scoring(matrix)
    for cell, settings in matrix.settings.items():
        path, plain = matrix.config_file(cell), settings.to_plain()
        before = merge([path]) if path.exists() else plain
        if before != plain and matrix.run(cell).exists():
            changed.append(f"{path}: {', '.join(k for k in plain if before.get(k) != plain[k])}")
    if changed:
        raise ConfigError(
            f"{matrix.out}: has runs with other settings; the keys named differ in {how_many(len(changed), 'file')}\n"
            + "\n".join(some_lines(changed))
            + "\nChoose another --out, or remove these runs and files."
        )
    (matrix.out / "configs").mkdir(parents=True, exist_ok=True)
    dump(matrix.config.model_dump(mode="json"), matrix.out / "bench.yaml")
    for cell, settings in matrix.settings.items():
        dump(settings.to_plain(), matrix.config_file(cell))


def _changed_scoring(matrix: Bench) -> list[str]:
    """Finished runs whose predictions.json shows that they were scored in another way than is asked for now."""
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
            found.append(f"{path}: {', '.join(keys)}")
    return found


def write_untrained(matrix: Bench, cell: Cell) -> None:
    """Write the run folder of a row with `of`: split and machine of its first run, summed step time of all its runs."""
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
    """Return the folders of the runs that are trained and scored."""
    return [matrix.run(cell) for cell in matrix.cells if matrix.is_done(cell)]
