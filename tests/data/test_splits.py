"""Splits: by patient, nested, checked against the dataset, given lists first."""

import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction

import pytest

from medssl.bench.matrix import Bench, BenchConfig
from medssl.bench.setup import write_splits
from medssl.config import bundled
from medssl.data.cases import Case, DatasetConfig
from medssl.data.draw import Wish, declared_parts, make_draws, make_folds, make_split, parse_amount
from medssl.data.prepared import PreparedCase, PreparedDataset, read_prepared
from medssl.data.recipe import Grid
from medssl.data.splits import PARTS, Split, read_split, write_series, write_split
from medssl.data.volume import Source
from medssl.errors import ConfigError, DataError
from medssl.split import split as split_dataset

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
            cases[id] = PreparedCase(id, id[:3], tmp_path, GRID, (Source(tmp_path / f"{id}.nii"),), label)
    return PreparedDataset(tmp_path, DatasetConfig(name="x", classes=("a", "b")), cases)


def subjects(split, dataset):
    return {part: {dataset.cases[id].subject for id in getattr(split, part)} for part in PARTS}


@pytest.mark.parametrize("seed", range(6))
def test_no_patient_is_divided_and_everyone_is_somewhere(tmp_path, seed):
    dataset = make_dataset(tmp_path)
    split = make_split(dataset, Wish(labelled=2, val=3, test=4, seed=seed))
    of = subjects(split, dataset)
    assert [len(of[part]) for part in ("labelled", "val", "test")] == [2, 3, 4]
    assert not of["test"] & (of["val"] | of["labelled"] | of["unlabelled"])
    assert not of["val"] & (of["labelled"] | of["unlabelled"])
    listed = [id for part in (*PARTS, "left_out") for id in getattr(split, part)]
    assert sorted(listed) == sorted(dataset.cases)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "expected an object with named entries, found a list"),
        ("{", "cannot be read as JSON"),
        ('{"labelled": "abc"}', "not as medssl writes it; create it again\n  labelled: .*\n  sha256: required"),
    ],
)
def test_a_split_of_another_kind_is_named(tmp_path, text, words):
    path = tmp_path / "splits.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: {words}"):
        read_split(path, make_dataset(tmp_path))


def test_unlabelled_scans_of_test_patients_are_left_out(tmp_path):
    dataset = make_dataset(tmp_path)
    split = make_split(dataset, Wish(labelled=2, val=3, test=4, given={"test": ["p03", "p07"]}))
    assert set(split.test) == {"p03_a", "p07_a"}
    assert set(split.left_out) == {"p03_b", "p07_b"}


def test_more_labels_contain_the_fewer_and_keep_the_test_cases(tmp_path):
    dataset = make_dataset(tmp_path)
    few, more = (make_split(dataset, Wish(labelled=n, val=2, test=3, seed=5)) for n in (1, 4))
    assert set(few.labelled) < set(more.labelled)
    assert (few.test, few.val) == (more.test, more.val)


