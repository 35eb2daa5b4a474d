"""The job behind `medssl evaluate`: predictions and references in, scores.csv out.

Files are matched by case id. Predictions hold class indices, or the values that predictions.json lists. The dataset's
settings say what the values of references stand for, which value marks voxels that nobody annotated, and which regions
are scored as well as the classes. A reference whose axes are stored in another order or direction is turned to those of
the prediction. Nothing is resampled: two volumes that do not share a grid are an error. All cases are checked, and all
their faults reported together, before the first is scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from medssl.config import parse
from medssl.data.cases import IGNORED, DatasetConfig
from medssl.data.grid import GRID_ERROR, aligned, shift_of
from medssl.data.io import SUFFIXES, is_volume, label_id, list_volumes
from medssl.data.labels import read_classes, read_pair, read_prediction
from medssl.data.prepared import PreparedDataset, read_prepared, refuse_moved
from medssl.data.record import NAME, read_record
from medssl.data.volume import Source, Volume, corners_apart
from medssl.errors import ConfigError, DataError
from medssl.files import refuse_existing
from medssl.logs import log_test_scores
from medssl.metrics import CONVENTIONS, METRICS, ClassScore, Measures, score_case
from medssl.metrics.conventions import BRATS_WORST, TOLERANCE
from medssl.metrics.scoring import LARGEST_LABEL
from medssl.progress import mapper, tracked
from medssl.score_file import write_scores
from medssl.scores import Scores, Spread, summarise
from medssl.words import by, how_many

if TYPE_CHECKING:
    from rich.console import Console

    from medssl.metrics import Units

GRID_TOLERANCE = 0.01
"""Largest distance between the corners of two grids that count as one, as a fraction of the smallest voxel side.

