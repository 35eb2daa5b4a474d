"""Time the batched augmentation of medssl against MONAI's dictionary transforms with the same operations.

    OMP_NUM_THREADS=1 python benchmarks/augment.py --out augment.json
    python benchmarks/augment.py --device cuda --out augment-cuda.json     # medssl on the GPU, MONAI on the CPU

Input patches are in memory; the output is a batch of augmented images and labels. MONAI transforms the samples one by
one, first in this process with the same threads, then in two persistent workers of a data loader. This process is idle
while the workers run, which favours them. Operations, probabilities and ranges are those of `medssl.augment`. Where the
two cannot be equal, MONAI gets the cheaper variant: labels by nearest neighbour (medssl interpolates every class), an
elastic field upsampled from a coarse grid, and no metadata. The alternatives take turns in one run; medians are
reported.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import facts
from monai import transforms
from monai.data.meta_obj import set_track_meta
from scipy import ndimage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medssl.augment import Augment, AugmentConfig
from medssl.parts.warp import CONTROL_POINTS

SHAPES = ["8x1x32x48x32:3", "4x1x112x112x80:2", "4x1x96x96x96:3"]
TOY = ["2x1x10x12x10:3"]
WORKERS = 2
PLANES = [(0, 1), (0, 2), (1, 2)]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Shape:
    """Shape of a batch, written as `BxMxXxYxZ:C`: samples, channels, patch and classes."""

    batch: int
    channels: int
    patch: tuple[int, int, int]
    classes: int

    @classmethod
    def of(cls, text: str) -> Shape:
        sizes, classes = text.split(":")
        batch, channels, x, y, z = (int(n) for n in sizes.split("x"))
        return cls(batch, channels, (x, y, z), int(classes))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="BxMxXxYxZ:classes")
    parser.add_argument("--presets", nargs="+", default=["weak", "strong"])
    parser.add_argument("--device", default="cpu", help="device of medssl; MONAI runs on the CPU")
    parser.add_argument("--repeats", type=int, default=40, help="number of timed batches of each alternative")
    parser.add_argument("--threads", type=int, help="threads of this process (default: as torch sets them)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--toy", action="store_true", help="tiny patches, to test the script in seconds")
    options = parser.parse_args(argv)
    if options.toy:
        options.shapes, options.repeats = TOY, 8
    if options.threads:
        torch.set_num_threads(options.threads)
    set_track_meta(False)

    rows = []
    for text in options.shapes:
        for preset in options.presets:
            rows += measure(text, preset, torch.device(options.device), options.repeats)
            print(table(rows[-3:]) if len(rows) == 3 else "\n".join(table(rows[-3:]).splitlines()[2:]), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        machine = {**facts(), "cores": os.cpu_count()}
        result = {"machine": machine, "device": options.device, "repeats": options.repeats, "rows": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(text: str, preset: str, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Time the three alternatives in turns on one shape and preset."""
    shape = Shape.of(text)
    images, labels = make_patches(shape)
    augment = Augment(AugmentConfig(preset=preset), shape.patch, (1.0, 1.0, 1.0), shape.classes)  # type: ignore[arg-type]
    monai = monai_transforms(preset, shape)
    turn = 2 * WORKERS  # batches per turn of each alternative
    loader = DataLoader(
        MonaiPatches(images, labels, monai, turn * shape.batch), shape.batch, num_workers=WORKERS,
        persistent_workers=True, worker_init_fn=seed_worker,
    )  # fmt: skip

    def ours(first: int) -> None:
        patches = range(first * shape.batch, (first + 1) * shape.batch)
        image = torch.stack([images[n % len(images)] for n in patches]).to(device, non_blocking=True)
        label = torch.stack([labels[n % len(labels)] for n in patches]).to(device, non_blocking=True)
        augment.apply(image, [augment.draw(0, n) for n in patches], label)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def theirs(first: int) -> None:
        patches = range(first * shape.batch, (first + 1) * shape.batch)
        samples = [augmented(monai, images[n % len(images)], labels[n % len(labels)]) for n in patches]
        torch.stack([image for image, _ in samples])
        torch.stack([label for _, label in samples])

    times: dict[str, list[float]] = {f"medssl, {device.type}": [], "MONAI": [], f"MONAI, {WORKERS} workers": []}
    one, two, three = times.values()
    for start in range(0, turn + repeats, turn):
        numbers = range(start, start + turn)
        one += [seconds(partial(ours, n)) for n in numbers]
        two += [seconds(partial(theirs, n)) for n in numbers]
        # Workers prepare batches ahead of time, so only a whole turn can be timed.
        three += [seconds(lambda: [None for _ in loader]) / turn]
    for values, warm_up in ((one, turn), (two, turn), (three, 1)):
        del values[:warm_up]
    return [row(text, preset, way, values, one, shape.batch) for way, values in times.items()]


