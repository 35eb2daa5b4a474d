"""Folders of tiny label maps in, a table out; every door that should stop bad input does."""

import json
import math
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from rich.console import Console

from medssl.data.cases import DatasetConfig
from medssl.data.io import read_label, write_image, write_label
from medssl.errors import ConfigError, DataError
from medssl.evaluate import evaluate_folders, print_summary
from medssl.explain import explain
from medssl.metrics import METRICS
from medssl.prepare import prepare
from medssl.score_file import read_scores
from medssl.scores import Scores, Spread, summarise

SHAPE = (5, 6, 7)
CLASSES = ["background", "liver", "spleen", "stone"]
SPACING = (1.0, 2.0, 3.0)
AFFINE = np.diag([*SPACING, 1.0])


def label_map(**places):
    """Labels by name, each a list of voxels: `liver=[(1, 1, 1)]`."""
    array = np.zeros(SHAPE, np.uint8)
    for name, voxels in places.items():
        for voxel in voxels:
            array[voxel] = CLASSES.index(name)
    return array


def save(path, array, affine=AFFINE):
    write_image(path, array, np.asarray(affine, float))


@pytest.fixture
def folders(tmp_path):
    """Two pairs with one of each status, and a reference without a prediction."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    save(references / "a.nii.gz", label_map(liver=[(1, 1, 1), (1, 2, 1)], spleen=[(3, 3, 3)]))
    save(predictions / "a.nii.gz", label_map(liver=[(1, 2, 1), (1, 3, 1)], stone=[(4, 4, 4)]))
    save(references / "b.nii.gz", label_map(liver=[(2, 2, 2)], spleen=[(0, 0, 0)]))
    save(predictions / "b.nii.gz", label_map(liver=[(2, 2, 2)], spleen=[(0, 0, 1)]))
    save(references / "c.nii.gz", label_map(liver=[(2, 2, 2)]))
    return predictions, references


def header_of(path):
    return [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]


def test_scores_are_those_drawn(folders, tmp_path):
    scores = evaluate_folders(*folders, tmp_path / "scores.csv", classes=CLASSES)
    assert [(score.case, score.class_name, score.status) for score in scores] == [
        ("a", "liver", "scored"), ("a", "spleen", "missed"), ("a", "stone", "invented"),
        ("b", "liver", "scored"), ("b", "spleen", "scored"), ("b", "stone", "absent"),
    ]  # fmt: skip
    assert scores[0].dice == pytest.approx(0.5)
    assert scores[0].asd == pytest.approx(1.0)  # 2 mm, 0, 0, 2 mm
    assert scores[4].hd95 == pytest.approx(3.0)
    assert scores.unpredicted == ("c",)


def test_header_states_convention_and_counts(folders, tmp_path):
    out = tmp_path / "new" / "scores.csv"
    evaluate_folders(*folders, out, classes=CLASSES)
    header = header_of(out)
    assert "convention: strict" in header
    assert "cases: 2" in header
    assert 'references without a prediction: 1 ["c"]' in header
    lines = {line.partition(":")[0]: line for line in header}
    assert "2 scored, 0 absent, 0 missed, 0 invented; dice mean 0.75 (n 2)" in lines["class liver"]
    assert "1 scored, 0 absent, 1 missed, 0 invented; dice mean 0 (n 2)" in lines["class spleen"]
    assert "hd95 mean 3 (n 1)" in lines["class spleen"]
    assert "0 scored, 1 absent, 0 missed, 1 invented; dice mean 0 (n 1)" in lines["class stone"]
    assert "hd95 mean - (n 0)" in lines["class stone"]
    assert "3 scored, 1 absent, 1 missed, 1 invented" in lines["overall"]


def test_rows_name_their_files_and_leave_the_undefined_empty(folders, tmp_path):
    evaluate_folders(*folders, tmp_path / "scores.csv", classes=CLASSES)
    rows = [line for line in (tmp_path / "scores.csv").read_text().splitlines() if not line.startswith("#")]
    always = [name for name, metric in METRICS.items() if metric.kind not in ("instances", "centreline")]
    assert rows[0].split(",") == [
        "convention", "case", "class", "label", "status", *always,
        "prediction_voxels", "reference_voxels", "prediction", "reference",
    ]  # fmt: skip
    predictions, references = folders
    # iou ... assd and asd_directed empty; nsd, boundary_iou 0; precision 0 / 0, recall 0; one voxel of 6 mm3 missed
    missed = "strict,a,spleen,2,missed,0,0,,,,,,,,0,0,,0,-0.006,-100,0,1"
    assert rows[2] == f"{missed},{predictions / 'a.nii.gz'},{references / 'a.nii.gz'}"
    absent = f"strict,b,stone,3,absent{',' * len(always)},0,0"
    assert rows[6] == f"{absent},{predictions / 'b.nii.gz'},{references / 'b.nii.gz'}"
    assert len(rows) == 7


def test_reading_gives_back_what_was_written(folders, tmp_path):
    predictions, references = folders
    odd = 'c, "d" # é'
    for folder in folders:
        save(folder / f"{odd}.nii.gz", label_map(liver=[(1, 1, 1)]))
    save(references / f"# {odd}.nii", label_map())
    written = evaluate_folders(predictions, references, tmp_path / "scores.csv", classes=CLASSES)
    read = read_scores(tmp_path / "scores.csv")
    assert read.unpredicted == written.unpredicted == (f"# {odd}", "c")
    assert odd in {score.case for score in read}
    assert read.files == written.files
    assert len(read) == len(written) == 9
    for mine, theirs in zip(read, written, strict=True):
        assert replace(mine, values={}) == replace(theirs, values={})
        assert mine.values.keys() == theirs.values.keys()
        for metric in METRICS:
            number = theirs.value(metric)
            assert mine.value(metric) == (None if number is None else pytest.approx(number, rel=1e-5))


def test_order_of_files_and_processes_change_nothing(tmp_path):
    rng = np.random.default_rng(0)
    maps = {f"case{n}": rng.integers(0, 4, (2, *SHAPE)).astype(np.uint8) for n in range(5)}
    tables = []
    for order, suffix, workers in [(sorted(maps), ".nii.gz", 0), (sorted(maps, reverse=True), ".nii", 2)]:
        root = tmp_path / suffix
        for name in order:
            save(root / "p" / f"{name}.nii.gz", maps[name][0])
            save(root / "r" / f"{name}{suffix}", maps[name][1])
        tables.append(evaluate_folders(root / "p", root / "r", root / "scores.csv", workers=workers))
    assert tables[0] == tables[1]
    assert len(tables[0]) == 5 * 3


def test_two_files_are_a_pair_whatever_their_names(folders, tmp_path):
    predictions, references = folders
    shutil.copy(references / "b.nii.gz", tmp_path / "truth_gt.nii.gz")
    scores = evaluate_folders(predictions / "b.nii.gz", tmp_path / "truth_gt.nii.gz", tmp_path / "s.csv")
    assert {score.case for score in scores} == {"b"}
    assert scores.unpredicted == ()


def test_one_prediction_finds_its_reference_in_a_folder(folders, tmp_path):
    predictions, references = folders
    scores = evaluate_folders(predictions / "b.nii.gz", references, tmp_path / "s.csv")
    assert {score.case for score in scores} == {"b"}
    assert scores.unpredicted == ("a", "c")


def test_predictions_without_reference_are_all_named(folders, tmp_path):
    predictions, references = folders
    (references / "a.nii.gz").unlink()
    (references / "b.nii.gz").unlink()
    with pytest.raises(DataError, match=r"2 of 2 predictions(.|\n)*a\.nii\.gz(.|\n)*b\.nii\.gz"):
        evaluate_folders(predictions, references, tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()


def test_references_given_first_are_suspected(folders, tmp_path):
    predictions, references = folders
    (predictions / "a.nii.gz").unlink()
    with pytest.raises(DataError, match="If these are the references, swap the two: predictions are named first"):
        evaluate_folders(references, predictions, tmp_path / "scores.csv")
    (references / "predictions.json").write_text(
        json.dumps({"classes": CLASSES})
    )  # so they are predictions, some of cases without a reference
    with pytest.raises(DataError, match=r"move these files out of the predictions\.$"):
        evaluate_folders(references, predictions, tmp_path / "scores.csv")


def test_brats_is_refused_in_voxels(folders, tmp_path):
    options = {"classes": CLASSES, "workers": 0, "conventions": ["strict", "brats"], "units": "voxel"}
    with pytest.raises(ConfigError, match=r"units: must be mm with the convention brats, .* 373\.13 mm"):
        evaluate_folders(*folders, tmp_path / "scores.csv", **options)


def test_one_case_in_two_files_is_refused(folders, tmp_path):
    predictions, _ = folders
    save(predictions / "a.nii", label_map())
    with pytest.raises(DataError, match=r"a\.nii(.|\n)*case a"):
        evaluate_folders(*folders, tmp_path / "scores.csv")


@pytest.mark.parametrize("missing", ["nowhere", "empty", "notes.txt"])
def test_a_source_without_volumes_is_refused(folders, tmp_path, missing):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match=missing):
        evaluate_folders(tmp_path / missing, folders[1], tmp_path / "scores.csv")


# ---- grids


def test_every_fault_of_every_case_is_listed(folders, tmp_path):
    predictions, references = folders
    save(predictions / "a.nii.gz", np.zeros((5, 6, 8), np.uint8))
    save(predictions / "b.nii.gz", np.full(SHAPE, 9, np.uint8), np.diag([1, 2, 2.5, 1]))
    (predictions / "c.nii.gz").write_bytes(b"no volume")
    with pytest.raises(DataError) as error:
        evaluate_folders(predictions, references, tmp_path / "scores.csv", classes=CLASSES)
    message = str(error.value)
    assert "3 of 3 cases" in message
    assert "5 x 6 x 8 at 1 x 2 x 3 mm" in message
    assert "5 x 6 x 7 at 1 x 2 x 3 mm" in message
    assert "5 x 6 x 7 at 1 x 2 x 2.5 mm" in message
    assert "holds label 9; the classes are 0 to 3" in message
    for path in [predictions / "a.nii.gz", references / "a.nii.gz", references / "b.nii.gz", predictions / "c.nii.gz"]:
        assert str(path) in message
    assert not (tmp_path / "scores.csv").exists()


def oblique(spacing=SPACING, degrees=25.0):
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = -40, 17.5, 300
    return affine


def test_an_oblique_grid_is_measured_in_its_own_millimetres(tmp_path):
    save(tmp_path / "p" / "a.nii.gz", label_map(liver=[(1, 1, 1)]), oblique())
    save(tmp_path / "r" / "a.nii.gz", label_map(liver=[(1, 2, 1)]), oblique())
    (score,) = evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "scores.csv", classes=CLASSES[:2])
    assert score.hd95 == pytest.approx(2.0, rel=1e-5)


def moved(affine, millimetres):
    affine = affine.copy()
    affine[0, 3] += millimetres
    return affine


@pytest.mark.parametrize(
    "affine", [moved(oblique(), 0.02), moved(oblique(), -1), oblique(degrees=25.3), oblique() @ np.diag([-1, 1, 1, 1])]
)
def test_a_grid_that_lies_elsewhere_is_refused(tmp_path, affine):
    save(tmp_path / "p" / "a.nii.gz", label_map(liver=[(1, 1, 1)]), affine)
    save(tmp_path / "r" / "a.nii.gz", label_map(liver=[(1, 1, 1)]), oblique())
    with pytest.raises(DataError, match="different grids: corners are up to"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "scores.csv")


def test_the_tolerance_of_grids_grows_with_the_voxels(tmp_path):
    for scale, name in [(1.0, "small"), (10.0, "large")]:
        affine = np.diag([*(scale * side for side in SPACING), 1.0])
        save(tmp_path / name / "p" / "a.nii.gz", label_map(liver=[(1, 1, 1)]), moved(affine, 0.05))
        save(tmp_path / name / "r" / "a.nii.gz", label_map(liver=[(1, 1, 1)]), affine)
    large, small = tmp_path / "large", tmp_path / "small"
    assert len(evaluate_folders(large / "p", large / "r", tmp_path / "scores.csv")) == 1
    with pytest.raises(DataError, match="different grids"):
        evaluate_folders(small / "p", small / "r", tmp_path / "other.csv")


@pytest.mark.parametrize("axes", [[(0, -1), (1, -1), (2, 1)], [(2, 1), (0, -1), (1, 1)]])
@pytest.mark.parametrize("affine", [AFFINE, oblique()])
def test_a_reference_stored_along_other_axes_scores_the_same(tmp_path, axes, affine):
    """The first axis of the file becomes axis `axes[0][0]`, backwards where `axes[0][1]` is -1, and so on."""
    rng = np.random.default_rng(0)
    prediction, reference = (rng.integers(0, 3, SHAPE).astype(np.uint8) for _ in range(2))
    save(tmp_path / "p" / "a.nii.gz", prediction, affine)
    save(tmp_path / "r" / "a.nii.gz", reference, affine)
    turned = nib.load(tmp_path / "r" / "a.nii.gz").as_reoriented(np.array(axes))
    (tmp_path / "turned").mkdir()
    nib.save(turned, tmp_path / "turned" / "a.nii.gz")
    one, other = (evaluate_folders(tmp_path / "p", tmp_path / name, tmp_path / f"{name}.csv", workers=0)
                  for name in ("r", "turned"))  # fmt: skip
    assert list(one) == list(other)
    assert not [line for line in explain(tmp_path / "r.csv", tmp_path / "turned.csv") if "other files" in line]


def test_a_turned_reference_that_lies_elsewhere_is_refused(tmp_path):
    save(tmp_path / "p" / "a.nii.gz", label_map(liver=[(1, 1, 1)]))
    save(tmp_path / "r" / "a.nii.gz", label_map(liver=[(1, 1, 1)]), AFFINE @ np.diag([-1, -1, 1, 1]))
    with pytest.raises(DataError, match="different grids: corners are up to"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "scores.csv", workers=0)


def test_a_label_that_was_prepared_a_little_off_its_image_is_scored_by_the_prepared_folder(tmp_path):
    """`check` calls 0.3 voxels harmless, and `prepare` takes such a label on its image's grid."""
    image, label = np.random.default_rng(0).random(SHAPE).astype(np.float32), label_map(liver=[(1, 1, 1), (2, 2, 2)])
    off = AFFINE.copy()
    off[:3, 3] += 0.3 * np.array(SPACING)
    save(tmp_path / "raw" / "images" / "a.nii.gz", image)
    save(tmp_path / "raw" / "labels" / "a.nii.gz", label, off)
    save(tmp_path / "p" / "a.nii.gz", label)
    prepare(tmp_path / "raw", tmp_path / "prepared", DatasetConfig(name="toy", classes=CLASSES), workers=0)
    scores = evaluate_folders(tmp_path / "p", tmp_path / "prepared", tmp_path / "scores.csv", workers=0)
    assert [s.dice for s in scores if s.class_name == "liver"] == [1.0]
    with pytest.raises(DataError, match="different grids: corners are up to"):
        evaluate_folders(tmp_path / "p", tmp_path / "raw" / "labels", tmp_path / "other.csv", workers=0)


