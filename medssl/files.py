"""Write files and folders whole or not at all, and lock folders for one process."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from medssl.errors import ConfigError, DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block succeeds, and is removed otherwise."""
    path = path.resolve()  # a link stays, and its target is written
    partial = path.with_name(f".partial-{uuid.uuid4().hex}-{path.name[-16:]}")  # not longer than names may be
    try:
        yield partial
        _keep_mode(path, partial)
        partial.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # for example if the disk is full
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path` that replaces it when the block succeeds, and is removed otherwise.

    Several machines may write the same folder at a time.
    """
    path, unique = path.resolve(), uuid.uuid4().hex
    partial, replaced = (path.with_name(f".{word}-{unique}-{path.name}") for word in ("partial", "replaced"))
    partial.mkdir(parents=True)
    try:
        yield partial
        _keep_mode(path, partial)
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _keep_mode(path: Path, partial: Path) -> None:
    """Give a replacement the permissions of what it replaces, if the file system supports that."""
    with suppress(OSError):
        shutil.copymode(path, partial)


def write_json(path: Path, values: Any) -> None:
    """Write plain values as JSON."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the plain values in a JSON file.

    Raises:
        DataError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from None


_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a truth value", type(None): "null"}
"""What JSON may hold other than an object."""


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        DataError: as for `read_json`, or the file holds something else.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected an object with named entries, found {_KINDS[type(values)]}")
    return values


def separator(file: TextIO) -> str:
    """Return the separator of a CSV file, judged by its first line: a comma, or what some spreadsheets write."""
    header = file.readline()
    file.seek(0)
    return max(",;\t", key=header.count)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise a ConfigError if `path` exists and may not be replaced, or an OSError as `refuse_unwritable` does."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError(f"{path}: is a device or a pipe, not a file; choose another name")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: exists; choose another name, or replace it with --overwrite")
    refuse_unwritable(path)


def refuse_unwritable(path: Path) -> None:
    """Raise the OSError that writing to `path` would end in, before work begins; a ConfigError for a broken link."""
    _refuse_lost_link(path)
    path = path.resolve()
    there = next(place for place in (path, *path.parents) if place.exists())
    folder = path.parent if there == path and not path.is_dir() else there
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _refuse_lost_link(path: Path) -> None:
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise ConfigError(f"{place}: is a broken link; choose another place, or remove the link")


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Make a folder if it is missing, and keep other processes out of it; yield whether it is new.

    The folder itself is locked, so no lock file is left behind, and the lock ends with the process, however that ends.
    The lock holds among processes of this machine; it does not on Windows, nor among machines that share a file system.
    A new folder that is empty at the end is removed, with the parents made for it.

    Raises:
        ConfigError: another process has locked the folder, or it is a file.
    """
    _refuse_lost_link(folder)
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{folder}: is a file, not a folder; choose another place") from None
    handle = _lock(folder)
    try:
        yield bool(new)
    finally:
        with suppress(OSError):  # not empty
            for place in new:
                place.rmdir()
        if handle is not None:
            os.close(handle)


@contextmanager
def in_turn(folder: Path, seconds: float = 2) -> Iterator[None]:
    """Lock a folder for the block; wait at most `seconds` for other processes of this machine, then go on unlocked."""
    handle, until = None, time.monotonic() + seconds
    while handle is None and time.monotonic() < until:
        try:
            handle = _lock(folder)
            break  # locked, or folders cannot be locked here
        except ConfigError:
            time.sleep(0.02)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path) -> int | None:
    """Lock a folder; return the handle that holds the lock until it is closed, None if folders cannot be locked."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigError(
            f"{folder}: another process is using it; wait until it has finished, or choose another folder"
        ) from None
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    return handle
