"""Run folders in, one page out: the numbers are those drawn, and the page needs nothing but itself."""

import base64
import hashlib
import html
import io
import json
import re
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from medssl.comparison import comparison_table, load_runs, make_rows
from medssl.data.io import read_image, write_image, write_shares
from medssl.data.volume import Volume
from medssl.errors import ConfigError, DataError
from medssl.evaluate import evaluate_folders
from medssl.overlay import overlay
from medssl.report import write_report

SHAPE = (5, 6, 7)
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
CLASSES = ["background", "liver", "stone"]
REFERENCE = {"liver": 0}


def label_map(places):
    """Each class is a row of 4 voxels along the last axis, from the given place on; None leaves it out."""
    array = np.zeros(SHAPE, np.uint8)
    for name, place in places.items():
        if place is not None:
            array[CLASSES.index(name), 2, place : place + 4] = CLASSES.index(name)
    return array


class Factory:
    """Writes run folders, and predictions whose Dice one can tell in one's head: 1 - shift / 4."""

    def __init__(self, root):
        self.root = root

    def run(self, name, method, seed, *, settings=None, splits=None, last=30):
        run = self.root / name
        run.mkdir(parents=True)
        config = {
            "data": {"name": "toy", "classes": CLASSES, "channels": ["MRI"], "root": f"/data/{name}"},
            "method": {"name": method},
            "network": {"name": "unet", "channels": [4, 8], "norm": "instance", "dropout": 0.0},
            "augment": {"preset": "weak", "flips": [0]},
            "train": {"iterations": 30, "seed": seed, "labelled_batch": 2, "unlabelled_batch": 2, "patch": [4, 4, 4],
                      "optimizer": "sgd", "lr": 0.01},
            "window": {"network": "student", "largest_component": []},
        }  # fmt: skip
        for key, value in (settings or {}).items():
            section, _, entry = key.partition(".")
            config[section][entry] = value
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        parts = {"labelled": ["x"], "unlabelled": ["y", "z"], "val": ["v"], "test": ["a", "b"]}
        (run / "splits.json").write_text(json.dumps(parts | (splits or {})))
        (run / "env.json").write_text(json.dumps({"medssl": "0", "torch": "2", "gpus": ["A GPU"]}))
        rows = [f"{step},{1 / step:.3f},0.1,0.25," for step in range(10, last + 1, 10)]
        rows += ["20,,,,0.5", "30,,,,0.7"] if last == 30 else []
        (run / "metrics.csv").write_text("step,loss/$a_,lr,seconds_per_step,val/dice\n" + "\n".join(rows) + "\n")
        return run

    def score(self, run, predictions, *, images=True, classes=CLASSES, references=None, uncertainty=None, **rules):
        """Predict each case as drawn, against rows of voxels that start at 0; all equally uncertain, or not asked."""
        sources, ours, theirs = (self.root / kind / run.name for kind in ("images", "predictions", "references"))
        for case, places in predictions.items():
            write_image(ours / f"{case}.nii.gz", label_map(places), AFFINE)
            write_image(theirs / f"{case}.nii.gz", label_map(references or REFERENCE), AFFINE)
            if uncertainty is not None:
                like = read_image(ours / f"{case}.nii.gz")
                write_shares(ours / "uncertainty" / f"{case}.nii.gz", np.full(SHAPE, uncertainty), like)
            if images:
                noise = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
                write_image(sources / f"{case}.nii.gz", noise, AFFINE)
        made = {"method": yaml.safe_load((run / "config.yaml").read_text())["method"]["name"], "checkpoint": "best.pt",
                "iteration": 20, "network": "student", "classes": classes,
                "uncertainty": None if uncertainty is None else "uncertainty",
                "images": {case: [str(sources / f"{case}.nii.gz")] for case in predictions}}  # fmt: skip
        (ours / "predictions.json").write_text(json.dumps(made))
        evaluate_folders(ours, theirs, run / "scores.csv", workers=0, **rules)
        return run