def test_seed_decides(tmp_path):
    dataset = make_dataset(tmp_path)
    draws = [make_split(dataset, Wish(labelled=2, val=2, test=3, seed=s)) for s in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_numbers_can_count_cases(tmp_path):
    dataset = make_dataset(tmp_path, unlabelled=("p01_b", "p02_b", "p04_b"))
    split = make_split(dataset, Wish(labelled=2, val=4, test=3, unit="cases"))
    assert [len(getattr(split, part)) for part in ("labelled", "val", "test")] == [2, 4, 3]


def test_a_given_list_wins_over_its_number(tmp_path):
    split = make_split(make_dataset(tmp_path), Wish(labelled=9, val=2, test=2, given={"labelled": ["p05", "p06_a"]}))
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
        make_split(make_dataset(tmp_path), Wish(**{"labelled": 2, "val": 2, "test": 3, **kwargs}))


def test_split_file_survives_and_faults_are_all_listed(tmp_path):
    dataset = make_dataset(tmp_path)
    split = make_split(dataset, Wish(labelled=2, val=2, test=3))
    write_split(tmp_path / "splits.json", split)
    assert read_split(tmp_path / "splits.json", dataset) == split

    broken = {**json.loads((tmp_path / "splits.json").read_text())}
    broken |= {"labelled": ["p00_a", "p03_b"], "unlabelled": [], "val": ["p00_b", "ghost"], "test": ["p01_a"]}
    (tmp_path / "splits.json").write_text(json.dumps(broken))
    with pytest.raises(DataError) as failure:
        read_split(tmp_path / "splits.json", dataset)
    for words in ("unknown case ghost", "p03_b has no label", "patient p00 is in train and val"):
        assert words in str(failure.value)


def test_who_is_left_out_may_not_train_and_must_be_there(tmp_path):
    dataset = make_dataset(tmp_path)
    split = make_split(dataset, Wish(labelled=2, val=2, test=3))
    write_split(tmp_path / "splits.json", split)
    broken = json.loads((tmp_path / "splits.json").read_text()) | {"left_out": [split.labelled[0], "ghost"]}
    (tmp_path / "splits.json").write_text(json.dumps(broken))
    with pytest.raises(DataError) as failure:
        read_split(tmp_path / "splits.json", dataset)
    for words in ("unknown case ghost in left_out", f"case {split.labelled[0]} is in left_out and in labelled"):
        assert words in str(failure.value)


def test_a_split_knows_the_patient_of_every_case_that_it_lists(tmp_path):
    dataset = make_dataset(tmp_path)
    split = make_split(dataset, Wish(labelled=2, val=2, test=3))
    assert split.patients == {id: case.subject for id, case in dataset.cases.items()}


def test_patients_that_an_old_file_lacks_are_filled_in_and_wrong_ones_refused(tmp_path):
    dataset, path = make_dataset(tmp_path), tmp_path / "splits.json"
    split = make_split(dataset, Wish(labelled=2, val=2, test=3))
    old = split.model_dump(mode="json", exclude={"patients"})
    path.write_text(json.dumps(old))
    assert read_split(path, dataset) == split
    path.write_text(json.dumps(old | {"patients": {"p00_a": "p01"}}))
    with pytest.raises(DataError, match=r"patient of case p00_a is p01, but p00 in "):
        read_split(path, dataset)


def test_a_split_of_another_case_list_is_refused(tmp_path):
    split = make_split(make_dataset(tmp_path), Wish(labelled=2, val=2, test=3))
    write_split(tmp_path / "splits.json", split)
    with pytest.raises(DataError, match="another case list"):
        read_split(tmp_path / "splits.json", make_dataset(tmp_path, patients=13))


def test_a_typo_in_a_split_is_refused():
    with pytest.raises(ValueError, match="labeled"):
        Split.model_validate({"labeled": ["a"], "sha256": "x"})


def test_case_is_plain_data(tmp_path):
    assert Case("a", "s", (), None) == Case("a", "s", (), None)


# ---- habits of the literature, each only when asked for


def test_a_split_has_no_quirk_unless_asked(tmp_path):
    split = make_split(make_dataset(tmp_path), Wish(labelled=2, val=2, test=3))
    assert split.quirks == ()
    assert not set(split.val) & set(split.test)


def test_validation_on_test_changes_nothing_else_and_is_told(tmp_path):
    dataset = make_dataset(tmp_path)
    plain = make_split(dataset, Wish(labelled=2, test=3))
    split = make_split(dataset, Wish(labelled=2, test=3, val_is_test=True))
    assert split == plain.model_copy(update={"val": plain.test, "quirks": ("selection on test",)})
    write_split(tmp_path / "splits.json", split)
    assert json.loads((tmp_path / "splits.json").read_text())["quirks"] == ["selection on test"]
    assert read_split(tmp_path / "splits.json", dataset) == split


@pytest.mark.parametrize("change", [{"quirks": []}, {"val": ["p00_a"]}, {"val": []}, {"quirks": ["selection on tset"]}])
def test_validation_on_test_is_refused_where_the_file_does_not_say_just_that(tmp_path, change):
    dataset = make_dataset(tmp_path)
    write_split(tmp_path / "splits.json", make_split(dataset, Wish(labelled=1, test=2, val_is_test=True)))
    values = json.loads((tmp_path / "splits.json").read_text())
    (tmp_path / "splits.json").write_text(json.dumps(values | change))
    with pytest.raises(DataError, match=r"listed twice|selection on test"):
        read_split(tmp_path / "splits.json", dataset)


def test_a_labelled_case_is_no_test_case_even_when_validation_is(tmp_path):
    given = {"labelled": ["p01_a"], "test": ["p01_a", "p02_a"]}
    with pytest.raises(DataError, match="p01_a is listed twice"):
        make_split(make_dataset(tmp_path), Wish(val_is_test=True, given=given))


@pytest.mark.parametrize("wish", [{"val": 2}, {"given": {"val": ["p01"]}}, {"test": 0}])
def test_validation_on_test_needs_test_cases_and_no_others(tmp_path, wish):
    with pytest.raises((ConfigError, DataError), match=r"the test cases are the validation cases|at least one"):
        make_split(make_dataset(tmp_path), Wish(**{"labelled": 2, "test": 3, **wish}, val_is_test=True))


def make_frames(tmp_path, frames, unlabelled=()):
    cases = {}
    for id in frames:
        label = None if id in unlabelled else tmp_path / f"{id}.nii"
        cases[id] = PreparedCase(id, id[:10], tmp_path, GRID, (Source(tmp_path / f"{id}.nii"),), label)
    return PreparedDataset(tmp_path, DatasetConfig(name="x", classes=("a", "b")), cases)


RAW = ["patient001_frame12", "patient001_frame01", "patient002_frame04", "patient002_frame11", "patient003_frame01"]
COUNTED = {"labelled": ["patient001_frame01", "patient001_frame02"], "test": ["patient002_frame02"]}


def test_lists_that_count_frames_find_them_by_order_when_asked(tmp_path):
    dataset = make_frames(tmp_path, RAW)
    split = make_split(dataset, Wish(given=COUNTED, renamed_frames=True))
    assert split.labelled == ("patient001_frame01", "patient001_frame12")
    assert split.test == ("patient002_frame11",)
    assert split.quirks == ("renamed frames",)


def test_only_annotated_frames_are_counted_where_there_are_any(tmp_path):
    frames = [f"patient{p}_frame{n:02}" for p in ("001", "002") for n in range(1, 6)]
    without = {id for id in frames if id not in ("patient001_frame02", "patient001_frame05")}
    given = {"labelled": ["patient001_frame02"], "unlabelled": ["patient002_frame03"]}
    split = make_split(make_frames(tmp_path, frames, without), Wish(given=given, renamed_frames=True))
    assert (split.labelled, split.unlabelled) == (("patient001_frame05",), ("patient002_frame03",))


def test_lists_that_count_frames_are_refused_with_a_hint_unless_asked(tmp_path):
    with pytest.raises(ConfigError, match=r"patient001_frame02; .*--renamed-frames"):
        make_split(make_frames(tmp_path, RAW), Wish(given=COUNTED))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["patient001_frame03"], "no such frame; .*001 has 2, in this order: patient001_frame01, patient001_frame12"),
        (["patient009_frame01"], "names unknown cases or patients: patient009_frame01; (?!.*--renamed)"),
        (["patient001"], "no given list names a frame"),
    ],
)
def test_frames_that_are_not_there_are_named(tmp_path, names, said):
    with pytest.raises(ConfigError, match=said):
        make_split(make_frames(tmp_path, RAW), Wish(given={"labelled": names}, renamed_frames=True))


