"""Measure a dataset for `medssl plan`: sizes, spacings and grey levels, from images alone.

Cases with and without labels count equally, so a few annotated scans do not stand for all. Facts from labels are kept
apart, in `Fingerprint.classes`, and no fact about images depends on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medssl.data.cases import IGNORED, Case, DatasetConfig, namesakes
from medssl.data.grid import Triple
from medssl.data.io import read_image, read_label
from medssl.data.labels import as_classes
from medssl.data.layouts import read_layout
from medssl.data.outliers import slice_axis
from medssl.data.recipe import AIR_FRACTION, Intensity, Recipe, zero_is_background
from medssl.errors import DataError
from medssl.progress import mapper, tracked

MOST_CASES = 200
"""Largest number of images, and of labels, that are read; they are spread evenly over the list of cases."""
VOXELS = 2**18
"""Number of voxels sampled for the grey levels of a channel."""
AIR = -1000.0
BODY = -500.0
"""Hounsfield units above which a voxel is not air."""
BELOW_FAT = -200.0
"""If a hundredth of all voxels lies below this, grey levels count as Hounsfield units."""

T = TypeVar("T")
_EVERYWHERE = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Grey:
    """Grey levels of a channel's foreground."""

    lowest: float
    """Lowest grey level of all voxels, air included."""
    p0_5: float
    median: float
    p99_5: float
    p99_9: float
    hounsfield: bool
    """Whether they look like those of CT or CBCT."""


@dataclass(frozen=True)
class ImageFacts:
    """The image of one case, as a recipe without a spacing would prepare it."""

    case: str
    shape: Triple
    """Voxels on RAS axes after the crop to the foreground."""
    spacing: tuple[float, float, float]
    """Millimetres on RAS axes."""
    channels: tuple[Grey, ...]
    nonzero: bool = False
    """Whether the foreground is all voxels that are not 0, instead of bright voxels."""
    axes: Triple = (0, 1, 2)
    """The stored axis that became each of the RAS axes."""

    def as_stored(self) -> ImageFacts:
        """Return the same facts along the axes of the file."""
        x, y, z = (self.axes.index(axis) for axis in range(3))
        shape, spacing = self.shape, self.spacing
        return replace(self, shape=(shape[x], shape[y], shape[z]), spacing=(spacing[x], spacing[y], spacing[z]),
                       axes=(0, 1, 2))  # fmt: skip


@dataclass(frozen=True)
class ClassFacts:
    """One class in the labels that were read."""

    name: str
    share: float
    """Share of all annotated voxels."""
    cases: int
    """Number of cases that hold the class."""
    largest: float
    """Share of the class in its largest connected component, averaged over these cases."""


