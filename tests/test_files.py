"""Files and folders are there whole or not at all."""

import json
import re

import pytest

from medssl.errors import DataError
from medssl.files import read_object, whole_folder


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
