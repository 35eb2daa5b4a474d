"""Inference: class maps come back on the image's own grid, with its header; nothing is overwritten unasked."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn
from typer.testing import CliRunner

from medssl.checkpoint import load_checkpoint, save_checkpoint
from medssl.cli import app
from medssl.comparison import load_runs, make_rows
from medssl.config import merge, parse
from medssl.data.draw import Wish, make_split
from medssl.data.grid import Slab
from medssl.data.io import list_volumes, read_image, read_label, write_image, write_label
from medssl.data.layouts import read_layout
from medssl.data.prepared import read_prepared
from medssl.data.recipe import Intensity, Recipe
from medssl.data.splits import write_split
from medssl.data.volume import Volume
from medssl.device import tell_once
from medssl.errors import ConfigError, DataError, OutOfMemoryError
from medssl.evaluate import evaluate_folders
from medssl.explain import explain
from medssl.export import export
from medssl.predict import load_predictor, predict
from medssl.predictor import Predictor, WindowConfig, chosen_networks
from medssl.prepare import prepare
from medssl.report.gallery import files_of
from medssl.report.voxels import agreements
from medssl.run import RunConfig, build_method, load_run_config
from medssl.scores import summarise
from medssl.train import train

ORIENTATIONS = ["RAS", "LPS", "LAS", "PIR", "SLA", "IAR", "ALS", "RSP"]

SHAPE = (5, 6, 7)


class Identity(nn.Module):
    """Reads the class off the grey level: 0, 1 and 2 become logits that are sure of it."""

    def forward(self, image):
        return torch.cat([-30 * (image - value) ** 2 for value in (0, 1, 2)], dim=1)


def identity_predictor(spacing=(None, None, None), patch=(12, 16, 8)):
    recipe = Recipe(spacing=spacing, intensity=Intensity(kind="clip", window=(0, 1)), threshold=-1)
    # The window maps 0..1 to 0..1; grey levels above are kept by a wider one.
    recipe = recipe.model_copy(update={"intensity": Intensity(kind="clip", window=(0, 2))})

    class Rescaled(nn.Module):
        def forward(self, image):
            return Identity()(2 * image)

    return Predictor([Rescaled()], recipe, WindowConfig(), patch=patch, channels=("image",), classes="abc",
                     device=torch.device("cpu"))  # fmt: skip


@pytest.mark.parametrize("flips", [(0,), (0, 2), (0, 1, 2)])
def test_with_mirrors_a_mirrored_image_is_predicted_as_the_mirror_image(flips):
    """Sides that changed places included; a turn by two mirrors leaves them."""
    torch.manual_seed(0)
    nets = [nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(1, 4, 1)]
    image = np.random.default_rng(0).random((1, 7, 6, 5), np.float32)

    def probabilities(image, **settings):
        predictor = Predictor(nets, Recipe(), WindowConfig(**settings), patch=(7, 6, 5), channels=("image",),
                              classes=("b", "left", "mid", "right"), device=torch.device("cpu"), flips=flips,
                              mirrored={1: 3, 3: 1})  # fmt: skip
        return predictor.probabilities(image)

    with_mirrors, without = probabilities(image, mirror=True), probabilities(image)
    assert np.abs(with_mirrors - without).max() > 0.01
    np.testing.assert_allclose(with_mirrors.sum(0), 1, atol=1e-5)
    for axes in [(0,), *([(0, 2)] if 2 in flips else [])]:
        turned = [1 + axis for axis in axes]
        sides = [0, 3, 2, 1] if len(axes) % 2 else [0, 1, 2, 3]
        found = probabilities(np.flip(image, turned).copy(), mirror=True)
        np.testing.assert_allclose(found, np.flip(with_mirrors, turned)[sides], atol=1e-5)
        found = probabilities(np.flip(image, turned).copy())
        assert np.abs(found - np.flip(without, turned)[sides]).max() > 0.01


def test_a_single_slice_has_no_mirror_along_itself():
    net, image = nn.Conv3d(1, 3, 1), np.random.default_rng(0).random((1, 6, 5, 1), np.float32)
    found = [
        Predictor([net], Recipe(), WindowConfig(mirror=True), patch=(6, 5, 1), channels=("image",), classes="blr",
                  device=torch.device("cpu"), flips=flips, mirrored={1: 2, 2: 1}).probabilities(image)
        for flips in [(0, 2), (0,)]
    ]  # fmt: skip
    np.testing.assert_array_equal(*found)


def test_mirrors_that_training_never_showed_are_refused():
    with pytest.raises(ConfigError, match=r"window\.mirror: needs an axis that training mirrored"):
        Predictor([Identity()], Recipe(), WindowConfig(mirror=True), patch=(4, 4, 4), channels=("image",), classes="ab",
                  device=torch.device("cpu"))  # fmt: skip


def write_oriented(path, codes, tilt):
    """A label as an image file whose axes run along `codes`, with sform and qform codes that differ."""
    shape = (33, 27, 21)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), -1)
    radius = np.linalg.norm(grid - [0.15, -0.1, 0.05], axis=-1)
    label = (radius < 0.75).astype(np.uint8) + (radius < 0.4)
    ornt = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    angle = np.deg2rad(tilt)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([0.9, 1.1, 1.6])
    tilting = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = tilting @ affine[:3, :3]
    affine[:3, 3] = (-20, 33, 5)
    stored = nib.orientations.apply_orientation(label, ornt)
    affine = affine @ nib.orientations.inv_ornt_aff(ornt, shape)
    image = nib.Nifti1Image(stored.astype(np.float32), affine)
    image.header.set_sform(affine, code=2)
    image.header.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"a scanner wrote this"
    nib.save(image, path)
    return stored


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("tilt", [0, 20])
@pytest.mark.parametrize("spacing", [(None, None, None), (1.0, 1.0, 1.0)])
def test_an_identity_network_gives_the_label_back_on_its_own_grid(tmp_path, codes, tilt, spacing):
    label = write_oriented(tmp_path / "image.nii.gz", codes, tilt)
    image = read_image(tmp_path / "image.nii.gz")
    write_label(tmp_path / "out.nii.gz", identity_predictor(spacing).segment(image), like=image)
    before, after = nib.load(tmp_path / "image.nii.gz"), nib.load(tmp_path / "out.nii.gz")
    found = np.asarray(after.dataobj)
    for value in (1, 2):
        a, b = found == value, label == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) >= 0.98
    if spacing[0] is None:
        assert np.array_equal(found, label)
    assert after.get_data_dtype() == np.uint8
    changed = {"datatype", "bitpix", "scl_slope", "scl_inter", "cal_max", "cal_min"}
    for key in set(before.header.keys()) - changed:
        assert np.array_equal(before.header[key], after.header[key]), key
    assert nib.aff2axcodes(after.affine) == tuple(codes)


@pytest.mark.parametrize("shape", [(5, 6, 7), (33, 9, 2), (12, 16, 8)])
def test_volumes_smaller_than_the_window_and_odd_ones_come_back_whole(shape):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, shape)
    out = identity_predictor().segment(Volume(classes.astype(np.float32), np.eye(4)))
    assert np.array_equal(out, classes)


@pytest.mark.parametrize(
    ("shape", "affine", "words"),
    [
        (SHAPE, np.eye(3), r"image: the affine must have shape \(4, 4\), got \(3, 3\)"),
        (SHAPE, np.diag([1, np.nan, 1, 1]), "image: its affine holds NaN or infinity"),
        (SHAPE, np.diag([1.0, 0, 1, 1]), "image: its affine cannot be inverted"),
        (SHAPE[:2], np.eye(4), r"image: must have the axes \(X, Y, Z\) or \(X, Y, Z, M\), got 2 axes"),
        ((1, *SHAPE), np.eye(4), r"image: has 7 channels, but the network was trained on 1 \(image\)"),
    ],
)
def test_an_image_in_memory_that_has_no_place_is_refused(shape, affine, words):
    with pytest.raises(DataError, match=words):
        identity_predictor().segment(Volume(np.zeros(shape, np.float32), affine))


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_voxel_in_memory_that_is_no_number_is_refused(odd):
    image = np.zeros(SHAPE, np.float32)
    image[3, 4, 5] = odd
    with pytest.raises(DataError, match="image: holds NaN or Inf voxels"):
        identity_predictor().segment_with_uncertainty(Volume(image, np.eye(4)))


def test_window_overlap_does_not_change_a_local_network():
    image = np.random.default_rng(0).uniform(0, 1, (1, 25, 30, 17)).astype(np.float32)
    predictor = identity_predictor()
    whole = identity_predictor(patch=(32, 32, 32)).probabilities(image)
    np.testing.assert_allclose(predictor.probabilities(image), whole, atol=1e-5)
    np.testing.assert_allclose(whole.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("patch", [(12, 16, 8), (11, 9, 7), (25, 5, 17)])
def test_window_strides_are_met_to_the_voxel(patch):
    shape, stride = (25, 30, 17), (5, 4, 3)
    steps = zip(shape, patch, stride, strict=True)
    starts = [sorted({min(start, n - p) for start in range(0, n, s)}) for n, p, s in steps]
    numbers = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    first = []

    class Watching(nn.Module):
        def forward(self, windows):
            first.extend(int(window[0, 0, 0, 0]) for window in windows)
            return Identity()(windows)

    predictor = identity_predictor(patch=patch)
    predictor.networks = [Watching()]
    predictor.window = WindowConfig(stride=stride)
    told = []
    predictor.looked = told.append
    predictor.probabilities(numbers)
    assert told == sorted(told)
    assert len(told) == np.ceil(np.prod([len(start) for start in starts]) / predictor.window.batch)
    assert told[-1] == 1
    assert sorted(first) == sorted(np.ravel_multi_index(np.meshgrid(*starts), shape).ravel())


@pytest.mark.parametrize(("patch", "stride"), [((12, 16, 8), None), ((7, 9, 5), (5, 4, 3)), ((40, 5, 6), (1, 1, 1))])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_come_out_as_they_do_in_the_whole(patch, stride, axis):
    image = np.random.default_rng(0).uniform(0, 1, (1, 25, 30, 17)).astype(np.float32)
    predictor = identity_predictor(patch=patch)
    torch.manual_seed(0)
    predictor.networks = [nn.Conv3d(1, 3, 5, padding=2)]
    predictor.window = WindowConfig(stride=stride)
    whole = predictor.probabilities(image)
    for rows in (range(1), range(4, 6), range(3, 16), range(image.shape[1 + axis] - 3, image.shape[1 + axis])):
        some = predictor.probabilities(image, axis, rows)
        np.testing.assert_allclose(some, whole.take(rows, 1 + axis), atol=1e-6)


@pytest.mark.parametrize("spacing", [(None, None, None), (0.7, 0.8, 1.1), (1.3, 1.2, 2.0)])
@pytest.mark.parametrize("long", [0, 1, 2])
def test_what_memory_does_not_hold_is_predicted_in_slabs_and_is_the_same(monkeypatch, spacing, long):
    """Alone, and with another run whose window is larger along the cut."""
    shape = [9, 8, 7]
    shape[long] = 91
    image = Volume(np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32), np.eye(4))
    torch.manual_seed(0)
    predictor, other = identity_predictor(spacing, patch=(6, 6, 6)), identity_predictor(spacing, patch=(9, 9, 9))
    for each in (predictor, other):
        each.networks = [nn.Conv3d(1, 3, 5, padding=2)]
    prepared = predictor.recipe.apply(image).image
    for others in ([], [other]):
        predictor.others = others
        classes, uncertainty = predictor.segment_with_uncertainty(image)
        assert len(list(predictor.slabs(prepared))) == 1
        windows = [np.maximum(prepared.shape[1:], each.patch) for each in (predictor, *others)]  # an image is padded
        needed = 4 * 4 * int(sum(map(np.prod, windows)))
        with monkeypatch.context() as patched:
            patched.setattr("medssl.predictor.available_memory", lambda needed=needed: int(1.6 * needed))
            starts = [(slab.axis, slab.start, slab.stop) for slab in predictor.slabs(prepared)]
            assert len(starts) > 1
            assert {axis for axis, _, _ in starts} == {long}
            assert all(slab.probs.nbytes < needed / 2 for slab in predictor.slabs(prepared))
            told = []
            predictor.looked = told.append
            in_slabs = predictor.segment_with_uncertainty(image)
            assert told == sorted(told)
            assert told[-1] == 1
            assert len(told) > len(starts)
            assert np.array_equal(predictor.likeliest(prepared), predictor.probabilities(prepared).argmax(0))
            patched.setattr(
                "medssl.predictor.available_memory", lambda needed=needed: needed
            )  # what fits is not refused
            assert (predictor.segment(image) == classes).mean() > 0.999
        np.testing.assert_allclose(in_slabs[1], uncertainty, atol=1e-5)
        assert (in_slabs[0] == classes).mean() > 0.999
        assert len(np.unique(classes)) > 1


@pytest.mark.parametrize(("gib", "pieces"), [(10, 9), (24, 4), (42, 1)])
def test_a_large_scan_takes_as_many_slabs_as_documented(monkeypatch, gib, pieces):
    predictor = Predictor([nn.Identity()], Recipe(), WindowConfig(), patch=(112, 112, 96), channels=("image",),
                          classes=tuple(map(str, range(33))), device=torch.device("cpu"))  # fmt: skip
    monkeypatch.setattr("medssl.predictor.available_memory", lambda: gib * 2**30)
    assert len(predictor.cut((600, 600, 450))[1]) == pieces


def test_constant_blending_is_the_plain_mean_of_windows_and_gaussian_trusts_their_middles():
    calls = iter(range(10))

    class Counting(nn.Module):
        """The first window is sure of class 0, the second of class 1."""

        def forward(self, windows):
            first = next(calls) == 0
            logits = torch.full((len(windows), 2, *windows.shape[2:]), -30.0)
            logits[:, 0 if first else 1] = 30
            return logits

    predictor = identity_predictor(patch=(8, 4, 4))
    predictor.networks = [Counting()]
    predictor.window = WindowConfig(stride=(2, 4, 4), blend="constant", batch=1)
    probs = predictor.probabilities(np.zeros((1, 10, 4, 4), np.float32))
    np.testing.assert_allclose(probs[0, :, 0, 0], [1, 1, *[0.5] * 6, 0, 0], atol=1e-6)
    calls = iter(range(10))
    predictor.window = WindowConfig(stride=(2, 4, 4), batch=1)
    probs = predictor.probabilities(np.zeros((1, 10, 4, 4), np.float32))[0, :, 2, 2]
    assert (np.diff(probs[2:8]) < -0.01).all()  # a window counts more, the nearer its middle is
    np.testing.assert_allclose(probs[4:6].mean(), 0.5, atol=1e-3)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_slices_of_one_size_come_back_on_the_image_grid(tmp_path, codes):
    label = write_oriented(tmp_path / "image.nii.gz", codes, 20)
    image = read_image(tmp_path / "image.nii.gz")
    predictor = identity_predictor(patch=(40, 36, 1))
    predictor.recipe = predictor.recipe.model_copy(update={"resize": (40, 36), "crop": False})
    write_label(tmp_path / "out.nii.gz", predictor.segment(image), like=image)
    before, after = nib.load(tmp_path / "image.nii.gz"), nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(np.asarray(after.dataobj), label)
    assert np.array_equal(before.affine, after.affine)
    for key in ("sform_code", "qform_code", "pixdim", "srow_x", "quatern_b", "xyzt_units", "descrip"):
        assert np.array_equal(before.header[key], after.header[key]), key


def test_largest_component_is_kept_only_of_the_classes_asked_for():
    array = np.zeros((20, 20, 20), np.float32)
    array[2:8, 2:8, 2:8] = array[15:17, 15:17, 15:17] = 1
    array[2:4, 12:18, 2:4] = array[16:18, 2:4, 16:18] = 2
    predictor = identity_predictor()
    predictor.window = WindowConfig(largest_component=("b",))
    out = predictor.segment(Volume(array, np.eye(4)))
    assert (out == 1).sum() == 6**3
    assert (out == 2).sum() == (array == 2).sum()


@pytest.fixture(scope="module")
def trained(balls, tmp_path_factory):
    """A BCP run on balls that has learnt something."""
    root = tmp_path_factory.mktemp("trained")
    dataset = read_prepared(balls[1])
    write_split(root / "splits.json", make_split(dataset, Wish(labelled=2, val=2, test=2)))
    settings = {
        "data": {**dataset.config.model_dump(mode="json"), "root": str(balls[1]), "splits": str(root / "splits.json")},
        "method": {"name": "bcp"},
        "network": {"name": "unet", "channels": [4, 8], "strides": [2]},
        "train": {"iterations": 300, "patch": [12, 12, 8], "optimizer": "adamw", "lr": 0.01},
    }
    return train(parse(RunConfig, settings), root / "run", quiet=True), balls[0]


def test_the_whole_job_ends_in_a_good_score(trained, tmp_path):
    run, raw = trained
    written = predict(run, [], tmp_path / "test", part="test", device="cpu")
    split = json.loads((run / "splits.json").read_text())
    assert [path.name for path in written] == [f"{id}.nii.gz" for id in split["test"]]
    scores = evaluate_folders(tmp_path / "test", raw / "labels", tmp_path / "scores.csv", workers=0)
    assert {score.case for score in scores} == set(split["test"])
    assert {score.class_name for score in scores} == {"shell", "core"}
    assert summarise(scores).overall.dice.mean > 0.6


def test_uncertainty_lies_beside_the_label_maps_on_the_same_grid_and_does_not_get_scored(trained, tmp_path):
    run, raw = trained
    (written, *_) = predict(run, [], tmp_path / "test", part="test", device="cpu", uncertainty=True)
    found, label = nib.load(tmp_path / "test" / "uncertainty" / written.name), nib.load(written)
    assert found.get_data_dtype() == np.uint8
    assert np.array_equal(found.affine, label.affine)
    values = found.get_fdata()
    assert values.shape == label.shape
    assert 0 <= values.min() < 0.05 < values.max() <= 2 / 3 + 1 / 255  # the likeliest of three classes has a third
    scores = evaluate_folders(tmp_path / "test", raw / "labels", tmp_path / "scores.csv", workers=0)
    assert {score.case for score in scores} == set(json.loads((run / "splits.json").read_text())["test"])
    wrong = np.asarray(label.dataobj) != nib.load(raw / "labels" / written.name).get_fdata()
    assert values[wrong].mean() > 2 * values[~wrong].mean()


def test_predictions_say_how_they_were_made(trained, tmp_path):
    run, raw = trained
    predict(run, [raw / "images" / "ball_03.nii.gz"], tmp_path, device="cpu", window={"network": "teacher"})
    facts = json.loads((tmp_path / "predictions.json").read_text())
    assert facts["network"] == "teacher"
    assert facts["checkpoint"] == "best.pt"
    assert facts["classes"] == ["background", "shell", "core"]
    assert facts["images"] == {"ball_03": [str((raw / "images" / "ball_03.nii.gz").resolve())]}


def test_student_teacher_and_ensemble_differ(trained):
    run, _ = trained
    image = read_prepared(json_root(run)).cases["ball_03"].open_image()[...]

    def probabilities(which):
        predictor, _ = load_predictor(run, torch.device("cpu"), checkpoint="last", window={"network": which})
        return predictor.probabilities(image)

    probs = {which: probabilities(which) for which in ("student", "teacher", "ensemble")}
    assert not np.array_equal(probs["student"], probs["teacher"])
    np.testing.assert_allclose(probs["ensemble"], (probs["student"] + probs["teacher"]) / 2, atol=1e-5)


@pytest.fixture(scope="module")
def other(trained, tmp_path_factory):
    """A supervised run on the same split that has hardly learnt."""
    run, _ = trained
    root = tmp_path_factory.mktemp("other")
    settings = merge([run / "config.yaml"], ["train.iterations=20", "train.seed=1"])
    settings["method"] = {"name": "supervised"}
    return train(parse(RunConfig, settings), root / "run", quiet=True)


def test_several_runs_are_the_mean_of_their_probabilities(trained, other, tmp_path):
    run, raw = trained
    cpu, image = torch.device("cpu"), read_image(raw / "images" / "ball_03.nii.gz")
    alone = [load_predictor(path, cpu)[0] for path in (run, other, other)]
    recipe = alone[0].recipe
    prepared = recipe.apply(image)
    probs = np.mean([each.probabilities(prepared.image) for each in alone], 0)
    together, record = load_predictor(run, cpu, also=[other, other])
    np.testing.assert_allclose(together.probabilities(prepared.image), probs, atol=1e-6)
    assert record.also == (str(other.resolve()),) * 2
    (written,) = predict(run, [image.path], tmp_path / "mean", also=[other, other], device="cpu", probabilities=True)
    expected = recipe.undo([Slab(probs)], prepared.grid)
    assert np.array_equal(read_label(written).array, expected)
    shares = np.stack(list(recipe.undo_by_class(probs, prepared.grid)))
    np.testing.assert_allclose(probabilities_of(written), shares, atol=0.51 / 255)
    assert not np.array_equal(expected, alone[0].segment(image))
    with pytest.raises(ConfigError, match="made differently"):
        predict(run, [raw / "images" / "ball_04.nii.gz"], tmp_path / "mean", device="cpu")


def test_runs_that_do_not_fit_together_are_refused(trained, other, tmp_path):
    run, _ = trained
    strange = shutil.copytree(other, tmp_path / "strange")
    values = load_checkpoint(strange / "last.pt")
    values["config"]["data"]["classes"] = ["background", "core", "shell"]
    for name in ("best.pt", "last.pt"):
        save_checkpoint(strange / name, values)
    with pytest.raises(
        ConfigError, match=r"strange: its data\.classes differs from that of .*\n.*core.*shell.*\n.*shell.*core"
    ):
        predict(run, [], tmp_path / "test", also=[strange], part="test", device="cpu")
    moved = shutil.copytree(other, tmp_path / "moved")
    split = json.loads((moved / "splits.json").read_text())
    split["val"], split["test"] = split["test"], split["val"]
    (moved / "splits.json").write_text(json.dumps(split))
    with pytest.raises(ConfigError, match="moved: its test part has other cases than that of"):
        predict(run, [], tmp_path / "test", also=[moved], part="test", device="cpu")
    assert not (tmp_path / "test").exists()


def test_one_network_can_stand_for_its_kind(trained):
    run, _ = trained
    method = build_method(parse(RunConfig, {**load_checkpoint(run / "last.pt")["config"], "method": {"name": "rail"}}))
    assert (len(method.students()), len(method.teachers())) == (4, 2)
    assert chosen_networks(method, "one-student") == [method.students()[0]]
    assert chosen_networks(method, "one-teacher") == [method.teachers()[0]]


def json_root(run):
    from medssl.config import load_yaml

    return load_yaml((run / "config.yaml").read_text())["data"]["root"]


def stamps(folder):
    """When each file of a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_predicted_whole_and_never_overwritten_unasked(trained, tmp_path, capsys):
    run, raw = trained
    images = shutil.copytree(raw / "images", tmp_path / "images")
    for path in sorted(images.iterdir())[3:]:
        path.unlink()
    assert len(predict(run, [images], tmp_path / "out", device="cpu")) == 3
    kept = stamps(tmp_path / "out")
    capsys.readouterr()
    assert len(predict(run, [images], tmp_path / "out", device="cpu")) == 3
    assert capsys.readouterr().err == "medssl: all 3 predictions exist; use --overwrite to predict again\n"
    with pytest.raises(ConfigError, match="made differently"):
        predict(run, [images], tmp_path / "out", device="cpu", uncertainty=True)
    shutil.copy(tmp_path / "out" / "ball_00.nii.gz", tmp_path / "out" / "ball_03.nii.gz")
    with pytest.raises(ConfigError, match=r"ball_03\.nii\.gz: exists, and .* not list it.* \(1 such file\)"):
        predict(run, [raw / "images" / "ball_03.nii.gz"], tmp_path / "out", device="cpu")
    (tmp_path / "out" / "ball_03.nii.gz").unlink()
    assert stamps(tmp_path / "out") == kept
    assert len(predict(run, [images], tmp_path / "out", device="cpu", overwrite=True)) == 3
    assert min(stamps(tmp_path / "out").values()) > max(kept.values())
    assert read_label(tmp_path / "out" / "ball_00.nii.gz").shape == (20, 18, 14)


