"""Real volumes through the same doors; skipped where the data do not lie beside the repository."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from medssl.config import bundled, merge, parse
from medssl.data.cases import DatasetConfig
from medssl.data.nifti import list_volumes, read_image, read_label
from medssl.data.splits import make_split, write_split
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
    write_split(tmp_path / "splits.json", make_split(dataset, labelled=2, val=1, test=2, seed=0))
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
    back = recipe.undo(probs, prepared.grid)
    assert back.shape == label.shape
    for value in range(1, len(probs)):
        assert dice(back == value, label.array == value) > 0.93
