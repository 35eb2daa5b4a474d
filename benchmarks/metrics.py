"""Time scoring with medssl, MONAI and medpy at equal results, or compare each convention with its tool.

    OMP_NUM_THREADS=1 python benchmarks/metrics.py --out metrics.json      # medpy takes some 20 minutes
    python benchmarks/metrics.py --tools monai                             # without medpy, two minutes
    python benchmarks/metrics.py --shapes 512x512x300:10/1 --tools medpy   # score one of the ten classes
    python benchmarks/metrics.py --parity                                  # the tables of docs/metrics.md

The volumes hold one large organ, teeth, and a class of several teeth. In the prediction, each of them is shifted and
its size changed a little. medssl computes all its default metrics; MONAI computes Dice, HD95, ASSD and NSD, and medpy
Dice, HD95 and ASSD, one class at a time, so that no tool holds all classes as floats. medssl and MONAI take turns in
one run; medpy has one turn. Ratios are of median CPU times, summed over threads, since other work on the machine
affects these least. Set OMP_NUM_THREADS=1, because OpenMP threads use CPU time while they wait for each other. The
script fails if the numbers of the tools differ.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import monai.metrics
import numpy as np
import torch
from machine import facts
from numpy.typing import NDArray

from medssl.data.volume import Volume
from medssl.metrics import CONVENTIONS, Measures, score_case

try:
    from medpy.metric import binary as medpy
except ImportError:
    medpy = None

SHAPES = ["35x50x35:2", "256x216x10:3", "192x192x128:10", "512x512x300:10"]
TOY = ["24x30x18:4"]
SPACING = (0.3, 0.3, 0.4)
TOLERANCE = 1.0
EQUAL = 1e-5
"""Relative tolerance; MONAI returns float32."""
Array = NDArray[Any]
Numbers = dict[str, float | None]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="XxYxZ:classes, or XxYxZ:classes/scored")
    parser.add_argument("--tools", nargs="*", default=["monai", "medpy"], choices=["monai", "medpy"])
    parser.add_argument("--repeats", type=int, default=3, help="number of turns of medssl and MONAI")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="threads of the multi-threaded row of medssl"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--toy", action="store_true", help="a tiny volume, to test the script in seconds")
    parser.add_argument("--parity", action="store_true", help="do not time; compare each convention with its tool")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module=r"monai|medpy|numpy")
    if options.parity:
        print(parity())
        return
    if medpy is None and "medpy" in options.tools:
        print("medpy is not installed and is left out")
        options.tools.remove("medpy")
    rows = []
    for text in TOY if options.toy else options.shapes:
        rows += measure(text, options)
        print(table(rows), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        machine = {
            **facts(),
            "cores": os.cpu_count(),
            **{name: installed(name) for name in ("medpy", "scipy", "numpy")},
        }
        result = {"machine": machine, "repeats": options.repeats, "rows": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# ---- volumes


@dataclass(frozen=True)
class Blob:
    """An ellipsoid of a class, with centre and radius as shares of the volume."""

    label: int
    centre: tuple[float, float, float]
    radius: tuple[float, float, float]


def blobs(classes: int) -> list[Blob]:
    """Return one organ, then a tooth per class along an arch; the last class has one beside each of these teeth."""
    found = [Blob(1, (0.5, 0.62, 0.35), (0.3, 0.27, 0.28))]
    for n, angle in enumerate(np.linspace(0.15, math.pi - 0.15, max(classes - 2, 1))):
        place = 0.5 + 0.4 * math.cos(angle), 0.5 - 0.38 * math.sin(angle)
        found.append(Blob(min(2 + n, classes), (*place, 0.8), (0.03, 0.03, 0.1)))
        if classes > 2:
            found.append(Blob(classes, (*place, 0.53), (0.03, 0.03, 0.1)))
    return found if classes > 1 else found[:1]


def volumes(shape: tuple[int, ...], classes: int) -> tuple[Array, Array]:
    """Return prediction and reference as label maps."""
    prediction, reference = (np.zeros(shape, np.int32) for _ in range(2))
    rng = np.random.default_rng(0)
    for blob in blobs(classes):
        centre, radius = np.multiply(blob.centre, shape), np.maximum(np.multiply(blob.radius, shape), 1.5)
        draw(reference, blob.label, centre, radius)
        draw(prediction, blob.label, centre + rng.uniform(-1.5, 1.5, 3), radius + rng.uniform(-1, 2, 3))
    return prediction, reference


def draw(array: Array, label: int, centre: Array, radius: Array) -> None:
    box = tuple(slice(max(0, int(c - r)), int(c + r) + 2) for c, r in zip(centre, radius, strict=True))
    axes = np.ogrid[tuple(slice(part.start, min(part.stop, side)) for part, side in zip(box, array.shape, strict=True))]
    inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radius, strict=True)) <= 1
    array[box][inside] = label


# ---- time and memory


def measure(text: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the tools on one shape, and check that their numbers agree."""
    size, _, classes = text.partition(":")
    classes, _, scored = classes.partition("/")
    labels = range(1, int(scored or classes) + 1)
    prediction, reference = volumes(tuple(map(int, size.split("x"))), int(classes))
    ways: dict[str, Callable[[], dict[int, Numbers]]] = {
        "medssl": lambda: ours(prediction, reference, labels, 1),
        f"medssl, {options.threads} threads": lambda: ours(prediction, reference, labels, options.threads),
        "MONAI": lambda: {label: of_monai(prediction == label, reference == label, SPACING) for label in labels},
        "medpy": lambda: {label: of_medpy(prediction == label, reference == label, SPACING) for label in labels},
    }
    ways = {name: way for name, way in ways.items() if name.startswith("medssl") or name.lower() in options.tools}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    peaks = dict.fromkeys(ways, 0.0)
    results = {}
    of_monai(*drawn()["scored"], SPACING)  # the imports of its first call are not timed
    for turn in range(options.repeats):
        for name, way in ways.items():
            if turn == 0 or name != "medpy":
                *spent, peak, results[name] = watched(way)
                times[name].append((spent[0], spent[1]))
                peaks[name] = max(peaks[name], peak)
    for name in list(ways)[1:]:
        check_equal(results["medssl"], results[name], name)
    medians = {name: [statistics.median(column) for column in zip(*times[name], strict=True)] for name in ways}
    return [
        {
            "shape": text, "tool": name, "cpu_s": round(medians[name][0], 3), "wall_s": round(medians[name][1], 3),
            "turns": len(times[name]), "peak_MiB": round(peaks[name]),
            "times_ours": round(medians[name][0] / medians["medssl"][0], 1),
        }
        for name in ways
    ]  # fmt: skip


