"""The mended copy of a dataset: the fault is gone, the rest is as it was, and the source is untouched."""

import csv
import gzip
import hashlib
import itertools
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from medssl.cli import app
from medssl.config import merge, parse
from medssl.data.cases import DatasetConfig
from medssl.data.check import check
from medssl.data.fix import apply_fixes
from medssl.data.io import read_image, read_label, read_volume
from medssl.data.volume import corners_apart
from medssl.errors import ConfigError, DataError
from medssl.prepare import prepare

ODD = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "odd"
real = pytest.mark.skipif(not ODD.is_dir(), reason=f"the odd volumes are not at {ODD}")

SHAPE = (5, 6, 7)
AFFINE = np.array([[-1.5, 0, 0, 20.0], [0, 1.5, 0, -30.0], [0, 0, 3.0, 5.0], [0, 0, 0, 1.0]])
DATASET = DatasetConfig(name="made", classes=("background", "wall", "cavity"))


def array_of(seed):
    return np.random.default_rng(seed).integers(0, 500, SHAPE).astype(np.int16)


def label_of(seed):
    label = np.zeros(SHAPE, np.uint8)
    label[1:4, 1:4, 1:4] = 1
    label[2, 2, 2 + seed % 2] = 2
    label[0, 0, seed % 7] = 2
    return label


