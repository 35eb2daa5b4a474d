"""The model card: a Markdown file with the facts of a run folder, without names of patients or paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medssl import __version__
from medssl.catalogue import said
from medssl.config import bundled
from medssl.data.cases import DatasetConfig
from medssl.data.grid import STORED
from medssl.data.recipe import Intensity
from medssl.data.record import Record, read_record
from medssl.data.splits import Part, Split, load_split
from medssl.errors import DataError
from medssl.logs import read_metrics
from medssl.run import RunConfig
from medssl.score_file import read_scores
from medssl.scores import ClassSummary, Scores, summarise
from medssl.trained import Trained
from medssl.words import how_many

README = "README.md"
NO_DEVICE = "It is research software and not a medical device."


def write_card(path: Path, runs: Sequence[tuple[Path, Trained]], command: str) -> None:
    """Write the card of a model made from one or several runs, which all have the same dataset.

    Args:
        command: the command that uses the model.
    """
    config = runs[0][1].config
    data = config.data
    lines = [
        f"# {data.name}: {', '.join(data.classes[1:])}",
        "",
        f"Networks that segment 3D medical scans, exported by medssl {__version__}. {NO_DEVICE}",
        "",
        f"    {command}",
        "",
        "## What it takes and gives",
        "",
        *_input(data),
        *_window(config, len(runs)),
        "",
        "| class | in label maps | in label files of the training |",
        "|---|---|---|",
        *(
            f"| {name} | {place} | {', '.join(map(str, values))} |"
            for place, (name, values) in enumerate(zip(data.classes, data.class_values, strict=True))
        ),
    ]
    for number, (run, trained) in enumerate(runs, start=1):
        lines += ["", f"## Training{f' of run {number}' if len(runs) > 1 else ''}", "", *_training(run, trained)]
        lines += _tests(run)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def title_and_papers(config: RunConfig) -> tuple[str, list[str]]:
    """Return the title of a method and the addresses of its papers."""
    files = [bundled(f"method/{name}.yaml") for name in (config.name, config.method.name) if name]
    title, sources = next((said(file) for file in files if file is not None), (config.method.name, ()))
    return title, [f"https://arxiv.org/abs/{source}" for source in sources]


def recipe_in_words(data: DatasetConfig) -> list[str]:
    """Return how an image is prepared, one phrase for each step."""
    recipe = data.recipe
    spacing = " x ".join("own" if mm is None else f"{mm:g}" for mm in recipe.spacing)
    rules = recipe.intensities(len(data.channels))
    names = [""] if len(set(rules)) == 1 else [f" of {name}" for name in data.channels]
    return [
        "axes as in the file" if recipe.orientation == STORED else f"axes along {recipe.orientation}",
        *(["voxels of value 0 are background"] if {*recipe.thresholds(len(data.channels))} == {"nonzero"} else []),
        *([f"cropped to the foreground with a margin of {recipe.margin} voxels"] if recipe.crop else []),
        *(_grey(f"grey levels{name}", rule) for name, rule in zip(names, rules, strict=False)),
        f"spacing {spacing} mm"
        if recipe.resize is None
        else f"slices of {recipe.resize[0]} x {recipe.resize[1]} voxels",
    ]


def _grey(levels: str, rule: Intensity) -> str:
    if rule.kind == "clip" and rule.window is not None:
        return f"{levels} from {rule.window[0]:g} to {rule.window[1]:g} become 0 to 1"
    low, high = rule.percentiles
    return f"{levels} are clipped to percentiles {low:g} and {high:g} of the foreground and get mean 0, variance 1"


def _input(data: DatasetConfig) -> list[str]:
    return [
        f"- Channels of an image, in this order: {', '.join(data.channels)}.",
        f"- An image is prepared as follows: {'; '.join(recipe_in_words(data))}. Its label map is on its own grid.",
    ]


def _window(config: RunConfig, runs: int) -> list[str]:
    window, patch = config.window, config.train.patch
    size = " x ".join(map(str, window.patch or patch))
    step = f"overlap {window.overlap:g}" if window.stride is None else f"stride {window.stride} voxels"
    extra = [
        *(["mirrored windows are predicted as well, and averaged"] if window.mirror else []),
        *([f"only the largest component of each is kept: {', '.join(window.largest_component)}"]
          if window.largest_component else []),
    ]  # fmt: skip
    return [
        f"- Windows of {size} voxels, {step}, {window.blend} blending; trained on patches of "
        f"{' x '.join(map(str, patch))}.",
        *(f"- {text[0].upper()}{text[1:]}." for text in extra),
        *([f"- Class probabilities are the mean over {runs} runs."] if runs > 1 else []),
    ]


def _training(run: Path, trained: Trained) -> list[str]:
    config, split = trained.config, load_split(run / "splits.json")
    title, papers = title_and_papers(config)
    count, parameters = len(trained.networks), sum(p.numel() for net in trained.networks for p in net.parameters())
    canaries = config.train.canaries
    return [
        f"- Method `{config.method.name}`: {title}. {' '.join(f'<{paper}>' for paper in papers)}".rstrip(),
        f"- Networks that predict: {config.window.network}, {count} {config.network.name} with {parameters:,} weights "
        "in all.",
        f"- Labelled: {_counted(split, 'labelled')}. Unlabelled: {_counted(split, 'unlabelled')}. "
        f"Validation: {_counted(split, 'val')}. Test: {_counted(split, 'test')}.",
        *([f"- Of the labelled cases, {canaries} were canaries: they and other scans of their patients were not used "
           "for training."] if canaries else []),
        *([f"- It was started from an earlier run; that run and those before it were trained on {trained.forerunners} "
           "patients."] if trained.forerunners else []),
        *([f"- Its training scans: {trained.likeness.words} `medssl predict` warns about scans unlike these."]
          if trained.likeness else []),
        f"- {trained.iteration} of {config.train.iterations} steps, `{trained.checkpoint}`; seed {config.train.seed}.",
        f"- {_validation(run, trained)}",
        *(f"- How the split was made: {quirk}." for quirk in split.quirks),
    ]  # fmt: skip


def _counted(split: Split, part: Part) -> str:
    ids = getattr(split, part)
    patients = {split.patients.get(id, id) for id in ids}
    return f"{len(ids)} cases of {len(patients)} patients" if ids else "none"


def _validation(run: Path, trained: Trained) -> str:
    """Return a sentence with the validation Dice that was logged for these weights."""
    rows = read_metrics(run / "metrics.csv") if (run / "metrics.csv").exists() else []
    found = [row["val/dice"] for row in rows if row["step"] == trained.iteration and "val/dice" in row]
    if not found:
        return "Validation Dice: none was logged for these weights."
    return f"Validation Dice {found[-1]:.3f}. `best.pt` is chosen by it, so it is not a test score."


def _tests(run: Path) -> list[str]:
    """Return the lines of a table with the scores in the run's scores.csv; empty if it has none."""
    path = run / "scores.csv"
    if not path.exists():
        return []
    scores, split = read_scores(path), load_split(run / "splits.json")
    summary = summarise(scores)
    tested = len({score.case for score in scores} & set(split.test))
    return [
        "",
        f"Scores of {summary.cases} cases, of which {tested} belong to the test part of the split; convention "
        f"`{scores.convention}`. {_made(scores)}",
        "",
        "| class | mean Dice | n |",
        "|---|---|---|",
        *(_row(one) for one in (*summary.classes, summary.overall)),
    ]


def _row(one: ClassSummary) -> str:
    return f"| {one.class_name} | {'-' if one.dice.mean is None else f'{one.dice.mean:.3f}'} | {one.dice.n} |"


def _made(scores: Scores) -> str:
    """Return a sentence on the networks that predicted the scored label maps, as far as it is recorded."""
    try:
        made = read_record(scores.record)
    except DataError:
        made = Record()
    if made.network is None:
        return "How they were predicted is not recorded."
    mean = f", averaged with {how_many(len(made.also), 'other run')}" if made.also else ""
    return f"They were predicted by: {made.network}, `{made.checkpoint}`{mean}."
