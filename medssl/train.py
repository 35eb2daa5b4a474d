"""The job behind `medssl train`: train on a prepared dataset with given settings, into a run folder."""

from __future__ import annotations

import functools
import math
import random
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medssl.augment import Augment
from medssl.boards import Setting, check_packages
from medssl.canaries import PseudoLabels, canary_cases, learned_cases
from medssl.checkpoint import load_checkpoint, steps_of
from medssl.config import bundled, dump, flatten, merge
from medssl.data.cases import IGNORED
from medssl.data.patches import PatchStream, TrainingData, ending_readers
from medssl.data.prepared import PreparedDataset, read_prepared
from medssl.data.splits import PARTS, Split, changed_content, content_of, load_split, read_split, write_split
from medssl.device import choose_device, prepare_device
from medssl.distributed import gathered, here, is_first, joined, launch, launched, restarts
from medssl.environment import environment, speaks
from medssl.errors import ConfigError, DataError, InputError, Interrupted, OutOfMemoryError
from medssl.files import alone_in, read_object, refuse_unwritable, write_json
from medssl.logs import NoLog, RunLog
from medssl.machine import available_memory
from medssl.memory import Memory, estimate, fit
from medssl.methods import METHODS
from medssl.methods.base import Method
from medssl.metrics import dice
from medssl.networks import count_parameters
from medssl.parts import processes
from medssl.predictor import Predictor
from medssl.run import RunConfig, build_method, make_predictor, parse_method
from medssl.start import start
from medssl.trainer import Trainer
from medssl.watchman import ROWS, Watchman
from medssl.words import how_many, some

SLOW = 10
"""A teacher that takes more than this many times the length of the run to follow its student is warned of."""
_MAY_CHANGE = ("name", "data.root", "data.splits", "train.workers", "train.save_every", "train.log_every")
"""Settings that a resumed run may change, besides the `logging` section, because no result depends on them."""


def train(
    config: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    device: str = "auto",
    until: int | None = None,
    memory: float | None = None,
    quiet: bool = False,
    with_baseline: bool = False,
) -> Path:
    """Train a run to its end and return its folder.

    Args:
        out: the run folder, which must be new or empty unless `resume` is set.
        resume: continue from last.pt in `out`; the settings must be those that the run was started with.
        until: save and stop after this step.
        memory: GiB per device that a step may use; settings are changed until a step fits, see `medssl.memory.fit`.
        with_baseline: afterwards train `baseline_of(config)` in the same way, in `baseline_folder(out)`.

    Raises:
        ConfigError: the settings do not fit the data, the method or the resumed run, or another process is training
            in the folder.
        OutOfMemoryError: no change of settings makes a step fit into `memory`, or a step on the CPU needs more than
            is free.
        DataError, DeviceError, DivergedError, Interrupted: see `medssl.errors`.
    """
    out = Path(out)
    check_packages(config.logging)
    if memory is not None:
        config = fitting(config, memory, device=device, quiet=quiet)
    runs = {out: config}
    if with_baseline:
        runs[baseline_folder(out)] = baseline_of(config)
    with joined(device) as chosen, ExitStack() as stack:
        for folder in runs if is_first() else ():
            stack.enter_context(alone_in(folder))
        if is_first() and not quiet:
            _ask_about_sides(config)
        resumed = {folder: resume or _is_ours(folder) for folder in runs}
        for folder in runs:  # the baseline's too, before hours of training
            _refuse_used(folder, resumed[folder])
        for folder, settings in runs.items():
            if folder != out and is_first() and not quiet:
                print(f"baseline: {settings.method.name}, in {folder}", file=sys.stderr)
            _train(settings, folder, chosen, resume=resumed[folder], until=until, quiet=quiet)
    return out