def test_wrong_inputs_are_named(trained, tmp_path):
    run, raw = trained
    with pytest.raises(DataError, match=r"nothing\.nii\.gz: no such file or folder"):
        predict(run, [tmp_path / "nothing.nii.gz"], tmp_path / "out", device="cpu")
    with pytest.raises(DataError, match=rf"{raw}: no volumes to predict; .*: {raw / 'images'}$"):
        predict(run, [raw], tmp_path / "out", device="cpu")
    with pytest.raises(DataError, match="neither a folder nor a volume"):
        predict(run, [run / "config.yaml"], tmp_path / "out", device="cpu")
    with pytest.raises(DataError, match=r"images: is neither a run folder .*RUN IMAGES"):
        predict(raw / "images", [run], tmp_path / "out", device="cpu")
    nib.save(nib.Nifti1Image(np.zeros((6, 6, 6, 2), np.float32), np.eye(4)), tmp_path / "two.nii.gz")
    with pytest.raises(DataError, match="has 2 channels, but the network was trained on 1"):
        predict(run, [tmp_path / "two.nii.gz"], tmp_path / "out", device="cpu")
    nib.save(nib.Nifti1Image(np.ones((6, 6, 6), np.float32), np.diag([90.0, 90, 90, 1])), tmp_path / "far.nii.gz")
    with pytest.raises(DataError, match=r"6 x 6 x 6 voxels of 90 x 90 x 90 mm would become .*; check that the header"):
        predict(run, [tmp_path / "far.nii.gz"], tmp_path / "out", device="cpu")
    with pytest.raises(ConfigError, match="unlabelled"):
        predict(run, [], tmp_path / "out", part="unlabeled", device="cpu")
    with pytest.raises(DataError, match="both named ball_00"):
        predict(run, [raw / "images", raw / "images" / "ball_00.nii.gz"], tmp_path / "out", device="cpu")
    with pytest.raises(DataError, match=r"best\.pt"):
        predict(tmp_path, [raw / "images"], tmp_path / "out", device="cpu")
    assert not list(tmp_path.glob("out/*.nii.gz"))