# ---- shares, folds and draws


@pytest.mark.parametrize(
    ("text", "amount"),
    [("8", 8), ("0", 0), ("10%", Fraction(1, 10)), ("2.5 %", Fraction(1, 40)), ("100%", Fraction(1)), ("all", "all")],
)
def test_an_amount_is_a_number_a_share_or_all(text, amount):
    assert parse_amount(text) == amount


@pytest.mark.parametrize("text", ["-1", "ten", "0%", "101%", "1.5", "%", ""])
def test_other_amounts_are_refused(text):
    with pytest.raises(ConfigError, match="expected a number such as 8, a percentage such as 10%, or all"):
        parse_amount(text)


@pytest.mark.parametrize(
    ("share", "unit", "number"),
    [("5%", "patients", 3), ("10%", "patients", 7), ("20%", "patients", 14), ("29%", "patients", 20),
     ("10%", "cases", 14), ("100%", "patients", 70)],
)  # fmt: skip
def test_a_share_counts_those_who_train_and_is_rounded_down(tmp_path, share, unit, number):
    dataset = make_dataset(tmp_path, patients=100, unlabelled=())
    held = {"val": 10, "test": 20} if unit == "patients" else {"val": 20, "test": 40}
    split = make_split(dataset, Wish(labelled=parse_amount(share), unit=unit, **held))
    assert len(split.labelled if unit == "cases" else subjects(split, dataset)["labelled"]) == number