class Page(HTMLParser):
    """The text of a page, its tables by id, its attributes and its images."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.text, self.tables, self.tags, self.attributes = "", {}, set(), []
        self._table = None
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "table":
            self._table = self.tables.setdefault(dict(attrs)["id"], [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")
        elif tag == "small" and self._table:
            self._table[-1][-1] += "|"

    def handle_endtag(self, tag):
        if tag == "table":
            self._table = None

    def handle_data(self, data):
        self.text += data
        if self._table and self._table[-1]:
            self._table[-1][-1] += data.strip()

    @property
    def words(self):
        return " ".join(self.text.split())

    def column(self, table, head):
        """Cells of the column whose head starts so, in rows without a cell that spans several columns."""
        heads, *rows = self.tables[table]
        (index,) = [i for i, text in enumerate(heads) if text.startswith(head)]
        return [row[index] for row in rows if len(row) == len(heads)]

    @property
    def images(self):
        return [value for name, value in self.attributes if name == "src"]


@pytest.fixture(scope="module", autouse=True)
def _no_niivue_fetched_before(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def factory(tmp_path):
    return Factory(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two methods of two seeds, and a run without scores."""
    factory = Factory(tmp_path_factory.mktemp("compared"))
    shifts = {("supervised", 1): (1, 2), ("supervised", 2): (2, 3), ("bcp", 1): (0, 1), ("bcp", 2): (1, 2)}
    runs = [
        factory.score(factory.run(f"{method}-{seed}", method, seed), {"a": {"liver": a}, "b": {"liver": b}})
        for (method, seed), (a, b) in shifts.items()
    ]
    runs.append(factory.run("later", "mean_teacher", 1, last=20))
    return Page(write_report(runs, factory.root / "report", title="Toys & more"))


def one_page(factory, runs, **options):
    return Page(write_report(runs, factory.root / "report", **options))


# ---- what the page says


def test_dice_is_the_mean_over_patients_with_both_spreads_named(page):
    # supervised 0.75 0.5 | 0.5 0.25, bcp 1 0.75 | 0.75 0.5; means of patients 0.625 0.375 and 0.875 0.625
    assert page.column("methods", "Method") == [
        f"{method}|weak, 30 steps, student" for method in ("supervised", "bcp", "mean_teacher")
    ]
    assert page.column("methods", "Dice") == ["50.0 ± 17.7|n 2", "75.0 ± 17.7|n 2", "not scored"]
    assert page.column("methods", "sd of runs") == ["17.7", "17.7", "–"]  # of 0.625 0.375 and 0.875 0.625
    assert page.column("metrics", "IoU")[0] == "35.2 ± 18.8|n 4"  # of 3/5 1/3 1/3 1/7
    assert page.column("methods", "Steps") == ["30|0.1 min"] * 3  # of a quarter of a second each
    assert page.column("methods", "Runs") == ["2|2 cases", "2|2 cases", "0 of 1|0 cases"]


def test_distances_are_in_mm_beside_their_n_and_counts(page):
    # Shifts of 0, 1, 1 and 2 voxels of 3 mm: pooled means 0, 3/4, 3/4 and (3 + 6)/4.
    assert page.column("metrics", "ASD")[1] == "0.94 ± 0.94|n 4"
    # The 95th percentile of 0 0 0 3 lies 0.85 of the way from 0 to 3, that of 0 0 3 6 as far from 3 to 6.
    assert page.column("metrics", "HD95")[1].startswith("2.66 ± ")
    assert page.column("metrics", "Missed") == ["0 / 0 / 4", "0 / 0 / 4"]


def test_the_difference_to_supervised_is_in_dice_points(page):
    assert page.column("methods", "Against supervised") == ["–", "+25.0", "–"]
    assert page.column("gains", "Against supervised") == ["+25.0"]
    assert page.column("gains", "In words")[0].startswith("too few patients to tell: +25.0 points")


