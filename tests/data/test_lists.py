"""Published lists: whole, apart, in their order, and only as far as a dataset has them."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from medssl.config import bundled
from medssl.data.cases import DatasetConfig
from medssl.data.draw import Wish, make_split
from medssl.data.lists import export_lists, export_nnunet, import_split, read_published_split
from medssl.data.prepared import PreparedCase, PreparedDataset
from medssl.data.recipe import Grid
from medssl.data.splits import PARTS, load_split
from medssl.data.volume import Source
from medssl.errors import ConfigError, DataError

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
    split = make_split(raw_acdc(tmp_path), Wish(labelled=3, given=published("acdc").parts(3)))
    assert {id[:10] for id in split.labelled} == {"patient099", "patient038", "patient050"}
    assert [len(split.labelled), len(split.unlabelled), len(split.val), len(split.test)] == [6, 134, 20, 40]
    assert {id[:10] for id in split.left_out} == {"patient101", "patient102"}
    assert split.quirks == ()


def test_names_used_elsewhere_leave_the_published_lists():
    parts = published("la").parts(4, without={"ZIJLJAVQV3FJ6JSQOH1E", "UZUZZT2W9IUSHL6ASOX3"})
    assert [len(names) for names in parts.values()] == [4, 75, 19]


@pytest.mark.parametrize("labelled", [0, 71])
def test_a_number_that_the_list_does_not_hold_is_refused(labelled):
    with pytest.raises(ConfigError, match=r"must be from 1 to 70 for acdc; published are 1, 3, 7, 14"):
        published("acdc").parts(labelled)


def test_a_typo_in_a_file_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text(json.dumps({"name": "x", "source": "x", "train": ["a"], "tests": ["b"]}))
    with pytest.raises(ConfigError, match=r"tests: unknown key; did you mean test\?"):
        read_published_split(tmp_path / "mine.yaml")


def test_a_word_names_lists_of_the_package_whatever_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acdc").mkdir()
    assert read_published_split(Path("acdc")) == published("acdc")
    assert read_published_split(Path("configs/split/la.yaml")) == published("la")
    with pytest.raises(ConfigError, match=r"--published acdcs: no such lists; choose one of acdc, la"):
        read_published_split(Path("acdcs"))


# ---- files of nnU-Net, and lists one id a line


def patients(tmp_path, count=12, bare=("p03_b", "p07_b", "p10_a", "p10_b")):
    """Every patient has cases a and b; some have no label."""
    ids = [f"p{n:02}_{scan}" for n in range(count) for scan in "ab"]
    labels = {id: None if id in bare else Source(tmp_path / id) for id in ids}
    cases = {id: PreparedCase(id, id[:3], tmp_path, GRID, (Source(tmp_path / id),), labels[id]) for id in ids}
    return PreparedDataset(tmp_path, DatasetConfig(name="x", classes=("a", "b")), cases)


def holds(split):
    return {part: getattr(split, part) for part in (*PARTS, "left_out", "patients", "sha256")}


@pytest.mark.parametrize("wishes", [{"val": 2, "test": 3}, {"val": 0, "test": 3}, {"val": 1, "test": 0}])
def test_what_goes_out_comes_back(tmp_path, wishes):
    dataset = patients(tmp_path)
    made = [make_split(dataset, Wish(labelled=2, seed=seed, **wishes)) for seed in (0, 1, 2)]
    export_nnunet(made, tmp_path / "new" / "splits_final.json")
    for fold, split in enumerate(made):
        assert holds(import_split(dataset, tmp_path / "new" / "splits_final.json", fold=fold)) == holds(split)
        export_lists(split, tmp_path / "lists")
        assert holds(import_split(dataset, tmp_path / "lists")) == holds(split)
        assert import_split(dataset, tmp_path / "lists").seed is None


def test_seed_and_quirks_stand_beside_what_goes_out(tmp_path):
    split = make_split(patients(tmp_path), Wish(labelled=2, val=2, test=3, seed=4))
    split = split.model_copy(update={"quirks": ("stratified by labels",)})
    export_nnunet([split], tmp_path / "splits_final.json")
    (fold,) = json.loads((tmp_path / "splits_final.json").read_text())
    assert (fold["seed"], fold["quirks"]) == (4, ["stratified by labels"])
    export_lists(split, tmp_path / "lists")
    assert load_split(tmp_path / "lists" / "split.json") == split


def test_nnunet_is_given_the_labels_that_train_and_no_others(tmp_path):
    dataset = patients(tmp_path)
    split = make_split(dataset, Wish(labelled=2, val=2, test=3))
    export_nnunet([split], tmp_path / "splits_final.json")
    (fold,) = json.loads((tmp_path / "splits_final.json").read_text())
    assert (fold["train"], fold["val"]) == (list(split.labelled), list(split.val))


def test_a_train_list_begins_with_the_labelled_cases(tmp_path):
    dataset = patients(tmp_path)
    split = make_split(dataset, Wish(labelled=2, val=2, test=3))
    export_lists(split, tmp_path / "lists")
    lines = (tmp_path / "lists" / "train.list").read_text().split()
    assert lines == [*split.labelled, *split.unlabelled]


def write_folds(path, *folds):
    path.write_text(json.dumps([{"train": train, "val": val} for train, val in folds]))
    return path


def both(*names):
    return [f"{name}_{scan}" for name in names for scan in "ab"]


def test_nnunet_cases_without_a_label_are_unlabelled_and_others_left_out(tmp_path):
    dataset = patients(tmp_path)
    path = write_folds(tmp_path / "s.json", (both("p00", "p03", "p10"), both("p01")))
    split = import_split(dataset, path)
    assert split.labelled == ("p00_a", "p00_b", "p03_a")
    assert split.unlabelled == ("p03_b", "p10_a", "p10_b")
    assert (split.val, split.test) == (("p01_a", "p01_b"), ())
    assert len(split.left_out) == 24 - 8
    rest = import_split(dataset, path, rest_unlabelled=True)
    assert (rest.labelled, rest.val, len(rest.unlabelled), rest.left_out) == (split.labelled, split.val, 19, ())


def test_labels_of_an_imported_training_list_can_be_fewer(tmp_path):
    dataset = patients(tmp_path)
    path = write_folds(tmp_path / "s.json", (both("p00", "p02", "p03", "p04", "p10"), both("p01")))
    drawn = [import_split(dataset, path, labelled=2, seed=seed) for seed in range(8)]
    assert all(len({id[:3] for id in split.labelled}) == 2 and split.seed is not None for split in drawn)
    assert all(len(split.labelled) + len(split.unlabelled) == 10 for split in drawn)
    assert len({split.labelled for split in drawn}) > 1
    assert len({id[:3] for id in import_split(dataset, path, labelled=Fraction(1, 5)).labelled}) == 1
    with pytest.raises(ConfigError, match="5 patients wanted, only 4"):
        import_split(dataset, path, labelled=5)
    with pytest.raises(ConfigError, match=r"less than one of 5 training patients of "):
        import_split(dataset, path, labelled=Fraction(1, 10))


@pytest.mark.parametrize(("rest", "number"), [(False, 4), (True, 5)])
def test_a_share_is_one_of_all_who_train_whatever_the_lists_are_called(tmp_path, rest, number):
    """Four of ten patients keep their labels, of the five in labelled.list; with the one in no list five of eleven."""
    dataset = patients(tmp_path, bare=())
    folder = tmp_path / "lists"
    folder.mkdir()
    names = [f"p{n:02}" for n in range(12)]
    for part, which in (("labelled", names[:5]), ("unlabelled", names[5:10]), ("val", names[10:11])):
        (folder / f"{part}.list").write_text("\n".join(which))
    split = import_split(dataset, folder, labelled=Fraction(46, 100), rest_unlabelled=rest)
    assert len({id[:3] for id in split.labelled}) == number
    assert {id[:3] for id in split.labelled} <= set(names[:5])
    with pytest.raises(ConfigError, match=r"\d patients wanted, only 5"):
        import_split(dataset, folder, labelled=Fraction(3, 5), rest_unlabelled=rest)


def test_a_patient_that_a_file_divides_is_told(tmp_path):
    path = write_folds(tmp_path / "s.json", (["p00_a", "p02_a", "p04_a"], ["p00_b", "p02_b", "p01_a"]))
    with pytest.raises(DataError) as told:
        import_split(patients(tmp_path), path)
    for words in (str(path), "patient p00 is in train and val", "patient p02 is in train and val", "on one side"):
        assert words in str(told.value)
    assert "p04" not in str(told.value)


@pytest.mark.parametrize(
    ("fold", "said"),
    [
        (None, "has 2 folds; choose one with --fold, 0 to 1"),
        (2, "--fold 2: must be from 0 to 1 "),
        (-1, "--fold -1: must be from 0 to 1 "),
    ],
)
def test_a_fold_must_be_there(tmp_path, fold, said):
    path = write_folds(tmp_path / "s.json", (["p00_a"], ["p01_a"]), (["p01_a"], ["p00_a"]))
    with pytest.raises(ConfigError, match=said):
        import_split(patients(tmp_path), path, fold=fold)


@pytest.mark.parametrize("text", ["[]", "{}", '[{"train": ["p00_a"]}]', '[{"train": [1], "val": []}]', "nonsense"])
def test_a_file_of_another_kind_is_refused(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(DataError, match=r"s\.json"):
        import_split(patients(tmp_path), tmp_path / "s.json")


def test_a_name_that_is_not_in_the_dataset_is_told(tmp_path):
    said = "the val list names unknown cases or patients: ghost; .*prepare them .* usable cases, such as p00_a"
    with pytest.raises(ConfigError, match=said):
        import_split(patients(tmp_path), write_folds(tmp_path / "s.json", (["p00_a"], ["p01_a", "ghost"])))


def test_a_split_that_selects_on_test_is_not_exported(tmp_path):
    split = make_split(patients(tmp_path), Wish(labelled=2, test=3, val_is_test=True))
    for export in (lambda: export_nnunet([split], tmp_path / "s.json"), lambda: export_lists(split, tmp_path / "s")):
        with pytest.raises(ConfigError, match="--val-is-test"):
            export()
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "s.json").exists()


def test_the_first_patients_of_a_train_list_are_labelled_be_it_of_volumes_or_slices(tmp_path):
    dataset = raw_acdc(tmp_path)
    lists = published("acdc")
    frames = {part: [f"{name}_frame{n:02}" for name in getattr(lists, part) for n in (1, 2)]
              for part in ("train", "val", "test")}  # fmt: skip
    folders = [tmp_path / "volumes", tmp_path / "slices"]
    for folder in folders:
        folder.mkdir()
        for part, names in frames.items():
            (folder / f"{part}.list").write_text("\n".join(names) + "\n\n")
    (folders[1] / "train.list").unlink()
    slices = [f"{name}_slice_{n}.h5" for name in frames["train"] for n in (4, 1, 3)]
    (folders[1] / "train_slices.list").write_text("\n".join(slices))
    want = make_split(dataset, Wish(given=lists.parts(7)))
    for folder in folders:
        got = import_split(dataset, folder, labelled=Fraction(1, 10), renamed_frames=True)
        assert holds(got) == holds(want)
        assert got.quirks == ("renamed frames",)
        with pytest.raises(ConfigError, match="--renamed-frames"):
            import_split(dataset, folder)


@pytest.mark.parametrize(
    ("files", "fold", "said"),
    [
        ({"val.list": "p00"}, None, "neither train.list nor labelled.list"),
        ({"train.list": "p00", "train.txt": "p01"}, None, "train.list and train.txt"),
        ({"train.list": "p00"}, 0, "have no folds"),
    ],
)
def test_a_folder_of_lists_that_does_not_do_is_refused(tmp_path, files, fold, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        import_split(patients(tmp_path), tmp_path, fold=fold)


@pytest.mark.parametrize(("name", "labelled"), [("acdc", 3), ("acdc", 7), ("acdc", 14), ("la", 4), ("la", 16)])
def test_the_lists_beside_the_real_volumes_give_the_published_protocols(real_data, tmp_path, name, labelled):
    ids = [path.name.removesuffix(".nii.gz") for path in sorted((real_data / name / "images").glob("*.nii.gz"))]
    cases = {
        id: PreparedCase(id, id.partition("_")[0], tmp_path, GRID, (Source(tmp_path / id),), Source(tmp_path / id))
        for id in ids
    }
    dataset = PreparedDataset(tmp_path, DatasetConfig(name=name, classes=("a", "b")), cases)
    split = import_split(dataset, real_data / name / "splits", labelled=labelled)
    who = {part: {cases[id].subject for id in getattr(split, part)} for part in PARTS}
    lists = published(name)
    assert who["labelled"] == set(lists.train[:labelled])
    assert who["unlabelled"] == set(lists.train[labelled:])
    if name == "acdc":
        assert (who["val"], who["test"]) == (set(lists.val), set(lists.test))
    assert split.left_out == ()
