"""Splits: by patient, nested, checked against the dataset, given lists first."""

import json

import pytest

from medssl.data.cases import Case, DatasetConfig
from medssl.data.prepared import PreparedCase, PreparedDataset
from medssl.data.recipe import Grid
from medssl.data.splits import PARTS, Split, make_split, read_split, write_split
from medssl.errors import ConfigError, DataError

GRID = Grid(
    (5, 6, 7), [[1.0, 0, 0, 0]] * 4, (0, 1, 2), (False,) * 3, (0, 0, 0), (5, 6, 7), (1.0,) * 3, (5, 6, 7), (1.0,) * 3
)


def make_dataset(tmp_path, patients=12, unlabelled=("p03_b", "p07_b")):
    """Every patient has cases a and b; some b have no label."""
    cases = {}
    for number in range(patients):
        for scan in "ab":
            id = f"p{number:02}_{scan}"
            label = None if id in unlabelled else tmp_path / f"{id}.nii"
            cases[id] = PreparedCase(id, id[:3], tmp_path, GRID, tmp_path / f"{id}.nii", label)
    return PreparedDataset(tmp_path, DatasetConfig(name="x", classes=("a", "b")), cases)


def subjects(split, dataset):
    return {part: {dataset.cases[id].subject for id in getattr(split, part)} for part in PARTS}


@pytest.mark.parametrize("seed", range(6))
def test_no_patient_is_divided_and_everyone_is_somewhere(tmp_path, seed):
    dataset = make_dataset(tmp_path)
    split = make_split(dataset, labelled=2, val=3, test=4, seed=seed)
    of = subjects(split, dataset)
    assert [len(of[part]) for part in ("labelled", "val", "test")] == [2, 3, 4]
    assert not of["test"] & (of["val"] | of["labelled"] | of["unlabelled"])
    assert not of["val"] & (of["labelled"] | of["unlabelled"])
    listed = [id for part in (*PARTS, "left_out") for id in getattr(split, part)]
    assert sorted(listed) == sorted(dataset.cases)


def test_unlabelled_scans_of_test_patients_are_left_out(tmp_path):
    dataset = make_dataset(tmp_path)
    split = make_split(dataset, labelled=2, val=3, test=4, seed=0, given={"test": ["p03", "p07"]})
    assert set(split.test) == {"p03_a", "p07_a"}
    assert set(split.left_out) == {"p03_b", "p07_b"}


def test_more_labels_contain_the_fewer_and_keep_the_test_cases(tmp_path):
    dataset = make_dataset(tmp_path)
    few, more = (make_split(dataset, labelled=n, val=2, test=3, seed=5) for n in (1, 4))
    assert set(few.labelled) < set(more.labelled)
    assert (few.test, few.val) == (more.test, more.val)


def test_seed_decides(tmp_path):
    dataset = make_dataset(tmp_path)
    draws = [make_split(dataset, labelled=2, val=2, test=3, seed=s) for s in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_numbers_can_count_cases(tmp_path):
    dataset = make_dataset(tmp_path, unlabelled=("p01_b", "p02_b", "p04_b"))
    split = make_split(dataset, labelled=2, val=4, test=3, seed=0, unit="cases")
    assert [len(getattr(split, part)) for part in ("labelled", "val", "test")] == [2, 4, 3]


def test_a_given_list_wins_over_its_number(tmp_path):
    split = make_split(make_dataset(tmp_path), labelled=9, val=2, test=2, seed=0, given={"labelled": ["p05", "p06_a"]})
    assert split.labelled == ("p05_a", "p05_b", "p06_a")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"labelled": 20}, "only 7"),
        ({"given": {"test": ["p99"]}}, "p99"),
        ({"labelled": 0}, "no labelled case"),
    ],
)
def test_impossible_wishes_are_named(tmp_path, kwargs, message):
    with pytest.raises((ConfigError, DataError), match=message):
        make_split(make_dataset(tmp_path), **{"labelled": 2, "val": 2, "test": 3, "seed": 0, **kwargs})


def test_split_file_survives_and_faults_are_all_listed(tmp_path):
    dataset = make_dataset(tmp_path)
    split = make_split(dataset, labelled=2, val=2, test=3, seed=0)
    write_split(tmp_path / "splits.json", split)
    assert read_split(tmp_path / "splits.json", dataset) == split

    broken = {**json.loads((tmp_path / "splits.json").read_text())}
    broken |= {"labelled": ["p00_a", "p03_b"], "unlabelled": [], "val": ["p00_b", "ghost"], "test": ["p01_a"]}
    (tmp_path / "splits.json").write_text(json.dumps(broken))
    with pytest.raises(DataError) as failure:
        read_split(tmp_path / "splits.json", dataset)
    for words in ("unknown case ghost", "p03_b has no label", "patient p00 is in train and val"):
        assert words in str(failure.value)


def test_a_split_knows_the_patient_of_every_case_that_it_lists(tmp_path):
    dataset = make_dataset(tmp_path)
    split = make_split(dataset, labelled=2, val=2, test=3, seed=0)
    assert split.patients == {id: case.subject for id, case in dataset.cases.items()}


def test_patients_that_an_old_file_lacks_are_filled_in_and_wrong_ones_refused(tmp_path):
    dataset, path = make_dataset(tmp_path), tmp_path / "splits.json"
    split = make_split(dataset, labelled=2, val=2, test=3, seed=0)
    old = split.model_dump(mode="json", exclude={"patients"})
    path.write_text(json.dumps(old))
    assert read_split(path, dataset) == split
    path.write_text(json.dumps(old | {"patients": {"p00_a": "p01"}}))
    with pytest.raises(DataError, match=r"patient of case p00_a is p01, in .* p00"):
        read_split(path, dataset)


def test_a_split_of_another_case_list_is_refused(tmp_path):
    split = make_split(make_dataset(tmp_path), labelled=2, val=2, test=3, seed=0)
    write_split(tmp_path / "splits.json", split)
    with pytest.raises(DataError, match="another case list"):
        read_split(tmp_path / "splits.json", make_dataset(tmp_path, patients=13))


def test_a_typo_in_a_split_is_refused():
    with pytest.raises(ValueError, match="labeled"):
        Split.model_validate({"labeled": ["a"], "sha256": "x"})


def test_case_is_plain_data(tmp_path):
    assert Case("a", "s", tmp_path, None) == Case("a", "s", tmp_path, None)