def test_distances_have_a_comparison_of_their_own_in_which_shorter_is_better(factory):
    names = [f"case_{n}" for n in range(8)]
    shifts = {"supervised": 2, "bcp": 1}
    runs = [
        factory.score(factory.run(f"{name}-{seed}", name, seed), {case: {"liver": shift} for case in names})
        for name, shift in shifts.items()
        for seed in (1, 2)
    ]
    # A shift of 1 is 0 0 0 3 mm, one of 2 is 0 0 3 6 mm: 95th percentiles of 2.55 and 5.55.
    found = one_page(factory, runs)
    assert found.column("gains", "Against supervised") == ["+25.0"]
    assert found.tables["distances"][0][2] == "Against supervised|HD95, mm"
    assert found.column("distances", "Against supervised") == ["−3.0"]
    assert found.column("distances", "95 % interval") == ["−3.0 to −3.0|8 patients"]
    assert found.column("distances", "In words")[0].startswith("better by 3.0 mm (95 % interval 3.0 to 3.0)")
    factory.root = factory.root / "again"
    runs = [
        factory.score(factory.run(name, name, 1), {"a": {"liver": shift}}, metrics=["dice"])
        for name, shift in shifts.items()
    ]
    assert "distances" not in one_page(factory, runs).tables


def test_a_second_reference_has_a_column_and_a_table_of_its_own(factory):
    shifts = {"supervised": 2, "bcp": 1, "mean_teacher": 0}
    runs = [factory.score(factory.run(name, name, 1), {"a": {"liver": shift}}) for name, shift in shifts.items()]
    found = one_page(factory, runs, references=["supervised", "bcp"])
    assert found.column("methods", "Against supervised") == ["–", "+25.0", "+50.0"]
    assert found.column("methods", "Against bcp") == ["−25.0", "–", "+25.0"]
    assert found.column("gains", "Against supervised") == ["+25.0", "+50.0"]
    assert found.column("gains-2", "Against bcp") == ["−25.0", "+25.0"]
    with pytest.raises(ConfigError, match="reference bpc: no run uses this method; choose one of supervised, bcp"):
        one_page(factory, runs, references=["bpc"], overwrite=True)


def test_every_class_has_its_own_numbers(page):
    rows = page.tables["classes"][1:]
    assert [row[0] for row in rows if len(row) == 1] == ["liver", "stone"]
    assert rows[1][:3] == ["supervised|weak, 30 steps, student", "1", "50.0 ± 20.4|n 4"]
    assert set(rows[4][2:-1]) == {"–|n 0"}
    assert rows[4][-1] == "0 / 0 / 4"


def test_a_run_without_scores_shows_its_curves_and_says_so(page):
    assert page.tables["methods"][3][0] == "mean_teacher|weak, 30 steps, student"
    assert page.tables["methods"][3][2:] == ["not scored", "–", "–", "–", "30|0.1 min", "0 of 1|0 cases"]
    (run,) = [row for row in page.tables["runs"] if row[0] == "later"]
    assert run[4] == "20|of 30"
    assert "later: not scored; its folder holds no scores.csv." in page.words
    assert "later: its log ends at step 20 of 30." in page.words


def test_the_best_validation_stands_in_the_table_of_runs(page):
    assert page.column("runs", "Best validation") == ["70.0|step 30"] * 4 + ["–"]
    assert page.column("runs", "Seconds") == ["0.25"] * 5