def test_asking_a_method_without_teacher_for_one_is_refused():
    from medssl.methods import METHODS
    from medssl.predictor import chosen_networks
    from medssl.run import parse_method

    method = METHODS["supervised"](parse_method({"name": "supervised"}), lambda **changes: nn.Conv3d(1, 2, 1))
    with pytest.raises(ConfigError, match="no teacher"):
        chosen_networks(method, "teacher")


def test_a_run_that_is_not_finished_is_called_so(trained, tmp_path, capsys):
    run, raw = trained
    begun = train(load_run_config([run / "config.yaml"]), tmp_path / "begun", until=2, quiet=True)
    validated = shutil.copytree(begun, tmp_path / "validated")
    shutil.copy(run / "best.pt", validated)
    best = f"best weights, of step {load_checkpoint(run / 'best.pt')['iteration']}"
    for place, checkpoint, which in (
        (begun, "best", "weights"), (validated, "best", best), (validated, "last", "weights"), (run, "best", None),
        (run, "last", None),
    ):  # fmt: skip
        capsys.readouterr()
        predict(place, [raw / "images" / "ball_00.nii.gz"], tmp_path / f"{place.name}-{checkpoint}", device="cpu",
                checkpoint=checkpoint)  # fmt: skip
        said = [line for line in capsys.readouterr().err.splitlines() if "not finished" in line]
        told = f"medssl: {place} is not finished (2 of 300 steps); using its {which}"
        assert said == ([] if which is None else [told])