It is far below what could change a score, and far above what rounding to float32 does to a header.
"""
MOST_CLASSES = 256
"""With this many label values besides 0, and no class names, the files are taken for images."""

NAMED = 5
"""Number of references without a prediction that the printed summary names; the table names all."""
_PRINTED = ("dice", "iou", "hd95", "asd", "cldice", "instance_f1")
_ABREAST = 4  # metrics in one printed table, so that it fits into 80 characters with the class and the counts
_FEW = 4  # with fewer cases, starting processes takes longer than it saves


def evaluate_folders(
    predictions: Path | str,
    references: Path | str,
    out: Path | str,
    *,
    classes: Sequence[str] | None = None,
    data: DatasetConfig | None = None,
    workers: int = 2,
    overwrite: bool = False,
    conventions: Sequence[str] = ("strict",),
    units: str | None = None,
    tolerance: float = TOLERANCE,
    tolerances: Mapping[str, float] | None = None,
    instances: Sequence[str] = (),
    centreline: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
) -> Scores:
    """Score predicted label maps against references of the same case id, and write the table `out`.

    Returns the scores under the first convention; those under the others are in its attribute `beside`.

    Args:
        predictions: folder of label maps, or one file.
        references: the same, or a prepared folder, which stands for the raw labels it was made from. It may hold more
            cases than the predictions; these are counted and named as unpredicted. Two single files are compared
            whatever their names, under the case id of the prediction.
        out: the CSV file to write. If it is `scores.csv` in a run folder, it holds the run's test scores, and the run's
            TensorBoard shows them too.
        classes: class names in order of label value, background first, if the label values are 0, 1, 2 and so on.
        data: what the values of the references mean, instead of what a prepared folder says. Without `data`, `classes`
            and a prepared folder, `predictions.json` beside the predictions says it; without that, each label value
            found is a class.
        workers: processes. With fewer than two, or with fewer than four cases, this process does all the work, with up
            to as many threads for the classes of a case.
        overwrite: replace `out` if it exists.
        conventions: whose rules to score by, names of `medssl.metrics.CONVENTIONS`.
        units: unit of distances, `mm` or `voxel`, instead of each convention's own.
        tolerance: distance up to which NSD counts surfaces as matching, in the unit of distances.
        tolerances: the same for single classes, by name.
        instances: classes whose connected components are counted and paired.
        centreline: tubular classes that get a clDice.
        metrics: the columns, names of `medssl.metrics.METRICS`; None for all that the conventions have.

    Raises:
        ConfigError: `out` exists; `classes` are not a valid list of names, or are given in addition to `data` or a
            prepared folder; or one of the other names is unknown.
        DataError: a prediction has no reference, or cases cannot be scored; all of them are listed.
    """
    predictions, references, out = Path(predictions), Path(references), Path(out)
    if out.suffix.lower() == ".json":
        raise ConfigError(f"{out}: scores are written as a table; give a name that ends in .csv")
    _refuse_existing(out, overwrite)
    measures = Measures(
        tuple(conventions), cast("Units | None", units), tolerance, tolerances or {}, tuple(instances),
        tuple(centreline), None if metrics is None else tuple(metrics),
    )  # fmt: skip
    if units == "voxel" and "brats" in conventions:
        raise ConfigError(f"units: must be mm with the convention brats, whose HD95 of a missed class is {BRATS_WORST} "
                          "mm; leave out brats or the unit")  # fmt: skip
    prepared = read_prepared(references) if is_prepared(references) else None
    data = _dataset(classes, data or (prepared.config if prepared else None), predictions)
    pairs, unpredicted = _match(predictions, references, prepared)
    cases = [pair.case for pair in pairs]
    is_alone = workers < 2 or len(pairs) < _FEW
    with mapper(0 if is_alone else workers) as apply:
        findings = tracked("check", cases, apply(_inspect, pairs, repeat(data), repeat(prepared is not None)))
        labels = _labels(pairs, findings, data)
        measures.check_classes([*labels.values(), *(data.regions if data else ())])
        threads = max(workers, 1) if is_alone else 1
        scored = tracked(
            "score", cases, apply(_score, pairs, repeat(labels), repeat(data), repeat(measures), repeat(threads))
        )
    said = None if data is None or (data.is_plain and not data.regions) else data
    files = {pair.case: (pair.prediction, pair.reference) for pair in pairs}
    scores, *beside = (
        Scores((score for case in scored for score in case[name]), unpredicted, convention=name, measures=measures,
               data=said, files=files)
        for name in measures.conventions
    )  # fmt: skip
    scores.beside = tuple(beside)
    write_scores(out, scores)
    if out.name == "scores.csv":
        log_test_scores(out.parent, scores)
    return scores


def print_summary(scores: Scores, console: Console | None = None) -> None:
    """Print the mean scores as a table, and name references without a prediction.

    The table has a row per class and region and one for all classes, each with a line per convention if there are
    several.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    tables = (scores, *scores.beside)
    summaries = [summarise(each) for each in tables]
    console = console or Console()
    shown = [name for name in _PRINTED if name in scores.metrics]
    parts = [shown[start : start + _ABREAST] for start in range(0, len(shown), _ABREAST)] or [[]]
    for part in parts:
        is_first = part is parts[0]
        table = Table(box=None, padding=(0, 1, 0, 0))
        for column in ("class", *(_head(name, tables) for name in part), *["counts"] * is_first):
            table.add_column(column, no_wrap=column != "class", overflow="fold")
        for rows in zip(*((*summary.classes, summary.overall) for summary in summaries), strict=True):
            for number, (each, row) in enumerate(zip(tables, rows, strict=True)):
                counts = f"{row.scored} scored, {row.absent} absent\n{row.missed} missed, {row.invented} invented"
                mark = f"  {each.convention}" if len(tables) > 1 else ""
                name = "\n".join([escape(row.class_name), mark]).rstrip() if number == 0 else mark
                told = ["" if number else counts] * is_first
                table.add_row(name, *(_show(row.spread(metric)) for metric in part), *told)
        console.print(table)
    console.print(_caption(tables), style="dim italic", markup=False, highlight=False)
    if scores.unpredicted:
        named = ", ".join(scores.unpredicted[:NAMED]) + (", ..." if len(scores.unpredicted) > NAMED else "")
        alone = f"{len(scores.unpredicted)} ({named}); the score file lists all of them"
        console.print(f"references without a prediction: {alone}", markup=False, highlight=False)


def _head(name: str, tables: Sequence[Scores]) -> str:
    """Return the column heading of a metric, with its unit if all tables have the same."""
    units = {scores.units for scores in tables if name in CONVENTIONS[scores.convention].metrics}
    return f"{name} {units.pop()}" if METRICS[name].kind == "distance" and len(units) == 1 else name


def _caption(tables: Sequence[Scores]) -> str:
    over = {each.convention: CONVENTIONS[each.convention].averages for each in tables}
    caption = "mean (n) ± sd; overall: over " + " or ".join(dict.fromkeys(over.values()))
    if len(set(over.values())) > 1:
        caption = "mean (n) ± sd; overall: " + ", ".join(f"over {what} in {one}" for one, what in over.items())
    if len(tables) > 1:
        caption += "\ndistances: " + ", ".join(f"{each.convention} in {each.units}" for each in tables)
    return caption


def _show(spread: Spread) -> str:
    mean = "-" if spread.mean is None else f"{spread.mean:.3f}"
    sd = "" if spread.sd is None else f"±{spread.sd:.3f}"
    return f"{mean} ({spread.n})\n{sd}"