def test_validation_is_drawn_for_each_labelled_count_and_says_whether_it_has_settled(factory):
    runs = []
    for name, labelled, levels in (
        ("one", ["x"], (0.5, 0.8)),
        ("two", ["x"], (0.7, 0.8)),
        ("more", ["x", "y"], (0.9, 0.8)),
    ):
        run = factory.run(name, "bcp", len(runs), splits={"labelled": labelled})
        lines = [f"{step},{value}" for step, value in zip((24, 30), levels, strict=True)]  # fifths end at 24 and 30
        (run / "metrics.csv").write_text("\n".join(["step,val/dice", "18,0.1", *lines, ""]))
        runs.append(run)
    runs.append(factory.run("short", "mean_teacher", 1))  # validates at 20 and 30
    (runs[3] / "metrics.csv").write_text("step,val/dice\n15,0.5\n30,0.7\n")
    found = one_page(factory, runs)
    assert "Validation Dice at labelled count 1," in found.words
    assert "bcp: 20.0 points higher in the last fifth of its steps than in the fifth before." in found.words
    assert "mean_teacher: too few validations to tell whether it has settled." in found.words
    assert "Validation Dice at labelled count 2," in found.words
    assert "bcp: 10.0 points lower in the last fifth of its steps than in the fifth before." in found.words
    assert len(found.images) == 2


def test_the_protocol_names_data_split_augmentation_steps_seeds_and_machine(page):
    for words in ("toy", "liver, stone", "1 labelled, 2 unlabelled, 1 val, 2 test", "preset weak", "30 steps", "1, 2",
                  "A GPU", "torch 2"):  # fmt: skip
        assert words in page.words, words


def test_best_and_worst_case_of_the_first_seed_are_drawn(page):
    assert "Best: Dice 75.0 a" in page.words
    assert "Worst: Dice 50.0 b" in page.words
    # Cases, validation, three plots of losses, two confusions, three slices of two cases of two rows.
    assert len(page.images) == 2 + 3 + 2 + 3 * 2 * 2


def test_the_page_asks_for_nothing_outside_itself(page):
    assert all(uri.startswith("data:image/") for uri in page.images)
    assert not page.tags & {"link", "iframe", "object", "embed", "base", "form"}
    assert not {name for name, _ in page.attributes} & {"srcset", "action", "background"}
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    own = re.sub(r"data:image/[^\"]*", "", page.source)
    assert not re.search(r"https?:|url\(|@import|file:|fetch\(", own)


