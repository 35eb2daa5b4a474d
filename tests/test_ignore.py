"""A dataset with values of its own, voxels that nobody annotated and a region: from files to a report."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import PARTLY
from typer.testing import CliRunner

from medssl.cli import app
from medssl.comparison import load_runs, make_rows
from medssl.config import dump, parse
from medssl.data.cases import IGNORED
from medssl.data.draw import Wish, make_split
from medssl.data.io import write_image
from medssl.data.patches import TrainingData
from medssl.data.prepared import read_prepared
from medssl.data.splits import write_split
from medssl.errors import ConfigError, DataError
from medssl.evaluate import evaluate_folders
from medssl.explain import explain
from medssl.foreign import ScoreTable
from medssl.logs import NoLog
from medssl.metrics import hd95
from medssl.predict import predict
from medssl.prepare import prepare
from medssl.report import write_report
from medssl.report.voxels import agreement, agreements
from medssl.run import RunConfig, make_predictor
from medssl.score_file import read_scores
from medssl.scores import summarise
from medssl.train import make_streams, make_trainer, open_data, score_cases, train


@pytest.fixture(scope="module")
def partly(partly_annotated, tmp_path_factory):
    """`(raw folder, prepared folder, splits.json)` of balls that were annotated in part; read only."""
    raw, prepared = partly_annotated
    path = tmp_path_factory.mktemp("partly") / "splits.json"
    write_split(path, make_split(read_prepared(prepared), Wish(labelled=2, val=2, test=2)))
    return raw, prepared, path


@pytest.fixture
def config(partly):
    def make(method="supervised", data=(), **train_settings):
        found = read_prepared(partly[1]).config.model_dump(mode="json") | dict(data)
        batch = {"labelled_batch": 2, "unlabelled_batch": 0 if method == "supervised" else 2}
        return parse(RunConfig, {
            "data": {**found, "root": str(partly[1]), "splits": str(partly[2])},
            "method": {"name": method},
            "network": {"name": "unet", "channels": [4, 8], "strides": [2], "dropout": 0.1},
            "augment": {"preset": "strong"},
            "train": {"iterations": 200, "patch": [12, 12, 8], "lr": 0.01, "optimizer": "adamw", "validate_every": 200,
                      "log_every": 1, **batch, **train_settings},
        })  # fmt: skip

    return make


def test_batches_hold_classes_and_where_they_are_known(config):
    settings = config(iterations=20)
    data = open_data(settings)
    trainer = make_trainer(settings, settings.data.root / "nowhere", torch.device("cpu"))
    batches = list(trainer.batches(*make_streams(settings, data), last=20))
    assert {value for batch in batches for value in batch.label.unique().tolist()} == {0, 1, 2}
    shares = [batch.known.float().mean().item() for batch in batches]
    assert all(batch.known.dtype == torch.bool and not batch.label[~batch.known].any() for batch in batches)
    assert 0.2 < np.mean(shares) < 0.5


@pytest.mark.parametrize("method", ["supervised", "mean_teacher"])
def test_training_learns_what_lies_where_nobody_annotated_too(config, balls, tmp_path, method):
    """The network is scored on the same volumes with their whole labels."""
    settings = config(method)
    run = train(settings, tmp_path / "run", quiet=True)
    trainer = make_trainer(settings, run, torch.device("cpu"))
    trainer.load(run / "last.pt")
    whole = TrainingData(read_prepared(balls[1]), open_data(settings).split)
    found = score_cases(
        make_predictor(trainer.method, settings, trainer.device), whole, whole.split.val, "val", 0, NoLog()
    )
    assert found["dice"] > 0.6


def test_validation_counts_what_was_annotated_and_nothing_else(config):
    """A prediction that is right where somebody looked and wrong everywhere else is perfect."""
    settings = config()
    data = open_data(settings)

    class Oracle:
        classes = settings.data.classes

        def likeliest(self, image):
            reference = next(data.label(id)[...] for id in data.split.val if np.array_equal(data.image(id)[...], image))
            assert (reference == IGNORED).any()
            return np.where(reference == IGNORED, 2, reference)

    assert score_cases(Oracle(), data, data.split.val, "val", 1, NoLog())["dice"] == 1


# ---- evaluation

SHAPE = (5, 6, 7)


def drawn():
    """A reference in its own values, and a prediction of classes that would be much worse without `ignore`."""
    reference, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    reference[1, 2, :4], reference[1, 2, 4:], reference[2] = 3, 200, 200
    reference[3, 3, :2], reference[3, 3, 2] = 9, 7
    prediction[1, 2, 2:], prediction[2], prediction[4, 0, 0], prediction[3, 3, 0] = 1, 2, 1, 1
    prediction[3, 3, 1:3] = 2
    return reference, prediction


@pytest.fixture
def folders(tmp_path):
    """`(predictions, references)` of one case."""
    for folder, array in zip(("references", "predictions"), drawn(), strict=True):
        write_image(tmp_path / folder / "a.nii.gz", array, np.diag([1.0, 2.0, 3.0, 1.0]))
    return tmp_path / "predictions", tmp_path / "references"


def evaluated(folders, out, **options):
    options = {"data": PARTLY, "workers": 0, "overwrite": True} | options
    return evaluate_folders(*folders, out, **options)


def as_nnunet_counts(reference, prediction, values, places):
    """Dice by nnU-Net's words: TP, FP and FN among the voxels whose reference is not the ignore label."""
    used = reference != 200
    ours, theirs = np.isin(prediction, places), np.isin(reference, values)
    tp, fp, fn = ((a & b & used).sum() for a, b in ((ours, theirs), (ours, ~theirs), (~ours, theirs)))
    return 2 * tp / (2 * tp + fp + fn)


