"""The job behind `medssl report`: run folders in, one HTML page out.

The page holds everything it shows: it needs no other file and no network. Dice and IoU are shown in percent,
distances in millimetres. What the page says is decided here, how it looks in templates/report.html.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from medssl import __version__
from medssl.comparison import (
    BASELINE,
    PARTS,
    Gain,
    Row,
    Run,
    differing_facts,
    facts,
    gain_over_baseline,
    load_runs,
    make_rows,
    notes,
)  # fmt: skip
from medssl.data.nifti import read_image, read_label
from medssl.errors import ConfigError, DataError
from medssl.figures import STYLES, Line, View, class_colour, line_plot, overlay, smooth, strip_plot
from medssl.files import whole_file
from medssl.metrics import ClassScore
from medssl.progress import track
from medssl.scores import ClassSummary, Spread

NOTHING = "–"
"""Stands for a number that is undefined."""

_IN_ROW = {"data.root", "data.splits", "train.workers", "train.seed", "train.iterations", "augment.preset",
           "window.network", "prediction.window.network", "prediction.window.batch"}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A row of the tables."""

    row: Row
    gain: Gain | None


@dataclass(frozen=True)
class Figure:
    """A plot as a data URI, and what it shows in words."""

    uri: str
    caption: str


@dataclass(frozen=True)
class Picture:
    """A case chosen for its rank, with its slices, or a sentence that says why there are none."""

    rank: str
    case: str
    dice: float
    scores: list[ClassScore]
    views: list[View]
    fault: str


def write_report(
    runs: Sequence[Path], out: Path, *, overwrite: bool = False, title: str = "Comparison of runs"
) -> Path:
    """Write `out`/report.html, which compares run folders, and return its path.

    A run takes part with its scores when its folder holds a `scores.csv`, and with its curves in any case.

    Raises:
        ConfigError: no run, the same run twice, runs of different datasets, or a report is there already.
        DataError: a path is no run folder, all such paths listed, or one of its files cannot be read.
    """
    page = Path(out) / "report.html"
    if page.exists() and not overwrite:
        raise ConfigError(f"{page}: exists already; choose another folder, or replace it with --overwrite")
    text = render(make_rows(load_runs([Path(path) for path in runs])), title)
    page.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(page) as partial:
        # A file name that is not UTF-8 has no place in a page; question marks stand for such bytes.
        partial.write_text(text, encoding="utf-8", errors="replace")
    return page


def render(rows: Sequence[Row], title: str) -> str:
    """The page as text."""
    template = _environment().get_template("report.html")
    runs = [run for row in rows for run in row.runs]
    classes = _classes(rows)
    return template.render(
        title=title,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        results=[Result(row, gain_over_baseline(row, rows)) for row in rows],
        has_gains=any(gain_over_baseline(row, rows) for row in rows),
        baseline=BASELINE,
        conditions=_conditions(rows),
        protocol=protocol(runs),
        notes=notes(rows),
        per_class=[(name, [(row, _of_class(row, name)) for row in rows if row.summary]) for name in classes.values()],
        settings=differing_settings(rows),
        methods=list(dict.fromkeys(row.key.method for row in rows)),
        labelled=list(dict.fromkeys(row.key.labelled for row in rows)),
        figures=[*_strip(rows), *_validation(rows)],
        losses=_losses(rows),
        pictures=_pictures(rows),
        class_colours=[(name, class_colour(label)) for label, name in classes.items()],
        runs=runs,
    )


# ---- words and numbers