@dataclass(frozen=True)
class Fingerprint:
    """The facts about a dataset on which `medssl plan` relies."""

    cases: int
    labelled: int
    images: tuple[ImageFacts, ...]
    labels: int
    """Number of labels that were read."""
    classes: tuple[ClassFacts, ...]
    """Empty without labels; the only part that depends on labels, besides the counts."""
    patients: int
    """Number of patients of all cases."""
    namesakes: tuple[str, str] | None = None
    """Two cases that look like scans of one patient although each counts as its own patient; see `namesakes`."""

    @property
    def has_mixed_slices(self) -> bool:
        """Whether slices are thick across different axes of the body in several cases, but across one file axis."""
        thick = self.thick_axes.most_common(2)
        return len(thick) > 1 and thick[1][1] > 1 and len(self.as_stored().thick_axes) == 1

    @property
    def thick_axes(self) -> Counter[int]:
        """Number of cases with thick slices across each axis."""
        return Counter(axis for one in self.images if (axis := slice_axis(one.spacing)) is not None)

    def as_stored(self) -> Fingerprint:
        """Return the same facts along the axes of the files."""
        return replace(self, images=tuple(image.as_stored() for image in self.images))

    @property
    def spacings(self) -> NDArray[np.float64]:
        """Spacing of each image in millimetres, `(n, 3)`."""
        return np.array([image.spacing for image in self.images])

    @property
    def extents(self) -> NDArray[np.float64]:
        """Extent of each image in millimetres, `(n, 3)`."""
        return self.spacings * np.array([image.shape for image in self.images], np.float64)

    @property
    def channels(self) -> int:
        """Number of channels of every image."""
        return len(self.images[0].channels)

    @property
    def hounsfield(self) -> tuple[bool, ...]:
        """For each channel, whether its grey levels are Hounsfield units in most cases."""
        held = np.array([[grey.hounsfield for grey in image.channels] for image in self.images])
        return tuple(bool(share > 0.5) for share in held.mean(0))

    @property
    def nonzero(self) -> bool:
        """Whether the foreground is all voxels that are not 0 in most cases."""
        return sum(image.nonzero for image in self.images) > len(self.images) / 2

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def summary(self) -> list[str]:
        """Return the main facts for a reader, one line each."""
        shapes = np.array([image.shape for image in self.images])
        lines = [
            f"{self.cases} cases, {self.labelled} with a label; "
            f"read: the images of {len(self.images)}, the labels of {self.labels}",
            f"voxels of the foreground's box (left-right x back-front x down-up): {_ranges(shapes)}",
            f"spacing in mm: {_ranges(self.spacings)}",
        ]
        for number in range(self.channels):
            greys = [image.channels[number] for image in self.images]
            levels = [np.median([getattr(grey, name) for grey in greys]) for name in ("lowest", "median", "p99_5")]
            looks = "Hounsfield units" if self.hounsfield[number] else "MRI"
            which = f" of channel {number}" if self.channels > 1 else ""
            numbers = ", ".join(f"{level:.4g}" for level in levels)
            lines.append(f"grey levels{which} (lowest; median and 99.5 % of the foreground): {numbers}; like {looks}")
        if self.classes:
            told = ", ".join(f"{one.name} {100 * one.share:.3g} % in {one.cases}" for one in self.classes)
            lines.append(f"classes (share of voxels, number of labels that hold them): {told}")
        return lines


def take_fingerprint(source: Path, dataset: DatasetConfig, *, workers: int = 2) -> Fingerprint:
    """Read the images of a dataset, then its labels, at most MOST_CASES of each. The same files give the same numbers.

    Args:
        dataset: gives classes, values and patients; its recipe is not used.
        workers: number of worker processes; below 2, everything is read in this process.

    Raises:
        DataError: no known layout, no case in it, a file that cannot be used, or images with different channels.
    """
    cases = read_layout(source, dataset).cases
    if not cases:
        raise DataError(f"{source}: no volume found among the images; `medssl check {source}` says what is there")
    seen = evenly(cases)
    annotated = evenly([case for case in cases if case.label is not None])
    with mapper(min(workers, len(seen))) as apply:
        images = tracked("images", [case.id for case in seen], apply(image_facts, seen))
        counts = tracked("labels", [case.id for case in annotated],
                         apply(_label_facts, annotated, repeat(dataset))) if annotated else []  # fmt: skip
    _check_channels(source, images)
    return Fingerprint(
        cases=len(cases),
        labelled=sum(case.label is not None for case in cases),
        images=tuple(images),
        labels=len(annotated),
        classes=_class_facts(dataset.classes, counts),
        patients=len({case.subject for case in cases}),
        namesakes=namesakes({case.id: case.subject for case in cases}),
    )