def test_voxels_that_nobody_annotated_are_in_no_number(folders, tmp_path):
    scores = evaluated(folders, tmp_path / "scores.csv")
    assert [(score.class_name, score.label, score.is_region) for score in scores] == [
        ("shell", 1, False), ("core", 2, False), ("ball", 3, True),
    ]  # fmt: skip
    assert [(score.prediction_voxels, score.reference_voxels) for score in scores] == [(4, 4), (2, 3), (6, 7)]
    assert [score.dice for score in scores] == pytest.approx([4 / 8, 4 / 5, 10 / 13])
    meant = [((3,), (1,)), ((7, 9), (2,)), ((3, 7, 9), (1, 2))]
    assert [score.dice for score in scores] == pytest.approx([as_nnunet_counts(*drawn(), *each) for each in meant])
    ours, theirs = np.zeros((2, *SHAPE), bool)
    ours[1, 2, 2:4] = ours[4, 0, 0] = ours[3, 3, :3] = theirs[1, 2, :4] = theirs[3, 3, :3] = True
    assert scores[2].hd95 == pytest.approx(hd95(ours, theirs, (1.0, 2.0, 3.0)))


def test_the_overall_number_is_that_of_classes_but_where_a_tool_counts_regions(folders, tmp_path):
    scores = evaluated(folders, tmp_path / "scores.csv", conventions=["strict", "nnunet", "brats"])
    strict, nnunet, brats = map(summarise, (scores, *scores.beside))
    assert brats.overall.dice.mean == pytest.approx(nnunet.overall.dice.mean)
    assert [row.class_name for row in strict.classes] == ["shell", "core", "ball"]
    assert strict.overall.dice.mean == pytest.approx((4 / 8 + 4 / 5) / 2)
    assert strict.overall.scored == 2
    assert nnunet.overall.dice.mean == pytest.approx(10 / 13)
    among = PARTLY.model_copy(update={"regions": {**PARTLY.regions, "core": ("core",)}})
    both = evaluated(folders, tmp_path / "both.csv", data=among, conventions=["nnunet"])
    assert [row.class_name for row in summarise(both).classes] == ["shell", "core", "ball"]
    for table in (both, read_scores(tmp_path / "both.csv")):
        assert summarise(table).overall.dice.mean == pytest.approx((10 / 13 + 4 / 5) / 2, abs=1e-5)
    plain = evaluated(folders, tmp_path / "s.csv", data=PARTLY.model_copy(update={"regions": {}}),
                      conventions=["nnunet"])  # fmt: skip
    assert summarise(plain).overall.dice.mean == pytest.approx((4 / 8 + 4 / 5) / 2)


def test_the_table_says_what_labels_mean_and_comes_back_as_it_was(folders, tmp_path):
    scores = evaluated(folders, tmp_path / "scores.csv")
    read = read_scores(tmp_path / "scores.csv")
    assert [(s.class_name, s.label, s.is_region, s.status) for s in read] == [
        (s.class_name, s.label, s.is_region, s.status) for s in scores
    ]
    for key in ("classes", "values", "ignore", "regions"):
        assert getattr(read.data, key) == getattr(PARTLY, key)
    assert "# region ball: 1 scored" in (tmp_path / "scores.csv").read_text()
    assert "regions left out" in (tmp_path / "scores.csv").read_text()


