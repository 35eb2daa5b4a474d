"""The HTML page of a report: its text, its plots and where they go. The templates are in medssl/templates."""

from __future__ import annotations

import base64
import hashlib
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medssl import __version__
from medssl.comparison import Row, Run, convention_of, notes, rank_rows
from medssl.data.splits import PARTS
from medssl.files import whole_file
from medssl.metrics import METRICS
from medssl.palette import STYLES, class_colour
from medssl.plots import (
    Curve,
    Line,
    Point,
    calibration_plot,
    confusion_matrix,
    label_curve,
    line_plot,
    rank_plot,
    smooth,
    strip_plot,
)  # fmt: skip
from medssl.report.gallery import Wall
from medssl.report.tables import (
    Table,
    conditions_of,
    percent,
    runs_table,
    settings_table,
    shown_metrics,
)
from medssl.report.viewer import PACKAGE, VERSION, Scene
from medssl.report.voxels import Agreement, agreements

TEMPLATES = Path(__file__).parents[1] / "templates"

_DASHES = {"-": "", "--": "7 4", ":": "2 3", "-.": "7 3 2 3"}
_GAUGES = {
    "prior": "share of the annotated voxels in this class",
    "pseudo": "share of the pseudo-labelled voxels in this class; it should stay near the share in the labels",
    "selected": "mean trust (weight) of the unlabelled voxels",
    "gap": "share of the unlabelled voxels where student and teacher predict different classes",
    "dissent": "share of the unlabelled voxels where two students predict different classes",
    "contested": "share of the annotated voxels where a student and the best student predict different classes",
    "disputed": "share of the unlabelled voxels where teachers predict different classes",
    "removed": "share of the pseudo-labelled foreground outside each class's largest component, set to background",
    "lag": "relative distance of a teacher's weights from its students' mean",
}
"""Meaning of the gauges that `medssl.parts.gauges` and the trainer log."""


@dataclass(frozen=True)
class Figure:
    """A plot as a data URI, with its caption."""

    uri: str
    caption: str


def render(
    rows: Sequence[Row],
    title: str,
    *,
    references: Sequence[str],
    tables: Sequence[Table],
    gallery: Sequence[Wall],
    scenes: Sequence[Scene],
    workers: int = 2,
) -> str:
    """Return the page of a report as HTML text."""
    runs = [run for row in rows for run in row.runs]
    classes = _classes(rows)
    found = agreements(rows, max(classes, default=0) + 1, workers=workers)
    return fill(
        "report.html",
        ["sort.js", *["viewer.js"] * bool(scenes)],
        title=title,
        references=references,
        conditions_of=conditions_of,
        protocol=protocol(runs),
        notes=notes(rows, references),
        convention=convention_of(rows),
        definitions=_definitions(rows),
        first=tables[:1],
        tables=tables[1:],
        details=[table for table in (runs_table(rows), settings_table(rows)) if table],
        methods=list(dict.fromkeys(row.key.method for row in rows)),
        labelled=list(dict.fromkeys(row.key.labelled for row in rows)),
        figures=[*_labels(rows), *_strip(rows)],
        ranks=_ranks(rows),
        training=_validation(rows),
        losses=_losses(rows),
        gauges=_gauges(rows, classes),
        legend=[(row.name, row.colour, _DASHES[row.style]) for row in rows],
        calibration=_calibration(rows, found),
        confusion=_confusion(rows, found, classes),
        unread=sum(each.unread for each in found),
        walls=gallery,
        class_colours=[(name, class_colour(label)) for label, name in classes.items()],
        scenes=scenes,
        scene_of={scene.picture: number for number, scene in enumerate(scenes)},
        viewer=_viewer(scenes, classes),
        niivue=f"{PACKAGE} {VERSION}",
        runs=runs,
    )  # fmt: skip


def fill(template: str, scripts: Sequence[str], **values: Any) -> str:
    """Fill a template with values and return the page as HTML text.

    Args:
        scripts: files of the templates folder whose JavaScript the page runs.
    """
    texts = [(TEMPLATES / name).read_text(encoding="utf-8") for name in scripts]
    return (
        _environment()
        .get_template(template)
        .render(
            written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
            version=__version__,
            scripts=texts,
            policy=_policy(texts, has_viewer="viewer.js" in scripts),
            **values,
        )
    )


def write_pages(texts: Mapping[Path, str]) -> None:
    """Write texts to their files: all of them, or none if one fails."""
    with ExitStack() as stack:
        for path, text in texts.items():
            # Bytes of file names that are not UTF-8 become question marks.
            stack.enter_context(whole_file(path)).write_text(text, encoding="utf-8", errors="replace")


# ---- words


