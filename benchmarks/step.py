"""Measure the time of a training step, its parts, and how far it is above the cost of the bare networks.

    python benchmarks/step.py --shapes hippocampus la cbct acdc --out benchmarks/results/step-cpu.json

The floor is the time of the bare networks: every forward pass of the step, with the same shapes and precision, and the
backward pass of those that learn, without data, loss, optimiser or teacher update. Step and floor are timed in turns in
one run, each as a whole. A second run measures the parts of the step and waits for the device before and after each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import facts

import medssl.trainer as trainer_module
from medssl.config import merge, parse
from medssl.data.cases import Case
from medssl.data.draw import Wish, make_split
from medssl.data.grid import Grid
from medssl.data.looks import Look
from medssl.data.patches import AHEAD
from medssl.data.prepared import Sources, read_prepared, write_case, write_dataset
from medssl.data.recipe import Prepared
from medssl.data.splits import write_split
from medssl.data.volume import Source
from medssl.device import autocast, choose_device, wait_for
from medssl.logs import RunLog
from medssl.parts.views import Viewed
from medssl.run import RunConfig
from medssl.train import make_streams, make_trainer, open_data
from medssl.trainer import Trainer, averaged, choose_workers

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
V_NET = {"network": {"name": "dynunet", "channels": [16, 32, 64, 128, 256], "strides": [2, 2, 2, 2], "kernels": [3]}}
TINY = {"network": {"name": "unet", "channels": [4, 8], "strides": [2], "kernels": [3]}}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {  # data config, and what differs from it
    "hippocampus": ("hippocampus", {"train": {"labelled_batch": 4, "unlabelled_batch": 4}}),
    "hippocampus-default-network": (
        "hippocampus",
        {
            "network": {"name": "dynunet", "channels": [32, 64, 128, 256, 320], "strides": [2, 2, 2, 2]},
            "train": {"labelled_batch": 4, "unlabelled_batch": 4},
        },
    ),
    "la": ("la", {"train": {"labelled_batch": 2, "unlabelled_batch": 2}}),
    "la-protocol": ("la", {"train": {"labelled_batch": 4, "unlabelled_batch": 4}}),
    "cbct": (
        "phantom_cbct",
        {**V_NET, "train": {"patch": [96, 96, 96], "labelled_batch": 2, "unlabelled_batch": 2}},
    ),
    "acdc": ("acdc", {"train": {"labelled_batch": 2, "unlabelled_batch": 2}}),
    "toy": ("la", {**TINY, "train": {"patch": [16, 16, 12], "labelled_batch": 2, "unlabelled_batch": 2}}),
}
PARTS = (
    "data wait", "host to device", "augmentation", "teacher forward", "student forward", "losses and mixing",
    "backward", "optimiser", "teacher update", "logging", "rest",
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["supervised", "mean_teacher", "bcp"])
    parser.add_argument("--shapes", nargs="+", default=["hippocampus", "la", "cbct", "acdc"], choices=SHAPES)
    parser.add_argument("--precisions", nargs="+", default=["auto"], help="fp32, tf32, bf16, fp16 or auto")
    parser.add_argument("--presets", nargs="+", default=["weak"], help="augmentation: none, weak, strong")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", nargs="+", default=["off"])
    parser.add_argument("--set", nargs="+", default=[], dest="sets", help="more settings, as section.key=value")
    parser.add_argument("--rounds", type=int, default=5, help="number of turns of step and floor")
    parser.add_argument("--steps", type=int, default=2, help="steps in each turn")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)

    device = choose_device(options.device)
    rows: list[dict[str, Any]] = []
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            make_dataset(Path(folder), shape)
            for precision in options.precisions:
                for preset in options.presets:
                    for mode in options.compile:
                        for method in options.methods:
                            config = make_config(Path(folder), shape, method, precision, preset, mode, options.sets)
                            rows.append(measure(config, Path(folder), device, options.rounds, options.steps))
                            rows[-1] |= {"shape": shape, "precision": precision, "compile": mode}
                            print(line(rows[-1]), flush=True)
                            write(options.out, rows)
    print("\n" + table(rows))


def make_config(
    folder: Path, shape: str, method: str, precision: str, preset: str, compile: str, sets: list[str]
) -> RunConfig:
    """Return the settings of one measurement."""
    data, changes = SHAPES[shape]
    values = merge([CONFIGS / "data" / f"{data}.yaml", CONFIGS / "method" / f"{method}.yaml"])
    for section, change in changes.items():
        values[section] = {**values.get(section, {}), **change}
    values["data"] = {**values["data"], "root": str(folder / "prepared"), "splits": str(folder / "splits.json")}
    values["data"].pop("subject", None)
    values["augment"] = {**values.get("augment", {}), "preset": preset}
    values["train"] |= {
        "precision": "fp32" if precision == "tf32" else precision, "tf32": precision != "fp32", "compile": compile,
    }  # fmt: skip
    for item in sets:
        key, value = item.split("=")
        section, name = key.split(".")
        values.setdefault(section, {})[name] = json.loads(value)
    return parse(RunConfig, values)


def make_dataset(folder: Path, shape: str) -> None:
    """Write a prepared dataset of noise, with volumes 1.25 times as long as a patch along each axis."""
    config = make_config(folder, shape, "bcp", "auto", "weak", "off", [])
    rng = np.random.default_rng(0)
    size = tuple(int(1.25 * side) for side in config.train.patch)
    spacing = tuple(1.0 if s is None else s for s in config.data.recipe.spacing)
    grid = Grid(size, np.eye(4).tolist(), (0, 1, 2), (False,) * 3, (0, 0, 0), size, spacing, size, spacing)  # type: ignore[arg-type]
    look = Look(size, spacing, (), 0.0, True)  # type: ignore[arg-type]
    ids = [f"case{i}" for i in range(8)]
    cases = [Case(id, id, (Source(Path(id)),), Source(Path(id))) for id in ids]
    for case in cases:
        image = rng.normal(size=(len(config.data.channels), *size)).astype(np.float32)
        label = np.zeros(size, np.uint8)
        for value in range(1, len(config.data.classes)):
            start = [int(rng.integers(side // 2)) for side in size]
            label[tuple(slice(s, s + side // 3) for s, side in zip(start, size, strict=True))] = value
        write_case(folder / "prepared", case, Prepared(image, label, grid), Sources.of(case, config.data), look)
    write_dataset(folder / "prepared", config.data, cases)
    write_split(folder / "splits.json", make_split(read_prepared(folder / "prepared"), Wish(labelled=4)))


def measure(config: RunConfig, folder: Path, device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """Return the times of one configuration."""
    data = open_data(config)
    trainer = make_trainer(config, folder, device)
    with running(trainer, *make_streams(config, data), folder) as run:
        floor = floor_of(trainer, recorded(trainer, run))
        for warm in (run, floor):
            warm()
        times = []
        for _ in range(rounds):
            for _ in range(ahead(trainer)):
                run()  # uses up batches that were read while the floor ran
            times.append((timed(run, steps, device), timed(floor, steps, device)))
        peak, busy = watched_gpu(run, rounds * steps, device)
    step, bare = (statistics.median(column) for column in zip(*times, strict=True))
    size = config.train.labelled_batch + (config.train.unlabelled_batch if trainer.method.needs_unlabelled else 0)
    return {
        "method": config.method.name,
        "patch": list(config.train.patch),
        "batch": size,
        "network": f"{config.network.name} {'-'.join(map(str, config.network.channels))}",
        "ran_in": str(trainer.precision or torch.float32).removeprefix("torch."),
        "preset": config.augment.preset,
        "step_ms": round(1e3 * step, 2),
        "floor_ms": round(1e3 * bare, 2),
        "ratio": round(statistics.median(a / b for a, b in times), 3),
        "samples_per_s": round(size / step, 2),
        "gpu_peak_gib": peak,
        "gpu_busy_percent": busy,
        "parts_ms": taken_apart(config, folder, device, rounds * steps) if config.train.compile == "off" else {},
    }


def ahead(trainer: Trainer) -> int:
    """Return the number of batches that readers may hold ready."""
    return AHEAD * choose_workers(trainer.config.workers, trainer.device, in_memory=True)


def watched_gpu(run: Callable[[], None], count: int, device: torch.device) -> tuple[float | None, float | None]:
    """Return peak GiB and mean utilisation in percent of the GPU while only steps run; None, None on a CPU."""
    if device.type != "cuda":
        return None, None
    torch.cuda.reset_peak_memory_stats(device)
    with Utilisation(device) as utilisation:
        timed(run, count, device)
    return torch.cuda.max_memory_allocated(device) / 2**30, utilisation.mean


@contextmanager
def running(trainer: Trainer, labelled: Any, unlabelled: Any, folder: Path) -> Iterator[Callable[[], None]]:
    """Yield a function that runs the next step as `Trainer.fit` does, from the middle of the run on."""
    config = trainer.config
    trainer.iteration = config.iterations // 2  # past any warm-up phase of the method
    batches = trainer.batches(labelled, unlabelled, config.iterations)
    log = RunLog(Path(tempfile.mkdtemp(dir=folder)), quiet=True)

    def run() -> None:
        result = trainer.train_step(next(batches))
        log.advance(trainer.iteration)
        if trainer.iteration % config.log_every == 0:
            trainer.check(lambda step: "")
            log.step(trainer.iteration, averaged(result), trainer.lr)

    with log.progress(0, config.iterations):
        yield run
    batches.close()
    log.close()


def taken_apart(config: RunConfig, folder: Path, device: torch.device, count: int) -> dict[str, float]:
    """Return milliseconds per step in each of PARTS, waiting for the device before and after each part."""
    trainer = make_trainer(config, folder, device)
    streams = make_streams(config, open_data(config))
    watch = Watch(device)

    def waited(batches: Callable[..., Any]) -> Callable[..., Any]:
        def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
            inner = batches(*args, **kwargs)
            while True:
                with watch.of("data wait"):
                    item = next(inner, None)
                if item is None:
                    return
                yield item

        return generate

    for stream in streams:
        if stream is not None:
            stream.batches = waited(stream.batches)  # type: ignore[method-assign]
    places: list[tuple[Any, str, str]] = [
        (trainer_module, "on_device", "host to device"),
        (trainer.augment, "draw", "augmentation"),
        (trainer.augment, "apply", "augmentation"),
        *((net, "forward", "teacher forward") for net in bare(trainer.method.teachers())),
        *((net, "forward", "student forward") for net in bare(trainer.method.students())),
        (trainer, "forward", "losses and mixing"),
        (torch.Tensor, "backward", "backward"),
        (torch.nn.utils, "clip_grad_norm_", "optimiser"),
        (trainer.optimizer, "step", "optimiser"),
        (trainer_module, "ema_update", "teacher update"),
        (trainer, "check", "logging"),
        (RunLog, "step", "logging"),
    ]
    originals = [(place, name, getattr(place, name)) for place, name, _ in places]
    try:
        for place, name, part in places:
            setattr(place, name, watch.wrap(part, getattr(place, name)))
        with running(trainer, *streams, folder) as run:
            run()
            watch.start()
            for _ in range(count):
                run()
            watch.switch()
    finally:
        for place, name, original in originals:
            setattr(place, name, original)
    return {part: round(1e3 * watch.seconds[part] / count, 3) for part in PARTS}


def timed(run: Callable[[], None], steps: int, device: torch.device) -> float:
    """Return seconds per call, measured until the device has finished."""
    wait_for(device)
    started = time.perf_counter()
    for _ in range(steps):
        run()
    wait_for(device)
    return (time.perf_counter() - started) / steps


def recorded(trainer: Trainer, run: Callable[[], None]) -> list[tuple[torch.nn.Module, torch.Size, bool]]:
    """Run a step and return network, input shape and whether it learns for every forward pass."""
    found: list[tuple[torch.nn.Module, torch.Size, bool]] = []
    nets = bare((*trainer.method.students(), *trainer.method.teachers()))
    hooks = [
        net.register_forward_pre_hook(lambda net, args: found.append((net, args[0].shape, torch.is_grad_enabled())))
        for net in nets
    ]
    run()
    for hook in hooks:
        hook.remove()
    return found


def bare(nets: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """Return networks without the views in front of them, since methods may apply the views separately."""
    return [net.net if isinstance(net, Viewed) else net for net in nets]


def floor_of(trainer: Trainer, forwards: list[tuple[torch.nn.Module, torch.Size, bool]]) -> Callable[[], None]:
    """Return a function that runs the same forward passes on noise, and the backward passes of those that learn."""
    inputs = [torch.randn(shape, device=trainer.device) for _, shape, _ in forwards]
    slopes: dict[int, torch.Tensor] = {}

    def floor() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        for k, ((net, _, learns), image) in enumerate(zip(forwards, inputs, strict=True)):
            with autocast(trainer.device, trainer.precision):
                if not learns:
                    with torch.inference_mode():
                        net(image)
                    continue
                logits = net(image)
            if k not in slopes:
                slopes[k] = torch.randn_like(logits)
            logits.backward(slopes[k])

    return floor


class Watch:
    """Measure the time in named functions, each without the watched functions that it calls."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.running = device, ["rest"]
        self.start()

    def start(self) -> None:
        """Reset all times."""
        wait_for(self.device)
        self.seconds: dict[str, float] = defaultdict(float)
        self.since = time.perf_counter()

    def switch(self) -> None:
        """Add the time since the last switch to the running part."""
        wait_for(self.device)
        now = time.perf_counter()
        self.seconds[self.running[-1]] += now - self.since
        self.since = now

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the time in the context as that of `name`."""
        self.switch()
        self.running.append(name)
        yield
        self.switch()
        self.running.pop()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time counted as that of `name`."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.of(name):
                return function(*args, **kwargs)

        return watched


class Utilisation:
    """Mean share of time in which the GPU ran a kernel, sampled with nvidia-smi; None without samples."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seen, self.done = device, list[float](), threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def __enter__(self) -> Utilisation:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()

    def look(self) -> None:
        """Sample twice a second."""
        words = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits",
                 f"--id={self.device.index or 0}"]  # fmt: skip
        while not self.done.wait(0.5):
            answer = subprocess.run(words, capture_output=True, text=True).stdout.strip()
            if answer.isdigit():
                self.seen.append(float(answer))

    @property
    def mean(self) -> float | None:
        """The mean in percent."""
        return round(statistics.mean(self.seen), 1) if self.seen else None