def test_distances_on_leaning_axes_are_those_of_the_world(tmp_path):
    """As under a tilted gantry: two voxels, a plane apart, lie a step of the lean apart as well."""
    affine = AFFINE.copy()
    affine[1, 2] = 0.5
    save(tmp_path / "p" / "a.nii.gz", label_map(liver=[(1, 1, 1)]), affine)
    save(tmp_path / "r" / "a.nii.gz", label_map(liver=[(1, 1, 2)]), affine)
    (score,) = evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "scores.csv", classes=CLASSES[:2])
    assert score.value("hd95") == pytest.approx(np.linalg.norm(affine[:3, 2]))
    assert np.linalg.norm(affine[:3, 2]) > abs(affine[2, 2])
    evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "voxels.csv", classes=CLASSES[:2], units="voxel")
    said = "\n".join(explain(tmp_path / "scores.csv", tmp_path / "voxels.csv"))
    assert "in mm" in said
    assert "unexplained" not in said


def test_one_folder_is_not_both_sides(folders, tmp_path):
    predictions, _ = folders
    for named in (predictions, predictions / "a.nii.gz"):
        with pytest.raises(DataError, match=r"is both prediction and reference \(\d such file"):
            evaluate_folders(named, named, tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()


def test_a_table_that_was_cut_at_the_end_of_a_line_is_not_read(folders, tmp_path):
    evaluate_folders(*folders, tmp_path / "scores.csv", classes=CLASSES)
    lines = (tmp_path / "scores.csv").read_text().splitlines(keepends=True)
    (tmp_path / "scores.csv").write_text("".join(lines[:-3]))
    with pytest.raises(DataError, match=r"scores\.csv: states that it has 2 cases, but has 1"):
        read_scores(tmp_path / "scores.csv")


def test_a_place_that_nifti_rounds_is_the_place_that_it_rounds(tmp_path):
    """A reference that holds float64, such as MetaImage does, and a prediction on its very grid."""
    image = sitk.GetImageFromArray(label_map(liver=[(1, 1, 1)]).T)
    image.SetSpacing((0.3, 0.3, 0.3))
    image.SetOrigin((1e6 / 3, 1e6 / 3, 1e6 / 3))
    (tmp_path / "r").mkdir()
    sitk.WriteImage(image, str(tmp_path / "r" / "a.mha"))
    reference = read_label(tmp_path / "r" / "a.mha")
    write_label(tmp_path / "p" / "a.nii.gz", reference.array, reference)
    (score,) = evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "scores.csv", classes=CLASSES[:2])
    assert score.dice == 1


