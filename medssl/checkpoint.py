"""Checkpoints: tensors and plain values only, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from medssl.errors import DataError
from medssl.files import whole_file

FORMAT = 1


def save_checkpoint(path: Path, values: dict[str, Any]) -> None:
    """Write tensors and plain values; an earlier file stays until the new one is complete and on the disk.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    try:
        with whole_file(path) as partial, partial.open("wb") as file:
            torch.save({"format": FORMAT, **values}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch raises an error about its archive instead of the file's own
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, onto the CPU, without running any code from it.

    Raises:
        DataError: the file is missing, damaged, or of another format.
    """
    return _load(path, mmap=False)


def steps_of(path: Path) -> int:
    """Return the number of steps after which a checkpoint was written, without reading its tensors.

    Raises:
        DataError: as for `load_checkpoint`.
    """
    return int(_load(path, mmap=True)["iteration"])


def _load(path: Path, *, mmap: bool) -> dict[str, Any]:
    if not Path(path).exists():
        raise DataError(f"{path}: no such checkpoint")
    try:
        values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise DataError(f"{path}: not a readable checkpoint ({type(error).__name__}: {str(error)[:200]})") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{path}: not a medssl checkpoint of format {FORMAT}")
    return values