def test_the_record_keeps_all_images_of_a_folder_and_refuses_another_making(trained, tmp_path):
    run, raw = trained
    for name in ("ball_00", "ball_01"):
        predict(run, [raw / "images" / f"{name}.nii.gz"], tmp_path, device="cpu")
    assert set(json.loads((tmp_path / "predictions.json").read_text())["images"]) == {"ball_00", "ball_01"}
    with pytest.raises(ConfigError, match="made differently"):
        predict(run, [raw / "images" / "ball_02.nii.gz"], tmp_path, device="cpu", window={"network": "teacher"})
    assert not (tmp_path / "ball_02.nii.gz").exists()


def test_uncertainty_is_one_minus_the_probability_of_the_class():
    from medssl.data.volume import Volume

    shares = np.random.default_rng(0).uniform(0, 1, (5, 6, 7)).astype(np.float32)  # between the greys of two classes
    classes, uncertainty = identity_predictor().segment_with_uncertainty(Volume(shares, np.eye(4)))
    logits = np.stack([-30 * (shares - value) ** 2 for value in (0, 1, 2)])
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    assert np.array_equal(classes, probabilities.argmax(0))
    np.testing.assert_allclose(uncertainty, 1 - probabilities.max(0), atol=1e-4)


def test_a_voxel_that_was_cleaned_away_is_uncertain():
    from medssl.data.volume import Volume

    array = np.zeros((20, 20, 20), np.float32)
    array[2:8, 2:8, 2:8] = array[15:17, 15:17, 15:17] = 1
    predictor = identity_predictor()
    predictor.window = WindowConfig(largest_component=("b",))
    _, uncertainty = predictor.segment_with_uncertainty(Volume(array, np.eye(4)))
    assert uncertainty[16, 16, 16] > 0.99
    assert uncertainty[4, 4, 4] < 0.01


def probabilities_of(written):
    """`(C, X, Y, Z)` beside a label map, a file for each class."""
    folder = written.parent / "probabilities"
    names = sorted(path.name for path in folder.glob(f"{written.name.removesuffix('.nii.gz')}_*"))
    return np.stack([nib.load(folder / name).get_fdata() for name in names])


def with_data(trained, folder, **changes):
    """The `trained` run with other settings of its data."""
    shutil.copytree(trained[0], folder)
    for name in ("best.pt", "last.pt"):
        values = load_checkpoint(folder / name)
        values["config"]["data"] |= changes
        save_checkpoint(folder / name, values)
    return folder


@pytest.mark.parametrize("codes", ["RAS", "PIR", "ALS"])
@pytest.mark.parametrize(
    "recipe",
    [
        {"crop": False},
        {"crop": False, "spacing": (1.3, 0.8, 1.1)},
        {"crop": True, "threshold": 0, "margin": 0},
        {"crop": True, "threshold": 0, "margin": 1, "spacing": (1.3, None, 1.1)},
        {"crop": True, "threshold": 0, "margin": 0, "resize": (12, 9)},
    ],
)
def test_probabilities_lie_on_the_image_grid_sum_to_one_and_give_the_label_map(trained, tmp_path, codes, recipe):
    run = with_data(trained, tmp_path / "run", recipe=Recipe(**recipe).model_dump(mode="json"))
    array = read_image(trained[1] / "images" / "ball_03.nii.gz").array[3:14, 5:15, 3:12].copy()
    array[:2] = array[:, -1:] = array[..., :1] = -100  # air, to crop
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    affine = np.array([[0.8, 0, 0.2, -20], [0, 1.1, 0, 33], [-0.1, 0, 1.6, 5], [0, 0, 0, 1]])
    affine = affine @ nib.orientations.inv_ornt_aff(turn, array.shape)
    image = nib.Nifti1Image(nib.orientations.apply_orientation(array, turn), affine)
    image.set_sform(affine, 2)
    nib.save(image, tmp_path / "image.nii.gz")
    (written,) = predict(run, [tmp_path / "image.nii.gz"], tmp_path / "out", device="cpu", uncertainty=True,
                         probabilities=True)  # fmt: skip
    label, shares = np.asarray(nib.load(written).dataobj), probabilities_of(written)
    assert shares.shape == (3, *image.shape)
    assert np.unique(label).tolist() == [0, 1, 2]
    assert np.abs(shares.sum(0) - 1).max() <= 3 / 510 + 1e-5
    highest = shares.max(0)
    assert np.array_equal(np.take_along_axis(shares, label[None].astype(int), 0)[0], highest)
    assert ((shares == highest).sum(0) == 1).mean() > 0.97  # rounding ties are few
    unsure = nib.load(tmp_path / "out" / "uncertainty" / "image.nii.gz").get_fdata()
    np.testing.assert_allclose(unsure, 1 - highest, atol=1.01 / 255)
    if recipe.get("margin") == 0:
        np.testing.assert_allclose(shares[:, image.get_fdata() == -100].T - [1, 0, 0], 0, atol=1e-6)
    for place in range(3):
        found = nib.load(tmp_path / "out" / "probabilities" / f"image_{place}.nii.gz")
        assert found.get_data_dtype() == np.uint8
        for key in ("dim", "pixdim", "sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b"):
            assert np.array_equal(found.header[key], nib.load(tmp_path / "image.nii.gz").header[key]), key


def test_probabilities_are_those_before_cleaning():
    from medssl.data.volume import Volume

    array = np.zeros((20, 20, 20), np.float32)
    array[2:8, 2:8, 2:8] = array[15:17, 15:17, 15:17] = 1
    predictor = identity_predictor()
    predictor.window = WindowConfig(largest_component=("b",))
    classes, uncertainty, shares = predictor.segment_with_probabilities(Volume(array, np.eye(4)))
    background, found, _ = shares
    assert classes[16, 16, 16] == 0
    assert found[16, 16, 16] > 0.99
    np.testing.assert_allclose(uncertainty, 1 - np.where(classes == 1, found, background), atol=1e-6)


def test_probabilities_are_written_by_the_command_go_on_and_do_not_get_scored(trained, tmp_path):
    (run, raw), out = trained, tmp_path / "out"
    images = [str(raw / "images" / f"ball_0{number}.nii.gz") for number in range(2)]
    words = ["predict", str(run), "-o", str(out), "--device", "cpu"]
    assert CliRunner().invoke(app, [*words, images[0], "--probabilities"]).exit_code == 0
    kept = stamps(out / "probabilities")
    assert sorted(path.name for path in kept) == [f"ball_00_{place}.nii.gz" for place in range(3)]
    assert json.loads((out / "predictions.json").read_text())["probabilities"] == "probabilities"
    with pytest.raises(ConfigError, match="made differently"):
        predict(run, [Path(image) for image in images], out, device="cpu")
    assert CliRunner().invoke(app, [*words, *images, "--probabilities"]).exit_code == 0
    assert stamps(out / "probabilities").items() >= kept.items()
    assert len(stamps(out / "probabilities")) == 6
    assert not (out / "uncertainty").exists()
    scores = evaluate_folders(out, raw / "labels", tmp_path / "scores.csv", workers=0)
    assert {score.case for score in scores} == {"ball_00", "ball_01"}
    predict(run, [Path(image) for image in images], out, device="cpu", probabilities=True, overwrite=True)
    assert min(stamps(out / "probabilities").values()) > max(kept.values())