def save(path, array, affine=AFFINE, *, change=None, codes=(1, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    if change is not None:
        change(image.header)
        image = nib.Nifti1Image(array, None, image.header)
    nib.save(image, path)


@pytest.fixture
def raw(tmp_path):
    """Two sound cases, with files beside them that belong to the dataset."""
    for number, id in enumerate(("a", "b")):
        save(tmp_path / "raw" / "images" / f"{id}.nii.gz", array_of(number))
        save(tmp_path / "raw" / "labels" / f"{id}.nii.gz", label_of(number))
    (tmp_path / "raw" / "cases.csv").write_text("case,patient\na,1\nb,2\n")
    (tmp_path / "raw" / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "raw" / "notes" / "deep" / "letter.txt").write_text("dear reader")
    return tmp_path / "raw"


def contents(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}  # fmt: skip


def mend(raw, *changed, dataset=DATASET, fixes=None, **options):
    """The copy, after the invariants: source untouched, other files equal byte for byte, the log telling the truth."""
    before, out = contents(raw), raw.parent / "fixed"
    made = apply_fixes(check(raw, dataset, workers=0), out, dataset, workers=0, **options)
    assert contents(raw) == before
    after = contents(out)
    assert {name for name in before if before[name] != after[name]} == set(changed)
    assert {"fixes.csv"} <= after.keys() - before.keys() <= {"fixes.csv", "data.yaml"}
    assert not list(raw.parent.glob(".partial*"))
    with (out / "fixes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == set(changed)
    assert [row["change"] for row in rows] == [fix.change for fix in made.fixes]
    assert all(row["before"] and row["after"] and row["case"] for row in rows)
    if fixes is not None:
        assert [fix.change for fix in made.fixes] == fixes
    report = check(out, made.dataset, workers=0)
    return out, {finding.code for finding in report.findings}


def test_a_sound_dataset_is_copied_as_it_is(raw):
    assert mend(raw, fixes=[])[1] == set()


@pytest.mark.skipif(os.name == "nt", reason="links want a right of their own there")
def test_a_link_back_is_not_followed(raw):
    (raw / "latest").symlink_to(raw)
    (raw / "notes" / "up").symlink_to(raw / "notes")
    out = apply_fixes(check(raw, DATASET, workers=0), raw.parent / "fixed", DATASET, workers=0).folder
    assert {path.name for path in out.iterdir()} == {"images", "labels", "cases.csv", "notes", "fixes.csv"}
    assert [path.name for path in (out / "notes").iterdir()] == ["deep"]


@pytest.mark.skipif(os.name == "nt", reason="links want a right of their own there")
def test_folders_that_link_to_each_other_come_to_an_end_and_links_to_others_are_copied(raw):
    for name in "abc":
        (raw / "more" / name).mkdir(parents=True)
        (raw / "more" / name / f"{name}.txt").write_text(name)
    for name in "abc":
        for other in "abc".replace(name, ""):
            (raw / "more" / name / other).symlink_to(raw / "more" / other)
    out = apply_fixes(check(raw, DATASET, workers=0), raw.parent / "fixed", DATASET, workers=0).folder
    ways = {str(path.parent.relative_to(out / "more")) for path in (out / "more").rglob("*.txt")}
    assert ways == {"/".join(way) for length in (1, 2, 3) for way in itertools.permutations("abc", length)}


class TestHeaders:
    def test_slightly_skewed_axes_become_straight_about_the_middle(self, raw):
        skewed = AFFINE.copy()
        skewed[:3, :3] = AFFINE[:3, :3] @ [[1, 0.012, 0], [0, 1, -0.008], [0, 0, 1]]
        for folder, array in (("images", array_of(0)), ("labels", label_of(0))):
            save(raw / folder / "a.nii.gz", array, skewed, codes=(1, 0))
        assert "sheared" in {finding.code for finding in check(raw, DATASET, workers=0).findings}
        out, codes = mend(raw, "images/a.nii.gz", "labels/a.nii.gz", fixes=["sheared", "sheared"])
        assert codes == set()
        old, new = (read_volume(place / "images" / "a.nii.gz") for place in (raw, out))
        assert new.shear < 1e-6
        assert new.spacing == pytest.approx(old.spacing, rel=1e-3)
        assert corners_apart(SHAPE, old.affine, new.affine) < 0.2
        middle = [*((np.array(SHAPE) - 1) / 2), 1]
        assert old.affine @ middle == pytest.approx(new.affine @ middle, abs=1e-5)
        assert np.array_equal(old.array, new.array)

    def test_more_skew_is_left_alone_and_listed(self, raw):
        skewed = AFFINE.copy()
        skewed[0, 1] = 0.3
        for folder, array in (("images", array_of(0)), ("labels", label_of(0))):
            save(raw / folder / "a.nii.gz", array, skewed)
        assert "sheared" in mend(raw, fixes=[])[1]

    @pytest.mark.parametrize("has_qform", [True, False])
    def test_a_unit_sform_gives_way_to_the_spacing_behind_it(self, raw, has_qform):
        def blank(header):
            header.set_sform(np.eye(4), 1)
            if not has_qform:
                header["qform_code"] = 0

        for folder, array in (("images", array_of(0)), ("labels", label_of(0))):
            save(raw / folder / "a.nii.gz", array, change=blank)
        out, codes = mend(raw, "images/a.nii.gz", "labels/a.nii.gz", fixes=["sform", "sform"])
        assert codes == set()
        new = read_image(out / "images" / "a.nii.gz")
        expected = AFFINE if has_qform else np.diag([1.5, 1.5, 3.0, 1])
        assert new.affine == pytest.approx(expected, abs=1e-5)
        assert np.array_equal(new.array, array_of(0))

    def test_a_unit_sform_of_another_unit_gives_way_to_the_same_place(self, raw):
        scaled = AFFINE.copy()
        scaled[:3] *= 1000

        def blank(header):
            header.set_qform(scaled, 1)
            header.set_sform(np.eye(4), 1)
            header["pixdim"][1:4] = np.sqrt((scaled[:3, :3] ** 2).sum(0))
            header["xyzt_units"] = 3 | 8

        for folder, array in (("images", array_of(0)), ("labels", label_of(0))):
            save(raw / folder / "a.nii.gz", array, change=blank)
        assert read_image(raw / "images" / "a.nii.gz").affine == pytest.approx(AFFINE, abs=1e-5)
        out, codes = mend(raw, "images/a.nii.gz", "labels/a.nii.gz", fixes=["unit", "sform"] * 2)
        assert codes == set()
        assert read_image(out / "images" / "a.nii.gz").affine == pytest.approx(AFFINE, abs=1e-5)

    def test_a_spacing_that_is_no_placeholder_is_left_to_its_owner(self, raw):
        save(raw / "images" / "a.nii.gz", array_of(0), change=lambda header: header["pixdim"].__setitem__(3, 5))
        assert "spacing_disagrees" in mend(raw, fixes=[])[1]

    @pytest.mark.parametrize(("code", "factor"), [(1, 0.001), (3, 1000.0)])
    def test_lengths_become_millimetres_at_the_same_place(self, raw, code, factor):
        def in_unit(header):
            scaled = AFFINE.copy()
            scaled[:3] *= factor
            header.set_sform(scaled, 1)
            header.set_qform(scaled, 1)
            header["xyzt_units"] = code | 8

        for folder, array in (("images", array_of(0)), ("labels", label_of(0))):
            save(raw / folder / "a.nii.gz", array, change=in_unit)
        out, codes = mend(raw, "images/a.nii.gz", "labels/a.nii.gz", fixes=["unit", "unit"])
        assert codes == set()
        header = nib.load(out / "images" / "a.nii.gz").header
        assert int(header["xyzt_units"]) == 2 | 8
        assert header.get_sform() == pytest.approx(AFFINE, rel=1e-5)
        assert header.get_qform() == pytest.approx(AFFINE, abs=1e-4)
        assert header.get_zooms() == pytest.approx((1.5, 1.5, 3.0))

    def test_a_wrong_suffix_and_a_wrong_header_size(self, raw):
        image = raw / "images" / "a.nii.gz"
        content = bytearray(gzip.decompress(image.read_bytes()))
        image.write_bytes(content)
        other = raw / "images" / "b.nii.gz"
        content = bytearray(gzip.decompress(other.read_bytes()))
        content[:4] = (1234).to_bytes(4, "little")
        other.write_bytes(gzip.compress(bytes(content)))
        out, codes = mend(raw, "images/a.nii.gz", "images/b.nii.gz", fixes=["suffix", "header_size"])
        assert codes == set()
        for number, id in enumerate("ab"):
            assert np.array_equal(nib.load(out / "images" / f"{id}.nii.gz").get_fdata(), array_of(number))

    def test_big_endian_voxels_scaling_and_extensions_survive(self, raw):
        path = raw / "images" / "a.nii.gz"
        image = nib.Nifti1Image(array_of(0).astype(">i2"), AFFINE, nib.Nifti1Header(endianness=">"))
        image.header.set_slope_inter(0.5, -3)
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"from the scanner"))
        image.header["xyzt_units"] = 1
        nib.save(image, path)
        old = nib.load(path)
        out, _ = mend(raw, "images/a.nii.gz", fixes=["unit"])
        new = nib.load(out / "images" / "a.nii.gz")
        assert new.header.endianness == ">"
        assert new.header.extensions[0].get_content() == old.header.extensions[0].get_content()
        assert np.array_equal(new.get_fdata(), old.get_fdata())

    def test_a_spacing_of_zero_is_not_hidden(self, raw):
        path = raw / "images" / "a.nii.gz"
        save(path, array_of(0), change=lambda header: header.__setitem__("xyzt_units", 1))
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[80:84] = b"\0\0\0\0"
        path.write_bytes(gzip.compress(bytes(content)))
        assert {"pixdim", "unit"} <= mend(raw, fixes=[])[1]


class TestLabels:
    def test_float_labels_become_integers(self, raw):
        save(raw / "labels" / "a.nii.gz", label_of(0).astype(np.float32) + np.float32(1e-5))
        out, codes = mend(raw, "labels/a.nii.gz", fixes=["float_label"])
        assert codes == set()
        new = nib.load(out / "labels" / "a.nii.gz")
        assert new.get_data_dtype() == np.uint8
        assert np.array_equal(np.asarray(new.dataobj), label_of(0))
        assert new.affine == pytest.approx(AFFINE)

    def test_interpolated_labels_stay_an_error(self, raw):
        save(raw / "labels" / "a.nii.gz", label_of(0) * np.float32(0.5))
        assert "not_integer" in mend(raw, fixes=[])[1]

    @pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
    def test_other_formats_keep_theirs(self, raw, suffix):
        import SimpleITK as sitk

        path = raw / "labels" / f"a{suffix}"
        image = sitk.ReadImage(str(raw / "labels" / "a.nii.gz"))
        sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat32), str(path))
        (raw / "labels" / "a.nii.gz").unlink()
        old = read_volume(path)
        made = apply_fixes(check(raw, DATASET, workers=0), raw.parent / "fixed", DATASET, workers=0)
        assert [fix.change for fix in made.fixes] == ["float_label"]
        new = read_volume(made.folder / "labels" / f"a{suffix}")
        assert new.array.dtype == np.uint8
        assert np.array_equal(new.array, label_of(0))
        assert new.affine == pytest.approx(old.affine)

    def test_values_become_the_places_of_classes_and_the_settings_follow(self, raw, tmp_path):
        dataset = DatasetConfig(
            name="made", classes=DATASET.classes, values={"wall": (11, 12), "cavity": (3,)}, ignore=(9,)
        )
        for number, id in enumerate("ab"):
            label = np.choose(label_of(number), [0, 11, 3]).astype(np.uint8)
            label[1, 1, 1], label[4, 5, 6] = 12, 9
            save(raw / "labels" / f"{id}.nii.gz", label)
        assert check(raw, dataset, workers=0).errors == ()
        out, codes = mend(raw, "labels/a.nii.gz", "labels/b.nii.gz", dataset=dataset, fixes=["values", "values"])
        assert codes == set()
        new = read_label(out / "labels" / "a.nii.gz").array
        expected = label_of(0).astype(int)
        expected[4, 5, 6] = 255
        assert np.array_equal(new, expected)
        settings = parse(DatasetConfig, merge([out / "data.yaml"])["data"], where="data")
        assert settings.places == {0: 0, 1: 1, 2: 2, 255: 255}
        both = [
            prepare(*place, workers=0) for place in ((raw, tmp_path / "p", dataset), (out, tmp_path / "q", settings))
        ]
        assert both[0].cases.keys() == both[1].cases.keys()

    def test_one_label_that_cannot_be_mapped_leaves_all_as_they_are(self, raw):
        dataset = DatasetConfig(name="made", classes=DATASET.classes, values={"wall": (11,), "cavity": (3,)})
        save(raw / "labels" / "a.nii.gz", np.choose(label_of(0), [0, 11, 3]).astype(np.uint8))
        save(raw / "labels" / "b.nii.gz", np.choose(label_of(1), [0, 1, 3]).astype(np.uint8))
        out, codes = mend(raw, dataset=dataset, fixes=[])
        assert "unknown_value" in codes
        made = apply_fixes(check(raw, dataset, workers=0), out, dataset, workers=0, overwrite=True)
        assert [path.name for path in made.unmapped] == ["b.nii.gz"]
        assert made.dataset == dataset


