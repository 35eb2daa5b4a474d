"""Published lists: whole, apart, in their order, and only as far as a dataset has them."""

import json

import pytest

from medssl.config import bundled
from medssl.data.cases import DatasetConfig
from medssl.data.lists import read_published_split
from medssl.data.prepared import PreparedCase, PreparedDataset
from medssl.data.recipe import Grid
from medssl.data.splits import make_split
from medssl.data.volume import Source
from medssl.errors import ConfigError

SIZES = {"acdc": (70, 10, 20), "la": (80, 0, 20)}
GRID = Grid(
    (5, 6, 7), [[1.0, 0, 0, 0]] * 4, (0, 1, 2), (False,) * 3, (0, 0, 0), (5, 6, 7), (1.0,) * 3, (5, 6, 7), (1.0,) * 3
)


def published(name):
    return read_published_split(bundled(f"split/{name}.yaml"))


def raw_acdc(tmp_path):
    """Two frames of each of the 100 patients, with numbers as in the original files, and 2 patients more."""
    ids = [f"patient{n:03}_frame{frame:02}" for n in range(1, 103) for frame in (1, 7 + n % 8)]
    cases = {
        id: PreparedCase(id, id[:10], tmp_path, GRID, (Source(tmp_path / id),), Source(tmp_path / id)) for id in ids
    }
    return PreparedDataset(tmp_path, DatasetConfig(name="acdc", classes=("a", "b")), cases)


@pytest.mark.parametrize("name", SIZES)
def test_the_lists_are_whole_and_nobody_is_on_two(name):
    lists = published(name)
    assert (len(lists.train), len(lists.val), len(lists.test)) == SIZES[name]
    assert len({*lists.train, *lists.val, *lists.test}) == 100


@pytest.mark.parametrize("name", SIZES)
def test_more_labels_contain_the_fewer_and_the_rest_is_unlabelled(name):
    lists = published(name)
    for labelled in lists.labelled:
        parts = lists.parts(labelled)
        assert parts["labelled"] + parts["unlabelled"] == list(lists.train)
        assert len(parts["labelled"]) == labelled


def test_the_lists_are_those_beside_the_real_volumes(real_data):
    for name, file, part in [("acdc", "train", "train"), ("acdc", "val", "val"), ("acdc", "test", "test"),
                             ("la", "train", "train")]:  # fmt: skip
        lines = (real_data / name / "splits" / f"{file}.txt").read_text().split()
        assert list(dict.fromkeys(line.partition("_")[0] for line in lines)) == list(getattr(published(name), part))


def test_patients_are_found_whatever_their_frames_are_called(tmp_path):
    split = make_split(raw_acdc(tmp_path), labelled=3, val=0, test=0, seed=0, given=published("acdc").parts(3))
    assert {id[:10] for id in split.labelled} == {"patient099", "patient038", "patient050"}
    assert [len(split.labelled), len(split.unlabelled), len(split.val), len(split.test)] == [6, 134, 20, 40]
    assert {id[:10] for id in split.left_out} == {"patient101", "patient102"}
    assert split.quirks == ()


def test_names_used_elsewhere_leave_the_published_lists():
    parts = published("la").parts(4, without={"ZIJLJAVQV3FJ6JSQOH1E", "UZUZZT2W9IUSHL6ASOX3"})
    assert [len(names) for names in parts.values()] == [4, 75, 19]


@pytest.mark.parametrize("labelled", [0, 71])
def test_a_number_that_the_list_does_not_hold_is_refused(labelled):
    with pytest.raises(ConfigError, match=r"acdc has 1 to 70; published are 1, 3, 7, 14"):
        published("acdc").parts(labelled)


def test_a_typo_in_a_file_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text(json.dumps({"name": "x", "source": "x", "train": ["a"], "tests": ["b"]}))
    with pytest.raises(ConfigError, match=r"tests: unknown key; did you mean test\?"):
        read_published_split(tmp_path / "mine.yaml")
