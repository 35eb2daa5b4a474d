"""The prepared folder: what `prepare` writes and training reads.

    prepared/dataset.json              settings, source and case list; written last, so its presence means "complete"
    prepared/cases/<id>/image.npy      (M, x, y, z) uint16, memory-mapped: indices of grey levels; or float32
    prepared/cases/<id>/label.b2nd     (x, y, z) uint8, compressed, read in part; absent for an unlabelled case
    prepared/cases/<id>/centres.npy    (n, 4) uint16: class, x, y, z of foreground voxels; beside the label
    prepared/cases/<id>/case.json      patient, grid, grey levels, and the files that it was made from
    prepared/unfinished/               cases that wait until all are ready

The folder of a case appears whole or not at all, and `cases/` changes only once nothing can fail any more.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from medssl.config import Settings, read_model
from medssl.data.cases import IGNORED, Case, DatasetConfig, can_name_files
from medssl.data.grid import Grid
from medssl.data.itk import VOXEL_FILES
from medssl.data.looks import Look
from medssl.data.recipe import Prepared
from medssl.data.volume import Source
from medssl.errors import DataError
from medssl.files import read_object, whole_folder, write_json

FORMAT = 4
STORED = {"image.npy", "label.b2nd", "centres.npy", "case.json"}
"""Files in the folder of a case."""
CASES, UNFINISHED = "cases", "unfinished"
BLOCK = 24
"""Side of the cubes of a label that are compressed separately; a patch reads only those that it touches."""
LEVELS = 2**16
"""Number of grey levels in which a channel is stored, evenly spaced over its range."""
LEVELS_IN_MIDDLE = 2**10
"""An image stays float32 if the middle 98 % of a channel spans fewer levels, because of a few extreme voxels."""
ANEW = "remove the folder that it lies in, and run `medssl prepare` again to rebuild the case"
"""What to do about a damaged file of the store."""
CENTRES = 10_000
"""Number of voxels of a class that a case stores as centres of patches."""


@dataclass(frozen=True)
class PreparedCase:
    """One case in a prepared folder."""

    id: str
    subject: str
    folder: Path
    grid: Grid
    images: tuple[Source, ...]
    """The raw files of the image."""
    label: Source | None
    part: str | None = None
    """See `Case.part`."""
    levels: tuple[tuple[float, float], ...] | None = None
    """Lowest grey level of each channel and the step to the next; None if the image is stored as float32."""
    content: str = ""
    """Digest of the bytes of its raw files, including the label."""
    image_content: str = ""
    """Digest of its raw images only; empty in folders of earlier versions."""
    look: Look | None = None
    """What its raw image looks like; None in folders of earlier versions."""

    @property
    def labelled(self) -> bool:
        """Whether the raw dataset has a label for this case."""
        return self.label is not None

    def open_image(self) -> StoredImage:
        """Open the image as an array that reads only what is sliced, `(M, x, y, z)`."""
        levels = None if self.levels is None else np.array(self.levels, np.float32)
        return StoredImage(_map(self.folder / "image.npy"), levels)

    def open_label(self) -> StoredLabel:
        """Open the label as an array that decompresses only what is sliced, `(x, y, z)`."""
        path = self.folder / "label.b2nd"
        return StoredLabel(path, open_packed(path))

    def centres(self) -> dict[int, NDArray[np.uint16]]:
        """Return voxels of each foreground class in the label, `(n, 3)` each; a subset if there are many."""
        found = np.load(self.folder / "centres.npy")
        return {int(value): found[found[:, 0] == value, 1:] for value in np.unique(found[:, 0])}


@dataclass(frozen=True)
class StoredImage:
    """An image on disk; indexing it returns a new float32 array."""

    stored: NDArray[Any]
    """Indices of grey levels, or float32, `(M, x, y, z)`."""
    levels: NDArray[np.float32] | None
    """Lowest grey level of each channel and the step to the next, `(M, 2)`; None for float32."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(M, x, y, z)`."""
        return tuple(self.stored.shape)

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        found = self.stored[key]
        if self.levels is None:
            return np.array(found)
        low, step = self._of_channels(self.levels, key, found.ndim)
        values: NDArray[np.float32] = np.multiply(found, step, dtype=np.float32)
        values += low
        return values

    def _of_channels(self, levels: NDArray[np.float32], key: Any, axes: int) -> NDArray[np.float32]:
        """Lowest level and step of the channels that a key selects, shaped to broadcast over its `axes` axes."""
        first = key[0] if isinstance(key, tuple) else key
        taken = levels[slice(None) if first is Ellipsis else first]
        return taken if taken.ndim == 1 else taken.T.reshape(2, -1, *[1] * (axes - 1))