def test_the_browser_may_run_the_page_s_own_scripts_and_nothing_else(page):
    policy = re.search(r"script-src ([^\"]*)\"", page.source)[1]
    scripts = re.findall(r"<script>(.*?)</script>", page.source, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert html.unescape(policy).split() == [f"'sha256-{digest}'" for digest in digests]


def test_plots_are_whole_images(page):
    kinds = {uri.partition(";")[0]: base64.b64decode(uri.partition(",")[2]) for uri in page.images}
    assert kinds["data:image/svg+xml"].startswith(b"<?xml")
    assert pixels(kinds["data:image/webp"]).shape[0] > 300


def test_text_from_files_is_never_markup(factory):
    run = factory.run("<i>run", "supervised", 1, splits={"test": ["<b>&"]})
    factory.score(run, {"<b>&": {"liver": 1}}, classes=["background", "<u>liver", "$x^"])
    found = one_page(factory, [run], title="<script>1</script>")
    assert "<b>&" in found.text
    assert "<u>liver" in found.tables["classes"][1]
    assert "<script>1</script>" in found.words
    assert not found.tags & {"b", "i", "u"}
    assert "<script>1" not in found.source


def test_missed_and_invented_classes_are_counted_and_named(factory):
    run = factory.run("run", "supervised", 1)
    factory.score(run, {"a": {"liver": None, "stone": 1}, "b": {"liver": 0}})
    found = one_page(factory, [run])
    assert found.column("metrics", "Missed") == ["1 / 1 / 1"]
    assert found.column("methods", "Dice") == ["50.0 ± 70.7|n 2"]
    assert found.column("metrics", "ASD") == ["0.00|n 1"]
    assert "liver 0.0 (missed), stone 0.0 (invented)" in found.words
    assert "Against supervised" not in " ".join(found.tables["methods"][0])


def test_overall_numbers_are_by_the_convention_of_the_runs(factory):
    run = factory.run("run", "bcp", 1)
    factory.score(run, {"a": {"liver": 2, "stone": 1}, "b": {"liver": 0}}, conventions=["nnunet"])
    found = one_page(factory, [run])
    # Of the liver 1/3 and 1, of the stone, which was invented once, 0; nnU-Net takes the mean over classes.
    assert found.column("metrics", "IoU") == ["33.3 ± 47.1|n 2"]
    assert found.tables["metrics"][0][2] == "IoU, %|mean ± sd over classes"


def test_a_patient_counts_once_in_mean_interval_and_spread_of_runs(factory):
    patients = {"a": "one", "b": "one", "c": "one", "d": "two"}
    runs = [factory.run(f"run-{seed}", "bcp", seed, splits={"patients": patients, "test": list(patients)})
            for seed in (1, 2)]  # fmt: skip
    for run, shift in zip(runs, (2, 4), strict=True):
        factory.score(run, {case: {"liver": shift if case == "d" else 0} for case in patients})
    found = one_page(factory, runs)
    # Patients 1 1 and 0.5 0: means over runs 1 and 0.25, over patients 0.75 and 0.5.
    assert found.column("methods", "Dice") == ["62.5 ± 53.0|n 2"]
    assert found.column("methods", "sd of runs") == ["17.7"]
    assert found.column("runs", "Dice") == ["87.5 ± 25.0", "75.0 ± 50.0"]
    (row,) = make_rows(load_runs(runs))
    heads, cells = comparison_table([row])
    said = dict(zip(heads, cells, strict=True))
    assert [said[name] for name in ("dice, %", "sd of patients", "sd of runs")] == ["62.5", "53.0", "17.7"]


# ---- what a reader is warned of


def test_another_form_of_the_dice_loss_than_the_references_is_told(factory):
    forms = {"supervised": "squared", "bcp": "squared", "uamt": "foreground"}
    runs = [factory.run(name, name, 1, settings={"method.dice": form}) for name, form in forms.items()]
    for run in runs:
        factory.score(run, {"a": {"liver": 1}, "b": {"liver": 0}})
    words = one_page(factory, runs).words
    assert "uamt, 1 labelled: also differs from supervised, 1 labelled, in method.dice." in words
    assert "bcp, 1 labelled: also differs" not in words


def test_other_classes_and_other_references_are_told_before_anything_is_compared(factory):
    runs = [factory.run(name, name, 1) for name in ("supervised", "bcp", "mean_teacher")]
    factory.score(runs[0], {"a": {"liver": 1}, "b": {"liver": 0}})
    factory.score(runs[1], {"a": {"liver": 1}, "b": {"liver": 0}}, classes=["background", "liver", "pebble"])
    factory.score(runs[2], {"a": {"liver": 1}, "b": {"liver": 0}}, references={"liver": None})
    words = one_page(factory, runs).words
    assert "scored on different classes or regions: liver, stone in supervised; liver, pebble in bcp; their" in words
    assert "reference differs between runs, in the voxel count of a class: 2 (a, b)." in words
    words = one_page(factory, runs[:1], overwrite=True).words
    assert "different classes" not in words
    assert "reference differs" not in words


def test_files_that_changed_between_runs_are_told(factory):
    contents = [{"x": "1", "v": "2"}, {"x": "1", "v": "3", "y": "4"}, {"x": "5", "y": "6"}]
    parts = [{}, {}, {"labelled": ["y"], "unlabelled": ["x", "z"]}]  # with its label, a case has another digest
    runs = [factory.run(f"run-{seed}", "bcp", seed, splits={"content": content, **own})
            for seed, (content, own) in enumerate(zip(contents, parts, strict=True))]  # fmt: skip
    assert "Training cases whose files differ between runs: 1 (v). Their images" in one_page(factory, runs).words
    assert "files differ" not in one_page(factory, runs[::2], overwrite=True).words


def test_runs_of_a_row_that_differ_in_more_than_their_seed_are_named(factory):
    runs = [factory.run("one", "bcp", 1), factory.run("two", "bcp", 2, settings={"train.lr": 0.1}),
            factory.run("three", "bcp", 2)]  # fmt: skip
    found = one_page(factory, runs)
    assert "bcp, 1 labelled: its runs differ in more than their seed: train.lr." in found.words
    assert "bcp, 1 labelled: a seed occurs more than once (1, 2, 2)." in found.words
    assert ["train.lr", "0.01|one, three", "0.1: two"] in found.tables["settings"]


def test_scored_cases_that_trained_the_run_are_named(factory):
    run = factory.score(factory.run("run", "bcp", 1), {"a": {"liver": 0}, "x": {"liver": 0}, "v": {"liver": 0}})
    found = one_page(factory, [run])
    assert "run: scored on cases of the labelled part of its split: 1 (x)." in found.words
    assert "run: scored on cases of the val part of its split: 1 (v)." in found.words
    assert "run: test cases that were not scored: 1 (b), of 2." in found.words


def test_rows_scored_on_other_cases_compare_only_those_that_they_share(factory):
    ours = factory.score(factory.run("ours", "bcp", 1), {"a": {"liver": 0}, "b": {"liver": 0}})
    baseline = factory.score(factory.run("baseline", "supervised", 1), {"a": {"liver": 1}})
    found = one_page(factory, [ours, baseline])
    assert found.column("methods", "Against") == ["–", "+25.0"]
    assert "uses only the cases that both rows have (1)" in found.words
    assert "not all scored on the same cases" in found.words


def test_rows_of_other_augmentation_or_steps_stay_apart(factory):
    cases = {"a": {"liver": 1}, "b": {"liver": 1}}
    ours = factory.score(factory.run("ours", "bcp", 1, settings={"augment.preset": "strong"}), cases)
    baseline = factory.score(factory.run("baseline", "supervised", 1), cases)
    found = one_page(factory, [ours, baseline])
    assert found.column("methods", "Method")[0] == "bcp|strong, 30 steps, student"
    assert "compared with a supervised row that used weak augmentation and 30 steps" in found.words


QUIRKS = [
    ({"splits": {"val": ["a", "b"], "quirks": ["selection on test"]}}, "SELECTION ON TEST. Its validation cases are"),
    ({"splits": {"quirks": ["renamed frames"]}}, "(renamed frames)"),
    ({"splits": {"quirks": ["stratified by labels"]}}, "volumes are spread (stratified by labels)"),
    (
        {"splits": {"quirks": ["stratified by labels", "unlabelled labels seen"]}},
        "including labels of cases that count as unlabelled",
    ),
    ({"settings": {"data.recipe": {"resize": [8, 9]}}}, "slices resized to 8 x 9"),
    ({"settings": {"window.protocol": 0, "data.recipe": {"resize": None}}}, ""),
]


@pytest.mark.parametrize(("options", "said"), QUIRKS)
def test_a_habit_of_the_literature_is_a_note_and_only_where_it_was_taken_up(factory, options, said):
    run = factory.score(factory.run("odd", "bcp", 1, **options), {"a": {"liver": 0}, "b": {"liver": 1}})
    words = one_page(factory, [run]).words
    for _, other in QUIRKS[:3]:
        assert (other in words) == (other == said)


def test_a_named_protocol_lists_where_it_was_not_followed(factory):
    run = factory.score(factory.run("ours", "bcp", 1), {"a": {"liver": 0}, "b": {"liver": 1}})
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["protocol"] = {"name": "toy_paper", "departures": ["the network is another", "no dropout"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    words = one_page(factory, [run]).words
    assert words.count("Unlike the published toy_paper: the network is another; no dropout.") == 1


def test_a_reference_stored_along_other_axes_gives_the_same_pictures_and_confusion(factory):
    run = factory.score(factory.run("run", "bcp", 1), {"a": {"liver": 1, "stone": 2}}, uncertainty=0.2)
    expected = one_page(factory, [run])
    path = factory.root / "references" / "run" / "a.nii.gz"
    nib.save(nib.load(path).as_reoriented(np.array([[2, 1], [0, -1], [1, 1]])), path)
    found = Page(write_report([run], factory.root / "again"))
    assert found.images == expected.images
    assert any("webp" in uri[:20] for uri in found.images)


@pytest.mark.parametrize("kind", ["images", "predictions"])
def test_a_file_that_is_gone_gives_a_sentence_and_no_picture(factory, kind):
    run = factory.score(factory.run("run", "bcp", 1), {"a": {"liver": 0}})
    gone = factory.root / kind / "run" / "a.nii.gz"
    gone.unlink()
    found = one_page(factory, [run])
    assert f"No picture: the {kind[:-1]} {gone} no longer exists." in found.words
    assert not any("webp" in uri[:20] for uri in found.images)


def test_predictions_of_unknown_origin_give_a_sentence_and_no_picture(factory):
    run = factory.score(factory.run("run", "bcp", 1), {"a": {"liver": 0}})
    (factory.root / "predictions" / "run" / "predictions.json").unlink()
    reason = "predictions.json beside the prediction is missing or does not name the image of this case"
    assert f"No picture: {reason}." in one_page(factory, [run]).words


# ---- what is refused


def test_an_existing_report_is_kept_unless_told_otherwise(factory):
    run, page = factory.run("run", "bcp", 1), factory.root / "report" / "report.html"
    page.parent.mkdir()
    page.write_text("mine")
    with pytest.raises(ConfigError, match=r"report\.html: exists; .*--overwrite"):
        write_report([run], page.parent)
    assert page.read_text() == "mine"
    assert write_report([run], page.parent, overwrite=True) == page
    assert "bcp" in page.read_text()
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "tables.md", "tables.tex"]


def test_files_that_are_no_report_are_not_replaced_or_removed_unasked(factory):
    run, site = factory.run("run", "bcp", 1), factory.root / "site"
    (site / "viewer").mkdir(parents=True)
    (site / "viewer" / "app.js").write_text("mine")
    (site / "viewer" / "case-0.js").write_text("mine")
    with pytest.raises(ConfigError, match=r"case-0\.js: exists"):
        write_report([run], site)
    (site / "viewer" / "case-0.js").unlink()
    (site / "tables.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"tables\.md: exists"):
        write_report([run], site)
    assert sorted(path.name for path in site.iterdir()) == ["tables.md", "viewer"]
    write_report([run], site, overwrite=True)
    assert (site / "viewer" / "app.js").read_text() == "mine"


def test_every_path_that_is_no_run_is_listed_with_what_it_lacks(factory):
    broken = factory.run("broken", "bcp", 1)
    (broken / "env.json").unlink()
    with pytest.raises(DataError) as caught:
        write_report([broken, factory.root / "nowhere"], factory.root / "report")
    assert f"{broken}: not a run folder: env.json missing" in str(caught.value)
    assert f"{factory.root / 'nowhere'}: not a folder" in str(caught.value)
    whole = factory.run("whole", "bcp", 1)
    with pytest.raises(
        DataError, match=f"{whole.parent}: not a run folder: .*; it contains run folders, give these instead: {whole}$"
    ):
        write_report([whole.parent], factory.root / "report")
    assert not (factory.root / "report").exists()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.yaml", "data: {name: toy}", "lacks data.classes, method.name"),
        ("config.yaml", "a: [", "cannot be read as the settings"),
        ("config.yaml", "just words", "cannot be read as the settings"),
        ("splits.json", "{}", "splits.json"),
        ("splits.json", "[1]", "found a list"),
        ("env.json", "{", "cannot be read as JSON"),
        ("metrics.csv", "a,b\n1,2\n", "metrics.csv"),
        ("scores.csv", "a,b\n1,2\n", "expected the columns"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(factory, name, text, said):
    run = factory.run("run", "bcp", 1)
    (run / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        write_report([run], factory.root / "report")
    assert str(run) in str(caught.value)


def test_runs_that_cannot_be_compared_are_refused(factory):
    run = factory.run("run", "bcp", 1)
    other = factory.run("other", "bcp", 1, settings={"data.name": "teeth"})
    with pytest.raises(ConfigError, match=r"different datasets: toy .*, teeth"):
        write_report([run, other], factory.root / "report")
    with pytest.raises(ConfigError, match="more than once"):
        write_report([run, run], factory.root / "report")
    with pytest.raises(ConfigError, match="no runs"):
        write_report([], factory.root / "report")


# ---- how a scan is shown


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) / 255


def pixels_of(view):
    return pixels(base64.b64decode(view.uri.partition(",")[2]))


def scan(shape, spacing, block):
    """A dark RAS volume with a bright block, its label map, and the same as prediction."""
    array = np.zeros(shape, np.int32)
    array[block] = 1
    affine = np.diag([*spacing, 1.0])
    return Volume(array.astype(np.float32), affine), Volume(array, affine), Volume(array, affine)


def turned(volume, axes, flips):
    """The same volume in space, stored with other axes and directions."""
    array, affine = volume.array.transpose(axes), volume.affine[:, [*axes, 3]].copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
        array = np.flip(array, axis)
    return Volume(array, affine)


@pytest.mark.parametrize(("axes", "flips"), [((0, 1, 2), (0, 1)), ((2, 0, 1), (1,)), ((1, 2, 0), (0, 1, 2))])
@pytest.mark.parametrize("spacing", [(1.0, 1.2, 1.5), (1.0, 1.0, 8.0)])
def test_a_scan_looks_the_same_however_it_is_stored(axes, flips, spacing):
    volumes = scan((9, 12, 7), spacing, np.s_[1:4, 3:10, 2:6])
    stored = [turned(volume, axes, flips) for volume in volumes]
    for view, other in zip(overlay(*volumes), overlay(*stored), strict=True):
        assert view.caption == other.caption
        np.testing.assert_allclose(pixels_of(view), pixels_of(other), atol=0.02)


def test_front_is_up_and_the_right_side_on_the_left():
    image, prediction, reference = scan((12, 14, 9), (1.0, 1.0, 1.0), np.s_[2:10, 2:12, 2:7])
    image.array[:] = 0
    image.array[8:10, 10:12] = image.array[8:10, :, 5:7] = image.array[:, 10:12, 5:7] = 1  # right, front, top
    for view in overlay(image, prediction, reference):
        inner = pixels_of(view).min(-1)[60:320, 60:320]  # without letters and bar
        rows, columns = np.nonzero(inner > 0.8)
        assert len(rows) > 100
        assert (np.median(rows) < 130, np.median(columns) < 130) == (True, True), view.caption


@pytest.mark.parametrize("spacing", [(1.0, 2.0, 8.0), (2.0, 1.0, 2.0)])
def test_a_square_in_mm_is_shown_square(spacing):
    shape = tuple(round(32 / side) + 3 for side in spacing[:2])
    sides = [round(16 / side) for side in spacing[:2]]
    block = np.s_[2 : 2 + sides[0], 2 : 2 + sides[1], 2:6]
    view = next(view for view in overlay(*scan((*shape, 9), spacing, block)) if "axial" in view.caption)
    blue = (pixels_of(view) * [-1, 0, 1]).sum(-1) > 0.25  # the contour of the first class
    high, wide = (np.ptp(np.flatnonzero(blue.any(axis))) for axis in (1, 0))
    assert high > 100
    assert high == pytest.approx(wide, rel=0.05)