def test_what_references_mean_may_be_said_in_four_ways(folders, tmp_path):
    """By settings, in a file or not, by the prepared folder, or by the predictions.json beside the predictions."""
    scores = evaluated(folders, tmp_path / "scores.csv")
    labels = PARTLY.model_dump(mode="json", include={"classes", "values", "ignore", "regions"})
    dump({"data": {"name": "balls", **labels}}, tmp_path / "balls.yaml")
    words = ["evaluate", *map(str, folders), "-o", str(tmp_path / "b.csv"), "--workers", "0"]
    assert CliRunner().invoke(app, [*words, "--config", str(tmp_path / "balls.yaml")]).exit_code == 0
    assert read_scores(tmp_path / "b.csv").data.values == PARTLY.values

    raw = tmp_path / "raw"
    for folder in ("images", "labels"):
        (raw / folder).mkdir(parents=True)
        shutil.copy(folders[1] / "a.nii.gz", raw / folder / "a.nii.gz")
    prepare(raw, tmp_path / "prepared", PARTLY, workers=0)
    by_folder = evaluated((folders[0], tmp_path / "prepared"), tmp_path / "c.csv", data=None)
    (folders[0] / "predictions.json").write_text(json.dumps(labels))
    by_record = evaluated(folders, tmp_path / "d.csv", data=None)
    assert list(scores) == list(by_folder) == list(by_record)
    assert [s.dice for s in read_scores(tmp_path / "b.csv")] == pytest.approx([s.dice for s in scores], rel=1e-5)


def test_labels_may_lie_in_several_folders_and_in_frames(folders, tmp_path):
    reference, prediction = drawn()
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    write_image(tmp_path / "one" / "frames.nii.gz", np.stack([0 * reference, reference], -1), affine)
    write_image(tmp_path / "two" / "label.nii.gz", reference, affine)
    expected = [score.dice for score in evaluated(folders, tmp_path / "s.csv")]
    write_image(folders[0] / "b.nii.gz", prediction, affine)
    rows = ("id,image,label", "a,two/label.nii.gz,one/frames.nii.gz#1", "b,two/label.nii.gz,two/label.nii.gz")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    prepare(tmp_path / "list.csv", tmp_path / "prepared", PARTLY, workers=0)
    scores = evaluated((folders[0], tmp_path / "prepared"), tmp_path / "a.csv", data=None)
    assert [score.dice for score in scores] == 2 * expected
    evaluated((folders[0], tmp_path / "prepared"), tmp_path / "b.csv", data=None, conventions=["monai"])
    assert "unexplained" not in "".join(explain(tmp_path / "a.csv", tmp_path / "b.csv"))


def test_values_that_stand_for_no_class_are_named(folders, tmp_path):
    other = PARTLY.model_copy(update={"values": {"shell": (3,), "core": (7,)}})
    with pytest.raises(DataError, match="holds 9, which stands for no class"):
        evaluated(folders, tmp_path / "s.csv", data=other)
    with pytest.raises(DataError, match="prediction holds label 3, 7, 9, 200; the classes are 0 to 2"):
        evaluated((shutil.copytree(folders[1], tmp_path / "copy"), folders[1]), tmp_path / "s.csv")
    own = np.array([0, 3, 7], np.uint8)[drawn()[1]]
    write_image(tmp_path / "own" / "a.nii.gz", own, np.diag([1.0, 2.0, 3.0, 1.0]))
    with pytest.raises(DataError, match=r'(?s)prediction holds label 3, 7;.*put \{"own_values": \[0, 3, 7\]\} into'):
        evaluated((tmp_path / "own", folders[1]), tmp_path / "s.csv")
    with pytest.raises(ConfigError, match="leave `classes` out"):
        evaluated(folders, tmp_path / "s.csv", classes=["a", "b"])
    (folders[0] / "predictions.json").write_text(json.dumps({"classes": ["a", "b"], "values": {"c": [1]}}))
    with pytest.raises(DataError, match=r"(?s)predictions\.json: .*names c"):
        evaluated(folders, tmp_path / "s.csv", data=None)


def test_a_region_can_have_a_tolerance_and_instances_of_its_own(folders, tmp_path):
    scores = evaluated(folders, tmp_path / "s.csv", tolerances={"ball": 50.0}, instances=["ball"])
    assert scores[2].value("nsd") == 1 > scores[0].value("nsd")
    assert [score.value("instances_reference") for score in scores] == [None, None, 2]