def watched(work: Callable[[], Any]) -> tuple[float, float, float, Any]:
    """Return CPU seconds of all threads, wall-clock seconds, peak MiB above the memory held before, and the result."""
    gc.collect()
    before, peak, done = resident(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, cpu = time.perf_counter(), time.process_time()
    try:
        result = work()
    finally:
        cpu, wall = time.process_time() - cpu, time.perf_counter() - started
        done.set()
        watcher.join()
    return cpu, wall, peak, result


def resident() -> float:
    """Return the MiB of memory of this process; 0 where the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def check_equal(mine: dict[int, Numbers], theirs: dict[int, Numbers], name: str) -> None:
    for label, numbers in theirs.items():
        for metric, value in numbers.items():
            if not is_same(mine[label][metric], value):
                raise SystemExit(f"{name}, class {label}: {metric} is {value}, but {mine[label][metric]} with medssl")


def is_same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return one == other or math.isclose(one, other, rel_tol=EQUAL, abs_tol=1e-6)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    columns = {"shape": "volume: classes", "tool": "tool", "cpu_s": "CPU s", "times_ours": "CPU time, medssl = 1",
               "wall_s": "wall-clock s", "peak_MiB": "peak MiB, without the label maps"}  # fmt: skip
    lines = [f"| {' | '.join(columns.values())} |", "|---|---|--:|--:|--:|--:|"]
    return "\n".join(lines + [f"| {' | '.join(str(row[key]) for key in columns)} |" for row in rows])


# ---- the tools


def ours(prediction: Array, reference: Array, labels: range, threads: int) -> dict[int, Numbers]:
    found, truth = (Volume(array, np.diag([*SPACING, 1.0])) for array in (prediction, reference))
    names = {label: str(label) for label in labels}
    scores = score_case("case", found, truth, names, Measures(tolerance=TOLERANCE), threads=threads)["strict"]
    return {score.label: dict(score.values) for score in scores}


def of_monai(prediction: Array, reference: Array, spacing: tuple[float, ...]) -> Numbers:
    """Compute the metrics with MONAI, under the names of medssl."""
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
    distance = {"include_background": True, "spacing": spacing}
    return {
        "dice": number(monai.metrics.compute_dice(*pair)),
        "hd95_max": number(monai.metrics.compute_hausdorff_distance(*pair, percentile=95, **distance)),
        "assd": number(monai.metrics.compute_average_surface_distance(*pair, symmetric=True, **distance)),
        "nsd": number(monai.metrics.compute_surface_dice(*pair, class_thresholds=[TOLERANCE], **distance)),
    }


def of_medpy(prediction: Array, reference: Array, spacing: tuple[float, ...]) -> Numbers:
    """Compute the metrics with medpy, under the names of medssl."""
    return {
        "dice": float(medpy.dc(prediction, reference)),
        "hd95_pooled": float(medpy.hd95(prediction, reference, spacing)),
        "assd": float(medpy.assd(prediction, reference, spacing)),
    }


def number(value: Any) -> float | None:
    value = float(value)
    return None if math.isnan(value) else value


# ---- parity


def parity() -> str:
    """Return Markdown tables: every convention on drawn pairs, and conventions compared with their tools."""
    return "\n".join([*conventions_on_drawn_pairs(), "", *conventions_beside_tools()])


def drawn() -> dict[str, tuple[Array, Array]]:
    """Return pairs of masks: a bar of 20 voxels with two stray voxels ten rows away, the bar alone, and empty masks."""
    bar, empty = np.zeros((2, 12, 21), bool), np.zeros((2, 12, 21), bool)
    bar[0, 0, :20] = True
    astray = bar.copy()
    astray[0, 10, :2] = True
    return {"scored": (astray, bar), "missed": (empty, bar), "invented": (astray, empty), "absent": (empty, empty)}


def random_pairs(count: int) -> list[tuple[Array, Array]]:
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(count):
        masks = rng.random((2, 9, 11, 8)) < 0.15
        for mask in masks:
            x, y, z = rng.integers(0, 4, 3)
            mask[x : x + 5, y : y + 5, z : z + 5] = True
        pairs.append((masks[0], masks[1]))
    return pairs


def by_convention(prediction: Array, reference: Array, convention: str) -> dict[str, float | None]:
    found, truth = (Volume(mask.astype(np.int32), np.diag([1.0, 1.0, 2.0, 1.0])) for mask in (prediction, reference))
    (score,) = score_case("case", found, truth, {1: "class"}, Measures((convention,), tolerance=TOLERANCE))[convention]
    return {name: score.value(name) for name in CONVENTIONS[convention].metrics}


def conventions_on_drawn_pairs() -> list[str]:
    lines = ["| convention | metric | scored | missed | invented | absent |", "|---|---|--:|--:|--:|--:|"]
    for convention in CONVENTIONS:
        values = [by_convention(*pair, convention) for pair in drawn().values()]
        for metric in ("dice", "hd95", "asd"):
            if metric in values[0]:
                cells = " | ".join(say(each[metric]) for each in values)
                lines.append(f"| {convention} | {metric} | {cells} |")
    return lines


def conventions_beside_tools() -> list[str]:
    lines = [
        "| convention | metric | scored | missed | invented | absent | random pairs |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    tools = {"monai": TOOLS["monai"], "nnunet": TOOLS["nnunet"]} | ({"ssl4mis": TOOLS["ssl4mis"]} if medpy else {})
    pairs = random_pairs(50)
    for convention, metrics in tools.items():
        for metric, tool in metrics.items():
            cells = [beside(by_convention(*pair, convention)[metric], tool(*pair)) for pair in drawn().values()]
            equal = sum(is_same(by_convention(*pair, convention)[metric], tool(*pair)) for pair in pairs)
            lines.append(f"| {convention} | {metric} | {' | '.join(cells)} | {equal} of {len(pairs)} equal |")
    return lines


def beside(mine: float | None, theirs: float | None) -> str:
    return say(mine) if is_same(mine, theirs) else f"{say(mine)} (tool: {say(theirs)})"


def say(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _monai(function: Callable[..., Any], **options: Any) -> Callable[[Array, Array], float | None]:
    def measured(prediction: Array, reference: Array) -> float | None:
        pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
        return number(function(*pair, include_background=True, **options))

    return measured


def _monai_rate(name: str) -> Callable[[Array, Array], float | None]:
    def measured(prediction: Array, reference: Array) -> float | None:
        pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
        counts = monai.metrics.get_confusion_matrix(*pair, include_background=True)
        return number(monai.metrics.compute_confusion_matrix_metric(name, counts))

    return measured


def _nnunet(of_counts: Callable[[int, int, int], float]) -> Callable[[Array, Array], float | None]:
    """Return a metric by nnU-Net's formula on voxel counts, where 0 / 0 is NaN; nnU-Net itself is not used."""

    def measured(prediction: Array, reference: Array) -> float | None:
        true, false, lost = (
            (prediction & reference).sum(),
            (prediction & ~reference).sum(),
            (reference & ~prediction).sum(),
        )
        with np.errstate(invalid="ignore"):
            return number(of_counts(true, false, lost))

    return measured


def _ssl4mis(name: str) -> Callable[[Array, Array], float | None]:
    """Return medpy's metric without spacing if both masks have voxels, else 0, as `cal_metric` of val_3D does."""

    def measured(prediction: Array, reference: Array) -> float | None:
        return float(getattr(medpy, name)(prediction, reference)) if prediction.any() and reference.any() else 0.0

    return measured


TOOLS: dict[str, dict[str, Callable[[Array, Array], float | None]]] = {
    "monai": {
        "dice": _monai(monai.metrics.compute_dice),
        "iou": _monai(monai.metrics.compute_iou),
        "precision": _monai_rate("precision"),
        "recall": _monai_rate("sensitivity"),
        "hd95": _monai(monai.metrics.compute_hausdorff_distance, percentile=95),
        "hd": _monai(monai.metrics.compute_hausdorff_distance),
        "asd": _monai(monai.metrics.compute_average_surface_distance),
        "assd": _monai(monai.metrics.compute_average_surface_distance, symmetric=True),
        "nsd": _monai(monai.metrics.compute_surface_dice, class_thresholds=[TOLERANCE]),
    },
    "nnunet": {
        "dice": _nnunet(lambda true, false, lost: 2 * true / (2 * true + false + lost)),
        "iou": _nnunet(lambda true, false, lost: true / (true + false + lost)),
    },
    "ssl4mis": {"dice": _ssl4mis("dc"), "iou": _ssl4mis("jc"), "hd95": _ssl4mis("hd95"), "asd": _ssl4mis("asd")},
}
"""The functions of each convention's tool, with their default settings."""


if __name__ == "__main__":
    main()
