"""Measure `medssl prepare` and its store on CBCT-like phantoms: time, memory, disk space and patch reads.

    python benchmarks/prepare.py
    python benchmarks/prepare.py --shape 300 300 224 --cases 4 --patches 96 --out benchmarks/results/prepare.json
    python benchmarks/prepare.py --shape 400 400 300 --cases 2 --out benchmarks/results/prepare-large.json
    python benchmarks/prepare.py --shape 300 300 224 --cases 1 --rounds 1 --patches 96 --codecs \\
        --out benchmarks/results/prepare-codecs.json

The bare cost is that of reading, resampling and compressing with the same libraries in as many processes. It takes
turns with `prepare`, which also checks the cases, finds the foreground and normalises. CPU seconds of all processes are
compared, since other work on the machine hardly affects them. Phantoms are drawn at half the side length and mirrored,
since drawing takes longer than preparing. Patches are read at random places from files in the system's cache.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
from machine import tell
from numpy.typing import NDArray

from medssl.data.cases import DatasetConfig
from medssl.data.check import survey
from medssl.data.grid import Turn
from medssl.data.io import read_image, write_image
from medssl.data.phantoms import KINDS, draw
from medssl.data.prepared import BLOCK, PreparedCase, StoredImage, open_packed, write_packed
from medssl.data.recipe import Intensity, Recipe
from medssl.machine import available_cpus
from medssl.prepare import BYTES_PER_VOXEL, BYTES_PER_WORKER, Task, prepare, prepare_case
from medssl.progress import as_finished

CLIP = Intensity(kind="clip", window=(-1000, 3000))
COARSER = 1.2
"""Factor of the spacing in the resampled rows."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=3, type=int, default=[160, 160, 120])
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--workers", type=int, default=available_cpus())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--patches", nargs="+", type=int, default=[64, 96, 128])
    parser.add_argument("--codecs", action="store_true", help="also store the first case with other codecs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        spacing = draw_dataset(root / "raw", options.shape, options.cases)
        recipes = {
            "as scanned": Recipe(intensity=CLIP),
            "resampled": Recipe(intensity=CLIP, spacing=tuple(COARSER * mm for mm in spacing)),
        }
        rows = [measure(root, name, recipe, options) for name, recipe in recipes.items()]
    tell(rows, options.out)


def draw_dataset(folder: Path, shape: list[int], cases: int) -> tuple[float, ...]:
    """Write labelled cases and return the spacing of the first, in RAS order."""
    half = (shape[0] // 2, shape[1] // 2, shape[2] // 2)
    phantom = draw("cbct", 0, half)
    for number in range(cases):
        for kind, array in (("images", phantom.image), ("labels", phantom.label)):
            mirrored = np.pad(array, [(0, n) for n in half], mode="symmetric")
            write_image(folder / kind / f"case_{number}.nii.gz", np.roll(mirrored, 7 * number, 0), phantom.affine)
    return tuple(Turn.to("RAS", phantom.affine).apply_to_axes(read_image(folder / "images/case_0.nii.gz").spacing))


def measure(root: Path, name: str, recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers of one recipe."""
    config = DatasetConfig(name="cbct", classes=KINDS["cbct"], recipe=recipe)
    out = root / "prepared"
    dataset = prepare(root / "raw", out, config, workers=options.workers)
    layout, expected = survey(root / "raw", config)
    tasks = [Task(case, root / "peak", config, expected) for case in layout.cases]
    peak = max(result for _, result in as_finished(peak_of, tasks, 2))
    jobs = [Bare(case, root / "bare") for case in dataset.cases.values()]
    times: dict[str, list[Times]] = {"bare": [], "prepare": []}
    for _ in range(options.rounds):
        times["bare"].append(timed(lambda: list(as_finished(bare, jobs, min(options.workers, len(jobs))))))
        shutil.rmtree(out)
        times["prepare"].append(timed(lambda: prepare(root / "raw", out, config, workers=options.workers)))
    again = timed(lambda: prepare(root / "raw", out, config)).wall
    fastest = min(time.wall for time in times["prepare"])
    cpu = {key: min(time.cpu for time in rounds) for key, rounds in times.items()}
    voxels = int(np.prod(options.shape))
    row = {
        "recipe": name,
        "shape": "x".join(map(str, options.shape)),
        "workers": options.workers,
        "seconds": {key: [[round(t.wall, 2), round(t.cpu, 2)] for t in rounds] for key, rounds in times.items()},
        "prepare_over_bare": round(cpu["prepare"] / cpu["bare"], 3),
        "seconds_when_nothing_changed": round(again, 3),
        "volumes_per_second": round(len(jobs) / fastest, 3),
        "float32_MB_per_second": round(4 * voxels * len(jobs) / 1e6 / fastest, 1),
        "peak_MiB_of_a_process": round(peak / 2**20),
        "stated_MiB_of_a_process": round((BYTES_PER_WORKER + BYTES_PER_VOXEL * voxels) / 2**20),
        **sizes(root, list(dataset.cases.values())),
        "patches_per_second": reads(next(iter(dataset.cases.values())), root, options.patches),
    }
    if options.codecs:
        row["other_stores"] = other_stores(next(iter(dataset.cases.values())), root, options.patches[-1])
    shutil.rmtree(out)
    shutil.rmtree(root / "peak")
    return row


def peak_of(task: Task) -> int:
    """Prepare a case and return the peak memory of this process in bytes (Linux only).

    `ru_maxrss` would also count the memory of the parent process.
    """
    prepare_case(task)
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@dataclass(frozen=True)
class Bare:
    """A prepared case that `bare` makes again with the least possible work."""

    case: PreparedCase
    out: Path


def bare(job: Bare) -> None:
    """Read, resample and compress one case with the functions of the libraries."""
    job.out.mkdir(exist_ok=True)
    grid, turn = job.case.grid, Turn(job.case.grid.axes, job.case.grid.flips)
    box = tuple(slice(start, start + n) for start, n in zip(grid.start, grid.cropped, strict=True))
    image: NDArray[Any] = nib.load(job.case.images[0].path).get_fdata(dtype=np.float32)
    image = grid.resample_image(np.ascontiguousarray(turn.apply(image)[box]))
    low, high = image.min(), image.max()
    codes = ((image - low) * (65535 / (high - low))).astype(np.uint16)
    np.save(job.out / f"{job.case.id}-image.npy", codes[None])
    assert job.case.label is not None, "all cases have labels here"
    label = np.asarray(nib.load(job.case.label.path).dataobj)
    label = grid.resample_label(np.ascontiguousarray(turn.apply(label)[box]))
    write_packed(job.out / f"{job.case.id}-label.b2nd", label)


def sizes(root: Path, cases: list[PreparedCase]) -> dict[str, float]:
    """Return megabytes on disk of raw files, of plain arrays, and of the store."""
    raw = sum(path.stat().st_size for path in (root / "raw").rglob("*.nii.gz"))
    arrays = sum(4 * np.prod(case.open_image().shape) + np.prod(case.open_label().shape) for case in cases)
    store = sum(path.stat().st_size for case in cases for path in case.folder.iterdir())
    return {
        "raw_nii_gz_MB": round(raw / 1e6, 1), "npy_MB": round(arrays / 1e6, 1), "store_MB": round(store / 1e6, 1),
        "store_over_npy": round(store / arrays, 3),
    }  # fmt: skip


def reads(case: PreparedCase, root: Path, sides: list[int]) -> dict[str, dict[str, float]]:
    """Return patches per second by side length and source, and their ratios to the store."""
    stored = case.open_image()
    np.save(root / "image.npy", stored[...])
    mapped = np.load(root / "image.npy", mmap_mode="r")
    found = {}
    for side in sides:
        patch = tuple(min(side, n) for n in stored.shape[1:])
        rates = {
            "store": rate(lambda box: stored[box], stored.shape, patch, 60),
            "npy memmap": rate(partial(copied, mapped), stored.shape, patch, 60),
            "nii.gz": rate(lambda box: read_image(case.images[0]).array[box[1:]].copy(), stored.shape, patch, 3),
        }
        found["x".join(map(str, patch))] = {
            **{key: round(value, 1) for key, value in rates.items()},
            "store over nii.gz": round(rates["store"] / rates["nii.gz"], 1),
            "npy memmap over store": round(rates["npy memmap"] / rates["store"], 1),
        }
    return found


def other_stores(case: PreparedCase, root: Path, side: int) -> dict[str, dict[str, float]]:
    """Measure other ways of storing a case: as float32 or grey-level numbers, each plain and compressed in four ways.

    Returns the size relative to a float32 `.npy`, and milliseconds per patch. *Plain* arrays are a memory-mapped
    `.npy`. *Cold* patches are read from the disk, after the system's cache was emptied of the file.
    """
    stored = case.open_image()
    values, levels = stored[...], stored.levels
    patch = tuple(min(side, n) for n in values.shape[1:])
    kinds = {"float32": values}
    if levels is not None:
        kinds["numbers"] = np.asarray(stored.stored)
    found = {}
    for name, array in kinds.items():

        def read_from(path: Path, name: str = name) -> Any:
            opened = np.load(path, mmap_mode="r") if path.suffix == ".npy" else open_packed(path)
            return StoredImage(opened, levels) if name == "numbers" else opened

        paths = {"plain": root / "other.npy"}
        np.save(paths["plain"], array)
        for codec, filter in itertools.product(("LZ4", "ZSTD"), ("BITSHUFFLE", "SHUFFLE")):
            path = paths[f"{codec} {filter}"] = root / f"{codec}-{filter}.b2nd"
            cparams = blosc2.CParams(codec=blosc2.Codec[codec], clevel=1, filters=[blosc2.Filter[filter]], nthreads=1)
            blocks = (1, *(min(BLOCK, n) for n in array.shape[1:]))
            chunks = (1, *(min(4 * BLOCK, n) for n in array.shape[1:]))
            blosc2.asarray(array, urlpath=str(path), mode="w", chunks=chunks, blocks=blocks, cparams=cparams)
        for kind, path in paths.items():
            found[f"{name} {kind}"] = {
                "over_npy": path.stat().st_size / values.nbytes,
                "milliseconds": 1e3 / rate(partial(copied, read_from(path)), array.shape, patch, 60),
                "cold_milliseconds": 1e3 * when_cold(path, read_from, array.shape, patch),
            }
    return {name: {key: round(value, 3) for key, value in row.items()} for name, row in found.items()}


def rate(read: Callable[[Any], Any], shape: tuple[int, ...], patch: tuple[int, ...], count: int) -> float:
    """Return the median of patches per second of CPU time at random places."""
    return 1 / float(np.median([timed(lambda: read(box)).cpu for box in boxes(shape, patch, count)]))  # noqa: B023


def when_cold(path: Path, opened: Callable[[Path], Any], shape: tuple[int, ...], patch: tuple[int, ...]) -> float:
    """Return the median of seconds to open a file that is not in the system's cache and read a patch."""
    taken = []
    for box in boxes(shape, patch, 15):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        taken.append(timed(lambda: copied(opened(path), box)).wall)  # noqa: B023
    return float(np.median(taken))


def copied(array: Any, box: Any) -> NDArray[Any]:
    """Return a copy of a patch in memory."""
    found: NDArray[Any] = array[box]
    return np.array(found) if isinstance(found, np.memmap) else found


def boxes(shape: tuple[int, ...], patch: tuple[int, ...], count: int) -> Iterator[Any]:
    """Yield random places of a patch in the first channel."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        starts = [int(rng.integers(n - p + 1)) for n, p in zip(shape[1:], patch, strict=True)]
        yield (0, *(slice(start, start + p) for start, p in zip(starts, patch, strict=True)))


@dataclass(frozen=True)
class Times:
    """Wall-clock seconds, and CPU seconds of this process and its finished children."""

    wall: float
    cpu: float


def timed(work: Callable[[], Any]) -> Times:
    """Measure the time of a call."""
    begun, used = time.perf_counter(), cpu_seconds()
    work()
    return Times(time.perf_counter() - begun, cpu_seconds() - used)


def cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
