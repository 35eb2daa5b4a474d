"""Files and folders are there whole or not at all."""

import errno
import json
import os
import re
import sys

import pytest

from medssl.errors import ConfigError, DataError
from medssl.files import alone_in, read_object, refuse_existing, whole_file, whole_folder


def write(path, files):
    with whole_folder(path) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_replaces_an_earlier_one_only_when_it_is_whole(tmp_path):
    for text in ("first", "second"):
        write(tmp_path / "a", {"file": text})
        assert content(tmp_path) == {"a/file": text}
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "a", {"half": "third", "nowhere/rest": "third"})
    assert content(tmp_path) == {"a/file": "second"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
def test_what_was_closed_to_others_stays_so_when_it_is_replaced(tmp_path):
    for place, mode in ((tmp_path / "a", 0o700), (tmp_path / "b", 0o600)):
        for text in ("first", "second"):
            if place.name == "a":
                write(place, {"file": text})
            else:
                with whole_file(place) as partial:
                    partial.write_text(text)
            place.chmod(mode) if text == "first" else None
        assert place.stat().st_mode & 0o777 == mode
    assert content(tmp_path) == {"a/file": "second", "b": "second"}


def test_json_that_is_nested_too_deep_is_named(tmp_path):
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"a\.json: cannot be read as JSON"):
        read_object(tmp_path / "a.json")


def test_a_disk_that_is_full_is_told_with_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as told, whole_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "full")
    assert (told.value.filename, told.value.errno) == (str(tmp_path / "a"), errno.ENOSPC)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="links want a right of their own there")
def test_a_link_is_written_through(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "table").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "table")
    with whole_file(tmp_path / "link") as partial:
        partial.write_text("new")
    assert ((tmp_path / "link").is_symlink(), (tmp_path / "there" / "table").read_text()) == (True, "new")


def test_a_name_may_be_as_long_as_names_are(tmp_path):
    path = tmp_path / f"{'x' * 240}.nii.gz"
    with whole_file(path) as partial:
        partial.write_text("whole")
        assert partial.name.endswith(".nii.gz")
    assert path.read_text() == "whole"


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked there")
def test_a_folder_has_one_process_at_a_time(tmp_path):
    place = tmp_path / "place"
    with alone_in(place) as is_new:
        assert is_new
        with (
            pytest.raises(ConfigError, match=f"^{re.escape(str(place))}: another process is using it"),
            alone_in(place),
        ):
            pass
        (place / ".partial-of-somebody").touch()
    with alone_in(place) as is_new:
        assert not is_new
    assert [path.name for path in place.iterdir()] == [".partial-of-somebody"]


def test_a_new_folder_in_which_nothing_came_about_goes_and_an_old_one_stays(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("old", "new", "deep/er/new"):
        with pytest.raises(DataError), alone_in(tmp_path / name):
            raise DataError("nothing to do")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links are other things there")
def test_pipes_and_links_to_nowhere_are_no_places(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, said in (("pipe", "a device or a pipe"), ("lost", "a broken link"), ("loop/in", "a broken link")):
        with pytest.raises(ConfigError, match=said):
            refuse_existing(tmp_path / name, overwrite=True)
    with pytest.raises(ConfigError, match="a broken link"), alone_in(tmp_path / "lost"):
        pass
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("path", ["new", "deep/er/new", "file", "folder", "folder/new"])
def test_what_can_be_written_is_let_through_and_nothing_is_made(tmp_path, path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    refuse_existing(tmp_path / path, overwrite=True)
    assert content(tmp_path) == {"file": "mine"}
    assert {one.name for one in tmp_path.iterdir()} == {"file", "folder"}


def test_what_exists_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path))}: exists; .*--overwrite"):
        refuse_existing(tmp_path, overwrite=False)


@pytest.mark.parametrize("path", ["file/new", "file/deep/er"])
def test_a_file_where_a_folder_is_wanted_is_found_before_any_work(tmp_path, path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError) as error:
        refuse_existing(tmp_path / path, overwrite=True)
    assert error.value.filename == str(tmp_path / "file")


@pytest.mark.parametrize("path", ["folder/new", "folder/deep/er", "folder/file", "folder"])
def test_a_folder_that_may_not_be_written_is_found_before_any_work(tmp_path, path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("mine")
    monkeypatch.setattr("os.access", lambda place, mode: place != folder)  # root may write everywhere
    with pytest.raises(PermissionError) as error:
        refuse_existing(tmp_path / path, overwrite=True)
    assert error.value.filename == str(folder)
    refuse_existing(tmp_path / "other", overwrite=False)


def test_of_two_that_write_one_folder_at_once_the_last_stays(tmp_path):
    with whole_folder(tmp_path / "a") as one:
        with whole_folder(tmp_path / "a") as other:
            (other / "file").write_text("other")
        (one / "file").write_text("one")
    assert content(tmp_path) == {"a/file": "one"}


@pytest.mark.parametrize(
    ("value", "found"), [([], "a list"), ("a", "a text"), (1.5, "a number"), (True, "a truth value"), (None, "null")]
)
def test_what_is_no_object_is_named(tmp_path, value, found):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: expected an object .*, found {found}$"):
        read_object(path)