def _ask_about_sides(config: RunConfig) -> None:
    """Print a note if patches will be mirrored, class names look like left and right, and `data.sides` is not set."""
    pairs = config.data.likely_sides if config.data.sides is None else ()
    if pairs and config.augment.flips and config.augment.preset != "none":
        named = ", ".join(f"[{one}, {other}]" for one, other in pairs)
        print(
            f"medssl: training mirrors patches without changing labels. If a mirrored {pairs[0][0]} is a "
            f"{pairs[0][1]}, set data.sides=[{named}]; if not, set data.sides=[].",
            file=sys.stderr,
        )


def baseline_of(config: RunConfig) -> RunConfig:
    """Return the settings of the same run on the labelled cases alone.

    Data, network, augmentation, seed, steps, labelled patches and the form of the Dice loss are kept.

    Raises:
        ConfigError: the run is supervised already, or starts from another run (`train.start_from`).
    """
    if config.method.name == "supervised":
        raise ConfigError("--with-baseline: method supervised is the baseline itself; train it without the option")
    if config.train.start_from is not None:
        raise ConfigError("--with-baseline: the baseline would start from new weights, so it does not match a run with "
                          "train.start_from; train a baseline separately")  # fmt: skip
    file = bundled("method/supervised.yaml")
    if file is None:
        raise ConfigError("configs/method/supervised.yaml: missing from the installation; install the package again")
    form = config.method.model_dump(include={"dice"})
    changes = {
        "method": parse_method({**merge([file])["method"], **form}),
        "train": config.train.model_copy(update={"unlabelled_batch": 0}),
        "window": config.window.model_copy(update={"network": "student"}),  # there is no teacher
    }
    return config.model_copy(update=changes)


def baseline_folder(out: Path) -> Path:
    """Return the folder for the baseline of the run in `out`: beside it, with `-baseline` added to its name."""
    out = out if out.name else out.resolve()
    return out.with_name(f"{out.name}-baseline")


def _refuse_used(out: Path, resume: bool) -> None:
    refuse_unwritable(out / "config.yaml")
    if not resume and out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: not empty; go on with --resume, or choose another folder")
    if resume and out.exists() and not (out / "last.pt").exists():
        names = ("config.yaml", "splits.json", "env.json", "metrics.csv", "best.pt", "events")
        there = [name for name in names if _holds_something(out / name)]
        if there and not _is_begun(out):
            raise ConfigError(f"{out}: holds no run to go on from, but a {there[0]} that training would replace; "
                              "choose another folder")  # fmt: skip


def _holds_something(path: Path) -> bool:
    """Whether a path is a file that is not empty, or a folder with more than TensorBoard's files."""
    if path.is_dir():
        return any(not inner.name.startswith("events.out") for inner in path.iterdir())
    return path.exists() and path.stat().st_size > 0


def _is_begun(out: Path) -> bool:
    """Whether a folder without a checkpoint holds a run that ended before its first save; a power cut may have left
    some of its files empty."""
    with suppress(InputError):
        if {"data", "method", "train"} <= merge([out / "config.yaml"]).keys():
            return True
    with suppress(InputError):
        load_split(out / "splits.json")
        return True
    return False