def row(shape: str, preset: str, way: str, values: list[float], ours: list[float], batch: int) -> dict[str, Any]:
    middle = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "shape": shape,
        "preset": preset,
        "way": way,
        "timings": len(values),
        "median_ms": round(1000 * middle, 3),
        "quartiles_ms": [round(1000 * low, 3), round(1000 * high, 3)],
        "samples_per_s": round(batch / middle, 1),
        "times_ours": round(middle / statistics.median(ours), 2),
    }


def monai_transforms(preset: str, shape: Shape) -> transforms.Compose:
    """Return the operations of a preset as MONAI transforms, in the order of medssl.

    Flips, rotations and elastic fields change image and label, intensity transforms the image only. `RandAffined`
    scales each axis separately, and `RandSmoothDeformd` has a uniform field of fixed amplitude; the amount of work is
    the same. The noise level is uniform up to the mean of medssl's two upper limits.
    """
    both, image = ["image", "label"], ["image"]
    strong = preset == "strong"
    reach = 0.25 if strong else 0.1
    steps: list[Any] = [transforms.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)]
    turnable = [plane for plane in PLANES if shape.patch[plane[0]] == shape.patch[plane[1]]]
    steps += [transforms.RandRotate90d(both, prob=0.75, max_k=3, spatial_axes=plane) for plane in turnable]
    if strong:
        angle, zoom = math.radians(15), (-0.15, 0.25)
        modes = ("bilinear", "nearest")
        steps += [
            transforms.RandAffined(both, prob=0.5, rotate_range=3 * [angle], scale_range=3 * [zoom], mode=modes,
                                   padding_mode="border", cache_grid=True, spatial_size=shape.patch),
            transforms.RandSmoothDeformd(both, shape.patch, [CONTROL_POINTS] * 3, field_mode="trilinear", prob=0.2,
                                         def_range=0.04, grid_mode=modes, grid_align_corners=True),
            transforms.RandGaussianSmoothd(image, (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.2),
            transforms.RandSimulateLowResolutiond(image, prob=0.2, zoom_range=(0.5, 1.0)),
            transforms.RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5)),
        ]  # fmt: skip
    steps += [
        transforms.RandScaleIntensityFixedMeand(image, factors=reach, prob=1.0),
        transforms.RandShiftIntensityd(image, offsets=reach, prob=1.0),
        transforms.RandGaussianNoised(image, prob=1.0, std=0.08 if strong else 0.05),
    ]
    return transforms.Compose(steps).set_random_state(0)


def augmented(transform: transforms.Compose, image: Tensor, label: Tensor) -> Batch:
    """Augment one patch `(M, X, Y, Z)` and its label `(X, Y, Z)` with MONAI."""
    out = transform({"image": image, "label": label[None]})
    return out["image"], out["label"][0].long()


class MonaiPatches(Dataset[Batch]):
    """Augmented patches for a data loader; the patches in memory are used in turn."""

    def __init__(self, images: list[Tensor], labels: list[Tensor], transform: transforms.Compose, length: int) -> None:
        self.images, self.labels, self.transform, self.length = images, labels, transform, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        n = index % len(self.images)
        return augmented(self.transform, self.images[n], self.labels[n])


def seed_worker(worker: int) -> None:
    """Give each worker its own random state; otherwise all would draw the same operations."""
    info = torch.utils.data.get_worker_info()
    assert info is not None
    assert isinstance(info.dataset, MonaiPatches)
    info.dataset.transform.set_random_state(worker)


def make_patches(shape: Shape) -> tuple[list[Tensor], list[Tensor]]:
    """Return two batches of smooth noise, with labels of blobs made by thresholding it."""
    rng = np.random.default_rng(0)
    images, labels = [], []
    for _ in range(2 * shape.batch):
        image = rng.normal(size=(shape.channels, *shape.patch)).astype(np.float32)
        blurred = ndimage.gaussian_filter(image, [0, 2, 2, 2])
        blurred /= blurred.std()
        label = np.digitize(blurred[0], 0.5 + np.arange(shape.classes - 1))
        images.append(torch.from_numpy(blurred + 0.1 * image))
        labels.append(torch.from_numpy(label.astype(np.uint8)))
    return images, labels


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    columns = {"shape": "batch", "preset": "preset", "way": "alternative", "median_ms": "ms per batch",
               "samples_per_s": "samples/s", "times_ours": "time, medssl = 1"}  # fmt: skip
    lines = [f"| {' | '.join(columns.values())} |", "|---|---|---|--:|--:|--:|"]
    return "\n".join(lines + [f"| {' | '.join(str(row[key]) for key in columns)} |" for row in rows])


if __name__ == "__main__":
    main()