def test_predicting_anew_leaves_nothing_of_the_earlier_call_beside_a_case(trained, tmp_path):
    (run, _), out = trained, tmp_path / "out"
    test = predict(run, [], out, part="test", device="cpu", uncertainty=True, probabilities=True)
    other = out / "probabilities" / f"{test[0].name.removesuffix('.nii.gz')}_1_0.nii.gz"  # of a case with a longer name
    other.write_bytes(b"")
    predict(run, [], out, part="test", device="cpu", overwrite=True)
    assert sorted(path for path in out.rglob("*.nii.gz")) == sorted([*test, other])


def test_predictions_in_the_values_of_the_dataset_are_scored_and_reported_as_those_in_places(trained, tmp_path):
    for path in list_volumes(trained[1] / "labels"):
        label = read_label(path)
        write_label(tmp_path / "labels" / path.name, np.array([0, 500, 1])[label.array], like=label)
    tables, found, read, maps = [], [], [], []
    for name, own in (("places", False), ("values", True)):
        run = with_data(trained, tmp_path / name, values={"shell": [500], "core": [1]})
        written = predict(run, [], run / "test", part="test", device="cpu", own_values=own)
        scores = evaluate_folders(run / "test", tmp_path / "labels", run / "scores.csv", workers=0)
        assert summarise(scores).overall.dice.mean > 0.6
        (loaded,) = load_runs([run])
        tables.append((run / "scores.csv").read_text().replace(str(run), ""))
        found += agreements(make_rows([loaded]), 3, workers=0)
        read.append(files_of(loaded, scores[0].case).read()[1].array)
        maps.append([read_label(path).array for path in written])
        for overwrite in (False, True):  # of which a fault or an interruption would leave some, to be read wrongly
            with pytest.raises(ConfigError, match="the label maps in this folder hold other values"):
                predict(run, [], run / "test", part="test", device="cpu", own_values=not own, overwrite=overwrite)
    assert json.loads((tmp_path / "values" / "test" / "predictions.json").read_text())["own_values"] == [0, 500, 1]
    for places, values in zip(*maps, strict=True):
        assert np.unique(places).tolist() == [0, 1, 2]
        assert np.array_equal(values, np.array([0, 500, 1])[places])
    assert tables[0] == tables[1]
    assert np.array_equal(*read)
    assert np.array_equal(found[0].confusion, found[1].confusion)
    assert found[0].unread == found[1].unread == 0
    lines = explain(tmp_path / "places" / "scores.csv", tmp_path / "values" / "scores.csv")
    assert not [line for line in lines if "other files" in line or " differ" in line], lines


def test_a_prediction_that_holds_other_values_than_its_folder_says_is_refused(trained, tmp_path):
    (run, raw), out = trained, tmp_path / "out"
    words = ["predict", str(run), str(raw / "images" / "ball_00.nii.gz"), "-o", str(out), "--own-values"]
    assert CliRunner().invoke(app, words).exit_code == 0
    label = read_label(out / "ball_00.nii.gz")
    write_label(out / "ball_00.nii.gz", 7 * label.array, like=label)
    with pytest.raises(DataError, match=r"ball_00\.nii\.gz: the label map holds 7, 14; own_values in .* are 0, 1, 2"):
        evaluate_folders(out, raw / "labels", tmp_path / "scores.csv", workers=0)


@pytest.mark.parametrize(
    ("values", "told"), [({"core": [7, 9], "shell": [3]}, r"core \[7, 9\]$"), ({"core": [-1]}, r"core \[-1\]$")]
)
def test_classes_without_one_value_cannot_be_written_in_it(trained, tmp_path, values, told):
    run = with_data(trained, tmp_path / "run", values=values)
    with pytest.raises(ConfigError, match=rf"each class must have exactly one value from 0 to 65535; .* has {told}"):
        predict(run, [tmp_path / "not_looked_for.nii.gz"], tmp_path / "out", device="cpu", own_values=True)


def untrained(trained, folder, channels):
    """A run like `trained`, of a network that takes several channels."""
    values = load_checkpoint(trained[0] / "last.pt")
    values["config"]["data"]["channels"] = channels
    values["method"] = build_method(parse(RunConfig, values["config"])).state_dict()
    save_checkpoint(folder / "last.pt", values)
    return folder