def evenly(cases: Sequence[T]) -> list[T]:
    """Return all cases, or MOST_CASES spread evenly over the list."""
    count = min(len(cases), MOST_CASES)
    return [cases[i * len(cases) // count] for i in range(count)]


def image_facts(case: Case) -> ImageFacts:
    """Read the image of a case, but not its label."""
    image = read_image(*case.images)
    if not np.isfinite(image.array).all():
        raise DataError(f"{case.images[0]}: holds NaN or infinity; `medssl check` lists all such cases")
    nonzero = zero_is_background([*image.channels])
    channels = tuple(_grey(channel.reshape(-1), nonzero) for channel in image.channels)
    threshold: Any = "nonzero" if nonzero else tuple(BODY if grey.hounsfield else None for grey in channels)
    # A window costs nothing; z-scores would read every voxel again.
    window = Intensity(kind="clip", window=(0, 1))
    grid = Recipe(threshold=threshold, intensity=window).apply(image).grid
    return ImageFacts(case.id, grid.prepared, grid.spacing, channels, nonzero, grid.axes)


def _grey(voxels: NDArray[np.float32], nonzero: bool) -> Grey:
    """Grey levels from a sample of `(n,)` voxels."""
    if len(voxels) > VOXELS:
        voxels = voxels[np.random.default_rng(0).integers(0, len(voxels), VOXELS)]
    lowest, dark, bright = (float(value) for value in np.percentile(voxels, (0, 1, 99.5)))
    hounsfield = dark < BELOW_FAT
    air = BODY if hounsfield else lowest + AIR_FRACTION * (bright - lowest)
    inside = voxels[voxels != 0 if nonzero else voxels > air]
    p0_5, median, p99_5, p99_9 = map(float, np.percentile(inside if len(inside) else voxels, (0.5, 50, 99.5, 99.9)))
    return Grey(lowest, p0_5, median, p99_5, p99_9, hounsfield)


def _label_facts(case: Case, dataset: DatasetConfig) -> NDArray[np.int64]:
    """Voxels of each class in a label, and those in its largest component, `(2, C)`."""
    assert case.label is not None
    label = as_classes(read_label(case.label), dataset).array
    if label.ndim != 3:
        raise DataError(f"{case.label}: a label map must have 3 axes, got {label.ndim}; `medssl check` says what to do")
    voxels = np.bincount(label[label != IGNORED] if dataset.ignore else label.ravel(), minlength=len(dataset.classes))
    boxes = ndimage.find_objects(label, max_label=len(dataset.classes) - 1)
    largest = [0, *(_largest(label[box] == place) if box else 0 for place, box in enumerate(boxes, start=1))]
    return np.array([voxels, largest])


def _largest(mask: NDArray[np.bool_]) -> int:
    """Voxels of the largest 26-connected component."""
    components, _ = ndimage.label(mask, _EVERYWHERE)
    return int(np.bincount(components.ravel())[1:].max(initial=0))


def _class_facts(names: Sequence[str], counts: Sequence[NDArray[np.int64]]) -> tuple[ClassFacts, ...]:
    if not counts:
        return ()
    voxels, largest = np.stack(counts, axis=1)  # (N, C) each
    facts = []
    for place, name in enumerate(names):
        held = voxels[:, place] > 0
        whole = float(np.mean(largest[held, place] / voxels[held, place])) if place and held.any() else 1.0
        share = float(voxels[:, place].sum() / max(1, voxels.sum()))
        facts.append(ClassFacts(name, share, int(held.sum()), whole))
    return tuple(facts)


def _ranges(values: NDArray[Any]) -> str:
    """Median, lowest and highest value of each axis of `(n, 3)`; one number if all are equal."""
    told = []
    for low, middle, high in zip(values.min(0), np.median(values, 0), values.max(0), strict=True):
        least, most = f"{low:.4g}", f"{high:.4g}"
        told.append(f"{middle:.4g}" if least == most else f"{middle:.4g} ({least} to {most})")
    return " x ".join(told)


def _check_channels(source: Path, images: Sequence[ImageFacts]) -> None:
    first = images[0]
    other = next((image for image in images if len(image.channels) != len(first.channels)), None)
    if other is not None:
        raise DataError(
            f"{source}: case {first.case} has {len(first.channels)} channel(s) and case {other.case} has "
            f"{len(other.channels)}; every case needs the same number. `medssl check {source}` lists all that differ"
        )