# ---- classes


def names_of(scores):
    return list(dict.fromkeys(score.class_name for score in scores))


def test_class_names_are_given_or_stored_or_the_values_found(folders, tmp_path):
    predictions, references = folders
    out = tmp_path / "scores.csv"
    assert names_of(evaluate_folders(predictions, references, out)) == ["1", "2", "3"]
    (predictions / "predictions.json").write_text(json.dumps({"classes": ["background", "L", "S", "T"]}))
    assert names_of(evaluate_folders(predictions, references, out, overwrite=True)) == ["L", "S", "T"]
    single = evaluate_folders(predictions / "a.nii.gz", references, out, overwrite=True)
    assert names_of(single) == ["L", "S", "T"]
    given = evaluate_folders(predictions, references, out, classes=CLASSES, overwrite=True)
    assert names_of(given) == CLASSES[1:]


def test_values_found_in_one_case_are_scored_in_all(tmp_path):
    for folder in ("p", "r"):
        save(tmp_path / folder / "a.nii.gz", np.uint16(label_map(liver=[(1, 1, 1)])) * 500)
        save(tmp_path / folder / "b.nii.gz", label_map(spleen=[(1, 1, 1)]))
    scores = evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "scores.csv")
    assert [(score.case, score.class_name, score.label, score.status) for score in scores] == [
        ("a", "2", 2, "absent"), ("a", "500", 500, "scored"), ("b", "2", 2, "scored"), ("b", "500", 500, "absent")
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"classes": ["background"]}', '{"classes": ["a", 1]}'])
def test_a_broken_list_of_classes_is_refused(folders, tmp_path, text):
    (folders[0] / "predictions.json").write_text(text)
    with pytest.raises(DataError, match=r"predictions\.json"):
        evaluate_folders(*folders, tmp_path / "scores.csv")