# ---- which files, which classes


@dataclass(frozen=True)
class _Pair:
    case: str
    prediction: Path
    reference: Source


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; name the CSV file to write, such as {out / 'scores.csv'}")
    refuse_existing(out, overwrite)


def is_prepared(folder: Path) -> bool:
    """Return whether a folder is a prepared dataset; those of the MSD have a dataset.json too, but no cases/."""
    return (folder / "dataset.json").is_file() and (folder / "cases").is_dir()


def _match(predictions: Path, references: Path, prepared: PreparedDataset | None) -> tuple[list[_Pair], list[str]]:
    """Return the pairs sorted by case, and the references without a prediction."""
    ours = _volumes(predictions)
    if prepared is not None:
        theirs = {id: case.label for id, case in prepared.cases.items() if case.label is not None}
        refuse_moved(references, list(theirs.values()))
    else:
        theirs = {case: Source(path) for case, path in _volumes(references).items()}
    same = [case for case in ours.keys() & theirs.keys() if ours[case].resolve() == theirs[case].path.resolve()]
    if same:
        raise DataError(f"{ours[min(same)]}: is both prediction and reference ({how_many(len(same), 'such file')}); "
                        "name the predictions first, then the references")  # fmt: skip
    if predictions.is_file() and references.is_file():
        return [_Pair(case, path, Source(references)) for case, path in ours.items()], []
    orphans = [f"  {case}  {ours[case]}" for case in sorted(ours.keys() - theirs.keys())]
    if orphans:
        swapped = "\nIf these are the references, swap the two: predictions are named first, then references."
        raise DataError(
            f"{len(orphans)} of {len(ours)} predictions have no reference of the same name in {references}\n"
            + "\n".join(orphans)
            + "\nAdd the references, or move these files out of the predictions."
            + (swapped if theirs and theirs.keys() < ours.keys() and not (predictions / NAME).is_file() else "")
        )
    return [_Pair(case, ours[case], theirs[case]) for case in sorted(ours)], sorted(theirs.keys() - ours.keys())


