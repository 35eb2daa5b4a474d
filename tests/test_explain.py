"""Pairs of tables that differ for one known reason each, and the sentence that names it."""

import json
import re

import nibabel as nib
import numpy as np
import pytest

from medssl.data.io import read_label, write_image
from medssl.errors import DataError
from medssl.evaluate import evaluate_folders
from medssl.explain import explain
from medssl.metrics import dice, hd95
from medssl.score_file import read_scores

CLASSES = ["background", "liver", "canal"]
SPACING = (1.0, 1.5, 3.0)


@pytest.fixture
def folders(tmp_path):
    """Three cases; the canal is missed in the second and absent from the third."""
    rng = np.random.default_rng(0)
    for case in range(3):
        reference = np.zeros((15, 17, 11), np.uint8)
        reference[3:9, 4:12, 2:8] = 1
        if case < 2:
            reference[11:13, 5:14, 3:6] = 2
        prediction = np.roll(reference, (1, case, 1), (0, 1, 2))
        prediction[prediction == 2] = 0 if case == 1 else 2
        prediction[rng.random(prediction.shape) < 0.003] = 1
        for folder, array in [("p", prediction), ("r", reference)]:
            write_image(tmp_path / folder / f"case{case}.nii.gz", array, np.diag([*SPACING, 1.0]))
    return tmp_path / "p", tmp_path / "r"


def scored(folders, name, **options):
    out = folders[0].parent / name
    evaluate_folders(*folders, out, classes=CLASSES, workers=0, **options)
    return out


def reasons(a, b):
    """The lines below each metric, by metric."""
    found, metric = {}, None
    for line in explain(a, b):
        if match := re.match(r"(\w+): .*numbers", line):
            metric = match[1]
            found[metric] = []
        elif metric and line.startswith("  "):
            found[metric].append(line.strip())
    return found


def test_a_table_does_not_differ_from_itself(folders):
    table = scored(folders, "a.csv")
    assert set(map(tuple, reasons(table, table).values())) == {()}
    assert not any("other" in line for line in explain(table, table))


def test_definition_unit_and_empty_rule_of_a_convention_are_told_apart(folders):
    found = reasons(scored(folders, "a.csv"), scored(folders, "b.csv", conventions=["ssl4mis"]))
    definition, missed, absent, average = found["hd95"]
    assert definition.startswith(
        "4 by rule: A is the larger of both directed 95th percentiles, in mm, "
        "B is the 95th percentile of both directions together, in voxels"
    )
    assert missed.startswith("1 by rule: A is undefined for missed classes, as in monai, B is 0 for missed classes")
    assert absent.startswith("1 by rule: A is undefined for absent classes")
    assert "averaged differently" in average
    (absent, average) = found["dice"]
    assert "B is 0 for absent classes, as in ssl4mis" in absent
    assert re.search(r"a mean over cases; [\d.]+ in B, a mean over classes", average)


def test_an_infinite_distance_is_explained_by_monai(folders):
    found = reasons(scored(folders, "a.csv"), scored(folders, "b.csv", conventions=["monai"], units="mm"))
    assert "hd95" in found
    assert found["hd95"] == found["hd95_max"] == found["nsd"] == []
    (line,) = found["hd"]
    assert line.startswith("1 by rule: A is undefined for missed classes, B is inf for missed classes, as in monai")


def test_another_tolerance_and_another_unit_are_named(folders):
    found = reasons(scored(folders, "a.csv"), scored(folders, "b.csv", tolerance=2.5))
    assert found["nsd"][0].startswith("3 by rule: A is the share within 1, in mm, B is the share within 2.5, in mm")
    assert found["hd95"] == []
    found = reasons(scored(folders, "c.csv"), scored(folders, "d.csv", units="voxel"))
    assert "B is the mean of both directions together, in voxels" in found["assd"][0]


def test_other_files_are_named_and_counted(folders):
    a = scored(folders, "a.csv")
    array = np.zeros((15, 17, 11), np.uint8)
    array[3:9, 4:12, 2:8] = 1
    array[11:13, 5:14, 3:6] = 2
    other = folders[0].parent / "better"
    write_image(other / "case0.nii.gz", array, np.diag([*SPACING, 1.0]))
    b = scored((other, folders[1]), "b.csv")
    lines = explain(a, b)
    assert any(line.startswith("other cases: 2 (case1, case2) in A only; A's means") for line in lines)
    assert any(re.match(r"other files: case0, prediction: \d+ voxels differ", line) for line in lines)
    found = reasons(a, b)
    assert found["dice"][0].startswith("2 by other files: both are Dice of the volume")
    for metric in ("boundary_iou", "volume_difference", "relative_volume"):
        assert found[metric]
        assert all("by other files: both are" in reason for reason in found[metric]), found[metric]