def test_explain_works_numbers_of_regions_and_of_partly_annotated_cases_out_again(folders, tmp_path):
    evaluated(folders, tmp_path / "a.csv")
    evaluated(folders, tmp_path / "b.csv", conventions=["monai"])
    lines = explain(tmp_path / "a.csv", tmp_path / "b.csv")
    assert any(line.startswith("hd95: 3 of 3 numbers differ") for line in lines)
    assert any("by rule: A is" in line for line in lines)
    assert not [line for line in lines if "unexplained" in line]


def test_regions_of_nnunets_summary_are_known_by_their_labels(folders, tmp_path):
    scores = evaluated(folders, tmp_path / "a.csv", conventions=["nnunet"])
    names = {"shell": "1", "core": "(2,)", "ball": "(1, 2)"}
    metrics = {names[s.class_name]: {"Dice": s.dice, "IoU": s.value("iou")} for s in scores}
    prediction, reference = scores.files[scores[0].case]
    entry = {"prediction_file": str(prediction), "reference_file": str(reference.path), "metrics": metrics}
    (tmp_path / "summary.json").write_text(json.dumps({"metric_per_case": [entry]}))
    for pair in (("a.csv", "summary.json"), ("summary.json", "a.csv")):
        lines = explain(*(tmp_path / name for name in pair))
        assert "dice: all 3 numbers are the same" in lines
        assert not [line for line in lines if line.startswith("other classes")]


def test_a_class_whose_name_is_a_number_is_not_taken_for_a_label():
    theirs = ScoreTable("nnU-Net", {("a", "1"): {}, ("a", "11"): {}}, {"1": (1,), "11": (11,)})
    ours = ScoreTable("ours", {("a", "11"): {}, ("a", "23"): {}}, {"11": (1,), "23": (11,)})
    for one, other in ((ours, theirs), (theirs, ours)):
        one.adopt_names(other)
    assert ours.cells.keys() == theirs.cells.keys() == {("a", "11"), ("a", "23")}


def test_confusion_and_calibration_count_annotated_voxels():
    reference, prediction = drawn()
    classes = np.select([reference == 3, reference == 200, reference > 0], [1, IGNORED, 2], 0)
    certainty = np.full(SHAPE, 0.75)
    found = agreement(prediction, classes, certainty, 3, known=classes != IGNORED)
    assert found.confusion.tolist() == [[0, 1, 0], [2, 2, 0], [0, 1, 2]]
    inside = np.argwhere((classes != IGNORED) & ((classes > 0) | (prediction > 0)))
    box = tuple(slice(low, high + 1) for low, high in zip(inside.min(0), inside.max(0), strict=True))
    assert found.certainty[:, 0].sum() == (classes[box] != IGNORED).sum()
    assert found.certainty[:, 2].sum() == (classes[box] == prediction[box]).sum()


def test_a_run_is_predicted_scored_and_reported(config, partly, balls, tmp_path):
    run = train(config(iterations=60), tmp_path / "run", quiet=True)
    predict(run, [], run / "test", part="test", uncertainty=True)
    made = json.loads((run / "test" / "predictions.json").read_text())
    assert (made["values"], made["ignore"], made["regions"]) == (
        {"shell": [3], "core": [7, 9]}, [200], {"ball": ["shell", "core"]},
    )  # fmt: skip
    scores = evaluate_folders(run / "test", partly[1], run / "scores.csv", workers=0)
    by_hand = evaluate_folders(run / "test", partly[0] / "labels", tmp_path / "by_hand.csv", workers=0)
    assert list(scores) == list(by_hand)
    assert {score.class_name for score in scores} == {"shell", "core", "ball"}
    page = write_report([run], tmp_path / "report", workers=0).read_text()
    assert "No picture" not in page
    assert "ball" in (tmp_path / "report" / "tables.md").read_text()
    rows = make_rows(load_runs([run]))
    (found,) = agreements(rows, 3, workers=0)
    assert found.unread == 0
    assert found.confusion[1:].sum() == sum(s.reference_voxels for s in scores if not s.is_region)
    case = scores[0].case
    values = [score.dice for score in scores if score.case == case and not score.is_region]
    assert rows[0].case_dice[case] == pytest.approx(np.mean(values), rel=1e-5)


@pytest.mark.parametrize("data", [{"ignore": []}, {"values": {"shell": [3], "core": [7]}}])
def test_labels_that_were_prepared_with_other_values_are_refused(config, data):
    with pytest.raises(ConfigError, match="was prepared with"):
        open_data(config(data=data))
