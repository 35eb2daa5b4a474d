"""What `medssl export` makes predicts as the run does, and tells nothing of patients and places."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from typer.testing import CliRunner

from medssl.checkpoint import load_checkpoint, save_checkpoint
from medssl.cli import app
from medssl.comparison import load_runs
from medssl.config import load_yaml, merge, parse
from medssl.data.draw import Wish, make_split
from medssl.data.io import read_image, read_label
from medssl.data.prepared import read_prepared
from medssl.data.splits import write_split
from medssl.data.volume import Volume
from medssl.errors import ConfigError, DataError
from medssl.evaluate import evaluate_folders
from medssl.export import export
from medssl.export.bundle import inference, refuse_inexpressible
from medssl.export.card import recipe_in_words
from medssl.predict import load_predictor, predict
from medssl.run import RunConfig
from medssl.train import train
from medssl.trained import load_trained, shared_settings

CPU = torch.device("cpu")
METHODS = {
    "bcp": {"method": {"name": "bcp"}, "network": {"name": "unet", "channels": [4, 8], "strides": [2]}},
    "combined": {
        "method": {"name": "combined"},
        "network": {"channels": [4, 6, 8], "strides": [2, [1, 2, 2]], "dropout": 0.1},
        "window": {"network": "teacher"},
    },
    "umct": {
        "method": {"name": "umct", "flat_levels": 1},
        "network": {"channels": [4, 6, 8], "strides": [2, 2], "dropout": 0.1},
    },
    "cfc_mt": {"method": {"name": "cfc_mt"}, "network": {"name": "unet", "channels": [4, 8], "strides": [2]}},
}


@pytest.fixture(scope="module")
def make_run(balls, tmp_path_factory):
    """`make_run(method, **sections)`: a run of a few steps on balls; each kind is trained once."""
    root = tmp_path_factory.mktemp("runs")
    dataset = read_prepared(balls[1])
    write_split(root / "splits.json", make_split(dataset, Wish(labelled=2, val=2, test=2)))
    made = {}

    def make(method, **sections):
        key = json.dumps([method, sections])
        if key not in made:
            data = {**dataset.config.model_dump(mode="json"), "root": str(balls[1])}
            settings = {
                **METHODS[method],
                "data": {**data, "splits": str(root / "splits.json")},
                "train": {
                    "iterations": 12, "validate_every": 6, "patch": [12, 12, 8], "optimizer": "adamw", "lr": 0.01,
                    **sections.get("train", {}),
                },
            }  # fmt: skip
            made[key] = train(parse(RunConfig, settings), root / f"run_{len(made)}", quiet=True)
        return made[key]

    return make


@pytest.mark.parametrize(
    ("method", "network", "count"),
    [("bcp", None, 1), ("bcp", "teacher", 1), ("bcp", "ensemble", 2), ("combined", None, 2), ("umct", None, 3),
     ("cfc_mt", None, 2)],
)  # fmt: skip
def test_a_model_folder_predicts_bit_for_bit_as_its_run(make_run, balls, tmp_path, method, network, count):
    run, image = make_run(method), read_image(balls[0] / "images" / "ball_03.nii.gz")
    window = None if network is None else {"network": network}
    export(run, tmp_path / "model", window=window)
    alone, _ = load_predictor(run, CPU, window=window)
    shared, record = load_predictor(tmp_path / "model", CPU)
    assert len(shared.networks) == count
    prepared = alone.recipe.apply(image).image
    assert np.array_equal(shared.probabilities(prepared), alone.probabilities(prepared))
    assert np.array_equal(shared.segment(image), alone.segment(image))
    assert record.run == str(tmp_path / "model")
    moved = shutil.move(tmp_path / "model", tmp_path / "elsewhere")
    (written,) = predict(moved, [image.path], tmp_path / "out", device="cpu", uncertainty=True)
    assert np.array_equal(read_label(written).array, alone.segment(image))


def test_several_runs_are_exported_as_their_mean(make_run, balls, tmp_path):
    runs = [make_run("bcp"), make_run("bcp", train={"seed": 1}), make_run("combined")]
    image = load_predictor(runs[0], CPU)[0].recipe.apply(read_image(balls[0] / "images" / "ball_03.nii.gz")).image
    export(runs[0], tmp_path / "model", also=runs[1:])
    together, _ = load_predictor(runs[0], CPU, also=runs[1:])
    shared, record = load_predictor(tmp_path / "model", CPU)
    assert np.array_equal(shared.probabilities(image), together.probabilities(image))
    assert record.averaged == 3
    assert "mean over 3 runs" in (tmp_path / "model" / "README.md").read_text()
    twice, _ = load_predictor(runs[2], CPU, also=[tmp_path / "model"])  # each run counts once, however it is named
    expected, _ = load_predictor(runs[2], CPU, also=runs)
    assert np.array_equal(twice.probabilities(image), expected.probabilities(image))


def test_a_model_folder_tells_no_names_and_no_places(make_run, balls, tmp_path):
    run = shutil.copytree(make_run("bcp"), tmp_path / "secret" / "run")
    values = load_checkpoint(run / "last.pt")
    values["config"]["train"]["start_from"] = str(tmp_path / "earlier")
    values["config"]["data"]["subject"] = {"pattern": "(ball_.)"}
    values["config"]["logging"]["mlflow"] = True
    values["seen_before"] = {"balls": {"learned": ["ball_02", "ball_99"], "chosen": []}}
    for name in ("last.pt", "best.pt"):
        save_checkpoint(run / name, values)
    predict(run, [], run / "test", part="test", device="cpu")
    evaluate_folders(run / "test", balls[0] / "labels", run / "scores.csv", workers=0)
    export(run, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["README.md", "model.yaml", "weights.pt"]
    for path in (tmp_path / "model").iterdir():
        content = path.read_bytes()
        for word in (b"ball_", b"/tmp", str(tmp_path.parent).encode(), str(balls[1]).encode(), b"subject", b"sha256"):
            assert word not in content, (path.name, word)
    assert b"ball_" in (run / "last.pt").read_bytes()  # a search that finds what is there
    assert b"ball_" in (run / "scores.csv").read_bytes()


def test_settings_that_are_paths_are_left_out_wherever_they_stand(make_run, tmp_path):
    plain = load_trained(make_run("bcp"))[0].config.to_plain()
    plain["method"] = {"name": "sss", "backbone": "sam2", "checkpoint": str(tmp_path / "sam.pt")}
    shared = shared_settings(parse(RunConfig, plain))
    assert "checkpoint" not in shared["method"]
    assert str(tmp_path.parent) not in json.dumps(shared)
    assert parse(RunConfig, shared).method.name == "sss"


def test_a_model_folder_holds_the_weights_of_the_networks_that_predict_alone(make_run, tmp_path):
    run = make_run("combined")
    export(run, tmp_path / "model")
    values = torch.load(tmp_path / "model" / "weights.pt", weights_only=True)
    assert values.keys() == {"format", "runs"}
    ((one, other),) = values["runs"]
    every = load_checkpoint(run / "best.pt")
    teachers = {name for name in every["method"] if "_teachers" in name}
    assert len(one) + len(other) == len(teachers)
    assert len(teachers) < len(every["method"])
    assert (tmp_path / "model" / "weights.pt").stat().st_size < (run / "best.pt").stat().st_size / 2


def test_the_card_says_what_the_run_says(make_run, balls, tmp_path):
    run = shutil.copytree(make_run("bcp"), tmp_path / "run")
    predict(run, [], run / "test", part="test", device="cpu", checkpoint="last")
    scores = evaluate_folders(run / "test", balls[0] / "labels", run / "scores.csv", workers=0)
    export(run, tmp_path / "model", checkpoint="last")
    card = (tmp_path / "model" / "README.md").read_text()
    dice = [score.value("dice") for score in scores if score.class_name == "core"]
    assert f"| core | {np.mean(dice):.3f} | 2 |" in card
    for fact in (
        "medssl 0.1.0", "research software and not a medical device", "medssl predict model SCANS -o predictions",
        "`bcp`: Bidirectional copy-paste", "https://arxiv.org/abs/2305.00673", "axes along RAS",
        "spacing 1 x 1 x 1.5 mm", "Windows of 12 x 12 x 8 voxels", "Labelled: 2 cases of 2 patients",
        "Unlabelled: 6 cases of 6 patients", "Validation: 2 cases", "12 of 12 steps, `last.pt`; seed 1337",
        "student, 1 unet", "| core | 2 | 2 |", "Scores of 2 cases, of which 2 belong to the test part",
        "predicted by: student, `last.pt`",
    ):  # fmt: skip
        assert fact in card, fact
    last = merge_last(run)
    assert f"Validation Dice {last:.3f}" in card


def test_the_card_of_a_started_run_counts_whom_its_forerunner_saw(make_run, tmp_path):
    first = make_run("bcp")
    second = make_run("bcp", train={"iterations": 3, "start_from": str(first)})
    for run, told in ((first, False), (second, True)):
        export(run, tmp_path / run.name)
        card = (tmp_path / run.name / "README.md").read_text()
        assert ("that run and those before it were trained on 8 patients" in card) == told


def merge_last(run):
    """The validation Dice of the last step."""
    rows = (run / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val/dice")
    return [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]][-1]


def test_a_model_folder_is_no_run(make_run, balls, tmp_path):
    run, model = make_run("bcp"), tmp_path / "model"
    export(run, model)
    with pytest.raises(ConfigError, match="model folder, which has no split"):
        predict(model, [], tmp_path / "out", part="test", device="cpu")
    with pytest.raises(ConfigError, match="model folder, which has no split"):
        predict(run, [], tmp_path / "out", also=[model], part="test", device="cpu")
    with pytest.raises(
        ConfigError, match=r"only the networks of --network student; export the run with --network teacher"
    ):
        load_predictor(model, CPU, window={"network": "teacher"})
    with pytest.raises(ConfigError, match="model folder already"):
        export(model, tmp_path / "again")
    with pytest.raises(DataError, match=r"model: not a run folder: config\.yaml"):
        load_runs([model])
    with pytest.raises(DataError, match="expected volumes"):
        evaluate_folders(model, balls[0] / "labels", tmp_path / "scores.csv")
    settings = merge([run / "config.yaml"], [f"train.start_from={model}"])
    with pytest.raises(ConfigError, match=r"start_from: .*model is a model folder, .* no record of the patients"):
        train(parse(RunConfig, settings), tmp_path / "finer", quiet=True)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "finer").exists()


def test_a_checkpoint_that_a_model_folder_was_not_made_of_is_refused(make_run, tmp_path):
    run = make_run("bcp")
    export(run, tmp_path / "best")
    export(run, tmp_path / "last", checkpoint="last")
    with pytest.raises(ConfigError, match=r"best: holds only the weights of best\.pt"):
        load_predictor(tmp_path / "best", CPU, checkpoint="last")
    for asked in ("best", "last"):  # `best` is what nobody asked for
        assert load_predictor(tmp_path / "last", CPU, checkpoint=asked)[1].checkpoint == "last.pt"


def test_other_window_settings_still_count(make_run, tmp_path):
    export(make_run("bcp"), tmp_path / "model")
    predictor, _ = load_predictor(tmp_path / "model", CPU, window={"mirror": True, "largest_component": ["core"]})
    assert len(predictor.mirrors) == 8
    assert predictor.window.largest_component == ("core",)


def test_nothing_is_replaced_unasked_and_nothing_half_made_stays(make_run, tmp_path):
    run, model = make_run("bcp"), tmp_path / "model"
    export(run, model)
    before = (model / "weights.pt").read_bytes()
    with pytest.raises(ConfigError, match="model: exists"):
        export(run, model)
    export(run, model, window={"network": "teacher"}, overwrite=True)
    assert (model / "weights.pt").read_bytes() != before
    (model / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match=r"holds mine\.txt, so it is not an exported folder"):
        export(run, model, overwrite=True)
    with pytest.raises(ConfigError, match=r"run_\d+: holds .*, so it is not an exported folder"):
        export(run, run, overwrite=True)
    (tmp_path / "project" / "models").mkdir(parents=True)
    (tmp_path / "project" / "README.md").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"project: holds neither model\.yaml nor .*, so it is not an exported folder"
    ):
        export(run, tmp_path / "project", overwrite=True)
    shutil.rmtree(tmp_path / "project")
    broken = shutil.copytree(run, tmp_path / "broken")
    (broken / "splits.json").write_text("{}")
    with pytest.raises(DataError, match=r"splits\.json: not as medssl writes it"):
        export(broken, tmp_path / "other")
    with pytest.raises(ConfigError, match="is a file"):
        export(run, model / "mine.txt", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "model"]


def test_a_damaged_model_folder_is_named(make_run, tmp_path):
    export(make_run("bcp"), tmp_path / "model")
    plain = load_yaml((tmp_path / "model" / "model.yaml").read_text())
    (tmp_path / "model" / "model.yaml").write_text(json.dumps({**plain, "format": 2}))
    with pytest.raises(DataError, match=r"model\.yaml: expected format 1, found 2"):
        load_predictor(tmp_path / "model", CPU)
    first = plain["runs"][0]
    for runs in ([first, first], [{key: first[key] for key in first if key != "settings"}]):
        (tmp_path / "model" / "model.yaml").write_text(json.dumps({**plain, "runs": runs}))
        with pytest.raises(DataError, match=r"model: model\.yaml and weights\.pt do not match"):
            load_predictor(tmp_path / "model", CPU)
    (tmp_path / "model" / "model.yaml").write_text("- nothing")
    with pytest.raises(DataError, match=r"model\.yaml: not as `medssl export` writes it"):
        load_predictor(tmp_path / "model", CPU)
    with pytest.raises(DataError, match=r"is neither a run folder .* nor a model folder"):
        load_predictor(tmp_path, CPU)


def test_the_command_makes_a_folder_and_has_exit_codes(make_run, tmp_path):
    def call(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    run = make_run("bcp")
    assert call("export", run, "-o", tmp_path / "model", "--network", "teacher").exit_code == 0
    assert load_trained(tmp_path / "model")[0].config.window.network == "teacher"
    assert isinstance(call("export", run, "-o", tmp_path / "model").exception, ConfigError)
    assert isinstance(call("export", tmp_path, "-o", tmp_path / "other").exception, DataError)
    found = call("predict", tmp_path / "model", "--part", "test").exception
    assert isinstance(found, ConfigError)
    assert found.exit_code == 2


# ---- MONAI bundles

WITHOUT_MEDSSL = """
import sys