@pytest.mark.parametrize("classes", [[], ["background"], ["background", "a", "a"], ["background", "a\nb"], ["", "a"]])
def test_odd_class_names_are_refused(folders, tmp_path, classes):
    with pytest.raises(ConfigError, match="classes"):
        evaluate_folders(*folders, tmp_path / "scores.csv", classes=classes)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(SHAPE, np.uint8), "nothing to score"),
        (np.full(SHAPE, -1, np.int16), "holds label -1"),
        (np.arange(1000, dtype=np.int16).reshape(10, 10, 10), "hold 999 label values besides 0, so they may be images"),
        (np.full(SHAPE, 0.5, np.float32), "whole numbers"),
        (np.zeros((*SHAPE, 2), np.uint8), "three axes"),
    ],
)
def test_volumes_that_are_no_label_maps_are_refused(tmp_path, array, message):
    for folder in ("p", "r"):
        save(tmp_path / folder / "a.nii.gz", array)
    with pytest.raises(DataError, match=message):
        evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "scores.csv")


# ---- the table


def test_an_existing_table_is_kept_unless_told(folders, tmp_path):
    out = tmp_path / "scores.csv"
    out.write_text("precious")
    with pytest.raises(ConfigError, match="exists"):
        evaluate_folders(*folders, out)
    assert out.read_text() == "precious"
    evaluate_folders(*folders, out, overwrite=True)
    with pytest.raises(ConfigError, match=r"metrics: convention nnunet has dice, iou, but not hd95"):
        evaluate_folders(*folders, tmp_path / "none.csv", conventions=["nnunet"], metrics=["hd95"])
    with pytest.raises(ConfigError, match=r"summary.json: scores are written as a table; give a name .* \.csv"):
        evaluate_folders(*folders, tmp_path / "summary.json")
    assert len(read_scores(out)) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions", "references", "scores.csv"]