def test_a_share_counts_patients_without_labels_too(tmp_path):
    bare = {f"p{n:02}_{scan}" for n in range(10) for scan in "ab"}
    dataset = make_dataset(tmp_path, patients=20, unlabelled=bare)
    few = make_split(dataset, Wish(labelled=Fraction(1, 4), test=4))
    assert len(subjects(few, dataset)["labelled"]) == 4
    every = make_split(dataset, Wish(labelled="all", val=2, test=4))
    assert len(subjects(every, dataset)["labelled"]) == 4
    assert set(every.unlabelled) == bare
    with pytest.raises(ConfigError, match="16 patients wanted, only 6"):
        make_split(dataset, Wish(labelled=Fraction(1), test=4))


def test_a_share_of_less_than_one_patient_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--labelled 10%: less than one of 7 training patients"):
        make_split(make_dataset(tmp_path), Wish(labelled=Fraction(1, 10), val=2, test=3))


def test_a_split_of_lists_alone_has_no_seed(tmp_path):
    given = {"labelled": ["p00"], "val": ["p01"], "test": ["p02"]}
    assert make_split(make_dataset(tmp_path), Wish(seed=3, given=given)).seed is None
    assert make_split(make_dataset(tmp_path), Wish(val=1, seed=3, given={"labelled": ["p00"]})).seed == 3


@pytest.mark.parametrize("folds", [2, 4, 9])
def test_each_patient_validates_once_and_the_test_cases_stay(tmp_path, folds):
    dataset = make_dataset(tmp_path)
    made = make_folds(dataset, Wish(labelled=1, test=3, seed=4), folds)
    assert len(made) == folds
    assert {split.test for split in made} == {make_split(dataset, Wish(labelled=1, test=3, seed=4)).test}
    vals = [subjects(split, dataset)["val"] for split in made]
    everyone = set().union(*vals)
    assert sum(map(len, vals)) == len(everyone) == 9
    assert not everyone & subjects(made[0], dataset)["test"]
    assert max(map(len, vals)) - min(map(len, vals)) <= 1
    assert all(len(subjects(split, dataset)["labelled"]) == 1 for split in made)


def test_folds_may_train_on_all_labels_and_on_a_given_list(tmp_path):
    dataset = make_dataset(tmp_path)
    for split in make_folds(dataset, Wish(labelled="all", test=3), 3):
        assert len(subjects(split, dataset)["labelled"]) == 6
    for split in make_folds(dataset, Wish(test=3, given={"labelled": ["p05"]}), 3):
        assert split.labelled == ("p05_a", "p05_b")
        assert "p05" not in subjects(split, dataset)["val"]


@pytest.mark.parametrize(
    ("folds", "given", "said"),
    [
        (10, {}, "--folds 10: only 9 patients with labels are left"),
        (1, {}, "--folds 1: must be 2 or more"),
        (3, {"val": ["p01"]}, "every patient validates once"),
    ],
)
def test_impossible_folds_are_refused(tmp_path, folds, given, said):
    with pytest.raises(ConfigError, match=said):
        make_folds(make_dataset(tmp_path), Wish(labelled=1, test=3, given=given), folds)


@pytest.mark.parametrize("val_is_test", [False, True])
def test_draws_differ_in_their_labelled_cases_only(tmp_path, val_is_test):
    dataset = make_dataset(tmp_path)
    wishes = {"labelled": 2, "val": 0 if val_is_test else 2, "test": 3, "val_is_test": val_is_test}
    made = make_draws(dataset, Wish(seed=6, **wishes), 4)
    assert made[0] == make_split(dataset, Wish(seed=6, **wishes))
    assert [split.seed for split in made] == [6, 7, 8, 9]
    assert len({(split.val, split.test) for split in made}) == 1
    assert len({split.labelled for split in made}) > 1
    assert len({split.quirks for split in made}) == 1
    assert all(len(subjects(split, dataset)["labelled"]) == 2 for split in made)