def protocol(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """How the runs came about: a term, and what the runs say to it without repetition."""
    says: dict[str, Callable[[Run], str]] = {
        "Dataset": lambda run: str(run.settings["data.name"]),
        "Classes": lambda run: ", ".join(map(str, run.settings["data.classes"][1:])),
        "Cases": lambda run: ", ".join(f"{len(run.splits[part])} {part}" for part in PARTS),
        "Augmentation": lambda run: f"preset {run.key.augment}",
        "Training": _training,
        "Network": _network,
        "Seeds": lambda run: str(run.seed),
        "Scored": lambda run: f"{run.key.network} network" + _checkpoint(run),
        "Machine": _machine,
        "Versions": lambda run: ", ".join(
            f"{name} {run.environment[name]}"
            for name in ("medssl", "python", "torch", "monai", "numpy", "cuda")
            if run.environment.get(name)
        ),
    }
    found = [(term, list(dict.fromkeys(say(run) for run in runs))) for term, say in says.items()]
    return [(term, [", ".join(values)] if term == "Seeds" else values) for term, values in found]


def _training(run: Run) -> str:
    say = run.settings.get
    patch = " x ".join(map(str, say("train.patch", ())))
    batch = f"{say('train.labelled_batch')} labelled + {say('train.unlabelled_batch')} unlabelled patches a step"
    return f"{run.key.steps:,} steps, {batch}, patch {patch}, {say('train.optimizer')}, learning rate {say('train.lr')}"


def _network(run: Run) -> str:
    say = run.settings.get
    channels = "-".join(map(str, say("network.channels", ())))
    return f"{say('network.name')}, channels {channels}, {say('network.norm')} norm, dropout {say('network.dropout')}"


def _checkpoint(run: Run) -> str:
    if run.scores is None:
        return ", not yet scored"
    return f", weights of {run.made['checkpoint']}" if "checkpoint" in run.made else ""


def _machine(run: Run) -> str:
    env = run.environment
    gpus = ", ".join(map(str, env.get("gpus") or ()))
    return ", ".join(str(part) for part in (gpus or "no GPU", env.get("processor"), env.get("platform")) if part)


def _conditions(rows: Sequence[Row]) -> str:
    """Augmentation and steps in a few words, for captions."""
    presets = " / ".join(dict.fromkeys(row.key.augment for row in rows))
    steps = " / ".join(dict.fromkeys(f"{row.key.steps:,}" for row in rows))
    return f"{presets} augmentation, {steps} steps"


def _classes(rows: Sequence[Row]) -> dict[int, str]:
    """Foreground classes by label: as scored, or as configured when nothing was."""
    scored = {score.label: score.class_name for row in rows for run in row.scored for score in run.scores or ()}
    configured = dict(enumerate(map(str, rows[0].runs[0].settings["data.classes"][1:]), start=1))
    return dict(sorted((scored or configured).items()))


def _of_class(row: Row, name: str) -> ClassSummary | None:
    return next((c for c in row.summary.classes if c.class_name == name), None) if row.summary else None


def differing_settings(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same everywhere, with each row's value; what defines a row or method is left out."""
    keys = [key for key in differing_facts(run for row in rows for run in row.runs)
            if key not in _IN_ROW and not key.startswith("method.")]  # fmt: skip
    return [(key, [_values(row, key) for row in rows]) for key in keys]


def _values(row: Row, key: str) -> str:
    held = [facts(run) for run in row.runs]
    return " / ".join(dict.fromkeys(str(each[key]) for each in held if key in each)) or NOTHING


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "mm": _mm, "points": _points, "sd": _sd, "rate": _rate}
    return environment


def _percent(value: Spread | float | None) -> str:
    """A share with its spread: 0.851 becomes 85.1."""
    if isinstance(value, Spread):
        return _with_spread(value, 100, 1)
    return NOTHING if value is None else f"{100 * value:.1f}"


def _mm(value: Spread) -> str:
    return _with_spread(value, 1, 2)


def _with_spread(value: Spread, factor: int, digits: int) -> str:
    if value.mean is None:
        return NOTHING
    spread = "" if value.sd is None else f" ± {factor * value.sd:.{digits}f}"
    return f"{factor * value.mean:.{digits}f}{spread}"


def _sd(value: Spread) -> str:
    return NOTHING if value.sd is None else f"{100 * value.sd:.1f}"


def _points(value: float) -> str:
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def _rate(run: Run) -> str:
    """Median seconds per step, as logged."""
    _, values = run.curve("seconds_per_step")
    return f"{statistics.median(values):.2f}" if values else NOTHING


# ---- pictures


def _strip(rows: Sequence[Row]) -> list[Figure]:
    groups = [(row.name, row.colour, [100 * v for run in row.scored for v in run.case_dice.values()]) for row in rows]
    if not any(values for _, _, values in groups):
        return []
    words = (
        "Dice of every case and seed: a dot is a case's mean over its classes, the box holds the middle half with "
        "the median, the whiskers reach to the last dot within 1.5 box lengths."
    )
    return [Figure(strip_plot(groups, "Dice of a case, %"), words)]


def _validation(rows: Sequence[Row]) -> list[Figure]:
    lines = [
        Line(row.name, row.colour, row.style, steps, [100 * v for v in values])
        for row in rows
        for steps, values in (run.curve("val/dice") for run in row.runs)
        if steps
    ]
    words = "Validation Dice, a line per run, on the prepared grid: each class's mean over cases, then over classes."
    return [Figure(line_plot(lines, "validation Dice, %"), words)] if lines else []


def _losses(rows: Sequence[Row]) -> list[Figure]:
    drawn = [(row.name, _loss_lines(row)) for row in rows]
    return [Figure(line_plot(lines, "loss", size=(4.2, 2.4)), name) for name, lines in drawn if lines]


def _loss_lines(row: Row) -> list[Line]:
    names = dict.fromkeys(name for run in row.runs for each in run.metrics for name in each if name.startswith("loss/"))
    lines = []
    for i, name in enumerate(names):
        by_step: dict[float, list[float]] = {}
        for run in row.runs:
            for step, value in zip(*run.curve(name), strict=True):
                by_step.setdefault(step, []).append(value)
        if by_step:
            steps, values = smooth(list(by_step), [statistics.fmean(found) for found in by_step.values()])
            lines.append(Line(name.removeprefix("loss/"), row.colour, STYLES[i % len(STYLES)], steps, values))
    return lines


def _pictures(rows: Sequence[Row]) -> list[tuple[Row, Run, list[Picture]]]:
    """Each row's first seed with its best, median and worst case."""
    chosen = [(row, row.scored[0], _ranked(row.scored[0].case_dice)) for row in rows if row.scored]
    with track("draw", sum(len(cases) for _, _, cases in chosen)) as advance:
        found = []
        for row, run, cases in chosen:
            pictures = []
            for rank, case in cases:
                pictures.append(_picture(run, rank, case))
                advance(case)
            found.append((row, run, pictures))
    return found


def _ranked(dice: Mapping[str, float]) -> list[tuple[str, str]]:
    """Rank and id of the best, the median (the lower of two) and the worst case; fewer of fewer cases."""
    order = [case for _, case in sorted((value, case) for case, value in dice.items())]
    if len(order) < 3:
        return [("best", case) for case in order[1:]] + [("worst" if order[1:] else "only", case) for case in order[:1]]
    return [("best", order[-1]), ("median", order[(len(order) - 1) // 2]), ("worst", order[0])]


def _picture(run: Run, rank: str, case: str) -> Picture:
    views, fault = _draw(run, case)
    scores = [score for score in run.scores or () if score.case == case]
    return Picture(rank, case, run.case_dice[case], scores, views, fault)


def _draw(run: Run, case: str) -> tuple[list[View], str]:
    """The slices of a case, or what keeps them from being drawn."""
    images = run.made.get("images", {})
    if case not in images:
        return [], "no predictions.json beside the prediction names the image of this case"
    prediction, reference = run.files[case]
    paths = {"image": Path(images[case]), "prediction": prediction, "reference": reference}
    gone = [f"the {role} {path} no longer exists" for role, path in paths.items() if not path.exists()]
    if gone:
        return [], " and ".join(gone)
    try:
        volumes = read_image(paths["image"]), read_label(prediction), read_label(reference)
    except DataError as error:
        return [], str(error)
    if len({volume.shape for volume in volumes}) > 1:
        return [], f"image {paths['image']} and label maps have different shapes"
    return overlay(*volumes), ""
