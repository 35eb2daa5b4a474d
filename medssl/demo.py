"""The job behind `medssl demo`: the whole workflow on phantoms, from check to report, with three methods.

Every stage calls the function behind its command, so the demo is also the shortest example of using the package from
Python. If run again on the same folder, it continues where it stopped.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from medssl.config import bundled, merge, parse
from medssl.data.cases import DatasetConfig
from medssl.data.check import check
from medssl.data.draw import Wish, make_split
from medssl.data.phantoms import write_dataset
from medssl.data.splits import write_split
from medssl.errors import ConfigError
from medssl.evaluate import evaluate_folders
from medssl.files import whole_folder
from medssl.predict import predict
from medssl.prepare import prepare
from medssl.report import write_report
from medssl.run import load_run_config
from medssl.scores import Summary, summarise
from medssl.train import train

METHODS = ("supervised", "bcp", "combined")
LABELLED, VAL, TEST, UNLABELLED = 3, 4, 10, 30


def demo(out: Path) -> Path:
    """Run the workflow inside `out`, print its results, and return the path of the report.

    Raises:
        ConfigError: `out` is not empty and not from an earlier demo.
    """
    console = Console()
    source, prepared, splits = out / "phantoms", out / "prepared", out / "splits.json"
    if out.exists() and any(out.iterdir()) and not source.exists():
        raise ConfigError(f"{out}: not empty, and not from an earlier demo; choose another folder with --out")

    _say(console, f"phantoms: {LABELLED + VAL + TEST} cardiac stacks with labels, {UNLABELLED} without, in {source}")
    if not source.exists():
        with whole_folder(source) as partial:
            write_dataset(partial, "cardiac", labelled=LABELLED + VAL + TEST, unlabelled=UNLABELLED, seed=7)
    config_file = _config("data/phantom_cardiac.yaml")
    data = parse(DatasetConfig, merge([config_file])["data"], where="data")
    _say(console, "check")
    check(source, data, workers=0).print(console)
    _say(console, "prepare, split")
    dataset = prepare(source, prepared, data, workers=0)
    if not splits.exists():
        write_split(splits, make_split(dataset, Wish(labelled=LABELLED, val=VAL, test=TEST)))

    summaries = {name: _run(console, name, out, config_file) for name in METHODS}
    page = write_report([out / name for name in METHODS], out / "report", overwrite=True)
    console.print(_table(summaries))
    console.print("Predicted label maps (NIfTI, each on its image's grid):", soft_wrap=True)
    for name in METHODS:
        console.print(f"  {out / name / 'test'}", soft_wrap=True, highlight=False)
    console.print(f"Report: {page}", soft_wrap=True, highlight=False)
    return page


def _run(console: Console, name: str, out: Path, config_file: Path) -> Summary:
    """Train one method, segment the test cases and score them."""
    run = out / name
    _say(console, f"train {name}, predict and evaluate its test cases")
    overrides = [f"data.root={out / 'prepared'}", f"data.splits={out / 'splits.json'}"]
    train(load_run_config([config_file, _config(f"method/{name}.yaml")], overrides), run, resume=run.exists())
    predict(run, [], run / "test", part="test", overwrite=True)
    return summarise(
        evaluate_folders(run / "test", out / "phantoms" / "labels", run / "scores.csv", workers=0, overwrite=True)
    )


def _table(summaries: dict[str, Summary]) -> Table:
    table = Table(title=f"{TEST} test phantoms, {LABELLED} labelled and {UNLABELLED} unlabelled for training, one seed")
    for column in ("method", "Dice, mean ± sd over cases", "HD95 mm", "missed classes"):
        table.add_column(column)
    for name, summary in summaries.items():
        overall = summary.overall
        dice = f"{overall.dice.mean:.3f} ± {overall.dice.sd:.3f}" if overall.dice.mean is not None else "-"
        hd95 = f"{overall.hd95.mean:.2f} (n = {overall.hd95.n})" if overall.hd95.mean is not None else "-"
        table.add_row(name, dice, hd95, str(overall.missed))
    return table


def _config(name: str) -> Path:
    path = bundled(Path(name))
    if path is None:
        raise ConfigError(f"configs/{name}: missing from the installation; install the package again")
    return path


def _say(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]", soft_wrap=True, highlight=False)
