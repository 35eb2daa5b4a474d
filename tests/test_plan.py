"""Plans: rules that hold for any dataset, made ones through the commands, and real ones against settings by hand."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from medssl.cli import app
from medssl.config import bundled, load_yaml, merge, parse
from medssl.data.cases import DatasetConfig
from medssl.data.check import check as check_dataset
from medssl.data.fingerprint import ClassFacts, Fingerprint, Grey, ImageFacts
from medssl.data.grid import Slab
from medssl.data.io import write_image
from medssl.data.layouts import read_cases
from medssl.data.phantoms import KINDS, write_dataset
from medssl.data.recipe import Recipe
from medssl.data.splits import load_split
from medssl.errors import ConfigError, OutOfMemoryError
from medssl.memory import USABLE
from medssl.networks import check_patch
from medssl.plan import dataset_of, make_plan, plan
from medssl.plan.choices import Choice
from medssl.plan.sections import plan_spacing
from medssl.plan.shapes import LARGEST_PATCH, LARGEST_PATCH_CPU, shapes
from medssl.prepare import prepare
from medssl.run import load_run_config

METHODS = {name: bundled(f"method/{name}.yaml") for name in ("supervised", "mean_teacher", "combined")}
HEART = DatasetConfig(name="heart", classes=KINDS["cardiac"])
MRI = Grey(0, 10, 100, 400, 500, hounsfield=False)


def facts_of(*sizes, channels=(MRI,), classes=()):
    """A fingerprint of cases, each `(shape, spacing)`."""
    images = tuple(ImageFacts(f"case_{n}", shape, spacing, channels) for n, (shape, spacing) in enumerate(sizes))
    return Fingerprint(len(images), 0, images, 0, classes, len(images))


ISOTROPIC = facts_of(((140, 150, 130), (0.5, 0.5, 0.5)))
THICK = facts_of(((216, 256, 10), (1.5, 1.5, 10.0)))
ODD = [
    ((5, 6, 7), (1.0, 1.0, 1.0)),
    ((64, 64, 1), (1.0, 1.0, 8.0)),
    ((35, 50, 35), (1.0, 1.0, 1.0)),
    ((512, 512, 40), (0.7, 0.7, 5.0)),
    ((12, 300, 300), (3.3, 0.4, 0.4)),
    ((400, 400, 300), (0.3, 0.3, 0.3)),
    ((181, 217, 1000), (0.9, 1.7, 0.6)),
    ((20, 18, 14), (4.0, 1.0, 1.9)),
]


@pytest.fixture(scope="module")
def thick():
    """A plan for thick slices and a GPU on which all fits."""
    return make_plan(THICK, HEART, vram=24, method=METHODS["supervised"])


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize(("size", "spacing"), ODD)
def test_every_candidate_passes_its_network_and_keeps_voxels_at_the_bottom(size, spacing, on_cpu):
    found = shapes(size, spacing, on_cpu=on_cpu)
    volumes = [shape.voxels for shape in found]
    assert volumes == sorted(set(volumes), reverse=True)
    assert volumes[0] <= (LARGEST_PATCH_CPU if on_cpu else LARGEST_PATCH)
    assert max(found[-1].patch) <= 20
    for larger, shape in zip(found[:1] + found, found, strict=False):
        assert all(a >= b for a, b in zip(larger.patch, shape.patch, strict=True))
        total = [math.prod(axis) for axis in zip(*shape.strides, strict=True)]
        for side, stride, voxels in zip(shape.patch, total, size, strict=True):
            assert side % stride == 0
            assert side // stride >= 4 or stride == 1
            assert abs(side - voxels) <= stride / 2 or side < voxels
        assert len(shape.kernels) == len(shape.strides) + 1 >= 3


@pytest.mark.parametrize("facts", [ISOTROPIC, pytest.param(THICK, marks=pytest.mark.slow)])
def test_a_larger_budget_never_gives_a_smaller_patch_and_none_is_overrun(facts):
    volumes = []
    for budget in (1.5, 4):
        made = make_plan(facts, HEART, vram=budget, method=METHODS["supervised"])
        assert made.memory.total <= USABLE * budget * 2**30
        volumes.append(math.prod(made.to_plain()["train"]["patch"]))
    assert volumes == sorted(volumes)
    assert volumes[0] < volumes[-1]


def test_a_batch_is_cut_only_as_far_as_the_patch_needs(thick):
    small = make_plan(THICK, HEART, vram=2, method=METHODS["supervised"]).to_plain()["train"]
    assert small["accumulate"] == small["labelled_batch"] == 4
    assert thick.to_plain()["train"]["accumulate"] == 1


def test_what_can_never_fit_is_refused_with_the_least_that_would_do():
    with pytest.raises(
        OutOfMemoryError, match=r"no step of supervised fits into 0\.5 GiB.*needs \d\.\d GiB\. Plan for more"
    ):
        make_plan(ISOTROPIC, HEART, vram=0.5, method=METHODS["supervised"])


def test_thin_slices_are_not_thrown_away_with_the_thick_ones():
    thick = [((200, 200, 20), (0.7, 0.72, 5.0))] * 8 + [((200, 200, 50), (0.7, 0.72, 2.0))] * 2
    spacing, why = plan_spacing(facts_of(*thick))
    assert spacing == (0.7, 0.72, 2.0)
    assert "10th percentile" in why
    even = [((200, 200, 20), (0.7, 0.72, mm)) for mm in (1.0, 1.25, 2.0)]
    assert plan_spacing(facts_of(*even))[0] == (0.7, 0.72, 1.25)


def test_a_coarse_axis_waits_for_the_others(thick):
    network = thick.to_plain()["network"]
    assert network["strides"][:2] == [[2, 2, 1], [2, 2, 1]]
    assert network["kernels"][:3] == [[3, 3, 1], [3, 3, 1], 3]
    assert network["strides"][2] == 2


def test_slices_across_several_axes_of_the_body_stay_as_stored(tmp_path):
    """Oblique stacks, whose slices are nearest to another axis from case to case; labels come back as they were."""
    rng, stack = np.random.default_rng(0), np.full((21, 19, 6), 20, np.float32)
    stack[4:16, 5:14, 1:5] = 90
    stack[8:12, 7:11, 2:4] = 160
    label = (stack > 50).astype(np.uint8) + (stack > 120)
    raw = tmp_path / "raw"
    for number in range(6):
        across = np.array([[0.62, 0.60, 0.50], [0.60, 0.62, 0.50]][number % 2])
        across /= np.linalg.norm(across)
        along = np.cross(across, [0, 0, 1])
        along /= np.linalg.norm(along)
        affine = np.eye(4)
        affine[:3, :3] = np.column_stack([along * 1.5, np.cross(across, along) * 1.5, across * 8])
        for kind, array in (("images", stack + rng.normal(0, 2, stack.shape).astype(np.float32)), ("labels", label)):
            write_image(raw / kind / f"c{number}.nii.gz", array, affine)
    report = check_dataset(raw, HEART.model_copy(update={"classes": ("background", "wall", "core")}), workers=0)
    (found,) = [one for one in report.findings if one.code == "mixed_slices"]
    assert "in 3 cases (c0, c2, c4)" in found.found
    assert "data.recipe.orientation: stored" in found.fix

    stored = DatasetConfig(name="x", classes=("background", "wall", "core"), recipe=Recipe(orientation="stored"))
    assert not [one for one in check_dataset(raw, stored, workers=0).findings if one.code == "mixed_slices"]

    out = tmp_path / "plan.yaml"
    plan(raw, out, dataset_of(raw, {}, classes=("background", "wall", "core")), vram=0, method=METHODS["supervised"])
    config = load_run_config([out, METHODS["supervised"]], [])
    assert config.data.recipe.orientation == "stored"
    assert config.data.recipe.spacing == (1.5, 1.5, 8.0)
    assert list(config.augment.flips) == [0, 1]
    dataset = prepare(raw, tmp_path / "prepared", config.data, workers=0)
    for case in dataset.cases.values():
        prepared = case.open_label()[:]
        slabs = [Slab(np.stack([prepared == value for value in range(3)]).astype(np.float32))]
        np.testing.assert_array_equal(config.data.recipe.undo(slabs, case.grid), label)


@pytest.mark.parametrize(
    ("odd", "classes", "expected"),
    [(2, ("heart",), "stored"), (1, ("heart",), "RAS"), (2, ("left kidney", "right kidney"), "RAS")],
)
def test_axes_stay_as_stored_for_several_such_cases_and_where_nothing_asks_for_sides(odd, classes, expected):
    turned = [ImageFacts(f"t{n}", (6, 40, 40), (6.0, 1.0, 1.0), (MRI,), False, (2, 0, 1)) for n in range(odd)]
    plain = [ImageFacts(f"p{n}", (40, 40, 6), (1.0, 1.0, 6.0), (MRI,)) for n in range(5)]
    images = (*plain, *turned)
    dataset = DatasetConfig(name="x", classes=("background", *classes))
    facts = Fingerprint(len(images), 0, images, 0, (), len(images))
    made = make_plan(facts, dataset, vram=0, method=METHODS["supervised"]).to_plain()["data"]["recipe"]
    assert made["orientation"] == expected
    if expected == "stored":
        assert made["spacing"] == [1.0, 1.0, 6.0]


def test_slices_that_files_have_along_several_axes_too_are_turned_as_ever():
    spacings = [(1.0, 1.0, 6.0), (1.0, 1.0, 6.0), (6.0, 1.0, 1.0)]
    facts = facts_of(*(((40, 40, 40), spacing) for spacing in spacings))
    assert not facts.has_mixed_slices
    made = make_plan(facts, HEART, vram=0, method=METHODS["supervised"])
    assert made.to_plain()["data"]["recipe"]["orientation"] == "RAS"
    told = "slices are thick along different axes (head-foot in 2 cases, left-right in 1 case): with one spacing, some"
    assert told in made.hints[0]
    assert not make_plan(
        facts_of(*[((40, 40, 40), spacings[0])] * 3), HEART, vram=0, method=METHODS["supervised"]
    ).hints


def test_what_is_named_like_ct_and_has_no_air_is_pointed_at():
    for channels in (("CT",), ("CT", "PET"), ("MRI",)):
        facts = facts_of(((40, 40, 40), (1.0, 1.0, 1.0)), channels=(MRI,) * len(channels))
        heart = DatasetConfig(name="heart", classes=KINDS["cardiac"], channels=channels)
        why = make_plan(facts, heart, vram=0, method=METHODS["supervised"]).choices["data"]["recipe"]["intensity"].why
        assert ("; CT: if levels are Hounsfield units" in why) == ("CT" in channels)


def test_every_choice_is_a_line_with_a_reason_and_the_file_says_what_the_plan_says(thick):
    made = thick
    assert load_yaml(str(made)) == made.to_plain()
    assert all(len(line) <= 120 for line in str(made).splitlines())

    def reasons(choices, prefix=""):
        for key, one in choices.items():
            yield from [(prefix + key, one.why)] if isinstance(one, Choice) else reasons(one, f"{prefix}{key}.")

    assert [key for key, why in reasons(made.choices) if not why] == ["data.name"]
    folded = " ".join(str(made).replace("#", " ").split())
    assert all(" ".join(why.split()) in folded for _, why in reasons(made.choices))


@pytest.mark.parametrize(("size", "spacing"), ODD)
def test_plans_of_odd_datasets_are_settings_that_a_run_takes(tmp_path, size, spacing):
    made = make_plan(facts_of((size, spacing)), HEART, vram=0, method=METHODS["supervised"])
    (tmp_path / "plan.yaml").write_text(str(made))
    for files in ([METHODS["combined"], tmp_path / "plan.yaml"], [tmp_path / "plan.yaml", METHODS["combined"]]):
        config = load_run_config(files)
        check_patch(config.train.patch, config.network)
        assert config.train.unlabelled_batch in (0, 4)


def test_teeth_are_mirrored_left_to_right_alone():
    names = ("background", "t11", "t21")
    jaw = DatasetConfig(name="jaw", classes=names, values={"t11": (11,), "t21": (21,)})
    facts = replace(ISOTROPIC, classes=tuple(ClassFacts(name, 0.3, 3, 1.0) for name in names), labels=3, labelled=3)
    text = str(make_plan(facts, jaw, vram=0, method=METHODS["combined"]))
    assert "sides: [[t11, t21]]" in text
    assert "flips: [0]" in text
    alone = str(make_plan(facts, jaw.model_copy(update={"sides": ()}), vram=0, method=METHODS["combined"]))
    assert "flips: []" in alone


def test_mirrored_names_pieces_and_missing_classes_are_pointed_at(tmp_path):
    classes = (ClassFacts("background", 0.9, 3, 1.0), ClassFacts("left kidney", 0.1, 3, 0.4),
               ClassFacts("right kidney", 0.0, 0, 1.0))  # fmt: skip
    named = DatasetConfig(name="kidneys", classes=[one.name for one in classes])
    facts = replace(ISOTROPIC, classes=classes, labels=3, labelled=3)
    text = str(make_plan(facts, named, vram=0, method=METHODS["combined"]))
    assert "sides: [[left kidney, right kidney]]" in text
    assert "a mirrored left kidney is a right kidney, as in data.sides" in " ".join(text.replace("#", "").split())
    assert "--set method.largest_component=false" in text
    assert "left kidney 40%" in text
    assert "right kidney: in none of the labels that were read" in text
    assert "largest_component" not in str(make_plan(facts, named, vram=0, method=METHODS["mean_teacher"]))
    (tmp_path / "plain.yaml").write_text("method: {name: combined}")
    assert "largest_component=false" in str(make_plan(facts, named, vram=0, method=tmp_path / "plain.yaml"))


def test_ct_beside_pet_has_a_rule_by_channel():
    ct, pet = Grey(-1024, -400, 40, 900, 1310, hounsfield=True), Grey(0, 0.1, 0.8, 9, 30, hounsfield=False)
    facts = facts_of(((40, 40, 40), (1.0, 1.0, 1.0)), channels=(ct, pet))
    data = make_plan(facts, HEART, vram=0, method=METHODS["supervised"]).to_plain()["data"]
    assert data["channels"] == ["CT 1", "MRI 2"]
    assert data["recipe"]["threshold"] == [-500, None]
    assert data["recipe"]["intensity"] == [
        {"kind": "clip", "window": [-1000, 1400]},
        {"kind": "zscore", "percentiles": [0.5, 99.5]},
    ]
    parse(DatasetConfig, data)
    both = replace(facts, images=tuple(replace(image, channels=(ct, ct)) for image in facts.images))
    recipe = make_plan(both, HEART, vram=0, method=METHODS["supervised"]).to_plain()["data"]["recipe"]
    assert (recipe["threshold"], recipe["intensity"]) == (-500, {"kind": "clip", "window": [-1000, 1400]})


def test_channels_are_named_as_given_or_guessed():
    two = facts_of(((32, 32, 32), (1.0, 1.0, 1.0)), channels=(MRI, MRI))
    assert make_plan(two, HEART, vram=0, method=METHODS["supervised"]).to_plain()["data"]["channels"] == [
        "MRI 1",
        "MRI 2",
    ]
    with pytest.raises(ConfigError, match="names T1, but each image has 2 channels"):
        make_plan(two, HEART.model_copy(update={"channels": ("T1",)}), vram=0)


def test_a_method_file_that_decides_the_patch_is_refused(tmp_path):
    for text in ("train: {patch: [16, 16, 16]}", "method: {name: bcp}\nnetwork: {name: unet}"):
        (tmp_path / "method.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"method\.yaml: (has no section `method`|sets network)"):
            make_plan(ISOTROPIC, HEART, method=tmp_path / "method.yaml")


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def done(*words):
    result = invoke(*words)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def test_a_plan_prepares_and_trains(tmp_path):
    raw, file, prepared = tmp_path / "raw", tmp_path / "plan.yaml", tmp_path / "prepared"
    write_dataset(raw, "cbct", labelled=3, unlabelled=1, shape=(40, 36, 30))
    before = {path: path.read_bytes() for path in raw.rglob("*.nii.gz")}
    said = done("plan", raw, "-o", file, "--classes", "background,tooth,pulp canal", "--vram", 0, "--workers", 0,
                "--fingerprint", tmp_path / "found.json")  # fmt: skip
    assert "4 cases, 3 with a label" in said
    values = load_yaml(file.read_text())
    recipe = values["data"]["recipe"]
    assert (recipe["threshold"], recipe["intensity"]["kind"], values["data"]["channels"]) == (-500, "clip", ["CT"])
    assert "method.largest_component=false" in file.read_text()  # many teeth
    assert len(load_yaml((tmp_path / "found.json").read_text())["images"]) == 4

    done("prepare", raw, prepared, "--config", file, "--workers", 0)
    done("split", prepared, "--labelled", 2, "--val", 1, "-o", prepared / "splits.json")
    told = done("train", file, METHODS["combined"], "--set", f"data.root={prepared}", "--dry-run", "--device", "cpu")
    facts = yaml.safe_load(told)
    assert all(np.isfinite(loss) for loss in facts["losses"].values())
    # What the plan says of memory is what training says of it.
    assert f"A step of combined needs {facts['memory']['estimated_for_a_step_gib']:.1f} GiB" in file.read_text()
    assert {path: path.read_bytes() for path in raw.rglob("*.nii.gz")} == before


def test_labels_change_no_setting(tmp_path):
    write_dataset(tmp_path / "raw", "cardiac", labelled=2, unlabelled=1)
    shutil.copytree(tmp_path / "raw" / "images", tmp_path / "bare" / "images")
    options = {"vram": 0, "workers": 0, "method": METHODS["supervised"], "overwrite": True}
    made = [plan(tmp_path / name, tmp_path / f"{name}.yaml", HEART, **options)[1] for name in ("raw", "bare")]
    assert made[0].to_plain() == made[1].to_plain()
    again = plan(tmp_path / "raw", tmp_path / "raw.yaml", HEART, **options)[1]
    assert str(again) == str(made[0]) == (tmp_path / "raw.yaml").read_text()


def test_classes_that_nobody_names_are_asked_for_with_the_values_that_were_seen(tmp_path):
    write_dataset(tmp_path / "raw", "cardiac", labelled=1)
    result = invoke("plan", tmp_path / "raw", "-o", tmp_path / "plan.yaml")
    assert isinstance(result.exception, ConfigError)
    assert "cardiac_000.nii.gz holds 0, 1, 2, 3" in str(result.exception)
    assert "--classes background,tooth" in str(result.exception)
    assert "data.values in a file for --config" in str(result.exception)
    shutil.rmtree(tmp_path / "raw" / "labels")
    assert "the names of the classes are missing;" in str(invoke("plan", tmp_path / "raw").exception)
    assert not (tmp_path / "plan.yaml").exists()


def test_patients_that_the_dataset_names_are_not_called_cases_of_their_own(tmp_path):
    image = np.random.default_rng(0).uniform(50, 100, (9, 10, 11)).astype(np.float32)
    rows = ["image,patient"]
    for name, patient in (("a", "anna"), ("b", "anna"), ("c", "bert")):
        write_image(tmp_path / f"{name}.nii.gz", image, np.diag([0.9, 0.9, 1.5, 1]))
        rows.append(f"{name}.nii.gz,{patient}")
    table, out = tmp_path / "cases.csv", tmp_path / "plan.yaml"
    table.write_text("\n".join(rows))
    shown = done("plan", table, "-o", out, "--classes", "background,ball", "--vram", 0)
    assert "the dataset itself names its patients: 3 cases of 2 patients" in out.read_text()
    assert "spacing in mm: 0.9 x 0.9 x 1.5\n" in shown
    table.write_text("\n".join(row.split(",")[0] for row in rows))
    done("plan", table, "-o", out, "--classes", "background,ball", "--vram", 0, "--overwrite")
    assert "every case counts as a patient of its own" in out.read_text()


def test_names_that_look_like_patients_become_their_rule_and_split_asks_without_it(tmp_path):
    raw, out, prepared = tmp_path / "raw", tmp_path / "plan.yaml", tmp_path / "prepared"
    image = np.random.default_rng(0).uniform(50, 100, (9, 10, 11)).astype(np.float32)
    for id in ("p1_a", "p1_b", "p2_a", "p2_b", "p3_a", "p3_b"):
        image += 1
        write_image(raw / "images" / f"{id}.nii.gz", image, np.eye(4))
        write_image(raw / "labels" / f"{id}.nii.gz", (image > 90).astype(np.uint8), np.eye(4))
    done("plan", raw, "-o", out, "--classes", "background,ball", "--vram", 0)
    assert "p1_a and p1_b look like one patient" in out.read_text()
    words = ("--val", 1, "--test", 1, "--labelled", 1, "--overwrite", "-o", tmp_path / "splits.json")
    done("prepare", raw, prepared, "--config", out)
    assert "look like one patient" not in done("split", prepared, *words)
    split = load_split(tmp_path / "splits.json")
    assert {len({id[:2] for id in part}) for part in (split.labelled, split.val, split.test)} == {1}
    assert {len(part) for part in (split.labelled, split.val, split.test)} == {2}
    done("prepare", raw, prepared, "--config", out, "--set", "data.subject=null", "--overwrite")
    assert "p1_a and p1_b look like one patient, but" in done("split", prepared, *words)


def test_a_configuration_keeps_its_names_values_and_patients(tmp_path):
    image = np.random.default_rng(0).uniform(50, 100, (9, 10, 11)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[2:4], label[5], label[6] = 11, 12, 99
    write_image(tmp_path / "raw" / "images" / "p1_a.nii.gz", image, np.eye(4))
    write_image(tmp_path / "raw" / "labels" / "p1_a.nii.gz", label, np.eye(4))
    data = {
        "name": "teeth", "classes": ["background", "tooth"], "values": {"tooth": [11, 12]}, "ignore": [99],
        "regions": {"all": ["tooth"]}, "subject": {"pattern": "(p\\d)_"}, "recipe": {"spacing": [3, 3, 3]},
    }  # fmt: skip
    (tmp_path / "teeth.yaml").write_text(yaml.safe_dump({"data": data, "train": {"patch": [8, 8, 8]}}))
    done("plan", tmp_path / "raw", "-o", tmp_path / "plan.yaml", "--config", tmp_path / "teeth.yaml", "--vram", 0,
         "--name", "molars")  # fmt: skip
    planned = load_yaml((tmp_path / "plan.yaml").read_text())["data"]
    assert {key: planned[key] for key in ("values", "ignore", "regions", "subject")} == {
        key: data[key] for key in ("values", "ignore", "regions", "subject")
    }
    assert (planned["name"], planned["recipe"]["spacing"]) == ("molars", [1.0, 1.0, 1.0])
    done("prepare", tmp_path / "raw", tmp_path / "prepared", "--config", tmp_path / "plan.yaml", "--workers", 0)


def test_nothing_is_overwritten_unless_asked(balls, tmp_path):
    (tmp_path / "plan.yaml").write_text("mine")
    result = invoke("plan", balls[0], "-o", tmp_path / "plan.yaml", "--classes", "background,shell,core")
    assert isinstance(result.exception, ConfigError)
    assert "--overwrite" in str(result.exception)
    assert (tmp_path / "plan.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "count", "parts"), [("hippocampus", 12, ("imagesTr", "labelsTr")), ("acdc", 10, ("images", "labels"))]
)
def test_plans_of_real_data_come_close_to_settings_by_hand(real_data, tmp_path, name, count, parts):
    by_hand = merge([bundled(f"data/{name}.yaml")])
    source = tmp_path / "raw"
    cases = [case for case in read_cases(real_data / name) if case.label is not None]
    for case in cases[:: len(cases) // count]:
        for folder, file in zip(parts, (case.images[0], case.label), strict=True):
            (source / folder).mkdir(parents=True, exist_ok=True)
            (source / folder / file.path.name).symlink_to(file.path)
    shutil.copy(real_data / name / "cases.csv", source)
    if parts[0] == "imagesTr":
        (source / "dataset.json").write_text("{}")
    kept = {key: by_hand["data"][key] for key in ("name", "classes", "channels", "subject")}
    _, made = plan(source, tmp_path / "plan.yaml", parse(DatasetConfig, kept), vram=8, workers=0,
                   method=METHODS["supervised"])  # fmt: skip
    planned = made.to_plain()
    hand, ours = (values["data"]["recipe"] for values in (by_hand, planned))
    assert ours["intensity"]["kind"] == hand["intensity"]["kind"] == "zscore"
    assert ours["spacing"][:2] == pytest.approx(hand["spacing"][:2], rel=0.15)
    assert planned["network"]["strides"][0] == by_hand["network"]["strides"][0]
    ratio = math.prod(planned["train"]["patch"]) / math.prod(by_hand["train"]["patch"])
    assert 0.5 < ratio < 4
    if name == "hippocampus":
        assert planned["train"]["patch"] == pytest.approx(
            by_hand["train"]["patch"], abs=8
        )  # of the cases that are read
        assert planned["network"]["strides"] == by_hand["network"]["strides"]
    else:
        assert planned["augment"]["flips"] == by_hand["augment"]["flips"]
        assert planned["network"]["kernels"][0] == by_hand["network"]["kernels"][0]