def test_draws_are_those_of_a_bench(tmp_path):
    dataset = make_dataset(tmp_path)
    configs = (bundled("data/phantom_cbct.yaml"),)
    config = BenchConfig(
        configs=configs, methods={"supervised": {}}, labelled=(2,), all_labels=(), draws=(3, 4, 5), val=2, test=3
    )
    matrix = Bench(config, tmp_path / "bench")
    write_splits(matrix, dataset)
    made = make_draws(dataset, Wish(labelled=2, val=2, test=3, seed=3), 3)
    for cell in matrix.cells:
        theirs, ours = read_split(matrix.split(cell), dataset), made[cell.draw - 3]
        assert [getattr(theirs, part) for part in PARTS] == [getattr(ours, part) for part in PARTS]


@pytest.mark.parametrize(("draws", "given"), [(0, {}), (2, {"labelled": ["p01"]})])
def test_draws_of_nothing_are_refused(tmp_path, draws, given):
    with pytest.raises(ConfigError, match="--draws"):
        make_draws(make_dataset(tmp_path), Wish(labelled=2, val=1, test=1, given=given), draws)


def test_series_of_lists_that_count_frames_read_them_once_and_say_so(tmp_path):
    dataset = make_frames(tmp_path, [f"patient{p:03}_frame{n:02}" for p in range(6) for n in (1, 2 + p)])
    given = {"test": ["patient004_frame02"]}
    for series in (
        make_folds(dataset, Wish(labelled=1, given=given, renamed_frames=True), 2),
        make_draws(dataset, Wish(labelled=1, val=1, given=given, renamed_frames=True), 2),
    ):
        for split in series:
            assert split.test == ("patient004_frame06",)
            assert split.quirks == ("renamed frames",)


def test_a_series_replaces_a_longer_one_only_when_told(tmp_path):
    dataset, folder = make_dataset(tmp_path), tmp_path / "splits"
    write_series(folder, "fold", make_folds(dataset, Wish(labelled=1, test=3), 4))
    (folder / "fold_notes.json").write_text("mine")
    three = make_folds(dataset, Wish(labelled=1, test=3), 3)
    with pytest.raises(ConfigError, match="--overwrite"):
        write_series(folder, "fold", three)
    assert len(list(folder.iterdir())) == 5
    paths = write_series(folder, "fold", three, overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"fold_0.json", "fold_1.json", "fold_2.json", "fold_notes.json"}
    assert [read_split(path, dataset) for path in paths] == three


def test_slices_of_a_case_stand_for_the_case(tmp_path):
    names = [f"{id}_slice_{n}" for n in (3, 1, 2) for id in ("p05_a", "p06_b")]
    split = make_split(make_dataset(tmp_path), Wish(val=1, test=1, given={"labelled": names}))
    assert split.labelled == ("p05_a", "p06_b")
    given = {"labelled": ["p05_a_slice_1"], "unlabelled": ["p05_a_slice_2"]}
    with pytest.raises(DataError, match="p05_a is listed twice"):
        make_split(make_dataset(tmp_path), Wish(given=given))


def test_a_case_without_a_label_cannot_be_listed_where_one_is_needed(tmp_path):
    with pytest.raises(
        ConfigError, match="the test list names cases without a label: p03_b; leave them out of the list"
    ):
        make_split(make_dataset(tmp_path), Wish(labelled=1, val=1, given={"test": ["p03_b"]}))


def test_all_divided_patients_are_told_with_what_to_do(tmp_path):
    given = {"labelled": [f"p{n:02}_a" for n in range(25)], "test": [f"p{n:02}_b" for n in range(25)]}
    with pytest.raises(
        DataError, match=r"(?s)p00 is in test and train.*and 5 more\nAll scans of a patient must be on one side"
    ) as told:
        make_split(make_dataset(tmp_path, 26, ()), Wish(given=given))
    assert str(told.value).count("is in test and train") == 20