def write(path: Path | None, rows: list[dict[str, Any]]) -> None:
    """Write the results so far to a JSON file."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": facts(), "rows": rows}, indent=1) + "\n")


def line(row: dict[str, Any]) -> str:
    return f"{row['shape']} {row['method']} {row['precision']}: {row['step_ms']} ms, {row['ratio']} of the floor"


def table(rows: list[dict[str, Any]]) -> str:
    """Return two Markdown tables: step against floor, and the parts of the step."""
    head = ["shape", "method", "network", "batch", "precision", "compiled", "step ms", "floor ms", "step / floor",
            "samples/s", "17,000 steps, h", "GPU GiB", "GPU busy %"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        hours = 17_000 * row["step_ms"] / 3.6e6
        peak, busy = row["gpu_peak_gib"], row["gpu_busy_percent"]
        cells = [row["shape"], row["method"], row["network"], row["batch"], f"{row['precision']} ({row['ran_in']})",
                 row["compile"], f"{row['step_ms']:.1f}", f"{row['floor_ms']:.1f}", f"{row['ratio']:.2f}",
                 f"{row['samples_per_s']:.1f}", f"{hours:.2f}", "" if peak is None else f"{peak:.1f}",
                 "" if busy is None else f"{busy:.0f}"]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "| shape | method | " + " | ".join(f"{part} ms" for part in PARTS) + " |",
        "|" + "---|" * (2 + len(PARTS)),
    ]
    for row in rows:
        if row["parts_ms"]:
            cells = [row["shape"], row["method"], *(f"{row['parts_ms'][part]:.1f}" for part in PARTS)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