@dataclass(frozen=True)
class StoredLabel:
    """A label on disk; only what is sliced is read."""

    path: Path
    packed: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """`(x, y, z)`."""
        return tuple(self.packed.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        try:
            found: NDArray[np.uint8] = self.packed[key]
        except RuntimeError as error:
            raise DataError(f"{self.path}: is damaged ({error}); {ANEW}") from None
        return found


@dataclass(frozen=True)
class PreparedDataset:
    """A complete prepared folder."""

    root: Path
    config: DatasetConfig
    cases: dict[str, PreparedCase]
    source: Path | None = None
    """The raw dataset that it was last made from, with links resolved; None if it is not recorded."""

    @property
    def sha256(self) -> str:
        """Digest of the sorted list of case ids and patients; splits.json records it."""
        text = "\n".join(f"{id}\t{self.cases[id].subject}" for id in sorted(self.cases))
        return hashlib.sha256(text.encode()).hexdigest()


class _Description(Settings):
    """The content of dataset.json."""

    format: int
    data: DatasetConfig
    source: Path | None = None
    cases: tuple[str, ...]


def refuse_moved(root: Path, files: Sequence[Source]) -> None:
    """Raise a DataError if none of these raw files exists where it was when the folder `root` was prepared."""
    if files and not any(file.path.exists() for file in files):
        raise DataError(
            f"{files[0].path}: no such file any more; all {len(files)} raw files of {root} that are needed are gone. "
            f"If they were moved, run `medssl prepare NEW_PLACE {root}` with the same configuration, which records the "
            "new paths and keeps the arrays"
        )


def read_prepared(root: Path) -> PreparedDataset:
    """Open a prepared folder.

    Raises:
        DataError: the folder or one of its cases is missing or unfinished.
    """
    path = Path(root) / "dataset.json"
    if not path.exists():
        state = "is not finished" if is_begun(root) else "is not a prepared folder"
        raise DataError(f"{path}: missing, so {root} {state}; run `medssl prepare SOURCE {root}` (again)")
    values = read_object(path)
    if "format" not in values:  # raw folders of MSD and nnU-Net have a dataset.json too
        raise DataError(f"{path}: not of a prepared folder; run `medssl prepare {root} FOLDER`, and use that FOLDER")
    if values["format"] != FORMAT:
        raise DataError(f"{path}: format {values['format']}, but this version reads {FORMAT}; prepare again")
    stored = read_model(_Description, path)
    if odd := [id for id in stored.cases if not can_name_files(id)]:
        raise DataError(f"{path}: the id {odd[0]!r} cannot name a folder, so `medssl prepare` did not write this file")
    cases = {id: _read_case(Path(root) / CASES / id) for id in stored.cases}
    return PreparedDataset(Path(root), stored.data, cases, stored.source)


def is_begun(root: Path) -> bool:
    """Whether a folder holds prepared or unfinished cases, and not a `cases/` of other origin."""
    places = [place for name in (CASES, UNFINISHED) if (place := Path(root) / name).is_dir()]
    if (values := _read_json(Path(root) / "dataset.json")) is not None:
        return bool(places) and {"format", "cases"} <= values.keys()
    inside = [path for place in places for path in place.iterdir() if not path.name.startswith((".", "@"))]
    return bool(places) and all(_is_of_a_case(path) for path in inside)


def _is_of_a_case(path: Path) -> bool:
    """Whether a path is the folder of a case, perhaps an empty one that is being replaced."""
    return path.is_dir() and {inner.name for inner in path.iterdir()} <= STORED


def write_dataset(root: Path, config: DatasetConfig, cases: Sequence[Case], source: Path | None = None) -> None:
    """Move the unfinished cases to the others and declare the folder complete; cases already there are not changed."""
    (root / CASES).mkdir(parents=True, exist_ok=True)
    ready = [case for case in cases if (root / UNFINISHED / case.id).is_dir()]
    data = config.model_dump(mode="json", exclude={"root", "splits", "layout"})
    ids = sorted(case.id for case in cases)
    values = {"format": FORMAT, "data": data, "source": source and str(source.resolve()), "cases": ids}
    if not ready and _read_json(root / "dataset.json") == values:
        shutil.rmtree(root / UNFINISHED, ignore_errors=True)
        return
    (root / "dataset.json").unlink(missing_ok=True)
    for case in ready:
        shutil.rmtree(root / CASES / case.id, ignore_errors=True)
        (root / UNFINISHED / case.id).rename(root / CASES / case.id)
    shutil.rmtree(root / UNFINISHED, ignore_errors=True)
    write_json(root / "dataset.json", values)


def write_case(root: Path, case: Case, prepared: Prepared, sources: Sources, look: Look) -> None:
    """Store one prepared case among the unfinished ones, with the `look` of its raw image; replace an earlier one."""
    image, levels = _encode(prepared.image)
    more = {"sources": sources.to_json(), "grid": prepared.grid.to_json(), "levels": levels, "look": asdict(look),
            "image_content": _named(sources.of_images(case))}  # fmt: skip
    with whole_folder(root / UNFINISHED / case.id) as folder:
        _save(folder / "image.npy", image)  # uncompressed, because its low bits are noise: docs/performance.md
        if prepared.label is not None:
            write_packed(folder / "label.b2nd", prepared.label)
            _save(folder / "centres.npy", _centres(prepared.label))
        more["bytes"] = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        write_json(folder / "case.json", said_of(case) | more)


@dataclass(frozen=True)
class Sources:
    """What a case was made from, to decide whether it must be made again."""

    settings: str
    """Digest of the settings that affect the arrays."""
    content: tuple[str, ...]
    """Digest of the bytes of each file."""
    stamps: tuple[tuple[str, int, int, int], ...]
    """Path, size, mtime and ctime (nanoseconds) of each file."""

    @classmethod
    def of(cls, case: Case, config: DatasetConfig) -> Sources:
        """Read the files of a case. Stamps are taken first, so that a change meanwhile is noticed next time."""
        stamps = stamps_of(case)
        parts = tuple(source.part for source in case.sources)
        return cls(settings_digest(config), (*(_digest(path) for path in files_behind(case.files)), *parts), stamps)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Sources:
        """Read back what `to_json` gave, after a round trip through a file."""
        stamps = tuple((str(path), *map(int, numbers)) for path, *numbers in values["stamps"])
        return cls(values["settings"], tuple(values["content"]), stamps)  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `Sources.from_json` reads them back."""
        return asdict(self)

    def of_images(self, case: Case) -> tuple[str, ...]:
        """Return the part of `content` that describes the images of the case."""
        files, parts = self.content[: len(self.stamps)], self.content[len(self.stamps) :]
        return (*files[: sum(1 for _ in files_behind(replace(case, label=None).files))], *parts[: len(case.images)])

    def makes_the_same(self, other: Sources) -> bool:
        """Whether both give equal arrays, regardless of paths."""
        return (self.settings, self.content) == (other.settings, other.content)


def stored_sources(root: Path, case: Case) -> Sources | None:
    """Return what the stored case was made from, preferring an unfinished case; None if there is no stored case."""
    return _sources_in(_stored(root, case)[1])


def _sources_in(values: dict[str, Any]) -> Sources | None:
    try:
        return Sources.from_json(values["sources"])
    except (KeyError, TypeError, ValueError):
        return None


def holds(root: Path, case: Case, sources: Sources) -> bool:
    """Whether a case is stored complete, with arrays that these sources give."""
    place, values = _stored(root, case)
    stored = _sources_in(values)
    return stored is not None and stored.makes_the_same(sources) and _is_whole(place, values)


def is_current(root: Path, case: Case, settings: str) -> bool:
    """Whether the stored case is up to date, judged by stamps, settings and description without reading its files."""
    place, values = _stored(root, case)
    stored = _sources_in(values)
    if stored is None or (stored.settings, stored.stamps) != (settings, stamps_of(case)):
        return False
    return _is_whole(place, values) and said_of(case).items() <= values.items()


def refresh(root: Path, case: Case, sources: Sources) -> None:
    """Update the paths and the patient of a stored case; the arrays stay."""
    place, values = _stored(root, case)
    write_json(place, values | said_of(case) | {"sources": sources.to_json()})


def said_of(case: Case) -> dict[str, Any]:
    """Return the description of a case in case.json: id, patient, files and part."""
    return {
        "id": case.id,
        "subject": case.subject,
        "images": [str(source.absolute()) for source in case.images],
        "label": None if case.label is None else str(case.label.absolute()),
        "part": case.part,
    }


def settings_digest(config: DatasetConfig) -> str:
    """Return a digest of the settings that affect the arrays of a case or the checks of them."""
    facts = [FORMAT, config.recipe.model_dump(mode="json"), config.channels, config.class_values, config.ignore]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def stamps_of(case: Case) -> tuple[tuple[str, int, int, int], ...]:
    """Return the stamps of all files of a case, without reading them; zeros for a missing file."""
    return tuple(stamp(path.resolve()) for path in files_behind(case.files))


def files_behind(paths: Iterable[Path]) -> Iterable[Path]:
    """Yield all files of these volumes, including the files in DICOM folders and the voxels of `.mhd` headers."""
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.iterdir() if file.is_file())
            continue
        yield path
        if path.suffix.lower() == ".mhd":
            yield from (beside for s in VOXEL_FILES if (beside := path.with_suffix(s)).exists())


def stamp(path: Path) -> tuple[str, int, int, int]:
    """Return path, size, mtime and ctime (nanoseconds) of a file; zeros if it does not exist."""
    try:
        stat = path.stat()
    except OSError:
        return str(path), 0, 0, 0
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _digest(path: Path) -> str:
    """Digest of the bytes of a file; empty if it cannot be read, which the check reports."""
    digest = hashlib.blake2b(digest_size=32)
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def _stored(root: Path, case: Case) -> tuple[Path, dict[str, Any]]:
    """Path and content of the case.json of an unfinished case, or else of a finished one; the content is empty if there
    is neither."""
    waiting, place = (root / name / case.id / "case.json" for name in (UNFINISHED, CASES))
    if (values := _read_json(waiting)) is not None:
        return waiting, values
    return place, _read_json(place) or {}


def _is_whole(place: Path, values: dict[str, Any]) -> bool:
    """Whether the files beside a case.json have the sizes that it records; a power cut may shorten them."""
    sizes = values.get("bytes", {})
    return all((file := place.with_name(name)).is_file() and file.stat().st_size == n for name, n in sizes.items())


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return read_object(path)
    except DataError:
        return None


def _read_case(folder: Path) -> PreparedCase:
    try:
        values = read_object(folder / "case.json")
        label = values["label"]
        return PreparedCase(
            id=values["id"],
            subject=values["subject"],
            folder=folder,
            grid=Grid.from_json(values["grid"]),
            images=tuple(Source.parse(image) for image in values["images"]),
            label=None if label is None else Source.parse(label),
            part=values["part"],
            levels=values["levels"] and tuple((low, step) for low, step in values["levels"]),
            content=_named(values["sources"]["content"]),
            image_content=values.get("image_content", ""),
            look=Look.from_json(values["look"]) if "look" in values else None,
        )
    except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: not a complete prepared case ({error}); prepare the dataset again") from None


def _named(content: Sequence[str]) -> str:
    """One short digest of several digests of files."""
    return hashlib.sha256(json.dumps(list(content)).encode()).hexdigest()[:16]


def _centres(label: NDArray[Any]) -> NDArray[np.uint16]:
    """Class and position of annotated foreground voxels, at most about CENTRES per class, spread over the volume."""
    places = np.flatnonzero((label > 0) & (label != IGNORED))
    values = label.reshape(-1)[places]
    kept = [np.flatnonzero(values == value) for value in np.unique(values)]
    which = np.concatenate([[], *(k[:: 1 + len(k) // CENTRES] for k in kept)]).astype(np.int64)
    return np.column_stack([values[which], *np.unravel_index(places[which], label.shape)]).astype(np.uint16)


def _encode(image: NDArray[np.float32]) -> tuple[NDArray[Any], list[tuple[float, float]] | None]:
    """Encode the image as indices of grey levels, with the lowest level and the step of each channel.

    The error is at most half a level. If LEVELS levels are too coarse for a channel, return the image itself and None.
    """
    numbers, levels = np.empty(image.shape, np.uint16), []
    for channel, place in zip(image, numbers, strict=True):
        low, high = float(channel.min()), float(channel.max())
        step = (high - low) / (LEVELS - 1)
        first, last = np.percentile(channel.reshape(-1)[:: 1 + channel.size // LEVELS], (1, 99))
        if last - first < step * LEVELS_IN_MIDDLE:
            return image, None
        levels.append((low, step))
        for slab, part in zip(channel, place, strict=True):  # a slab fits into the cache
            number = slab - np.float32(low)
            number *= np.float32(1 / (step or 1))
            number += np.float32(0.5)
            part[...] = number
    return numbers, levels


def _save(path: Path, array: NDArray[Any]) -> None:
    try:
        np.save(path, array)
    except OSError as error:
        if error.errno is None:  # NumPy reports a full disk by the number of bytes written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise


def write_packed(path: Path, array: NDArray[Any]) -> None:
    """Write an array compressed, so that parts of it can be read."""
    blocks = tuple(min(BLOCK, n) for n in array.shape)
    chunks = tuple(min(4 * BLOCK, n) for n in array.shape)
    # Twice as fast to read as ZSTD, for a fifth more on disk: docs/performance.md.
    cparams = blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=1, filters=[blosc2.Filter.BITSHUFFLE], nthreads=1)
    blosc2.asarray(np.ascontiguousarray(array), urlpath=str(path), mode="w", chunks=chunks, blocks=blocks,
                   cparams=cparams)  # fmt: skip


def _map(path: Path) -> NDArray[Any]:
    try:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be opened ({error}); {ANEW}") from None
    return mapped


def open_packed(path: Path) -> Any:
    """Open a file that `write_packed` wrote, as an array of which only what is indexed is read.

    Raises:
        DataError: it cannot be opened.
    """
    mapped = {} if sys.platform == "win32" else {"mmap_mode": "r"}  # faster, especially on network drives
    try:
        return blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1), **mapped)
    except (OSError, RuntimeError, ValueError) as error:  # ValueError: a file that would run code
        raise DataError(f"{path}: cannot be opened ({error}); {ANEW}") from None