@real
class TestReal:
    """The odd files that have a safe fix, as a dataset of one case with the reference pair."""

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("image/sform_unit_scale.nii.gz", "sform"),
            ("image/microns.nii.gz", "unit"),
            ("image/metres.nii.gz", "unit"),
            ("image/compressed.nii", "suffix"),
            ("image/not_compressed.nii.gz", "suffix"),
            ("image/wrong_sizeof_hdr.nii.gz", "header_size"),
            ("label/float32_integers.nii.gz", "float_label"),
            ("label/float32_nearly.nii.gz", "float_label"),
        ],
    )
    def test_after_the_fix_there_is_nothing_to_find(self, tmp_path, name, change):
        kind, suffix = name.split("/")[0], name.partition(".")[2]
        for folder in ("images", "labels"):
            (tmp_path / "raw" / folder).mkdir(parents=True)
        put = tmp_path / "raw" / f"{kind}s" / f"case.{suffix}"
        shutil.copyfile(ODD / name, put)
        if kind == "label":
            shutil.copyfile(ODD / "image" / "reference.nii.gz", tmp_path / "raw" / "images" / "case.nii.gz")
        out, codes = mend(tmp_path / "raw", str(put.relative_to(tmp_path / "raw")), fixes=[change])
        assert codes <= {"class_absent"}
        new, reference = (read_volume(path) for path in (out / f"{kind}s" / put.name, ODD / kind / "reference.nii.gz"))
        assert np.array_equal(new.array, reference.array)
        if change != "sform":
            assert new.affine == pytest.approx(read_volume(put).affine)

    @pytest.mark.parametrize("name", ["sheared_sform", "sform_qform_flip", "no_form_codes", "zero_pixdim", "nan"])
    def test_what_takes_a_guess_is_left(self, tmp_path, name):
        (tmp_path / "raw" / "images").mkdir(parents=True)
        shutil.copyfile(ODD / "image" / f"{name}.nii.gz", tmp_path / "raw" / "images" / "case.nii.gz")
        before = {finding.code for finding in check(tmp_path / "raw", DATASET, workers=0).findings}
        assert mend(tmp_path / "raw", fixes=[])[1] == before != set()


