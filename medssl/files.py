"""Files that are there whole or not at all, and folders that one process has to itself."""

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
    """Yield a temporary place beside `path` that takes its name when the block ends well, and is removed otherwise."""
    path = path.resolve()  # what a link leads to is written, and the link stays
    partial = path.with_name(f".partial-{uuid.uuid4().hex}-{path.name[-16:]}")  # no longer than names may be
    try:
        yield partial
        _keep_mode(path, partial)
        partial.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # as of a full disk
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path` that takes its name, and the place of an earlier one, when the block ends well;
    otherwise it is removed. Several machines may write the same one at a time."""
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
    """What was closed to others stays so where it is replaced, if the file system knows of that."""
    with suppress(OSError):
        shutil.copymode(path, partial)


def write_json(path: Path, values: Any) -> None:
    """Write plain values as JSON."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Plain values from a JSON file.

    Raises:
        DataError: it cannot be read, or is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from None


_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a truth value", type(None): "null"}
"""What JSON may hold beside an object."""


def read_object(path: Path) -> dict[str, Any]:
    """What a JSON file with named entries holds.

    Raises:
        DataError: as `read_json`, or it holds something else.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected an object with named entries, found {_KINDS[type(values)]}")
    return values


def separator(file: TextIO) -> str:
    """What stands between the cells of a CSV file, by its first line: a comma, or what some spreadsheets write."""
    header = file.readline()
    file.seek(0)
    return max(",;\t", key=header.count)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise a ConfigError where something would be replaced that was not to be, an OSError as `refuse_unwritable`."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError(f"{path}: is a device or a pipe, and no place for a file; choose another name")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: exists; choose another name, or replace it with --overwrite")
    refuse_unwritable(path)


def refuse_unwritable(path: Path) -> None:
    """Raise the OSError that writing `path` would end in, before the work for it has begun; a ConfigError for a link to
    what is not there."""
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
            raise ConfigError(f"{place}: is a link to what is not there; choose another place, or remove the link")


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Make a folder where it is missing and keep other processes out of it; yield whether it is new.

    The folder itself is locked: nothing is left behind, and the lock ends with the process, whatever ends that. It is
    seen by processes of this machine, and not on Windows or by the machines of a shared file system. A new folder that
    is empty at the end is removed, with the folders made for it.

    Raises:
        ConfigError: another process is in it, or it is a file.
    """
    _refuse_lost_link(folder)
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{folder}: is a file; choose another place") from None
    handle = _lock(folder)
    try:
        yield bool(new)
    finally:
        with suppress(OSError):  # it is in use
            for place in new:
                place.rmdir()
        if handle is not None:
            os.close(handle)


@contextmanager
def in_turn(folder: Path, seconds: float = 2) -> Iterator[None]:
    """Wait, but not for long, until no other process of this machine changes what several of them share in a folder."""
    handle, until = None, time.monotonic() + seconds
    while handle is None and time.monotonic() < until:
        try:
            handle = _lock(folder)
            break  # locked, or where folders cannot be
        except ConfigError:
            time.sleep(0.02)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path) -> int | None:
    """What holds the lock until it is closed; None where folders cannot be locked."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigError(
            f"{folder}: another process is at work in it; wait until it has finished, or choose another folder"
        ) from None
    except OSError:  # a file system that knows no locks
        os.close(handle)
        return None
    return handle