def test_a_folder_in_place_of_the_table_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="folder"):
        evaluate_folders(*folders, tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "expected the columns"),
        (lambda text: text.replace("case,class", "case,klass"), "expected the columns"),
        (lambda text: text.replace("convention: strict", "convention: lax"), "convention"),
        (lambda text: text.replace("convention: strict", "convention: monai"), "expected convention monai"),
        (lambda text: text.replace('"tolerance": 1.0', '"tolerance": "x"'), "settings"),
        (lambda text: text.replace("1,scored,0.5,", "1,scored,half,"), "half"),
        (lambda text: text.replace("1,scored,0.5,", "1,scored,nan,"), "nan"),
        (lambda text: text.replace("1,scored,0.5,", "1,scored,,"), "do not fit the status scored"),
        (lambda text: text.replace("2,missed,0,", "2,lost,0,"), "lost"),
        (lambda text: text.replace(",b,liver", ",a,liver"), "twice"),
        (lambda text: text[: text.rindex(",")], "cut short"),
        (lambda text: text.replace('["c"]', '["c"'), "case ids"),
    ],
)
def test_a_broken_table_is_refused(folders, tmp_path, change, message):
    out = tmp_path / "scores.csv"
    evaluate_folders(*folders, out, classes=CLASSES)
    text = out.read_text()
    assert change(text) != text
    out.write_text(change(text))
    with pytest.raises(DataError, match=rf"scores\.csv(.|\n)*{message}"):
        read_scores(out)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv"):
        read_scores(tmp_path / "none.csv")