def declare(dataset, **parts):
    """The dataset with parts declared of patients."""
    of = {patient: part for part, patients in parts.items() for patient in patients}
    cases = {id: replace(case, part=of.get(case.subject)) for id, case in dataset.cases.items()}
    return replace(dataset, cases=cases)


@pytest.mark.parametrize("seed", range(4))
def test_whom_the_dataset_holds_back_is_drawn_for_nothing_else(tmp_path, seed):
    dataset = declare(make_dataset(tmp_path), test=("p01", "p03"), val=("p05",))
    split = make_split(dataset, Wish(labelled="all", seed=seed))
    held = {"p01", "p03", "p05"}
    of = subjects(split, dataset)
    assert of["labelled"] | of["unlabelled"] == {f"p{n:02}" for n in range(12)} - held
    assert {id[:3] for id in split.left_out} == held
    drawn = make_split(dataset, Wish(labelled=2, val=2, test=3, seed=seed))
    assert not subjects(drawn, dataset)["val"] & {"p01", "p03"}


def test_declared_parts_are_those_that_can_be(tmp_path):
    dataset = declare(make_dataset(tmp_path), test=("p03",), train=("p00",))
    assert declared_parts(dataset) == {"test": ["p03_a"]}  # p03_b has no label to be tested with
    split = make_split(dataset, Wish(labelled=2, val=1, given=declared_parts(dataset)))
    assert split.test == ("p03_a",)
    assert "p03_b" in split.left_out


def test_a_dataset_that_divides_a_patient_is_refused(tmp_path):
    dataset = make_dataset(tmp_path)
    cases = {**dataset.cases, "p00_a": replace(dataset.cases["p00_a"], part="test"),
             "p00_b": replace(dataset.cases["p00_b"], part="train")}  # fmt: skip
    with pytest.raises(DataError, match="p00: test and train"):
        make_split(replace(dataset, cases=cases), Wish(labelled=2, val=1, test=1))


def test_of_many_patients_that_a_dataset_divides_the_first_are_listed(tmp_path):
    dataset = make_dataset(tmp_path, patients=23)
    cases = {id: replace(case, part="test" if id.endswith("a") else "train") for id, case in dataset.cases.items()}
    with pytest.raises(DataError, match=r"(\n  p\d\d: test and train){20}\n  and 3 more$"):
        make_split(replace(dataset, cases=cases), Wish(labelled=2, val=1, test=1))


def test_the_ceiling_of_a_bench_trains_on_nobody_whom_the_dataset_holds_back(tmp_path):
    dataset = declare(make_dataset(tmp_path), test=("p01", "p03"), val=("p05",))
    config = BenchConfig(
        configs=(bundled("data/phantom_cbct.yaml"),), methods={}, labelled=(2,), seeds=(0,), val=1, test=1
    )
    matrix = Bench(config, tmp_path / "bench")
    write_splits(matrix, dataset)
    few, every = (read_split(matrix.split(cell), dataset) for cell in matrix.cells)
    assert not subjects(every, dataset)["labelled"] & {"p01", "p03", "p05"}
    assert set(every.labelled) | set(every.unlabelled) == set(few.labelled) | set(few.unlabelled)
    assert (every.val, every.test, every.left_out) == (few.val, few.test, few.left_out)


def test_what_a_dataset_declares_is_followed_where_nothing_else_is_wished(balls, tmp_path, capsys):
    copy = shutil.copytree(balls[1], tmp_path / "prepared")
    for id, part in {"ball_00": "test", "ball_01": "val"}.items():
        file = copy / "cases" / id / "case.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "part": part}))
    (plain,) = split_dataset(copy, tmp_path / "a.json", Wish(labelled=2)).values()
    assert (plain.test, plain.val, len(plain.labelled)) == (("ball_00",), ("ball_01",), 2)
    assert "using 1 test case declared by the dataset itself" in capsys.readouterr().err
    made = split_dataset(copy, tmp_path / "b", Wish(labelled=2, given={"test": ["ball_02"]}), folds=2)
    assert list(made) == [tmp_path / "b" / "fold_0.json", tmp_path / "b" / "fold_1.json"]
    assert {one.test for one in made.values()} == {("ball_02",)}
    assert "declares" not in capsys.readouterr().err
    assert [read_split(path, read_prepared(copy)) for path in made] == list(made.values())