def test_rules_are_found_for_a_reference_stored_along_other_axes(folders):
    expected = reasons(scored(folders, "a.csv"), scored(folders, "b.csv", conventions=["monai"]))
    for path in folders[1].iterdir():
        nib.save(nib.load(path).as_reoriented(np.array([[2, 1], [0, -1], [1, 1]])), path)
    found = reasons(scored(folders, "c.csv"), scored(folders, "d.csv", conventions=["monai"]))
    assert found == expected
    assert any(found.values())


def test_another_spacing_is_named(folders):
    a = scored(folders, "a.csv")
    one = folders[0].parent / "one"
    for folder in ("p", "r"):
        for case in range(3):
            array = read_label(folders[0].parent / folder / f"case{case}.nii.gz").array.astype(np.uint8)
            write_image(one / folder / f"case{case}.nii.gz", array, np.eye(4))
    b = scored((one / "p", one / "r"), "b.csv")
    assert any("other spacing: 1 x 1.5 x 3 mm in A, 1 x 1 x 1 mm in B" in line for line in explain(a, b))


def test_nnunets_summary_is_read_and_its_average_explained(folders):
    a = scored(folders, "a.csv")
    nnunet = evaluate_folders(*folders, folders[0].parent / "n.csv", classes=CLASSES, workers=0, conventions=["nnunet"])
    cases = {}
    for score in nnunet:
        nan = float("nan")
        numbers = {"Dice": nan if score.dice is None else score.dice, "IoU": nan if score.iou is None else score.iou}
        cases.setdefault(score.case, {})[str(score.label)] = numbers
    summary = folders[0].parent / "summary.json"
    summary.write_text(json.dumps({"metric_per_case": [
        {"prediction_file": str(folders[0] / f"{case}.nii.gz"), "reference_file": str(folders[1] / f"{case}.nii.gz"),
         "metrics": metrics} for case, metrics in cases.items()
    ]}))  # fmt: skip
    (line,) = reasons(a, summary)["dice"]
    assert line.startswith("averaged differently")


def test_a_foreign_table_in_percent_by_slices_and_one_that_nothing_explains(folders):
    a = scored(folders, "a.csv")
    scores = evaluate_folders(*folders, a, classes=CLASSES, workers=0, overwrite=True)
    livers = {score.case: score.dice for score in scores if score.label == 1}
    other = folders[0].parent / "other.csv"
    rows = [f"{case}.nii.gz,1,{100 * value:.2f},123.45" for case, value in livers.items()]
    other.write_text("\n".join(["Filename,Label,DSC,HD95", *rows]) + "\n")
    found = reasons(a, other)
    assert found["dice"][0].startswith("3 by rule: A is Dice of the volume, B is Dice of the volume in percent")
    assert found["hd95"][0].startswith("3 unexplained: no rule gives B's number from the files")


@pytest.mark.parametrize(
    ("head", "between", "point"),
    [("Case;Class;Dice [%];HD95 (mm)", ";", ","), ("case\tlabel\tDSC (%)\tHausdorff (95%)", "\t", "."),
     ("case,class,dice_%,hd95_mm", ",", "."),
     ("# made elsewhere\n\nID,Structure,Dice %,hd95 (mm)", ",", ".")],
)  # fmt: skip
def test_tables_of_spreadsheets_are_read(folders, tmp_path, head, between, point):
    ours = scored(folders, "a.csv")
    rows = [between.join([s.case, s.class_name, f"{100 * s.dice:.2f}".replace(".", point),
                          f"{s.hd95:.3f}".replace(".", point)])
            for s in read_scores(ours) if s.dice is not None and s.hd95 is not None]  # fmt: skip
    (tmp_path / "b.csv").write_text("\n".join([head, *rows]))
    words = "\n".join(explain(ours, tmp_path / "b.csv"))
    assert "Dice of the volume in percent" in words
    assert f"hd95: all {len(rows)} numbers are the same" in words
    (tmp_path / "b.csv").write_text("\n".join([head, *rows, between.join(["other", "liver", "half", "1"])]))
    with pytest.raises(DataError, match=rf"b\.csv:{head.count(chr(10)) + len(rows) + 2}: .*half"):
        explain(ours, tmp_path / "b.csv")