# ---- summaries


def test_summary_gives_mean_spread_and_counts(folders, tmp_path):
    scores = evaluate_folders(*folders, tmp_path / "scores.csv", classes=CLASSES)
    summary = summarise(scores)
    liver, spleen, stone = summary.classes
    assert summary.cases == 2
    assert [row.class_name for row in summary.classes] == CLASSES[1:]
    assert (liver.dice.mean, liver.dice.n) == (pytest.approx(0.75), 2)
    assert liver.dice.sd == pytest.approx(np.std([0.5, 1], ddof=1))
    assert (spleen.scored, spleen.absent, spleen.missed, spleen.invented) == (1, 0, 1, 0)
    assert (spleen.hd95.mean, spleen.hd95.sd, spleen.hd95.n) == (pytest.approx(3), None, 1)
    assert (stone.hd95.mean, stone.hd95.sd, stone.hd95.n) == (None, None, 0)


def test_overall_is_the_mean_over_cases_of_their_defined_classes(folders, tmp_path):
    overall = summarise(evaluate_folders(*folders, tmp_path / "scores.csv", classes=CLASSES)).overall
    assert overall.dice.mean == pytest.approx(np.mean([(0.5 + 0 + 0) / 3, (1 + 0) / 2]))
    assert overall.dice.n == 2
    assert overall.hd95.mean == pytest.approx(np.mean([1.9, (0 + 3) / 2]))
    assert (overall.scored, overall.absent, overall.missed, overall.invented) == (3, 1, 1, 1)


def test_summary_of_nothing_is_empty():
    summary = summarise(Scores())
    assert (summary.cases, summary.classes, summary.overall.dice.n) == (0, (), 0)


def test_printed_summary_shows_every_number_with_its_n(folders, tmp_path, capsys):
    scores = evaluate_folders(*folders, tmp_path / "scores.csv", classes=["background", "[liver]", "spleen", "stone"])
    capsys.readouterr()
    print_summary(scores, Console(width=80))
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    liver = lines.index("[liver] 0.750 (2) 0.667 (2) 0.950 (2) 0.500 (2) 2 scored, 0 absent")
    assert lines[liver + 1] == "±0.354 ±0.471 ±1.344 ±0.707 0 missed, 0 invented"
    assert "stone 0.000 (1) 0.000 (1) - (0) - (0) 0 scored, 1 absent" in lines
    assert any(line.startswith("overall 0.333 (2)") and line.endswith("3 scored, 1 absent") for line in lines)
    assert "references without a prediction: 1 (c)" in printed