class TestPlaces:
    def test_workers_change_nothing(self, raw):
        save(raw / "labels" / "a.nii.gz", label_of(0).astype(np.float32))
        report = check(raw, DATASET, workers=0)
        alone = apply_fixes(report, raw.parent / "one", DATASET, workers=0)
        spread = apply_fixes(report, raw.parent / "two", DATASET, workers=2)
        assert contents(alone.folder) == contents(spread.folder)

    def test_what_is_there_stays_unless_it_is_an_older_copy(self, raw):
        report, out = check(raw, DATASET, workers=0), raw.parent / "out"
        out.mkdir()
        (out / "precious").touch()
        with pytest.raises(ConfigError, match="exists"):
            apply_fixes(report, out)
        with pytest.raises(ConfigError, match="not a fixed copy"):
            apply_fixes(report, out, overwrite=True)
        assert [path.name for path in out.iterdir()] == ["precious"]
        shutil.rmtree(out)
        apply_fixes(report, out, workers=0)
        (out / "stale").touch()
        apply_fixes(report, out, workers=0, overwrite=True)
        assert not (out / "stale").exists()

    @pytest.mark.parametrize("place", ["raw", "raw/fixed", "."])
    def test_a_copy_lies_beside_its_source(self, raw, place):
        before = contents(raw)
        with pytest.raises(ConfigError, match="beside"):
            apply_fixes(check(raw, DATASET, workers=0), raw.parent / place, overwrite=True)
        assert contents(raw) == before

    def test_a_copy_that_fails_leaves_nothing(self, raw, monkeypatch):
        report = check(raw, DATASET, workers=0)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises(DataError, match="No space left"):
            apply_fixes(report, raw.parent / "out", workers=0)
        assert sorted(path.name for path in raw.parent.iterdir()) == ["raw"]


def test_a_copy_that_cannot_be_made_is_refused_before_the_dataset_is_read(raw, tmp_path):
    (raw / "images" / "a.nii.gz").write_bytes(b"no volume")  # reading it would be exit code 3
    table = raw / "table.csv"
    table.write_text("image\nimages/a.nii.gz\n")
    for source, out, words in ((table, tmp_path / "copy", "a list, whose files"), (raw, raw / "in", "lies inside")):
        result = CliRunner().invoke(app, ["check", str(source), "--fix", str(out)])
        assert isinstance(result.exception, ConfigError)
        assert words in str(result.exception)
        assert "check: " not in result.output