def _train(config: RunConfig, out: Path, device: torch.device, *, resume: bool, until: int | None, quiet: bool) -> None:
    data = open_data(config)
    trainer = make_trainer(config, out, device)
    trainer.likeness = data.likeness
    if resume and (out / "last.pt").exists():
        _check_same(config, data.split, out)
        trainer.load(out / "last.pt")
        if is_first() and not quiet:
            print(f"{out}: going on from step {trainer.iteration} of {config.train.iterations}", file=sys.stderr)
    else:
        if resume and is_first() and not quiet:
            print(f"medssl: {out} holds no last.pt to go on from; training begins at step 0", file=sys.stderr)
        start(trainer, config, data.split)
    if len(set(gathered([trainer.iteration]))) > 1:  # this also keeps processes from writing before all have read
        raise DataError(f"{out}: processes found different checkpoints; all machines must share this folder")
    _refuse_beyond_memory(config, device)
    if not quiet:
        _tell_of_padding(config, data)
        _tell_of_resting_teachers(trainer)
    labelled, unlabelled = make_streams(config, data)
    log: RunLog = NoLog()
    if is_first():
        for rest in filter(Path.is_file, out.glob(".partial-*")):  # left by a save during which the run was killed
            rest.unlink()
        dump(config.to_plain(), out / "config.yaml")
        write_split(out / "splits.json", data.split)
        write_json(out / "env.json", {**environment(), "launch": launch(), "processes": processes.count()})
        rows = max(ROWS, config.train.iterations // config.train.log_every // 10)  # a tenth of the run
        watchman = Watchman(config.data.classes, rows, type(config.method).model_fields)
        log = RunLog(out, resumed_at=trainer.iteration, quiet=quiet, config=config.logging,
                     settings=_shown(config, data.split), watchman=watchman)  # fmt: skip

    finished = False
    try:
        validate = functools.partial(validate_cases, trainer, config, data, log)
        trainer.fit(labelled, unlabelled, validate, log, until)
        finished = trainer.iteration >= config.train.iterations
    except Interrupted:  # possibly while the last weights were saved
        finished = trainer.iteration >= config.train.iterations
        raise
    finally:
        log.close(finished)


def _shown(config: RunConfig, split: Split) -> dict[str, Setting]:
    """Return the settings that boards list beside a run's scores. Lists become text; None is left out."""
    plain = config.to_plain()
    counts = {part: len(getattr(split, part)) for part in PARTS}
    shown = {key: plain[key] for key in ("method", "train", "augment", "network")}
    flat = flatten({"data": {"name": config.data.name, **counts}, **shown})
    return {k: v if isinstance(v, Setting) else str(v) for k, v in flat.items() if v is not None}


def fitting(config: RunConfig, memory: float, *, device: str = "auto", quiet: bool = False) -> RunConfig:
    """Return the settings, changed so that a step needs at most `memory` GiB per device; print the changes."""
    _check_batches(config, METHODS[config.method.name])
    kind = "auto" if device == "cuda" else device  # decides the precision only; no process has its own GPU yet
    config, reasons = fit(config, int(memory * 2**30), device=kind, processes=launched())
    if not quiet and speaks():
        for reason in reasons:
            print(f"to fit into memory: {reason}", file=sys.stderr)
    return config


def dry_run(config: RunConfig, *, device: str = "auto") -> dict[str, Any]:
    """Resolve all settings, train two steps from the middle of the run, write nothing, and return what was found.

    Raises:
        OutOfMemoryError: a step on the CPU needs more than is free, for which the system would kill the process without
            a message; or a process that reads patches was lost.
    """
    check_packages(config.logging)
    data = open_data(config)
    trainer = make_trainer(config, Path(), choose_device(device))
    start(trainer, config, data.split)
    memory = estimate(config, device=device)
    _refuse_beyond_memory(config, trainer.device, memory)
    _tell_of_padding(config, data)
    labelled, unlabelled = make_streams(config, data)
    trainer.iteration = config.train.iterations // 2  # past the first stage of most methods
    batches = trainer.batches(labelled, unlabelled, trainer.iteration + 2)
    with ending_readers():
        trainer.train_step(next(batches))
        started = time.monotonic()
        result = trainer.train_step(next(batches))
    losses = {name: float(f"{loss.item():.4g}") for name, loss in result.losses.items()}
    return {
        "device": str(trainer.device),
        "parameters": {f"student {i}": count_parameters(s) for i, s in enumerate(trainer.method.students())},
        "teachers": len(trainer.method.teachers()),
        "labelled, unlabelled, val": [len(p) for p in (data.split.labelled, data.split.unlabelled, data.split.val)],
        "losses": losses,
        "seconds_per_step": round(time.monotonic() - started, 3),
        "memory": {
            "estimated_for_a_step_gib": round(memory.total / 2**30, 2),
            "peak_of_this_process_gib": round(_peak_memory(trainer.device) / 2**30, 2),
        },
    }


def _tell_of_resting_teachers(trainer: Trainer) -> None:
    """Warn of a teacher that never follows a student, or follows so slowly that it hardly changes."""
    if not is_first():
        return
    method, steps = trainer.method, trainer.config.iterations
    places = map(trainer.progress, random.Random(0).sample(range(steps), min(steps, 1000)))  # teachers may take turns
    follows = [follow for place in places if not method.pretraining(place) for follow in method.followers(place)]
    least: dict[int, float] = {}
    for follow in follows:
        least[id(follow.teacher)] = min(follow.decay, least.get(id(follow.teacher), 1.0))
    if follows and any(id(teacher) not in least for teacher in method.teachers()):
        print("medssl: a teacher follows no student, so its weights never change; the method's `followers` must list "
              "it", file=sys.stderr)  # fmt: skip
    slowest = max(least.values(), default=0.0)
    if 1 - slowest < 1 / (SLOW * steps):
        print(f"medssl: with an EMA decay of {slowest:.9g}, a teacher hardly changes in {steps:,} steps; lower the "
              "decay, for example with method.ema_decay", file=sys.stderr)  # fmt: skip


def _tell_of_padding(config: RunConfig, data: TrainingData) -> None:
    """Print a note if a smaller patch, of a size that the network accepts, would hold every training case."""
    ids = (*data.split.labelled, *data.split.unlabelled)
    longest = np.max([data.image(id).shape[1:] for id in ids], axis=0, initial=1)
    patch, stride = np.array(config.train.patch), np.array(config.network.total_stride)
    enough = np.minimum(patch, -(-longest // stride) * stride)
    if is_first() and (enough < patch).any():
        print(
            f"medssl: train.patch is {patch.tolist()}, but no training case is larger than {longest.tolist()} voxels; "
            f"the rest is padding, which costs time and memory. train.patch={enough.tolist()} is large enough.",
            file=sys.stderr,
        )


def _refuse_beyond_memory(config: RunConfig, device: torch.device, memory: Memory | None = None) -> None:
    """Refuse a run if a step on the CPU needs more memory than is free; the system would kill it without a message.

    Args:
        memory: the estimate, if already made; otherwise it is made only if ten copies of the finest feature maps would
            not fit.

    Raises:
        OutOfMemoryError: a step needs more than is free.
    """
    free, train = available_memory(), config.train
    if device.type != "cpu" or free is None or processes.count() > 1:
        return
    features = (train.labelled_batch + train.unlabelled_batch) * config.network.channels[0] * math.prod(train.patch)
    if memory is None and 10 * 4 * features > free:
        memory = estimate(config, device="cpu")
    if memory is not None and memory.total > free:
        raise OutOfMemoryError(
            f"a training step needs about {memory}, but only {free / 2**30:.2f} GiB are free; reduce train.patch or "
            "the batch sizes, or let --memory GIB change the settings"
        )


def open_data(config: RunConfig) -> TrainingData:
    """Open the prepared dataset and its split, limited to what training may see.

    Raises:
        ConfigError: `data.root` is not set, or the dataset was prepared with other classes, values, ignored value,
            channels or recipe.
    """
    if config.data.root is None:
        raise ConfigError("data.root: not set; name the prepared folder with --set data.root=PREPARED")
    dataset = read_prepared(config.data.root)
    _check_prepared(config, dataset)
    split = read_split(config.data.splits or config.data.root / "splits.json", dataset)
    return TrainingData(dataset, split.model_copy(update={"content": content_of(dataset, split)}))


def make_trainer(config: RunConfig, out: Path, device: torch.device) -> Trainer:
    """Check that the settings fit together, and return a trainer with new weights."""
    prepare_device(device, tf32=config.train.tf32, deterministic=config.train.deterministic)
    method = build_method(config)
    _check_batches(config, method)
    _check_norm(config, device)
    make_predictor(method, config, device)  # finds wrong settings now rather than at the first validation
    augment = Augment(config.augment, config.train.patch, config.data.recipe.spacing, len(config.data.classes),
                      ignores=bool(config.data.ignore), mirrored=config.data.mirrored_places)  # fmt: skip
    return Trainer(method, config.train, out, device, augment, config.to_plain())


def make_streams(config: RunConfig, data: TrainingData) -> tuple[PatchStream, PatchStream | None]:
    """Return the stream of labelled patches and, if the method uses them, that of unlabelled patches."""
    train = config.train
    stream = functools.partial(PatchStream, data, patch=train.patch, sharing=here())
    labelled = stream(learned_cases(config, data, "labelled"), seed=(train.seed, 0), labels=True,
                      foreground=train.foreground, class_weights=train.class_weights)  # fmt: skip
    if not METHODS[config.method.name].needs_unlabelled:
        return labelled, None
    if not data.split.unlabelled:
        raise ConfigError(f"method {config.method.name} needs unlabelled cases, but the split has none; use another "
                          "split, or method supervised")  # fmt: skip
    return labelled, stream(learned_cases(config, data, "unlabelled"), seed=(train.seed, 1), labels=False)


def validate_cases(trainer: Trainer, config: RunConfig, data: TrainingData, log: RunLog) -> dict[str, float]:
    """Return the mean foreground Dice over the validation cases, by sliding window on the prepared grid.

    The pseudo-labels of the canaries are scored too; if the method makes none, its predictions are scored instead.
    """
    predictor = make_predictor(trainer.method, config, trainer.device)
    if canaries := canary_cases(config, data):
        makes_some = type(trainer.method).pseudo_label is not Method.pseudo_label
        told = PseudoLabels(trainer, config, predictor.classes) if makes_some else predictor
        log.canaries(trainer.iteration, score_cases(told, data, canaries, "canary", trainer.iteration, log))
    return score_cases(predictor, data, data.split.val, "val", trainer.iteration, log)


def score_cases(
    predictor: Predictor | PseudoLabels, data: TrainingData, ids: Sequence[str], part: str, iteration: int, log: RunLog
) -> dict[str, float]:
    """Return the mean Dice of each foreground class over labelled or validation cases, and the mean of these means;
    empty if there are no cases.

    The mean of a class leaves out cases in which both reference and prediction lack it. Voxels that nobody annotated do
    not count. Processes share the cases.
    """
    names = predictor.classes[1:]
    scores: list[tuple[int, list[float | None]]] = []
    for number, id in list(enumerate(ids))[processes.rank() :: processes.count()]:
        image, reference = np.asarray(data.image(id)[...]), np.asarray(data.label(id)[...])
        prediction = predictor.likeliest(image)
        if data.ignores:
            known = reference != IGNORED
            reference, prediction = reference * known, prediction * known
        per_class = [dice(prediction == value, reference == value) for value in range(1, len(names) + 1)]
        scores.append((number, per_class))
        if number == 0:
            middle = int(np.argmax((reference > 0).sum((0, 1))))
            log.picture(iteration, f"{part}/{id}", image[0, :, :, middle], reference[:, :, middle],
                        prediction[:, :, middle])  # fmt: skip
    table = [per_class for _, per_class in sorted(gathered(scores), key=lambda row: row[0])]
    columns = [[value for value in column if value is not None] for column in zip(*table, strict=True)]
    means = {f"dice/{name}": float(np.mean(c)) for name, c in zip(names, columns, strict=False) if c}
    return {"dice": float(np.mean(list(means.values()))), **means} if means else {}


def _is_ours(out: Path) -> bool:
    """Whether torchrun restarted this process after the same launch had started the run in `out`."""
    if restarts() == 0 or launch() is None or not (out / "env.json").exists():
        return False
    return bool(read_object(out / "env.json").get("launch") == launch())


def _check_prepared(config: RunConfig, dataset: PreparedDataset) -> None:
    if apart := config.data.difference(dataset.config, "classes", "values", "ignore", "channels", "recipe"):
        key, here, there = apart
        raise ConfigError(
            f"data.{key}: {dataset.root} was prepared with\n  {there}\nbut the configuration says\n  {here}\n"
            "Prepare again, or use the configuration it was prepared with."
        )


def _check_batches(config: RunConfig, method: Method | type[Method]) -> None:
    """Refuse batch sizes that the method cannot use, or cannot use once they are shared and split into parts."""
    train, name = config.train, config.method.name
    if method.needs_unlabelled and train.unlabelled_batch == 0:
        raise ConfigError(f"train.unlabelled_batch must be at least 1 for method {name}, which learns from unlabelled "
                          "cases, got 0")  # fmt: skip
    batches = {"labelled_batch": train.labelled_batch}
    if method.needs_unlabelled:
        batches["unlabelled_batch"] = train.unlabelled_batch
    if method.even_batch and (train.labelled_batch % 2 or train.labelled_batch != train.unlabelled_batch):
        raise ConfigError(
            f"method {name} pairs patches: train.labelled_batch and train.unlabelled_batch must be "
            f"equal and even, got {train.labelled_batch} and {train.unlabelled_batch}"
        )
    parts, unit = processes.count() * train.accumulate, 2 if method.even_batch else 1
    fewest = config.method.fewest_unlabelled
    if method.needs_unlabelled and fewest > 1 and train.unlabelled_batch // parts < fewest:
        raise ConfigError(
            f"train.unlabelled_batch must be at least {fewest * parts}, got {train.unlabelled_batch}: with its current "
            f"settings, method {name} mixes unlabelled patches and needs {fewest} in each of {parts} parts "
            "(train.accumulate times processes)"
        )
    for key, size in batches.items():
        if size % (parts * unit):
            raise ConfigError(
                f"train.{key} must be a multiple of {parts * unit}, got {size}: it is divided into {parts} parts "
                "(train.accumulate times processes)"
                + (f", and method {name} needs an even number in each" if unit > 1 else "")
            )


def _check_norm(config: RunConfig, device: torch.device) -> None:
    if config.network.norm == "batch" and processes.count() > 1 and device.type != "cuda":
        raise ConfigError("network.norm: with several processes, batch works on GPUs only; use instance or group")


def _check_same(config: RunConfig, split: Split, out: Path) -> None:
    """Refuse to resume with another split, other files or other settings; the data may lie in another place."""
    held = load_split(out / "splits.json")
    told = {"patients": split.patients, "counted": split.counted}  # old files lack them; sha256 covers the patients
    if held.model_copy(update={**told, "content": split.content}) != split:
        raise ConfigError(f"{out}: was started with another split; resume with that of its splits.json")
    if changed := changed_content(held.content, split.content):
        raise ConfigError(
            f"{out}: the files of {how_many(len(changed), 'case')} have changed since the run was started, and were "
            f"prepared again: {some(changed)}. Begin a new run (--set train.start_from={out} takes over the weights), "
            "or prepare the earlier files"
        )
    then, now = (flatten(values) for values in (_last_checkpoint(out)["config"], config.to_plain()))
    changed = [key for key in now if key not in _MAY_CHANGE and not key.startswith("logging.")
               and then.get(key) != now[key]]  # fmt: skip
    if changed:
        lines = [f"  {key}: was {then.get(key)}, now {now[key]}" for key in changed]
        if "train.iterations" in changed:  # schedules are fractions of it
            lines.append(f"To train longer, begin a new run with --set train.start_from={out}")
        raise ConfigError(f"{out}: cannot be resumed with other settings\n" + "\n".join(lines))


def _last_checkpoint(out: Path) -> dict[str, Any]:
    """Load last.pt; if it is damaged, the error says whether best.pt can be used instead."""
    try:
        return load_checkpoint(out / "last.pt")
    except DataError as error:
        advice = f"{out} has no other intact checkpoint; train again in another folder"
        with suppress(DataError):
            steps = steps_of(out / "best.pt")
            advice = f"best.pt beside it is intact, from step {steps}; copy it over last.pt to go on from there"
        raise DataError(f"{error}\n{advice}") from None


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # would need another package
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