def protocol(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Describe how the runs were made: pairs of a term and its different values among the runs."""
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
    batch = f"{say('train.labelled_batch')} labelled + {say('train.unlabelled_batch')} unlabelled patches per step"
    return f"{run.key.steps:,} steps, {batch}, patch {patch}, {say('train.optimizer')}, learning rate {say('train.lr')}"


def _network(run: Run) -> str:
    say = run.settings.get
    channels = "-".join(map(str, say("network.channels", ())))
    return f"{say('network.name')}, channels {channels}, {say('network.norm')} norm, dropout {say('network.dropout')}"


def _checkpoint(run: Run) -> str:
    if run.scores is None:
        return ", not yet scored"
    return f", weights of {run.made.checkpoint}" if run.made.checkpoint else ""


def _machine(run: Run) -> str:
    env = run.environment
    gpus = ", ".join(map(str, env.get("gpus") or ()))
    return ", ".join(str(part) for part in (gpus or "no GPU", env.get("processor"), env.get("platform")) if part)


def _definitions(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return title and definition of the shown metrics; HD95 and ASD as the runs' convention defines them."""
    rule = convention_of(rows)
    meant = {"hd95": rule.hd95, "asd": rule.asd}
    return [(METRICS[name].title, METRICS[meant.get(name, name)].description) for name in shown_metrics(rows)]


def _classes(rows: Sequence[Row]) -> dict[int, str]:
    """Return the names of the foreground classes by label: as scored, or as configured if no run was scored."""
    scores = [score for row in rows for run in row.scored for score in run.scores or () if not score.is_region]
    scored = {score.label: score.class_name for score in scores}
    configured = dict(enumerate(map(str, rows[0].runs[0].settings["data.classes"][1:]), start=1))
    return dict(sorted((scored or configured).items()))


# ---- plots


def _labels(rows: Sequence[Row]) -> list[Figure]:
    """Plot Dice against the labelled count, if there are rows with different counts.

    Rows without unlabelled cases are drawn as horizontal lines.
    """
    scored = [row for row in rows if row.describe() is not None]
    curves: dict[str, list[Row]] = {}
    for row in scored:
        if not _has_all_labels(row):
            curves.setdefault(row.name.replace(f", {row.key.labelled} labelled", ""), []).append(row)
    if len({row.key.labelled for found in curves.values() for row in found}) < 2:
        return []
    styles: dict[str, int] = {}
    drawn = []
    for name, found in curves.items():
        style = styles[found[0].key.method] = styles.get(found[0].key.method, -1) + 1
        drawn.append(Curve(name, found[0].colour, STYLES[style % len(STYLES)], [_point(row) for row in found]))
    levels = [(f"{row.name} (all)", row.colour, _point(row).mean) for row in scored if _has_all_labels(row)]
    words = (
        "Dice against the labelled count. Filled dots are means over patients with their 95 % intervals; hollow dots "
        "are the means of single runs."
    )
    across = " A horizontal line marks a row with a label for every training case." if levels else ""
    return [Figure(label_curve(drawn, levels, "Dice, %"), words + across)]


def _ranks(rows: Sequence[Row]) -> list[Figure]:
    colours = {row.name: row.colour for row in rows}
    words = (
        "Mean ranks at labelled count {}. Rows whose bars overlap cannot be told apart; the others may still differ "
        "only by the chance of their seeds. On the right: the share of resamples in which each row comes first "
        "(darkest), second and so on."
    )
    ranked = [(labelled, ranking) for labelled, ranking in rank_rows(rows).items() if len(ranking.names) > 2]
    return [Figure(rank_plot(ranking, colours), words.format(labelled)) for labelled, ranking in ranked]


def _has_all_labels(row: Row) -> bool:
    return all(not run.splits["unlabelled"] for run in row.runs)


def _point(row: Row) -> Point:
    interval = row.interval()
    assert interval is not None
    ends = [None if end is None else 100 * end for end in (interval.low, interval.high)]
    runs = [100 * statistics.fmean(patients.values()) for patients in row.values().values() if patients]
    return Point(row.key.labelled, 100 * interval.mean, ends[0], ends[1], runs)


def _strip(rows: Sequence[Row]) -> list[Figure]:
    groups = [(row.name, row.colour, [100 * v for run in row.scored for v in run.case_dice.values()]) for row in rows]
    if not any(values for _, _, values in groups):
        return []
    words = (
        "Dice of every case in every run. Each dot is one case, the mean over the classes (or regions) that count. The "
        "box spans the middle half of the dots, with the median; the whiskers reach to the last dot within 1.5 box "
        "lengths."
    )
    return [Figure(strip_plot(groups, "Dice of a case, %"), words)]


def _validation(rows: Sequence[Row]) -> list[Figure]:
    """Plot validation Dice against steps, a figure for each labelled count; captions say whether rows have settled."""
    figures = []
    for labelled in dict.fromkeys(row.key.labelled for row in rows):
        drawn = [row for row in rows if row.key.labelled == labelled and row.curve("val/dice")]
        if drawn:
            words = (
                f"Validation Dice at labelled count {labelled}, on the prepared grid: the mean over cases, then over "
                "classes. Lines are means over a row's runs; bands reach from the lowest run to the highest. "
            )
            lines = [_validation_line(row) for row in drawn]
            uri = line_plot(lines, "validation Dice, %", legend=False)
            figures.append(Figure(uri, words + " ".join(map(_settling, drawn))))
    return figures


def _validation_line(row: Row) -> Line:
    points = row.curve("val/dice")
    low, high = ([100 * end(point.values) for point in points] for end in (min, max))
    means = [100 * point.mean for point in points]
    return Line(row.name, row.colour, row.style, [point.step for point in points], means, (low, high))


def _settling(row: Row) -> str:
    name, gain = row.name.replace(f", {row.key.labelled} labelled", ""), row.last_gain
    if gain is None:
        return f"{name}: too few validations to tell whether it has settled."
    more = "higher" if gain >= 0 else "lower"
    return f"{name}: {100 * abs(gain):.1f} points {more} in the last fifth of its steps than in the fifth before."


def _losses(rows: Sequence[Row]) -> list[Figure]:
    drawn = [(row.name, _loss_lines(row)) for row in rows]
    return [Figure(line_plot(lines, "loss", size=(4.2, 2.4)), name) for name, lines in drawn if lines]


def _loss_lines(row: Row) -> list[Line]:
    found = ((name, _mean_curve(row, name)) for name in _logged([row], "loss/"))
    return [
        Line(name.removeprefix("loss/"), row.colour, STYLES[i % len(STYLES)], *curve)
        for i, (name, curve) in enumerate(found) if curve[0]
    ]  # fmt: skip


def _gauges(rows: Sequence[Row], classes: dict[int, str]) -> list[Figure]:
    """Plot the numbers that methods log about themselves during training, one figure for each."""
    figures = []
    for name in _logged(rows, "stat/"):
        drawn = [(row, _mean_curve(row, name)) for row in rows]
        lines = [Line(row.name, row.colour, row.style, *curve) for row, curve in drawn if curve[0]]
        if lines:
            title = _words_of(name.removeprefix("stat/"), classes)
            meaning = _GAUGES.get(name.split("/")[1], "a number that methods log about themselves")
            words = f"Gauge “{title}”: {meaning}. Smoothed means over a row's runs."
            figures.append(Figure(line_plot(lines, title, legend=False), words))
    return figures


def _words_of(gauge: str, classes: dict[int, str]) -> str:
    """Return a gauge's name in words: `pseudo/1` is that of the first class, `lag/1` that of the second teacher."""
    name, _, part = gauge.partition("/")
    of = {"0": "background"} | {str(value): text for value, text in classes.items()}
    if name == "lag" and part.isdigit():
        of = {part: f"teacher {int(part) + 1}"}
    return name.replace("_", " ") + (f", {of.get(part, part)}" if part else "")


def _logged(rows: Iterable[Row], prefix: str) -> list[str]:
    return list(dict.fromkeys(
        name for row in rows for run in row.runs for each in run.metrics for name in each if name.startswith(prefix)
    ))  # fmt: skip


def _mean_curve(row: Row, name: str) -> tuple[list[float], list[float]]:
    """Return steps and a logged number at each: the mean over the runs of a row, smoothed."""
    points = row.curve(name)
    return smooth([point.step for point in points], [point.mean for point in points])


def _calibration(rows: Sequence[Row], found: Sequence[Agreement]) -> list[Figure]:
    curves = []
    for row, each in zip(rows, found, strict=True):
        if each.calibration_error is not None:
            label = f"{row.name}: error {100 * each.calibration_error:.1f} %"
            curves.append((label, row.colour, row.style, *each.curve))
    words = (
        "Share of correct voxels among those predicted with about the same probability. Below the diagonal, a row is "
        "overconfident. The error (ECE) is the mean distance between share and probability, weighted by voxels, inside "
        "the box around prediction and reference of each case."
    )
    return [Figure(calibration_plot(curves), words)] if curves else []


def _confusion(rows: Sequence[Row], found: Sequence[Agreement], classes: dict[int, str]) -> list[Figure]:
    names = ["background", *(classes.get(label, str(label)) for label in range(1, max(classes, default=0) + 1))]
    return [
        Figure(confusion_matrix(each.shares, names, row.colour), row.name)
        for row, each in zip(rows, found, strict=True) if each.cases
    ]  # fmt: skip


# ---- scripts


def _viewer(scenes: Sequence[Scene], classes: dict[int, str]) -> str:
    """Return the input of the viewer's script as JSON, escaped so that it cannot close its HTML element."""
    if not scenes:
        return ""
    colours = [(label, name, class_colour(label)) for label, name in classes.items()]
    told = {"scenes": [asdict(scene) for scene in scenes], "classes": colours}
    return Markup(json.dumps(told).replace("<", "\\u003c"))


def _policy(scripts: Sequence[str], *, has_viewer: bool) -> str:
    """Return the Content-Security-Policy of a page.

    The browser may run only these scripts and, for the viewer, those beside the page.
    """
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = [*(f"'sha256-{digest}'" for digest in digests), *(["'self'"] if has_viewer else [])]
    images = "data: blob:" if has_viewer else "data:"
    return f"default-src 'none'; img-src {images}; style-src 'unsafe-inline'; script-src {' '.join(allowed)}"


def _environment() -> Environment:
    """Return the Jinja environment: the templates folder and how templates are filled."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "raw": Markup}
    return environment