class NoMedssl:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "medssl":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoMedssl())
import torch
from monai.bundle import run

torch.set_num_threads(1)
bundle, images, out = sys.argv[1:]
run(config_file=bundle + "/configs/inference.json", bundle_root=bundle, dataset_dir=images, output_dir=out,
    device="$torch.device('cpu')")
assert "medssl" not in sys.modules
"""


def run_bundle(bundle, images, out):
    """What a bundle makes of a folder of images in a Python that finds no medssl."""
    command = [sys.executable, "-I", "-c", WITHOUT_MEDSSL, *map(str, (bundle, images, out))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return {path.name: path for path in out.iterdir()}


def write_odd_ball(path, codes, spacing, shape=(31, 22, 19), tilt=0, seed=0):
    """A ball in air whose axes run along `codes`, off the middle and on a grid of its own."""
    rng = np.random.default_rng(seed)
    ornt = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    places = np.stack(
        np.meshgrid(*(np.arange(n) * mm for n, mm in zip(shape, spacing, strict=True)), indexing="ij"), -1
    )
    middle = np.array(shape) * spacing / 2 + [1.3, -1.1, 0.7]
    distance = np.linalg.norm(places - middle, axis=-1)
    image = 100 + rng.normal(0, 8, shape) + 60 * (distance < 5) + 60 * (distance < 2.5)
    image[distance > 9] = rng.uniform(0, 1, (distance > 9).sum())
    angle = np.deg2rad(tilt)
    affine = np.diag([*spacing, 1.0])
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]] @ affine[:2, :2]
    affine[:3, 3] = (-20, 33, 5)
    nib.save(
        nib.Nifti1Image(apply_orientation(image, ornt).astype(np.float32), affine @ inv_ornt_aff(ornt, shape)), path
    )


RECIPES = {
    "spacing": {"spacing": [1.0, 1.0, 1.5], "crop": False},
    "axes as stored": {"spacing": [1.2, 1.0, 1.5], "orientation": "stored"},
    "own spacing along z, cropped": {"spacing": [1.2, 1.2, None], "crop": True, "orientation": "LPS"},
    "clipped, cropped by a threshold": {
        "spacing": [1.0, 1.0, 1.5], "crop": True, "threshold": 20.0, "margin": 1,
        "intensity": {"kind": "clip", "window": [0.0, 160.0]},
    },
    "foreground is what is not 0": {"spacing": [1.0, 1.0, 1.5], "threshold": "nonzero", "margin": 0},
    "a crop through the ball": {"crop": True, "threshold": 150.0, "margin": 0},
    "as stored": {"crop": False},
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "recipe"), [*(("bcp", name) for name in RECIPES), ("combined", "as stored"), ("umct", "as stored")]
)
def test_a_bundle_predicts_what_the_run_does_without_medssl(make_run, tmp_path, method, recipe):
    run = shutil.copytree(make_run(method, train={"iterations": 300 if method == "bcp" else 120}), tmp_path / "run")
    for name in ("best.pt", "last.pt"):
        values = load_checkpoint(run / name)
        values["config"]["data"]["recipe"] = RECIPES[recipe]
        save_checkpoint(run / name, values)
    (tmp_path / "images").mkdir()
    write_odd_ball(tmp_path / "images" / "a.nii.gz", "LPS", (0.8, 1.1, 1.9), seed=1)
    write_odd_ball(tmp_path / "images" / "b.nii.gz", "PIR", (1.0, 0.7, 3.6), shape=(25, 38, 9), tilt=20, seed=2)
    export(run, tmp_path / "bundle", monai=True)
    found = run_bundle(tmp_path / "bundle", tmp_path / "images", tmp_path / "out")
    for path in predict(run, [tmp_path / "images"], tmp_path / "expected", device="cpu"):
        expected, own = nib.load(path), nib.load(found[path.name])
        np.testing.assert_allclose(own.affine, expected.affine, atol=1e-5)
        ours, theirs = np.asarray(expected.dataobj), np.asarray(own.dataobj)
        assert theirs.dtype == np.uint8
        for value in np.unique(ours):
            a, b = ours == value, theirs == value
            assert 2 * (a & b).sum() / (a.sum() + b.sum()) >= 0.99, value
        assert 50 < (ours > 0).sum() < ours.size / 2


def test_a_bundle_prepares_each_channel_by_its_rule(make_run):
    (trained,) = load_trained(make_run("bcp"))
    recipe = {
        "crop": True, "threshold": [-500, None], "margin": 1,
        "intensity": [{"kind": "clip", "window": [-1000, 400]}, {"kind": "zscore", "percentiles": [1, 99]}],
    }  # fmt: skip
    plain = trained.config.to_plain()
    plain["data"] |= {"channels": ["CT", "PET"], "recipe": recipe}
    config = parse(RunConfig, plain)
    parser = ConfigParser(inference([replace(trained, config=config)]))
    rng = np.random.default_rng(0)
    image = np.stack([rng.normal(-900, 300, (9, 10, 11)), rng.gamma(2, 3, (9, 10, 11))]).astype(np.float32)
    image[:, :3] = [[[[-1000]]], [[[0]]]]
    foreground = parser.get_parsed_content("foreground")(torch.from_numpy(image))
    normalised = parser.get_parsed_content("normalised")(torch.from_numpy(image))
    prepared = config.data.recipe.apply(Volume(np.moveaxis(image, 0, -1), np.eye(4)))
    assert prepared.grid.start == (2, 0, 0)
    assert np.flatnonzero(foreground.any((1, 2)))[0] == 3
    assert normalised.dtype == torch.float32
    np.testing.assert_allclose(normalised[:, 2:], prepared.image, atol=1e-5)
    said = "; ".join(recipe_in_words(config.data))
    assert (
        "grey levels of CT from -1000 to 400 become 0 to 1; grey levels of PET are clipped to percentiles 1 and" in said
    )


def test_a_bundle_says_what_it_holds_and_no_names(make_run, balls, tmp_path):
    run = make_run("combined")
    export(run, tmp_path / "bundle", monai=True)
    files = sorted(str(path.relative_to(tmp_path / "bundle")) for path in (tmp_path / "bundle").rglob("*.*"))
    assert files == ["configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.pt"]
    with pytest.raises(DataError, match=r"bundle: is a MONAI bundle"):
        predict(tmp_path / "bundle", [balls[0] / "images"], tmp_path / "out", device="cpu")
    for path in files:
        content = (tmp_path / "bundle" / path).read_bytes()
        for word in (b"ball_", b"/tmp", str(tmp_path.parent).encode(), str(balls[1]).encode()):
            assert word not in content, (path, word)
    meta = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    assert meta["monai_version"] == version("monai")
    assert meta["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "1": "shell",
        "2": "core",
    }
    assert meta["network_data_format"]["inputs"]["image"]["spatial_shape"] == [12, 12, 8]
    states = torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True)
    assert {name.partition(".")[0] for name in states} == {"0", "1"}
    card = (tmp_path / "bundle" / "docs" / "README.md").read_text()
    assert "python -m monai.bundle run --bundle_root bundle --config_file bundle/configs/inference.json" in card


@pytest.mark.parametrize(
    ("method", "section", "values", "fault"),
    [
        ("cfc_mt", "window", {}, "method: networks that see a frequency band"),
        ("bcp", "window", {"mirror": True}, r"window\.mirror"),
        ("bcp", "window", {"largest_component": ["core"]}, r"window\.largest_component"),
        ("bcp", "data", {"recipe": {"resize": [16, 16]}}, r"data\.recipe\.resize"),
        ("bcp", "data", {"name": "$print(1)"}, r"the name '\$print\(1\)'"),
        ("bcp", "data", {"classes": ["background", "@image", "core"]}, "the name '@image'"),
    ],
)
def test_what_a_bundle_cannot_express_is_refused(make_run, tmp_path, method, section, values, fault):
    run = shutil.copytree(make_run(method), tmp_path / "run")
    for name in ("best.pt", "last.pt"):
        saved = load_checkpoint(run / name)
        saved["config"][section].update(values)
        save_checkpoint(run / name, saved)
    with pytest.raises(ConfigError, match=rf"--monai: a MONAI bundle cannot express\n  {fault}.*\nLeave out --monai"):
        export(run, tmp_path / "bundle", monai=True)
    export(run, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run"]


def test_a_network_of_a_methods_own_cannot_be_a_bundle(make_run):
    (trained,) = load_trained(make_run("bcp"))
    with pytest.raises(ConfigError, match="method: networks that medssl did not build"):
        refuse_inexpressible([replace(trained, networks=[torch.nn.Conv3d(1, 3, 1)])])


def test_the_teacher_of_band_students_sees_all_and_can_be_a_bundle(make_run, tmp_path):
    result = CliRunner().invoke(
        app, ["export", str(make_run("cfc_mt")), "-o", str(tmp_path / "bundle"), "--monai", "--network", "teacher"]
    )
    assert result.exit_code == 0
    assert (tmp_path / "bundle" / "configs" / "inference.json").exists()
