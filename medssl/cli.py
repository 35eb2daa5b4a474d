"""The `medssl` command: each subcommand parses its options and calls one public function.

Heavy imports stay inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core

from medssl import __version__
from medssl.errors import ConfigError, DeviceError, InputError
from medssl.files import refuse_existing
from medssl.words import visible

EXPLAIN, IMPORT, EXPORT = "evaluate explain", "split import", "split export"


class Commands(typer.core.TyperGroup):
    """A command group with commands of one word, and of two words, such as `split import`.

    The first of two words, such as `split`, is also a command that takes arguments itself.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command at the start of `args`, and the words after it."""
        if (words := " ".join(args[:2])) in (EXPLAIN, IMPORT, EXPORT):
            args = [words, *args[2:]]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="medssl",
    cls=Commands,
    help="Semi-supervised segmentation of 3D medical volumes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Workers = Annotated[int, typer.Option("--workers", help="Number of processes.")]
Raw = Annotated[Path, typer.Argument(help="Dataset folder, or a datalist (CSV, JSON) that names the files.")]
LayoutName = Annotated[
    str | None,
    typer.Option(
        "--layout", help="Layout of the files, such as nnunet or msd (docs/data.md); by default the first that fits."
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]
Labelled = Annotated[
    str,
    typer.Option("--labelled", help="How many train with their label: 8, 10% of those who train, or all."),
]
RenamedFrames = Annotated[
    bool, typer.Option("--renamed-frames", help="The lists number frames: frame02 is a patient's second frame.")
]
Engine = Annotated[Literal["local", "ray"], typer.Option("--engine", help="local, or ray (a cluster).")]
OtherRuns = Annotated[
    list[Path] | None, typer.Option("--run", help="Another run to average class probabilities with; repeatable.")
]
NetworkChoice = Annotated[
    str | None,
    typer.Option("--network", help="Networks to use: student, teacher, ensemble, one-student or one-teacher."),
]
Checkpoint = Annotated[Literal["best", "last"], typer.Option("--checkpoint", help="Weights to use: best or last.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="key=value, overrides the files; repeatable.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"medssl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command()
def check(
    source: Raw,
    config: Annotated[
        Path | None, typer.Option("--config", help="Configuration of the dataset: configs/data/NAME.yaml.")
    ] = None,
    layout: LayoutName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write this page, with pictures of the cases.")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", help="Write a copy with the safe fixes to this folder, and check the copy.")
    ] = None,
    workers: Workers = 2,
    overwrite: Overwrite = False,
) -> None:
    """List every fault of a dataset. Never writes to it. Exit code 3 if a case is unusable."""
    from medssl.data.check import check as check_dataset

    draw: Any = None
    if html is not None:
        from medssl.report.dataset import write_dataset_page
        from medssl.thumbnails import draw_case

        draw = draw_case
        refuse_existing(html, overwrite)
    if fix is not None:
        from medssl.data.fix import apply_fixes, fix_places

        if source.exists():
            fix_places(source, fix, overwrite)
    dataset, fixed = None if config is None else _dataset_config([config]), None
    report = check_dataset(source, dataset, layout=layout, workers=workers, draw=None if fix else draw)
    if fix is not None:
        fixed = apply_fixes(report, fix, dataset, workers=workers, overwrite=overwrite)
        report = check_dataset(fixed.folder, fixed.dataset, layout=layout, workers=workers, draw=draw)
    if html is not None:
        write_dataset_page(report, html)
    if as_json:
        values = report.to_json() | ({} if fixed is None else fixed.to_json())
        print(json.dumps(values, indent=1, ensure_ascii=False))
    else:
        from rich.console import Console

        for part in (fixed, report):
            if part is not None:
                part.print(Console())
        if html is not None:
            print(f"page in {html}")
    if report.unusable:
        raise typer.Exit(3)


@app.command()
def plan(
    source: Raw,
    out: Annotated[Path, typer.Option("--out", "-o", help="YAML file to write.")] = Path("plan.yaml"),
    config: Annotated[
        Path | None, typer.Option("--config", help="Keep the name, classes and patients of this file.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", help="Class names in the order of label values: background,tooth.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the dataset.")] = None,
    vram: Annotated[float, typer.Option("--vram", min=0, help="GPU memory to plan for, in GiB; 0 for a CPU.")] = 8.0,
    method: Annotated[
        Path, typer.Option("--method", help="Method file to plan for; its batch and memory count.")
    ] = Path("configs/method/combined.yaml"),
    fingerprint: Annotated[
        Path | None, typer.Option("--fingerprint", help="Also write what was found for each case, as JSON.")
    ] = None,
    layout: LayoutName = None,
    workers: Workers = 2,
    overwrite: Overwrite = False,
) -> None:
    """Write settings that suit a dataset, each with its reason. Edit them, then prepare and train."""
    from medssl.config import config_path, merge, section
    from medssl.plan import dataset_of
    from medssl.plan import plan as make

    given = {} if config is None else section(merge([config_path(config)]), "data")
    names = None if classes is None else [one.strip() for one in classes.split(",")]
    facts, made = make(source, out, dataset_of(source, given, classes=names, name=name, layout=layout), vram=vram,
                       method=method, fingerprint=fingerprint, workers=workers, overwrite=overwrite)  # fmt: skip
    print("\n".join(facts.summary()))
    print(f"plan in {out}; a step needs {made.memory}")


@app.command()
def prepare(
    source: Raw,
    out: Annotated[Path, typer.Argument(help="Folder for the prepared dataset.")],
    config: Annotated[
        list[Path], typer.Option("--config", help="configs/data/NAME.yaml; repeatable, merged left to right.")
    ],
    sets: Sets = None,
    layout: LayoutName = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, help="Number of processes; by default all cores, if memory allows."),
    ] = None,
    engine: Engine = "local",
    address: Annotated[
        str | None,
        typer.Option("--address", help="With --engine ray: address of the cluster, such as auto or HEAD:6379."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Orient, crop, normalise and resample a dataset for training. Repeat the command to resume."""
    from medssl.prepare import prepare as prepare_dataset

    sets = [*(sets or []), *([f"data.layout={layout}"] if layout else [])]
    dataset = prepare_dataset(source, out, _dataset_config(config, sets), workers=workers, overwrite=overwrite,
                              engine=engine, address=address)  # fmt: skip
    labelled = sum(case.labelled for case in dataset.cases.values())
    print(f"{len(dataset.cases)} cases ({labelled} with labels) in {out}")