def test_printed_summary_keeps_classes_whole_beside_all_metrics(folders, tmp_path, capsys):
    scores = evaluate_folders(
        *folders, tmp_path / "scores.csv", classes=CLASSES, instances=["liver", "spleen"], centreline=["liver"]
    )
    capsys.readouterr()
    print_summary(scores, Console(width=80))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [line[1:] for line in lines if line[0] == "class"] == [
        ["dice", "iou", "hd95", "mm", "asd", "mm", "counts"], ["cldice", "instance_f1"],
    ]  # fmt: skip
    assert all(sum(line[0] == name for line in lines) == 2 for name in CLASSES[1:])


# ---- conventions


@pytest.mark.parametrize("workers", [0, 2])
def test_several_conventions_stand_below_each_other_and_read_back(folders, tmp_path, workers):
    out, asked = tmp_path / "scores.csv", ["strict", "ssl4mis", "monai"]
    written = evaluate_folders(*folders, out, classes=CLASSES, conventions=asked, workers=workers)
    assert [(scores.convention, scores.units) for scores in (written, *written.beside)] == [
        ("strict", "mm"), ("ssl4mis", "voxel"), ("monai", "voxel")
    ]  # fmt: skip
    rows = [line.split(",") for line in out.read_text().splitlines() if not line.startswith("#")]
    assert [row[0] for row in rows] == ["convention", *(name for name in asked for _ in range(6))]
    for name, table in zip(asked, (written, *written.beside), strict=True):
        read = read_scores(out, name)
        assert (read.convention, read.units, read.metrics) == (table.convention, table.units, table.metrics)
        assert [score.dice for score in read] == pytest.approx([score.dice for score in table])
        assert [scores.convention for scores in read.beside] == [other for other in asked if other != name]
    spleen = {name: read_scores(out, name)[1] for name in asked}  # of case a, missed
    assert {name: score.hd95 for name, score in spleen.items()} == {"strict": None, "ssl4mis": 0, "monai": None}
    assert spleen["monai"].value("hd") == math.inf
    with pytest.raises(ConfigError, match="brats"):
        read_scores(out, "brats")


def test_a_convention_averages_as_its_tool_does(folders, tmp_path):
    asked = ["ssl4mis", "nnunet", "monai"]
    ssl4mis = evaluate_folders(*folders, tmp_path / "s.csv", classes=CLASSES, conventions=asked)
    nnunet, monai = ssl4mis.beside
    # liver 0.5 and 1, spleen missed and 0, stone invented and absent
    assert summarise(ssl4mis).overall.dice.mean == pytest.approx(np.mean([0.75, 0, 0]))
    assert summarise(nnunet).overall.dice.mean == pytest.approx(np.mean([0.75, 0, 0]))
    assert summarise(monai).overall.dice.mean == pytest.approx(np.mean([0.25, 0.5]))


def test_a_class_that_is_nowhere_leaves_nnunet_without_a_headline(folders, tmp_path):
    for folder in folders:
        save(folder / "a.nii.gz", label_map(liver=[(1, 1, 1)]))
        save(folder / "b.nii.gz", label_map(liver=[(1, 1, 1)]))
    scores = evaluate_folders(*folders, tmp_path / "s.csv", classes=CLASSES[:3], conventions=["nnunet", "strict"])
    assert summarise(scores).overall.dice.mean is None
    assert summarise(scores.beside[0]).overall.dice.mean == 1
    assert scores.metrics == scores.beside[0].metrics


