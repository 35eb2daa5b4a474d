"""Real volumes through the same doors; skipped where the data do not lie beside the repository."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from medssl.config import bundled, merge, parse
from medssl.data.cases import DatasetConfig
from medssl.data.draw import Wish, make_split
from medssl.data.grid import Slab
from medssl.data.io import list_volumes, read_image, read_label
from medssl.data.recipe import Recipe
from medssl.data.splits import write_split
from medssl.evaluate import evaluate_folders
from medssl.predict import predict
from medssl.prepare import prepare
from medssl.run import load_run_config
from medssl.train import train


def config_of(name):
    return bundled(f"data/{name}.yaml")


def data_config(name):
    return parse(DatasetConfig, merge([config_of(name)])["data"], where="data")


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture
def few_hippocampi(real_data, tmp_path):
    """Ten cases of the decathlon layout with its table of subjects."""
    source, copy = real_data / "hippocampus", tmp_path / "raw"
    for folder in ("imagesTr", "labelsTr"):
        (copy / folder).mkdir(parents=True)
        for path in list_volumes(source / folder)[:10]:
            shutil.copy(path, copy / folder)
    names = [path.name for path in list_volumes(copy / "imagesTr")]
    description = json.loads((source / "dataset.json").read_text())
    description["training"] = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    (copy / "dataset.json").write_text(json.dumps(description))
    shutil.copy(source / "cases.csv", copy)
    return copy


def test_hippocampus_goes_through_the_whole_job(few_hippocampi, tmp_path):
    dataset = prepare(few_hippocampi, tmp_path / "prepared", data_config("hippocampus"), workers=0)
    write_split(tmp_path / "splits.json", make_split(dataset, Wish(labelled=2, val=1, test=2)))
    for method in ("supervised", "bcp"):
        config = load_run_config(
            [config_of("hippocampus"), bundled(f"method/{method}.yaml")],
            [f"data.root={tmp_path / 'prepared'}", f"data.splits={tmp_path / 'splits.json'}",
             "train.iterations=40", "network.channels=[4, 8]", "network.strides=[2]"],
        )  # fmt: skip
        run = train(config, tmp_path / method, quiet=True)
        written = predict(run, [], run / "test", part="test", device="cpu")
        scores = evaluate_folders(run / "test", few_hippocampi / "labelsTr", run / "scores.csv", workers=0)
        assert {score.class_name for score in scores} == {"anterior", "posterior"}
        for path in written:
            before, after = nib.load(few_hippocampi / "imagesTr" / path.name), nib.load(path)
            assert before.shape == after.shape
            assert np.array_equal(before.affine, after.affine)
            for key in ("sform_code", "qform_code", "pixdim", "srow_x", "quatern_b", "xyzt_units"):
                assert np.array_equal(before.header[key], after.header[key])


@pytest.mark.parametrize("name", ["hippocampus", "acdc", "la"])
def test_real_labels_survive_the_recipe(real_data, name):
    folders = ("imagesTr", "labelsTr") if name == "hippocampus" else ("images", "labels")
    images, labels = (list_volumes(real_data / name / folder)[3] for folder in folders)
    recipe = data_config("acdc" if name == "acdc" else "hippocampus").recipe
    image, label = read_image(images), read_label(labels)
    prepared = recipe.apply(image, label)
    probs = np.stack([prepared.label == value for value in range(int(label.array.max()) + 1)]).astype(np.float32)
    back = recipe.undo([Slab(probs)], prepared.grid)
    assert back.shape == label.shape
    for value in range(1, len(probs)):
        assert dice(back == value, label.array == value) > 0.93


def test_acdc_goes_through_the_published_2d_protocol_and_back_to_its_grid(real_data, tmp_path):
    source, raw = real_data / "acdc", tmp_path / "raw"
    patients = ["patient099", "patient038", "patient100", "patient058", "patient011"]
    for kind in ("images", "labels"):
        (raw / kind).mkdir(parents=True)
        for patient in patients:
            shutil.copy(source / kind / f"{patient}_frame01.nii.gz", raw / kind)
    files = [config_of("acdc"), bundled("method/bcp.yaml"), *(
        bundled(f"protocol/{name}.yaml") for name in ("acdc_ssl4mis", "acdc_bcp")
    )]  # fmt: skip
    dataset = prepare(raw, tmp_path / "prepared", parse(DatasetConfig, merge(files)["data"]), workers=0)
    given = {"labelled": patients[:2], "unlabelled": patients[2:4], "test": patients[4:]}
    split = make_split(dataset, Wish(given=given, val_is_test=True))
    write_split(tmp_path / "splits.json", split)
    config = load_run_config(files, [
        f"data.root={tmp_path / 'prepared'}", f"data.splits={tmp_path / 'splits.json'}", "train.iterations=4",
        "train.validate_every=4", "train.labelled_batch=2", "train.unlabelled_batch=2", "network.channels=[4, 4, 4]",
        "network.strides=[[4, 4, 1], [2, 2, 1]]",
    ])  # fmt: skip
    run = train(config, tmp_path / "run", quiet=True, device="cpu")
    (path,) = predict(run, [], run / "test", part="test", device="cpu")
    before, after = nib.load(raw / "images" / path.name), nib.load(path)
    assert after.shape == before.shape == (216, 256, 9)
    assert np.array_equal(before.affine, after.affine)
    assert json.loads((run / "splits.json").read_text())["quirks"] == ["selection on test"]


@pytest.mark.parametrize(("patient", "least"), [("patient011", 1.0), ("patient038", 0.95)])
def test_real_labels_survive_slices_of_256(real_data, patient, least):
    """Exactly where slices are enlarged; patient038's are reduced, from 276 x 384."""
    image, label = (real_data / "acdc" / kind / f"{patient}_frame02.nii.gz" for kind in ("images", "labels"))
    recipe = Recipe(crop=False, resize=(256, 256))
    label = read_label(label)
    prepared = recipe.apply(read_image(image), label)
    shares = np.stack([prepared.label == value for value in range(4)]).astype(np.float32)
    back = recipe.undo([Slab(shares)], prepared.grid)
    assert back.shape == label.shape
    for value in (1, 2, 3):
        assert dice(back == value, label.array == value) >= least