@app.command()
def split(
    prepared: Annotated[Path, typer.Argument(help="Folder that `medssl prepare` wrote.")],
    labelled: Labelled = "0",
    val: Annotated[
        int, typer.Option("--val", min=0, help="How many validate, that is choose the best weights (see --count).")
    ] = 0,
    test: Annotated[
        int, typer.Option("--test", min=0, help="How many test; training never sees them (see --count).")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draw.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="By default splits.json, or splits/ for a series, in the prepared folder."),
    ] = None,
    count: Annotated[
        Literal["patients", "cases"], typer.Option("--count", help="Whether numbers count patients or cases.")
    ] = "patients",
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds", help="Write a series of splits in which each patient outside the test set validates once."
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(
            "--draws", help="Write a series with different labelled patients, for --seed and the seeds after it."
        ),
    ] = None,
    stratify: Annotated[
        bool, typer.Option("--stratify", help="Spread classes and volumes evenly by looking at labels; reports say so.")
    ] = False,
    labelled_list: Annotated[
        Path | None, typer.Option(help="File of case or patient ids; overrides --labelled.")
    ] = None,
    val_list: Annotated[Path | None, typer.Option(help="File of ids; overrides --val.")] = None,
    test_list: Annotated[Path | None, typer.Option(help="File of ids; overrides --test.")] = None,
    unlabelled_list: Annotated[Path | None, typer.Option(help="File of ids; by default all remaining cases.")] = None,
    published: Annotated[
        Path | None,
        typer.Option("--published", help="acdc, la, or a file of published lists; files of ids override it."),
    ] = None,
    renamed_frames: RenamedFrames = False,
    val_is_test: Annotated[
        bool, typer.Option("--val-is-test", help="Validate on the test cases, as some papers do; reports say so.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Divide the patients of a prepared dataset into labelled, unlabelled, validation and test sets."""
    from medssl.data.draw import Wish, parse_amount
    from medssl.data.names import read_id_list
    from medssl.data.splits import PARTS
    from medssl.split import print_splits
    from medssl.split import split as split_dataset

    lists = zip(PARTS, (labelled_list, unlabelled_list, val_list, test_list), strict=True)
    given = {part: read_id_list(path) for part, path in lists if path is not None}
    wish = Wish(labelled=parse_amount(labelled), val=val, test=test, seed=seed, unit=count, given=given,
                renamed_frames=renamed_frames, val_is_test=val_is_test)  # fmt: skip
    out = out or prepared / ("splits.json" if folds is None and draws is None else "splits")
    print_splits(split_dataset(prepared, out, wish, folds=folds, draws=draws, stratify=stratify, published=published,
                               overwrite=overwrite))  # fmt: skip


@app.command(IMPORT)
def split_import(
    prepared: Annotated[Path, typer.Argument(help="Folder that `medssl prepare` wrote.")],
    source: Annotated[
        Path, typer.Argument(help="nnU-Net's splits_final.json, or a folder with train.list and similar files.")
    ],
    fold: Annotated[int | None, typer.Option("--fold", help="Fold of splits_final.json to take.")] = None,
    labelled: Labelled = "all",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draw of --labelled.")] = 0,
    rest_unlabelled: Annotated[
        bool,
        typer.Option("--rest-unlabelled", help="Cases on no list become unlabelled; by default they are left out."),
    ] = False,
    renamed_frames: RenamedFrames = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="By default splits.json in the prepared folder.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Import the split of nnU-Net or of `*.list` files, by patient."""
    from medssl.data.draw import parse_amount
    from medssl.data.lists import import_split
    from medssl.data.prepared import read_prepared
    from medssl.data.splits import write_split
    from medssl.split import print_splits

    out = out or prepared / "splits.json"
    refuse_existing(out, overwrite)
    made = import_split(read_prepared(prepared), source, fold=fold, labelled=parse_amount(labelled), seed=seed,
                        renamed_frames=renamed_frames, rest_unlabelled=rest_unlabelled)  # fmt: skip
    write_split(out, made)
    print_splits({out: made})


@app.command(EXPORT)
def split_export(
    splits: Annotated[
        list[Path], typer.Argument(help="splits.json files of medssl; several become the folds of nnU-Net.")
    ],
    to: Annotated[
        Literal["nnunet", "lists"],
        typer.Option("--to", help="nnunet, or lists: files with one id per line, as SSL4MIS and UA-MT read them."),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="splits_final.json, or a folder (lists).")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a split as nnU-Net's splits_final.json or as `*.list` files."""
    from medssl.data.lists import FILES, RECORD, export_lists, export_nnunet
    from medssl.data.splits import load_split

    if to == "lists" and len(splits) > 1:
        raise ConfigError(f"--to lists: expected one split, got {len(splits)}; export each to a folder of its own")
    found = [load_split(path) for path in splits]
    out = out or Path("splits_final.json" if to == "nnunet" else "lists")
    for path in [out] if to == "nnunet" else [*(out / f"{name}.list" for name in FILES), out / RECORD]:
        refuse_existing(path, overwrite)
    if to == "nnunet":
        export_nnunet(found, out)
    else:
        export_lists(found[0], out)
    print(f"{len(found)} split{'s' if len(found) > 1 else ''} in {out}")


@app.command()
def train(
    configs: Annotated[list[Path], typer.Argument(help="YAML files, merged left to right.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder.")] = Path("run"),
    sets: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from last.pt in the run folder.")] = False,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Show the settings, try two steps, write nothing.")] = False,
    until: Annotated[int | None, typer.Option("--until", min=1, help="Save and stop after this step.")] = None,
    memory: Annotated[
        float | None,
        typer.Option("--memory", min=0.1, help="Change settings until a step needs no more than this many GiB."),
    ] = None,
    device: Device = "auto",
    with_baseline: Annotated[
        bool,
        typer.Option("--with-baseline", help="Then also train on labels alone, for as many steps, in OUT-baseline."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Train a method on a prepared dataset."""
    from medssl.config import config_path
    from medssl.environment import speaks
    from medssl.run import load_run_config
    from medssl.train import baseline_folder, baseline_of, dry_run, fitting
    from medssl.train import train as train_run

    config = load_run_config([config_path(path) for path in configs], sets or [])
    if with_baseline:
        baseline_of(config)  # raises an error if the run cannot have a baseline
    if is_dry:
        import yaml

        if memory is not None:
            config = fitting(config, memory, device=device)
        print(yaml.safe_dump({"config": config.to_plain(), **dry_run(config, device=device)}, sort_keys=False))
        return
    train_run(config, out, resume=resume, device=device, until=until, memory=memory, quiet=quiet,
              with_baseline=with_baseline)  # fmt: skip
    if speaks():
        print(f"run in {out}" + (f", its baseline in {baseline_folder(out)}" if with_baseline else ""))


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Folder that `medssl train` or `medssl export` wrote.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Volumes, folders of DICOM or modalities, or folders of these.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for <case>.nii.gz.")] = Path("predictions"),
    part: Annotated[
        str | None, typer.Option("--part", help="In place of images: a part of the run's split, such as test.")
    ] = None,
    prepared: Annotated[
        Path | None, typer.Option("--prepared", help="With --part: the prepared dataset, if it was moved.")
    ] = None,
    also: OtherRuns = None,
    network: NetworkChoice = None,
    checkpoint: Checkpoint = "best",
    largest_component: Annotated[
        list[str] | None,
        typer.Option("--largest-component", help="Keep only the largest component of this class; repeatable."),
    ] = None,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror", help="Also predict windows mirrored as in training, and average: up to 8 times the work."
        ),
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also write how likely each voxel is wrong.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write class probabilities, before --largest-component.")
    ] = False,
    own_values: Annotated[
        bool, typer.Option("--own-values", help="Write the dataset's own label values (data.values), not 0, 1, 2 ...")
    ] = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Segment volumes on their own grid, with one run or the mean of several. Repeat the command to resume."""
    from medssl.predict import predict as predict_images

    if bool(images) == bool(part):
        raise ConfigError(
            f"expected images or --part, got {'both' if images else 'neither'}; name the images to segment, or a part "
            "of the run's split, such as --part test"
        )
    if prepared is not None and not part:
        raise ConfigError("--prepared: works only together with --part; add --part test, or another part of the split")
    window: dict[str, Any] = {} if network is None else {"network": network}
    if largest_component:
        window["largest_component"] = largest_component
    if mirror:
        window["mirror"] = True
    written = predict_images(run, images or [], out, also=also or [], part=part, prepared=prepared, device=device,
                             checkpoint=checkpoint, window=window, uncertainty=uncertainty,
                             probabilities=probabilities, own_values=own_values, overwrite=overwrite)  # fmt: skip
    print(f"{len(written)} predictions in {out}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder that `medssl train` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    also: OtherRuns = None,
    network: NetworkChoice = None,
    checkpoint: Checkpoint = "best",
    monai: Annotated[bool, typer.Option("--monai", help="Write a MONAI bundle, which runs without medssl.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a folder to hand on: networks, settings and a model card, without patient names or paths."""
    from medssl.export import export as export_run

    window = None if network is None else {"network": network}
    made = export_run(run, out, also=also or [], checkpoint=checkpoint, window=window, monai=monai,
                      overwrite=overwrite)  # fmt: skip
    print(f"{'bundle' if monai else 'model'} in {made}")


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted label maps, or one file.")],
    references: Annotated[
        Path,
        typer.Argument(help="Folder of reference label maps, one file, or a prepared folder, whose raw labels count."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="scores.csv to write.")] = Path("scores.csv"),
    config: Annotated[
        list[Path] | None,
        typer.Option("--config", help="The references' configs/data/NAME.yaml: classes, values, ignore, regions."),
    ] = None,
    conventions: Annotated[
        list[str] | None,
        typer.Option(
            "--convention", help="strict, monai, nnunet, ssl4mis or brats; repeatable, for several side by side."
        ),
    ] = None,
    units: Annotated[str | None, typer.Option("--units", help="mm or voxel, instead of the convention's own.")] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option("--tolerance", help="Tolerance of NSD: 1.0 for all classes, canal=0.5 for one; repeatable."),
    ] = None,
    instances: Annotated[
        list[str] | None, typer.Option("--instances", help="Count and match the components of this class; repeatable.")
    ] = None,
    centreline: Annotated[
        list[str] | None, typer.Option("--centreline", help="Compute clDice for this tubular class; repeatable.")
    ] = None,
    metrics: Annotated[list[str] | None, typer.Option("--metric", help="Compute only this metric; repeatable.")] = None,
    workers: Workers = 2,
    overwrite: Overwrite = False,
) -> None:
    """Score predictions per case and class. `medssl evaluate explain A B` says why two tables differ."""
    from medssl.evaluate import evaluate_folders, print_summary
    from medssl.metrics.conventions import TOLERANCE

    tolerances = _tolerances(tolerance or [])
    scores = evaluate_folders(
        predictions, references, out, workers=workers, overwrite=overwrite, conventions=conventions or ["strict"],
        units=units, tolerance=tolerances.pop("", TOLERANCE), tolerances=tolerances, instances=instances or [],
        centreline=centreline or [], metrics=metrics, data=_dataset_config(config) if config else None,
    )  # fmt: skip
    print_summary(scores)
    print(f"scores in {out}")


@app.command(EXPLAIN)
def evaluate_explain(
    a: Annotated[Path, typer.Argument(help="A scores.csv, another tool's CSV, or nnU-Net's summary.json.")],
    b: Annotated[Path, typer.Argument(help="Table to compare it with.")],
) -> None:
    """Explain why two tables of scores differ: convention, unit, definition, files, cases or averaging."""
    from medssl.explain import explain

    print("\n".join(explain(a, b)))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders with scores.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for report.html.")] = Path("report"),
    references: Annotated[
        list[str] | None, typer.Option("--reference", help="Compare the other methods with this one; repeatable.")
    ] = None,
    worst: Annotated[int, typer.Option("--worst", min=0, help="Number of worst cases to draw for each row.")] = 4,
    viewer: Annotated[bool, typer.Option("--viewer", help="Fetch NiiVue with npm if it is missing.")] = False,
    niivue: Annotated[Path | None, typer.Option("--niivue", help="niivue.umd.js to use in the viewer.")] = None,
    workers: Workers = 2,
    overwrite: Overwrite = False,
) -> None:
    """Compare runs on one HTML page with tables, plots, overlays and a viewer. Also writes tables.tex and tables.md."""
    from medssl.report import write_report

    page = write_report(runs, out, references=references or ["supervised"], worst=worst, viewer=viewer, niivue=niivue,
                        workers=workers, overwrite=overwrite)  # fmt: skip
    print(f"report in {page}")


@app.command()
def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="Show the source, equations and settings of this method, or file of configs/method."),
    ] = None,
) -> None:
    """List the methods with their source, networks and cost per step."""
    from medssl.catalogue import describe, entries, print_entries

    if name is None:
        print_entries(entries())
    else:
        print(describe(name))


@app.command()
def settings(
    section: Annotated[
        str | None, typer.Argument(help="A section, method or key: train, bcp, data.recipe, train.lr ...")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print all settings as in docs/settings.md.")] = False,
    as_schema: Annotated[
        bool, typer.Option("--json-schema", help="Print a JSON Schema, for editors that check YAML.")
    ] = False,
) -> None:
    """List the settings of a run: allowed values, default and meaning."""
    from medssl.reference import describe, json_schema, markdown

    if as_schema:
        print(json.dumps(json_schema(), indent=2))
    else:
        print(markdown() if as_markdown else describe(section), end="")


@app.command()
def bench(
    config: Annotated[Path, typer.Argument(help="configs/bench/NAME.yaml.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for runs, table and report.")] = Path("bench"),
    sets: Sets = None,
    is_plan: Annotated[
        bool, typer.Option("--plan", help="Show the matrix and how long it takes; write nothing.")
    ] = False,
    is_timing: Annotated[
        bool,
        typer.Option("--times", help="Only measure the time of a step of each row, for as_long_as; write times.csv."),
    ] = False,
    engine: Engine = "local",
    device: Device = "auto",
) -> None:
    """Run methods x labelled counts x draws x seeds and compare them. Repeat the command to resume."""
    from medssl.bench import bench as run_bench
    from medssl.bench.jobs import slots_of
    from medssl.bench.matrix import Bench, load_bench
    from medssl.bench.plan import plan, print_plan
    from medssl.bench.times import time_rows

    settings = load_bench(config, sets or [])
    if is_plan:
        print_plan(plan(settings, out, device=device), len(slots_of(Bench(settings, out), device)))
        return
    if is_timing:
        print(f"times in {time_rows(settings, out, device=device)}")
        return
    print(f"report in {run_bench(settings, out, engine=engine, device=device)}")


@app.command()
def doctor(
    folder: Annotated[Path, typer.Argument(help="Folder where jobs will write; tested with small files.")] = Path(),
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Check that this machine and installation can do the work, and say what to do. Exit code 4 on a fault."""
    from medssl.doctor import as_plain, diagnose, print_findings

    if as_json:
        found = list(diagnose(folder, device))
        print(json.dumps(as_plain(found), indent=1, ensure_ascii=False))
    else:
        found = print_findings(diagnose(folder, device))
    if any(finding.state == "fault" for finding in found):
        raise typer.Exit(DeviceError.exit_code)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the demo makes.")] = Path("demo"),
) -> None:
    """Run the whole job on synthetic scans: a few minutes on two CPU cores."""
    from medssl.demo import demo as run_demo

    run_demo(out)


def main() -> None:
    """Run a command. Errors that a user can correct print one message and end with their exit code."""
    try:
        app()
    except InputError as error:
        print(f"medssl: {visible(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as error:
        if error.code == 130:
            print("medssl: interrupted", file=sys.stderr)
        raise
    except OSError as error:
        if error.errno not in _PLACES:
            raise
        place = visible(f"{error.filename}: ") if error.filename else ""
        print(f"medssl: {place}{os.strerror(error.errno).lower()}; {_PLACES[error.errno]}", file=sys.stderr)
        sys.exit(4)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        print(
            f"medssl: out of memory ({str(error).splitlines()[0] if str(error) else type(error).__name__})\n"
            "For training, --memory GIB changes settings until a step fits into that many GiB. Otherwise, lower "
            "train.patch (training) or window.batch (prediction).",
            file=sys.stderr,
        )
        sys.exit(5)


_ELSEWHERE = "choose another place, or get permission to read and write here"
_FULL = "free some space, or choose another place; what was finished before is kept"
_BROKEN = "check the disk or the file server, or choose another place; what was finished before is kept"
_IN_THE_WAY = "a folder is expected here; choose another place"
_PLACES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "raise the limit on file size, or choose another place",
    errno.EIO: _BROKEN,
    errno.ESTALE: _BROKEN,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENAMETOOLONG: "the file system does not allow such a long name; shorten it",
    errno.EBUSY: "it is in use, perhaps as a mount point; choose a folder inside it",
    errno.ELOOP: "its symbolic links form a loop; correct them, or choose another place",
    errno.EISDIR: "a file is expected here; choose another name",
}
"""Advice for each error number of the system that concerns the place of a file."""


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out. CUDA's error is recognised by name, so that torch is not loaded."""
    said = str(error)
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in said
    )


def _dataset_config(paths: list[Path], sets: list[str] | None = None) -> Any:
    """Read the `data` section of configuration files, with the values of `--set`.

    Other sections of the files are ignored, as the commands that call this do not use them. A `--set` outside `data`
    would have no effect and is refused.
    """
    from medssl.config import config_path, merge, parse
    from medssl.data.cases import DatasetConfig

    for text in sets or []:
        if not text.startswith("data."):
            raise ConfigError(f"--set {text}: expected a key of the data section here, such as data.recipe.spacing")
    return parse(DatasetConfig, merge([config_path(path) for path in paths], sets or []).get("data", {}), where="data")


def _tolerances(texts: list[str]) -> dict[str, float]:
    """Parse the values of `--tolerance`: the tolerance by class name, under '' that of all classes."""
    given = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            given[name] = float(number)
        except ValueError:
            raise ConfigError(f"--tolerance {text}: expected a number, or CLASS=NUMBER such as canal=0.5") from None
    return given