def test_channels_in_files_of_their_own_are_one_case(trained, tmp_path):
    run = untrained(trained, tmp_path, ["T1", "T2"])
    image = trained[1] / "images" / "ball_00.nii.gz"
    for folder in ("two", "three"):
        (tmp_path / folder).mkdir()
    for name in ("a_0001", "b_0001", "b_0000", "a_0000"):
        shutil.copy(image, tmp_path / "two" / f"{name}.nii.gz")
    written = predict(run, [tmp_path / "two"], tmp_path / "out", device="cpu")
    assert [path.name for path in written] == ["a.nii.gz", "b.nii.gz"]
    images = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]["a"]
    assert [Path(image).name for image in images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    (tmp_path / "two" / "b_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"b_0000.*: case b has 1 of 2 channels\nAdd the missing files"):
        predict(run, [tmp_path / "two"], tmp_path / "again", device="cpu")
    (tmp_path / "other").mkdir()
    shutil.copy(image, tmp_path / "other" / "b_0000.nii.gz")  # two files, and still one channel
    shutil.copy(image, tmp_path / "other" / "b_0002.nii.gz")
    with pytest.raises(
        DataError, match=r"case b has files of 2 channels \(b_0000, b_0002\), but the run was trained on 3"
    ):
        predict(untrained(trained, tmp_path / "three", ["T1", "T2", "T3"]), [tmp_path / "other"], tmp_path / "again",
                device="cpu")  # fmt: skip
    (tmp_path / "other" / "b_0002.nii.gz").unlink()
    with pytest.raises(DataError, match="both named b_0000"):
        predict(run, [tmp_path / "two", tmp_path / "other"], tmp_path / "again", device="cpu")


def test_channels_on_other_grids_are_told_or_refused(trained, tmp_path, capsys):
    """Stored with other axes they are the same; a little off is said, and a scan that nobody registered is refused."""
    run, scans = untrained(trained, tmp_path, ["T1", "T2"]), tmp_path / "scans"
    scans.mkdir()
    image = nib.load(trained[1] / "images" / "ball_03.nii.gz")
    other = image.slicer[:]
    for name, second in {
        "same": other,
        "turned": other.as_reoriented([[1, -1], [0, 1], [2, -1]]),
        "off": nib.Nifti1Image(other.get_fdata(dtype=np.float32), other.affine + 0.1 * np.eye(4, k=3)),
        "apart": nib.Nifti1Image(other.get_fdata(dtype=np.float32), other.affine + 6 * np.eye(4, k=3)),
    }.items():
        nib.save(image, scans / f"{name}_0000.nii.gz")
        nib.save(second, scans / f"{name}_0001.nii.gz")
    with pytest.raises(DataError, match=r"1 of 4 cases.*\n  apart .*apart_0001.nii.gz: image and other channel lie on"):
        predict(run, [scans], tmp_path / "out", device="cpu")
    said = capsys.readouterr().err
    told = "off_0001.nii.gz: the grid of the other channel is up to 0.1 voxels off the grid of the image; harmless"
    assert told in said
    assert "turned_0001" not in said
    same, turned = (read_label(tmp_path / "out" / f"{name}.nii.gz").array for name in ("same", "turned"))
    assert np.array_equal(same, turned)
    assert len(np.unique(same)) > 1


def test_channels_that_the_run_does_not_take_are_not_cases(trained, tmp_path):
    (tmp_path / "run").mkdir()
    image = trained[1] / "images" / "ball_00.nii.gz"
    for name in ("a_0000", "a_0001", "a_0002", "b_0007"):
        shutil.copy(image, tmp_path / f"{name}.nii.gz")
    for run, count in ((trained[0], 1), (untrained(trained, tmp_path / "run", ["T1", "T2"]), 2)):
        with pytest.raises(DataError, match=rf"a has files of 3 channels \(a_0000, a_0001, a_0002\), .* on {count};"):
            predict(run, [tmp_path], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    (tmp_path / "a_0001.nii.gz").unlink()
    assert len(predict(trained[0], [tmp_path], tmp_path / "out", device="cpu")) == 3


def test_a_dicom_series_is_a_case_named_by_its_folder(trained, tmp_path):
    run, raw = trained
    voxels = np.rint(1000 * read_image(raw / "images" / "ball_03.nii.gz").array).astype(np.int16)
    write_series(tmp_path / "scans" / "patient.7", voxels)
    write_series(tmp_path / "scans" / "patient.8", voxels)
    write_image(tmp_path / "same.nii.gz", voxels, np.diag([-1.0, -1.0, 1.0, 1.0]))  # the world of DICOM is LPS
    written = predict(run, [tmp_path / "scans", tmp_path / "same.nii.gz"], tmp_path / "out", device="cpu",
                      probabilities=True)  # fmt: skip
    assert [path.name for path in written] == ["patient.7.nii.gz", "patient.8.nii.gz", "same.nii.gz"]
    found, _, expected = (read_label(path) for path in written)
    assert np.array_equal(found.array, expected.array)
    assert np.allclose(found.affine, expected.affine)
    assert np.array_equal(probabilities_of(written[0]), probabilities_of(written[2]))
    assert np.allclose(nib.load(tmp_path / "out/probabilities/patient.7_1.nii.gz").affine, expected.affine)
    assert len(np.unique(found.array)) > 1


def test_dicom_beside_converted_modalities_takes_no_case_away(trained, tmp_path):
    (tmp_path / "run").mkdir()
    run, image = untrained(trained, tmp_path / "run", ["t1", "t2"]), trained[1] / "images" / "ball_00.nii.gz"
    for name in ("P1", "P2"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for word in ("t1", "t2"):
            shutil.copy(image, tmp_path / "scans" / name / f"{word}.nii.gz")
    write_series(tmp_path / "scans" / "P1" / "dicom", np.arange(12 * 12 * 8, dtype=np.int16).reshape(12, 12, 8))
    written = predict(run, [tmp_path / "scans"], tmp_path / "out", device="cpu")
    assert [path.name for path in written] == ["P1.nii.gz", "P2.nii.gz"]


def test_an_archive_of_dicom_is_predicted_by_the_names_that_prepare_gives(trained, tmp_path):
    archive, voxels = tmp_path / "archive", np.arange(12 * 12 * 8, dtype=np.int16).reshape(12, 12, 8)
    write_series(archive / "Ödön, Á" / "study 1" / "CBCT", voxels)
    write_series(archive / "Lang, Kai" / "study 1" / "CBCT", voxels + 1, "1.2.4")
    write_series(archive / "Lang, Kai" / "study 1" / "SCOUT", voxels[..., :1], "1.2.5")
    write_series(archive / "labels" / "seen", voxels, "1.2.6")
    written = predict(trained[0], [archive], tmp_path / "out", device="cpu")
    assert sorted(path.name for path in written) == ["Lang, Kai.nii.gz", "Ödön, Á.nii.gz"]
    assert [case.id for case in read_layout(archive).cases] == ["Lang, Kai", "Ödön, Á"]
    patients = [archive / "Lang, Kai", archive / "Ödön, Á"]  # each with one series: named by what was given
    written = predict(trained[0], patients, tmp_path / "each", device="cpu")
    assert sorted(path.name for path in written) == ["Lang, Kai.nii.gz", "Ödön, Á.nii.gz"]
    (one,) = predict(trained[0], [archive / "Lang, Kai"], tmp_path / "one", device="cpu")
    assert one.name == "study 1.nii.gz"  # its only series of more than one slice
    slice_of = next((archive / "Lang, Kai" / "study 1" / "CBCT").iterdir())
    with pytest.raises(DataError, match=r"is one file of a DICOM series; name its folder instead, .*CBCT$"):
        predict(trained[0], [slice_of], tmp_path / "more", device="cpu")


def test_one_of_several_series_is_named_as_the_error_says(trained, tmp_path):
    folder = tmp_path / "scan"
    for uid in ("1.2.3", "1.2.4"):
        write_series(folder, np.arange(12 * 12 * 8, dtype=np.int16).reshape(12, 12, 8), uid)
    with pytest.raises(DataError, match=r"2 series in one folder") as error:
        predict(trained[0], [folder], tmp_path / "out", device="cpu")
    (named,) = re.findall(r"as in (\S+#\S+),", str(error.value))
    assert [path.name for path in predict(trained[0], [Path(named)], tmp_path / "out", device="cpu")] == ["scan.nii.gz"]


def write_series(folder, voxels, uid="1.2.3"):
    """A DICOM series of 1 mm voxels."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(voxels.shape[2]):
        image = sitk.GetImageFromArray(voxels[..., z].T[None])
        for tag, value in {
            "0008|0060": "MR",
            "0020|000e": uid,
            "0020|0032": f"0\\0\\{z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}-{z:03}.dcm"))
        writer.Execute(image)


@pytest.fixture
def scans(trained, tmp_path):
    """Three images in a folder, the second one cut."""
    (tmp_path / "scans").mkdir()
    for name in ("ball_00", "ball_01", "ball_02"):
        shutil.copy(trained[1] / "images" / f"{name}.nii.gz", tmp_path / "scans")
    cut = tmp_path / "scans" / "ball_01.nii.gz"
    cut.write_bytes(cut.read_bytes()[:500])
    return tmp_path / "scans"


def test_scans_unlike_those_of_the_run_are_told_of_once_for_each_kind(trained, tmp_path, capsys):
    run, raw = trained
    image = read_image(raw / "images" / "ball_00.nii.gz")
    write_image(tmp_path / "alike" / "a.nii.gz", 1.2 * image.array + 3, image.affine)
    for name in "bc":
        write_image(tmp_path / "other" / f"{name}.nii.gz", 10 * image.array - 1500, np.diag([3, 3, 1.5, 1]))
    export(run, tmp_path / "model")
    shared = (tmp_path / "model" / "model.yaml").read_text()
    assert "likeness" in shared
    assert not any(name in shared for name in ("ball_", str(run.parent), str(raw)))
    capsys.readouterr()
    for number, one in enumerate((run, tmp_path / "model")):
        predict(one, [tmp_path / "alike"], tmp_path / f"alike_{number}", device="cpu")
        assert "the scans of the run" not in capsys.readouterr().err
        predict(one, [tmp_path / "other"], tmp_path / f"other_{number}", device="cpu")
        told = [line for line in capsys.readouterr().err.splitlines() if "the scans of the run" in line]
        kinds = [re.search(r"b\.nii\.gz: (\w+ \w+)", line)[1] for line in told]
        assert kinds == ["spacing 3", "it spans", "its darkest"]
        assert all("(2 such files); check that it is a scan of the kind" in line for line in told)


def test_faulty_scans_are_passed_over_and_predicted_once_they_are_mended(trained, scans, tmp_path):
    (run, raw), out = trained, tmp_path / "out"
    write_image(scans / "holes.nii.gz", np.full((12, 12, 8), np.nan, np.float32), np.eye(4))
    with pytest.raises(DataError, match=r"(?s)^2 of 4 cases .*ball_01  .*ball_01\.nii\.gz: .*holes\.nii\.gz: .*NaN"):
        predict(run, [scans], out, device="cpu", uncertainty=True)
    for folder in (out, out / "uncertainty"):
        assert sorted(path.name for path in folder.glob("*.nii.gz")) == ["ball_00.nii.gz", "ball_02.nii.gz"]
    facts = json.loads((out / "predictions.json").read_text())
    assert set(facts["images"]) == {"ball_00", "ball_02"}
    kept = (out / "ball_00.nii.gz").stat().st_mtime_ns

    shutil.copy(raw / "images" / "ball_01.nii.gz", scans)
    (scans / "holes.nii.gz").unlink()
    with pytest.raises(ConfigError, match="made differently"):
        predict(run, [scans], out, device="cpu")
    assert len(predict(run, [scans], out, device="cpu", uncertainty=True)) == 3
    assert (out / "ball_00.nii.gz").stat().st_mtime_ns == kept
    images = json.loads((out / "predictions.json").read_text())["images"]
    assert images == facts["images"] | {"ball_01": [str((scans / "ball_01.nii.gz").resolve())]}
    assert len(evaluate_folders(out, raw / "labels", tmp_path / "scores.csv", workers=0)) == 6


def test_a_volume_too_large_for_memory_is_passed_over_before_the_system_ends_all(trained, scans, tmp_path, monkeypatch):
    immense = np.broadcast_to(np.float32(0), (1, 4000, 3000, 5000))
    with pytest.raises(
        OutOfMemoryError, match=r"3 classes for 4000 x 3000 x 5000 voxels need 894\.1 GiB of memory, and"
    ):
        identity_predictor().probabilities(immense)
    with pytest.raises(
        OutOfMemoryError, match=r"4000 x 3000 x 556 of 4000 x 3000 x 5000 voxels need 268\.2 GiB of memory, and"
    ):
        next(identity_predictor(patch=(1000, 1000, 1000)).slabs(immense))

    monkeypatch.setattr("medssl.predictor.available_memory", lambda: 4 * 4 * 20 * 18 * 14)  # as much as a ball takes
    (scans / "ball_01.nii.gz").unlink()
    write_image(scans / "large.nii.gz", np.ones((21, 18, 14), np.float32), np.diag([1, 1, 1.5, 1.0]))
    with pytest.raises(OutOfMemoryError, match=r"(?s)^1 of 3 cases .*large  .* 21 x 18 x 14 voxels"):
        predict(trained[0], [scans], tmp_path / "out", device="cpu")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_a_case_that_may_be_too_large_is_told_of_before_it_is_read(trained, scans, tmp_path, monkeypatch, capsys):
    (scans / "ball_01.nii.gz").unlink()
    write_image(scans / "long.nii.gz", np.ones((20, 18, 15), np.float32), np.diag([1, 1, 1.5, 1.0]))
    monkeypatch.setattr("medssl.predict.available_memory", lambda: 40 * 20 * 18 * 14)
    predict(trained[0], [scans], tmp_path / "out", device="cpu")
    told = capsys.readouterr().err
    assert "case long may need" in told
    assert told.count("may need") == 1


class Small(nn.Module):
    """A network on a device that holds no more than so many windows at once."""

    def __init__(self, most):
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, windows):
        self.seen.append(len(windows))
        if len(windows) > self.most:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB\nand more")
        return Identity()(2 * windows)


def test_where_memory_does_not_hold_the_windows_fewer_are_looked_at_at_once(capsys):
    image = np.random.default_rng(0).random((1, 9, 8, 7), np.float32)
    tell_once.cache_clear()
    found = {}
    for most in (4, 1):
        predictor = identity_predictor(patch=(4, 4, 4))
        predictor.networks = [Small(most)]
        found[most] = predictor.probabilities(image)
        assert predictor.window.batch == most
    np.testing.assert_array_equal(found[1], found[4])
    assert sorted(set(predictor.networks[0].seen)) == [1, 2, 4]
    assert predictor.networks[0].seen.count(4) == predictor.networks[0].seen.count(2) == 1  # it is not tried again
    told = capsys.readouterr().err
    assert "cpu has too little memory for 4 windows at once; continuing with 2\n" in told
    assert told.count("\n") == 2
    predictor.networks = [Small(0)]
    with pytest.raises(
        OutOfMemoryError, match=r"cpu has too little memory for one window of 4 x 4 x 4 .*\(Tried to allocate"
    ):
        predictor.probabilities(image)


def test_what_was_interrupted_goes_on_and_other_files_of_the_same_name_are_refused(trained, tmp_path, monkeypatch):
    (run, raw), out = trained, tmp_path / "out"
    images = [raw / "images" / f"ball_0{number}.nii.gz" for number in range(3)]
    segment, left = Predictor.segment, iter([True, False])

    def interrupted(self, image):
        if not next(left):
            raise KeyboardInterrupt
        return segment(self, image)

    monkeypatch.setattr(Predictor, "segment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(run, images, out, device="cpu")
    monkeypatch.setattr(Predictor, "segment", segment)
    assert json.loads((out / "predictions.json").read_text())["classes"] == ["background", "shell", "core"]
    other = shutil.copy(images[1], tmp_path / "ball_00.nii.gz")
    with pytest.raises(
        ConfigError, match=r"ball_00\.nii\.gz: exists, .* from .*images.ball_00\.nii\.gz \(1 such file\)"
    ):
        predict(run, [other, images[1]], out, device="cpu")
    assert len(predict(run, images, out, device="cpu")) == 3
    assert set(json.loads((out / "predictions.json").read_text())["images"]) == {"ball_00", "ball_01", "ball_02"}


def test_label_maps_never_take_the_place_of_images(trained, tmp_path):
    run, raw = trained
    images = shutil.copytree(raw / "images", tmp_path / "images")
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    for named in ([images], [images / "ball_00.nii.gz"]):
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="is one of the images, and its label map would overwrite it"):
                predict(run, named, images, device="cpu", overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_a_name_that_is_not_utf8_stops_no_other_case(trained, tmp_path):
    run, raw = trained
    (tmp_path / "images").mkdir()
    odd = os.fsdecode(os.fsencode(tmp_path / "images") + b"/b\xe9b\xe9.nii.gz")
    for name in (odd, tmp_path / "images" / "fine.nii.gz"):
        shutil.copyfile(raw / "images" / "ball_00.nii.gz", name)
    with pytest.raises(DataError, match=r"1 of 2 cases cannot be predicted(.|\n)*not valid UTF-8; rename"):
        predict(run, [tmp_path / "images"], tmp_path / "out", device="cpu")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["fine.nii.gz", "predictions.json"]


def test_other_weights_in_the_same_place_are_another_making(trained, tmp_path):
    run, raw = shutil.copytree(trained[0], tmp_path / "run"), trained[1]
    image, out = raw / "images" / "ball_00.nii.gz", tmp_path / "out"
    predict(run, [image], out, device="cpu", checkpoint="last")
    values = load_checkpoint(run / "last.pt")
    name = next(name for name in values["method"] if name.endswith("weight"))
    values["method"][name] = values["method"][name] + 0.25
    save_checkpoint(run / "last.pt", values)
    with pytest.raises(ConfigError, match=r"predictions in this folder were made differently \(weights\)"):
        predict(run, [image], out, device="cpu", checkpoint="last")
    record = json.loads((out / "predictions.json").read_text())
    assert record.pop("weights")
    (out / "predictions.json").write_text(json.dumps(record))  # as an earlier version has it
    assert predict(run, [image], out, device="cpu", checkpoint="last")


def test_an_image_that_was_written_again_is_another_one(trained, tmp_path):
    run, raw = trained
    images = [Path(shutil.copy(raw / "images" / f"ball_0{n}.nii.gz", tmp_path)) for n in range(2)]
    first, second = predict(run, images, tmp_path / "out", device="cpu")
    kept = first.read_bytes(), second.read_bytes()
    shutil.copyfile(raw / "images" / "ball_05.nii.gz", images[0])
    with pytest.raises(
        ConfigError, match=r"ball_00\.nii\.gz: the image of this case has changed since it was predicted \(1 such case:"
    ):
        predict(run, images, tmp_path / "out", device="cpu")
    assert (first.read_bytes(), second.read_bytes()) == kept
    predict(run, images, tmp_path / "out", device="cpu", overwrite=True)
    (fresh,) = predict(run, [raw / "images" / "ball_05.nii.gz"], tmp_path / "fresh", device="cpu")
    assert np.array_equal(read_label(first).array, read_label(fresh).array)
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    del record["stamps"]
    (tmp_path / "out" / "predictions.json").write_text(json.dumps(record))  # as an earlier version has it
    assert len(predict(run, images, tmp_path / "out", device="cpu")) == 2


def test_two_that_share_a_folder_note_the_cases_of_both(trained, tmp_path, monkeypatch):
    """As where the images are divided over GPUs: the second begins and ends while the first is at work."""
    (run, raw), out = trained, tmp_path / "out"
    segment = Predictor.segment

    def beside(self, image):
        monkeypatch.setattr(Predictor, "segment", segment)
        predict(run, [raw / "images" / "ball_01.nii.gz"], out, device="cpu")
        return segment(self, image)

    monkeypatch.setattr(Predictor, "segment", beside)
    predict(run, [raw / "images" / "ball_00.nii.gz"], out, device="cpu")
    assert set(json.loads((out / "predictions.json").read_text())["images"]) == {"ball_00", "ball_01"}


def test_where_nothing_can_be_predicted_no_folder_is_left(trained, scans, tmp_path):
    with pytest.raises(DataError, match=r"^1 of 1 cases cannot be predicted\n"):
        predict(trained[0], [scans / "ball_01.nii.gz"], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_modalities_for_each_case_is_taken_by_the_names_of_the_runs_channels(
    trained, tmp_path, monkeypatch
):
    run = shutil.copytree(trained[0], tmp_path / "run")
    for name in ("best.pt", "last.pt"):
        values = load_checkpoint(run / name)
        values["config"]["data"] |= {"channels": ["T1", "flair"], "root": None}
        state = values["method"]
        for key, tensor in state.items():  # networks that look at T1 alone
            if tensor.ndim == 5 and tensor.shape[1] == 1:
                state[key] = torch.cat([tensor, torch.zeros_like(tensor)], 1)
        save_checkpoint(run / name, values)
    images = sorted((trained[1] / "images").glob("*.nii.gz"))[:2]
    for image in images:
        folder = tmp_path / "scans" / image.name.partition(".")[0]
        folder.mkdir(parents=True)
        shutil.copy(image, folder / f"{folder.name}_t1.nii.gz")
        volume = read_image(image)
        write_image(folder / f"{folder.name}_FLAIR.nii.gz", volume.array[::-1], volume.affine)
        (folder / f"{folder.name}_seg.nii.gz").write_bytes(b"not looked at")
        (folder / f"{folder.name}_mask.nii.gz").write_bytes(b"not looked at either")
        (folder / f"{folder.name}_t2.nii.gz").write_bytes(b"not wanted")
    alone = predict(trained[0], images, tmp_path / "alone", device="cpu")
    written = predict(run, [tmp_path / "scans"], tmp_path / "out", device="cpu")
    (tmp_path / "link").symlink_to(tmp_path / "scans" / "ball_00")
    monkeypatch.chdir(tmp_path / "link")
    one = predict(run, [tmp_path / "scans" / "ball_00", Path()], tmp_path / "one", device="cpu")
    assert [path.name for path in one] == ["ball_00.nii.gz"]
    assert predict(run, [tmp_path / "link"], tmp_path / "linked", device="cpu")[0].name == "link.nii.gz"
    for path, expected in [*zip(written, alone, strict=True), (one[0], alone[0])]:
        assert path.name == expected.name
        np.testing.assert_array_equal(read_label(path).array, read_label(expected).array)
    write_image(tmp_path / "scans" / "top.nii.gz", np.zeros((8, 7, 6, 2), np.float32), np.eye(4))
    both = predict(run, [tmp_path / "scans"], tmp_path / "both", device="cpu")
    assert [path.name for path in both] == ["top.nii.gz"]  # a folder of volumes is what it was
    (tmp_path / "scans" / "top.nii.gz").unlink()
    (tmp_path / "scans" / "ball_01" / "ball_01_t1.nii.gz").rename(tmp_path / "elsewhere.nii.gz")
    with pytest.raises(DataError, match=r"ball_01: no file of t1\n"):
        predict(run, [tmp_path / "scans"], tmp_path / "other", device="cpu")


def test_a_link_to_another_scan_is_another_image(trained, tmp_path):
    images, link = sorted((trained[1] / "images").glob("*.nii.gz")), tmp_path / "latest.nii.gz"
    link.symlink_to(images[0])
    predict(trained[0], [link], tmp_path / "out", device="cpu")
    link.unlink()
    link.symlink_to(images[1])
    with pytest.raises(ConfigError, match="exists, and was predicted from"):
        predict(trained[0], [link], tmp_path / "out", device="cpu")


def test_doubtful_geometry_is_told_once_for_each_kind(trained, tmp_path, capsys):
    for name in ("a", "b"):
        image = nib.load(trained[1] / "images" / "ball_00.nii.gz")
        image.set_sform(image.affine, 0)
        image.set_qform(image.affine, 0)
        nib.save(image, tmp_path / f"{name}.nii.gz")
    write_image(tmp_path / "tiny.nii.gz", np.zeros((12, 12, 8), np.float32), np.diag([0.001, 0.001, 0.001, 1]))
    predict(trained[0], [tmp_path], tmp_path / "out", device="cpu")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"medssl: {tmp_path}")]
    told = [line for line in told if "the scans of the run" not in line]
    assert len(told) == 2
    assert f"{tmp_path / 'a.nii.gz'}: sform_code and qform_code are 0" in told[0]
    assert "(2 such files)" in told[0]
    assert f"{tmp_path / 'tiny.nii.gz'}: spacing 0.001 x 0.001 x 0.001 mm; correct the unit" in told[1]


def test_predictions_of_background_alone_are_told_of(trained, tmp_path, capsys):
    """By a run that names nothing else, since the last layer leans that way."""
    images = [trained[1] / "images" / f"ball_0{number}.nii.gz" for number in range(2)]
    predict(trained[0], images, tmp_path / "seen", device="cpu")
    assert "background" not in capsys.readouterr().err
    run = shutil.copytree(trained[0], tmp_path / "run")
    values = load_checkpoint(run / "best.pt")
    for name, tensor in values["method"].items():
        if name.endswith("bias") and len(tensor) == 3:
            tensor[:] = torch.tensor([1e6, 0, 0])
    save_checkpoint(run / "best.pt", values)
    predict(run, images, tmp_path / "out", device="cpu")
    assert not read_label(tmp_path / "out" / "ball_00.nii.gz").array.any()
    assert "only background was predicted in 2 of 2 cases (ball_00, ball_01); " in capsys.readouterr().err


def test_a_relative_root_is_looked_for_where_one_stands(trained, tmp_path, monkeypatch):
    run, root = shutil.copytree(trained[0], tmp_path / "run"), Path(json_root(trained[0]))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(f"root: {root}", f"root: {root.name}"))
    monkeypatch.chdir(tmp_path)
    wanted = rf"data\.root is {root.name}, which does not exist in {re.escape(str(tmp_path))}; .*--prepared where"
    with pytest.raises(DataError, match=wanted):
        predict(run, [], tmp_path / "out", part="test", device="cpu")
    assert len(predict(run, [], tmp_path / "there", part="test", prepared=root, device="cpu")) == 2
    monkeypatch.chdir(root.parent)
    assert len(predict(run, [], tmp_path / "out", part="test", device="cpu")) == 2


@pytest.mark.parametrize("change", [{"channels": ("T2",)}, {"classes": ("a", "b", "c")}, {"values": {"core": (2, 3)}}])
def test_a_prepared_dataset_of_another_kind_is_refused(trained, tmp_path, change):
    config = read_prepared(Path(json_root(trained[0]))).config
    prepare(trained[1], tmp_path / "prepared", config.model_copy(update=change), workers=0)
    with pytest.raises(ConfigError, match=rf"--prepared: .* another dataset .* data\.{next(iter(change))} is"):
        predict(trained[0], [], tmp_path / "out", part="test", prepared=tmp_path / "prepared", device="cpu")


def test_raw_files_that_moved_are_told_with_what_notes_their_place(trained, tmp_path):
    raw, root = shutil.copytree(trained[1], tmp_path / "raw"), tmp_path / "prepared"
    config = read_prepared(Path(json_root(trained[0]))).config
    prepare(raw, root, config, workers=0)
    raw.rename(tmp_path / "elsewhere")
    advice = rf"raw.*\.nii\.gz: no such file any more.*`medssl prepare NEW_PLACE {re.escape(str(root))}`"
    with pytest.raises(DataError, match=advice):
        predict(trained[0], [], tmp_path / "out", part="test", prepared=root, device="cpu")
    predict(trained[0], [tmp_path / "elsewhere" / "images" / "ball_00.nii.gz"], tmp_path / "out", device="cpu")
    with pytest.raises(DataError, match=advice):
        evaluate_folders(tmp_path / "out", root, tmp_path / "scores.csv", workers=0)
    assert not (tmp_path / "scores.csv").exists()
    stored = (root / "cases" / "ball_00" / "image.npy").stat().st_mtime_ns
    prepare(tmp_path / "elsewhere", root, config, workers=0)
    assert (root / "cases" / "ball_00" / "image.npy").stat().st_mtime_ns == stored
    assert len(predict(trained[0], [], tmp_path / "test", part="test", prepared=root, device="cpu")) == 2
    assert len(evaluate_folders(tmp_path / "test", root, tmp_path / "scores.csv", workers=0)) == 4


def test_links_to_files_named_by_their_content_are_read_by_the_names_of_the_links(trained, tmp_path):
    """As data under version control lie."""
    raw, store = tmp_path / "raw", tmp_path / "store"
    store.mkdir()
    for number, file in enumerate(sorted(trained[1].rglob("*.nii.gz"))):
        link = raw / file.relative_to(trained[1])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(shutil.copy(file, store / f"{number:064}{'.gz' if number % 2 else ''}"))
    prepare(raw, tmp_path / "prepared", read_prepared(Path(json_root(trained[0]))).config, workers=0)
    written = predict(trained[0], [], tmp_path / "out", part="test", prepared=tmp_path / "prepared", device="cpu")
    assert len(written) == 2
    assert len(evaluate_folders(tmp_path / "out", tmp_path / "prepared", tmp_path / "scores.csv", workers=0)) == 4
    predict(trained[0], [raw / "images" / "ball_00.nii.gz"], tmp_path / "one", device="cpu")
    (told,) = json.loads((tmp_path / "one" / "predictions.json").read_text())["images"]["ball_00"]
    assert told == str(raw / "images" / "ball_00.nii.gz")
