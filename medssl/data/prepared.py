"""The prepared folder: what `prepare` writes and training reads.

    prepared/dataset.json              settings and case list; written last, so its presence means "complete"
    prepared/cases/<id>/image.b2nd     (M, x, y, z) float32, chunked, read in part
    prepared/cases/<id>/label.b2nd     (x, y, z) uint8; absent for an unlabelled case
    prepared/cases/<id>/centres.npy    (n, 4) int32: class, x, y, z of foreground voxels; beside the label
    prepared/cases/<id>/case.json      subject, sources, grid

A case's folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from medssl.config import parse
from medssl.data.cases import IGNORED, Case, DatasetConfig
from medssl.data.recipe import Grid, Prepared
from medssl.data.volume import Source
from medssl.errors import DataError
from medssl.files import write_json

FORMAT = 3
BLOCK = 32
"""Side of the cubes that are compressed one by one; a patch reads only those it touches."""
CENTRES = 10_000
"""Voxels of a class that a case remembers as centres of patches."""


@dataclass(frozen=True)
class PreparedCase:
    """One case in the store."""

    id: str
    subject: str
    folder: Path
    grid: Grid
    images: tuple[Source, ...]
    """The raw files that it was made from."""
    label: Source | None
    part: str | None = None
    """See `Case.part`."""

    @property
    def labelled(self) -> bool:
        """Whether the raw dataset held a label for this case."""
        return self.label is not None

    def open_image(self) -> Any:
        """The image as an array that decompresses what is sliced, `(M, x, y, z)`."""
        return _open(self.folder / "image.b2nd")

    def open_label(self) -> Any:
        """The label as an array that decompresses what is sliced, `(x, y, z)`."""
        return _open(self.folder / "label.b2nd")

    def centres(self) -> list[NDArray[np.int32]]:
        """Voxels of each foreground class that the label holds, `(n, 3)` each, thinned out where there are many."""
        found = np.load(self.folder / "centres.npy")
        return [found[found[:, 0] == value, 1:] for value in np.unique(found[:, 0])]


@dataclass(frozen=True)
class PreparedDataset:
    """A complete prepared folder."""

    root: Path
    config: DatasetConfig
    cases: dict[str, PreparedCase]

    @property
    def sha256(self) -> str:
        """Digest of the sorted list of case ids and subjects; splits.json records it."""
        text = "\n".join(f"{id}\t{self.cases[id].subject}" for id in sorted(self.cases))
        return hashlib.sha256(text.encode()).hexdigest()


def read_prepared(root: Path) -> PreparedDataset:
    """Open a prepared folder.

    Raises:
        DataError: it is missing, unfinished, or a case of it is.
    """
    path = Path(root) / "dataset.json"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        state = "is not finished" if (Path(root) / "cases").exists() else "is not a prepared folder"
        raise DataError(f"{path}: missing, so {root} {state}; run `medssl prepare SOURCE {root}` (again)") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if values.get("format") != FORMAT:
        raise DataError(f"{path}: format {values.get('format')}, this version reads {FORMAT}; prepare again")
    config = parse(DatasetConfig, values["data"], where="data")
    cases = {id: _read_case(Path(root) / "cases" / id) for id in values["cases"]}
    return PreparedDataset(Path(root), config, cases)


def write_dataset(root: Path, config: DatasetConfig, ids: Sequence[str]) -> None:
    """Declare the folder complete."""
    data = config.model_dump(mode="json", exclude={"root", "splits", "layout"})
    write_json(root / "dataset.json", {"format": FORMAT, "data": data, "cases": sorted(ids)})


def write_case(root: Path, case: Case, prepared: Prepared, digest: str) -> None:
    """Store one prepared case, replacing an earlier version of it."""
    folder = root / "cases" / case.id
    partial = folder.with_name(f".partial-{case.id}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _save(partial / "image.b2nd", prepared.image, blocks=(1, BLOCK, BLOCK, BLOCK))
    if prepared.label is not None:
        _save(partial / "label.b2nd", prepared.label, blocks=(BLOCK, BLOCK, BLOCK))
        np.save(partial / "centres.npy", _centres(prepared.label))
    write_json(
        partial / "case.json",
        {
            "id": case.id,
            "subject": case.subject,
            "images": [str(source.resolve()) for source in case.images],
            "label": None if case.label is None else str(case.label.resolve()),
            "part": case.part,
            "digest": digest,
            "grid": prepared.grid.to_json(),
        },
    )
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def stored_digest(root: Path, id: str) -> str | None:
    """What `write_case` was given for this case; None when the case is not stored."""
    try:
        return str(json.loads((root / "cases" / id / "case.json").read_text())["digest"])
    except (OSError, ValueError, KeyError):
        return None


def case_digest(case: Case, config: DatasetConfig) -> str:
    """Changes when a source file, the case's patient or the recipe changes: then the case is prepared anew."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in case.files]
    parts = [source.part for source in case.images] + [case.part]
    labels = [] if case.label is None else [case.label.part, config.class_values, config.ignore]
    recipe = config.recipe.model_dump(mode="json")
    facts = [FORMAT, case.id, case.subject, stats, parts, labels, recipe, list(config.channels)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _read_case(folder: Path) -> PreparedCase:
    try:
        values = json.loads((folder / "case.json").read_text())
        label = values["label"]
        return PreparedCase(
            id=values["id"],
            subject=values["subject"],
            folder=folder,
            grid=Grid.from_json(values["grid"]),
            images=tuple(Source.parse(image) for image in values["images"]),
            label=None if label is None else Source.parse(label),
            part=values["part"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: not a whole prepared case ({error}); prepare the dataset again") from None


def _centres(label: NDArray[Any]) -> NDArray[np.int32]:
    """Class and position of annotated foreground voxels, at most about CENTRES of a class, spread over all of them."""
    voxels = np.argwhere((label > 0) & (label != IGNORED))
    values = label[tuple(voxels.T)]
    kept = [np.flatnonzero(values == value) for value in np.unique(values)]
    which = np.concatenate([[], *(k[:: 1 + len(k) // CENTRES] for k in kept)]).astype(np.int64)
    return np.column_stack([values[which], voxels[which]]).astype(np.int32)


def _save(path: Path, array: NDArray[Any], blocks: tuple[int, ...]) -> None:
    blocks = tuple(min(block, n) for block, n in zip(blocks, array.shape, strict=True))
    chunks = tuple(min(4 * block, n) for block, n in zip(blocks, array.shape, strict=True))
    cparams = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=5, nthreads=1)
    blosc2.asarray(np.ascontiguousarray(array), urlpath=str(path), mode="w", chunks=chunks, blocks=blocks,
                   cparams=cparams)  # fmt: skip


def _open(path: Path) -> Any:
    mapped = {} if sys.platform == "win32" else {"mmap_mode": "r"}  # faster, most of all on network drives
    try:
        return blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1), **mapped)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be opened: {error}") from None