def test_a_plain_name_wins_over_one_with_a_unit_and_the_first_of_two_units(folders, tmp_path):
    ours = scored(folders, "a.csv")
    rows = [f"{s.case},{s.class_name},{100 * s.dice},{s.dice},{s.hd95},-1" for s in read_scores(ours)
            if s.dice is not None and s.hd95 is not None]  # fmt: skip
    (tmp_path / "b.csv").write_text("\n".join(["case,class,Dice %,Dice,HD95 (mm),HD95 (voxel)", *rows]))
    words = "\n".join(explain(ours, tmp_path / "b.csv"))
    assert f"dice: all {len(rows)} numbers are the same" in words
    assert f"hd95: all {len(rows)} numbers are the same" in words


@pytest.mark.parametrize("saved", ["{},,,", '"{}"', "{};;"])
def test_a_table_that_a_spreadsheet_saved_is_told(folders, tmp_path, saved):
    ours = scored(folders, "a.csv")
    (tmp_path / "b.csv").write_text("\n".join(saved.replace("{}", line) for line in ours.read_text().splitlines()))
    for read in (read_scores, lambda path: explain(ours, path)):
        with pytest.raises(DataError, match=r"b\.csv: a spreadsheet program has saved this table"):
            read(tmp_path / "b.csv")


def test_reversed_spacing_and_mean_over_slices_are_recognised(folders):
    a, rows = scored(folders, "a.csv"), []
    for case in range(3):
        pair = [read_label(folder / f"case{case}.nii.gz").array == 1 for folder in folders]
        slices = [dice(one, other) for one, other in zip(*(np.moveaxis(mask, 2, 0) for mask in pair), strict=True)]
        mean = np.mean([value for value in slices if value is not None])
        rows.append(f"case{case},liver,{mean:.5f},{hd95(*pair, SPACING[::-1]):.5f}")
    other = folders[0].parent / "other.csv"
    other.write_text("\n".join(["case,class,dice,hd95", *rows]) + "\n")
    found = reasons(a, other)
    assert "B is the mean over slices across axis 2, empty ones left out" in found["dice"][0]
    assert "in mm with the axes of the spacing reversed" in found["hd95"][0]


def test_decimals_of_percent_and_millimetres_are_rounding_and_no_rule(folders, tmp_path):
    ours = scored(folders, "a.csv")
    for factor, decimals in ((100, 1), (100, 0), (100, 2)):
        rows = [f"{s.case},{s.class_name},{factor * s.dice:.{decimals}f},{s.hd95:.1f}" for s in read_scores(ours)
                if s.dice is not None and s.hd95 is not None]  # fmt: skip
        (tmp_path / "b.csv").write_text("\n".join(["case,class,Dice,HD95", *rows]))
        words = "\n".join(explain(ours, tmp_path / "b.csv"))
        assert "unexplained" not in words
        assert "Dice of the volume in percent" in words
        assert f"hd95: all {len(rows)} numbers are the same" in words


def test_rows_that_overwrite_each_other_or_say_nothing_of_classes_are_refused(folders, tmp_path):
    ours = scored(folders, "a.csv")
    names = list(dict.fromkeys(s.case for s in read_scores(ours)))
    (tmp_path / "b.csv").write_text("\n".join(["case,dice", *(f"{name},0.5" for name in names)]))
    with pytest.raises(DataError, match=r"b\.csv: needs a column `class`, because the other table has several"):
        explain(ours, tmp_path / "b.csv")
    (tmp_path / "b.csv").write_text(f"case,roi,dice\n{names[0]},1,0.5\n{names[0]},2,0.4\n")
    with pytest.raises(DataError, match=r"b\.csv:3: case .* occurs a second time; if there is a row per class"):
        explain(ours, tmp_path / "b.csv")


def test_without_its_files_a_difference_is_not_explained(folders):
    a = scored(folders, "a.csv")
    b = scored(folders, "b.csv", units="voxel")
    for folder in folders:
        for path in folder.iterdir():
            path.unlink()
    assert reasons(a, b)["hd95"][0].startswith("4 unexplained: the label maps")


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", "x,y\n1,2\n"), ("a.csv", ""), ("a.json", "{}"), ("a.json", "["), ("a.csv", "case,dice\na,half\n")],
)
def test_what_is_no_table_is_refused(folders, tmp_path, name, text):
    table = scored(folders, "b.csv")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=name):
        explain(tmp_path / name, table)


def test_tables_of_different_cases_share_nothing(folders, tmp_path):
    (tmp_path / "x.csv").write_text("case,class,dice\nz,liver,0.5\n")
    with pytest.raises(DataError, match="have no numbers in common"):
        explain(scored(folders, "a.csv"), tmp_path / "x.csv")