def _volumes(source: Path) -> dict[str, Path]:
    """Return the volumes of a folder, or a single file, by case id."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    paths = list_volumes(source) if source.is_dir() else [source]
    if not paths or not is_volume(paths[0]):
        raise DataError(f"{source}: expected volumes ({', '.join(SUFFIXES)}), found none")
    volumes: dict[str, Path] = {}
    for path in paths:
        other = volumes.setdefault(label_id(path), path)
        if other != path:
            raise DataError(f"{source}: {other.name} and {path.name} are both of case {label_id(path)}; keep one")
    return volumes


def _dataset(classes: Sequence[str] | None, data: DatasetConfig | None, predictions: Path) -> DatasetConfig | None:
    """Return what the labels mean, as given or as stored beside the predictions; None if neither."""
    if classes is not None:
        if data is not None:
            raise ConfigError(f"classes: the settings of dataset {data.name} already name them; leave `classes` out")
        fault = _fault_of_names(list(classes))
        if fault:
            raise ConfigError(f"classes: {fault}")
        return parse(DatasetConfig, {"name": "", "classes": classes})
    if data is not None:
        return data
    path = (predictions if predictions.is_dir() else predictions.parent) / NAME
    if not path.exists():
        return None
    record = read_record(path)
    fault = _fault_of_names(list(record.classes))
    if fault:
        raise DataError(f"{path}: classes: {fault}; correct the file, or name the classes")
    labels = record.model_dump(include={"classes", "values", "ignore", "regions"})
    try:
        return parse(DatasetConfig, {"name": "", **labels})
    except ConfigError as error:
        raise DataError(f"{path}: {error}; correct the file, or give the dataset's settings") from None


def _fault_of_names(names: Sequence[str]) -> str | None:
    if len(names) < 2:
        return f"expected the background and at least one class, found {names!r}"
    odd = [name for name in names if not name.strip() or not name.isprintable() or names.count(name) > 1]
    return f"each name must be printable and unique, found {odd!r}" if odd else None


# ---- checks of the cases


def _inspect(pair: _Pair, data: DatasetConfig | None, is_prepared: bool) -> tuple[list[str], set[int]]:
    """Return everything that keeps a pair from being scored, and the label values of both volumes.

    Args:
        is_prepared: `prepare` accepted the reference, and it accepts labels that lie a little off the image's grid.
    """
    faults: list[str] = []
    volumes: list[Volume] = []
    values: set[int] = set()
    for role, source in (("prediction", Source(pair.prediction)), ("reference", pair.reference)):
        try:
            volume = read_prediction(source) if role == "prediction" else read_classes(source, data)
        except DataError as error:
            faults.append(str(error))
            continue
        found = _values(volume.array)
        if role == "reference" and data is not None and data.ignore:
            found.discard(IGNORED)
        faults += _fault_of_values(role, found, source, data)
        values |= found
        volumes.append(volume)
    if len(volumes) == 2:
        faults += _faults_of_grids(volumes[0], volumes[1], is_prepared)
    return faults, values


def _values(array: NDArray[Any]) -> set[int]:
    if array.min() < 0 or array.max() > 2**16:
        return {int(value) for value in np.unique(array)}
    # Counting slice by slice is many times faster than sorting a volume.
    return {int(value) for plane in array for value in np.flatnonzero(np.bincount(plane.ravel()))}


def _fault_of_values(role: str, found: set[int], source: Source, data: DatasetConfig | None) -> list[str]:
    most = LARGEST_LABEL + 1 if data is None else len(data.classes)
    odd = sorted(value for value in found if not 0 <= value < most)
    if not odd:
        return []
    shown = ", ".join(str(value) for value in odd[:10]) + (" ..." if len(odd) > 10 else "")
    known = f"{'labels' if data is None else 'the classes'} are 0 to {most - 1}"
    own = [values[0] for values in data.class_values] if data is not None and role == "prediction" else []
    hint = ""
    if set(odd) <= set(own):
        hint = f'\nif it holds the values of data.values, put {{"own_values": {own}}} into {NAME} beside it'
    return [f"{role} holds label {shown}; {known}   {source}{hint}"]


def _faults_of_grids(prediction: Volume, reference: Volume, is_prepared: bool) -> list[str]:
    grids = f"\nprediction {_describe(prediction)}\nreference  {_describe(reference)}"
    if prediction.array.ndim != 3 or reference.array.ndim != 3:
        return [f"a label map must have three axes{grids}"]
    reference = aligned(reference, prediction)
    if prediction.shape != reference.shape:
        return [f"prediction and reference lie on different grids: their shapes differ{grids}"]
    shift = shift_of(reference, prediction) if is_prepared else None
    apart = corners_apart(reference.shape, prediction.affine, reference.affine)
    rounded = np.spacing(np.float32(np.abs(reference.affine[:3, 3]).max()))  # NIfTI stores positions as float32
    tolerance = GRID_TOLERANCE * min(reference.spacing) + float(rounded)
    if apart > tolerance and (shift is None or shift > GRID_ERROR):
        return [
            f"prediction and reference lie on different grids: corners are up to {apart:.4g} mm apart, "
            f"{tolerance:.2g} mm is tolerated{grids}"
        ]
    return []


def _describe(volume: Volume) -> str:
    rows = "; ".join(" ".join(f"{value:.6g}" for value in row) for row in volume.affine[:3])
    return f"{by(volume.array.shape)} at {by(volume.spacing)} mm, affine [{rows}]   {volume.path}"


def _labels(
    pairs: Sequence[_Pair], findings: Sequence[tuple[list[str], set[int]]], data: DatasetConfig | None
) -> dict[int, str]:
    """Return the foreground classes by label value, or raise a DataError that lists the faults of all cases."""
    faulty = [(pair.case, faults) for pair, (faults, _) in zip(pairs, findings, strict=True) if faults]
    if faulty:
        raise DataError(
            f"{len(faulty)} of {len(pairs)} cases cannot be scored\n"
            + "\n".join(_indent(case, fault) for case, faults in faulty for fault in faults)
            + "\nEvaluation does not resample or relabel: correct these files, or leave them out."
        )
    if data is not None:
        return {label: name for label, name in enumerate(data.classes) if label > 0}
    found = sorted({value for _, values in findings for value in values} - {0})
    if not found:
        raise DataError("all label maps hold only 0, so there is nothing to score; name the classes if all are absent")
    if len(found) >= MOST_CLASSES:
        raise DataError(
            f"the files hold {len(found)} label values besides 0, so they may be images; if they are label maps, name "
            "the classes"
        )
    return {label: str(label) for label in found}


def _indent(case: str, fault: str) -> str:
    return f"  {case}  " + fault.replace("\n", "\n" + " " * (len(case) + 4))


# ---- the work


def _score(
    pair: _Pair, labels: dict[int, str], data: DatasetConfig | None, measures: Measures, threads: int
) -> dict[str, list[ClassScore]]:
    prediction, reference = read_pair(pair.prediction, pair.reference, data)
    regions = {} if data is None else data.region_places
    return score_case(pair.case, prediction, reference, labels, measures, regions=regions, threads=threads)