def test_nnunet_is_what_nnunet_says_of_the_same_folders(folders, tmp_path):
    tool = pytest.importorskip("nnunetv2.evaluation.evaluate_predictions", reason="nnU-Net is not installed")
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    predictions, references = folders
    summary = tmp_path / "summary.json"
    tool.compute_metrics_on_folder(
        str(references), str(predictions), str(summary), SimpleITKIO(), ".nii.gz", [1, 2, 3], num_processes=1
    )
    theirs = json.loads(summary.read_text())
    mine = evaluate_folders(*folders, tmp_path / "scores.csv", classes=CLASSES, conventions=["nnunet"])
    for entry, case in zip(theirs["metric_per_case"], ("a", "b"), strict=True):
        for score in mine:
            if score.case == case:
                numbers = entry["metrics"][str(score.label)]
                for found, name in [(score.dice, "Dice"), (score.iou, "IoU")]:
                    assert math.isnan(numbers[name]) if found is None else found == pytest.approx(numbers[name])
                assert (score.prediction_voxels, score.reference_voxels) == (numbers["n_pred"], numbers["n_ref"])
    assert summarise(mine).overall.dice.mean == pytest.approx(theirs["foreground_mean"]["Dice"])
    lines = explain(tmp_path / "scores.csv", summary)
    assert "dice: all 6 numbers are the same" in lines
    assert not any("averaged" in line for line in lines)


def test_settings_reach_the_numbers_and_come_back_from_the_table(folders, tmp_path):
    out = tmp_path / "scores.csv"
    chosen = {"units": "voxel", "tolerance": 0.5, "tolerances": {"spleen": 1.0}, "instances": ["liver"],
              "centreline": ["spleen"]}  # fmt: skip
    evaluate_folders(*folders, out, classes=CLASSES, **chosen)
    read = read_scores(out)
    assert read.units == "voxel"
    assert (read.measures.tolerance_of("liver"), read.measures.tolerance_of("spleen")) == (0.5, 1.0)
    liver, spleen = read[3], read[4]
    assert (spleen.hd95, spleen.value("nsd")) == (1, 1)  # one voxel of 3 mm apart
    assert (liver.value("instances_matched"), spleen.value("instances_matched")) == (1, None)
    assert (liver.value("cldice"), spleen.value("cldice")) == (None, 0)


@pytest.mark.parametrize("chosen", [{"instances": ["tooth"]}, {"centreline": ["a", "b"]}, {"tolerances": {"x": 1}}])
def test_a_class_that_there_is_not_is_refused(folders, tmp_path, chosen):
    with pytest.raises(ConfigError, match="liver, spleen, stone"):
        evaluate_folders(*folders, tmp_path / "scores.csv", classes=CLASSES, **chosen)


OLD_TABLE = """\
# medssl scores
# convention: strict
# units: dice and iou 0 to 1; hd95 and asd in mm, by the spacing of the reference
# references without a prediction: 1 ["c"]
case,class,label,status,dice,iou,hd95,asd,prediction_voxels,reference_voxels,prediction,reference
a,liver,1,scored,0.5,0.333333,1.9,1,2,2,/p/a.nii.gz,/r/a.nii.gz
a,spleen,2,missed,0,0,,,0,1,/p/a.nii.gz,/r/a.nii.gz
"""


def test_a_table_from_before_conventions_is_strict(tmp_path):
    (tmp_path / "old.csv").write_text(OLD_TABLE)
    read = read_scores(tmp_path / "old.csv")
    assert (read.convention, read.units, read.unpredicted) == ("strict", "mm", ("c",))
    assert read.metrics == ("dice", "iou", "hd95", "asd")
    assert [(score.dice, score.hd95, score.value("nsd")) for score in read] == [(0.5, 1.9, None), (0, None, None)]


def test_an_infinite_value_leaves_a_mean_without_a_spread():
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    assert Spread.of(values) == Spread(pytest.approx(2.8), pytest.approx(np.std(values, ddof=1)), 5)
    assert Spread.of([1.0, 2.0, math.inf]) == Spread(math.inf, None, 3)


def test_printed_conventions_stand_side_by_side(folders, tmp_path, capsys):
    asked = ["strict", "ssl4mis"]
    scores = evaluate_folders(*folders, tmp_path / "scores.csv", classes=CLASSES, conventions=asked)
    capsys.readouterr()
    print_summary(scores, Console(width=100))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "class dice iou hd95 asd counts"
    spleen = lines.index("spleen 0.000 (2) 0.000 (2) 3.000 (1) 3.000 (1) 1 scored, 0 absent")
    assert lines[spleen + 2].startswith("ssl4mis 0.000 (2) 0.000 (2) 0.500 (2) 0.500 (2)")
    assert any("strict in mm, ssl4mis in voxel" in line for line in lines)
