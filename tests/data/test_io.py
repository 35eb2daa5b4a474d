import gzip
import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medssl.data.io import (
    case_id,
    list_volumes,
    read_grid,
    read_image,
    read_label,
    read_volume,
    rewrite,
    write_image,
    write_label,
)
from medssl.data.volume import Source, Volume
from medssl.errors import DataError

SHAPE = (5, 6, 7)
OBLIQUE = np.array([[0.0, -1.2, 0.0, 3.0], [0.78, 0.0, -1.2, -7.5], [0.44, 0.0, 2.1, 11.0], [0, 0, 0, 1]])


def ramp(dtype=np.int16):
    return np.arange(np.prod(SHAPE), dtype=dtype).reshape(SHAPE)


def save(path, array, affine=OBLIQUE, change=None, kind=nib.Nifti1Image):
    image = kind(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    if change:
        change(image.header)
    nib.save(image, path)
    return path


def patch(path, **fields):
    """Change header fields in a plain file behind nibabel's back, which would repair some of them."""
    raw = path.read_bytes()
    header = nib.Nifti1Header(raw[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + raw[348:])
    return path


def codes(path):
    return [oddity.code for oddity in read_volume(path).oddities]


class TestReading:
    @pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "A.NII.GZ", "x (1) é.v2.nii.gz"])
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">i2", np.float64])
    def test_voxels_and_affine_come_back_whatever_the_type(self, tmp_path, name, dtype):
        volume = read_image(save(tmp_path / name, ramp().astype(dtype)))
        assert volume.array.dtype == np.float32
        np.testing.assert_array_equal(volume.array, ramp())
        np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-6)
        assert volume.oddities == ()

    def test_scaling_is_applied(self, tmp_path):
        path = save(tmp_path / "a.nii.gz", ramp(), change=lambda header: header.set_slope_inter(0.5, -3))
        image = nib.load(path)
        np.testing.assert_allclose(read_image(path).array, image.get_fdata())

    @pytest.mark.parametrize("axes", [(1,), (1, 1), (1, 2), (2, 1)])
    def test_axes_of_one_after_the_third_are_dropped(self, tmp_path, axes):
        array = np.zeros(SHAPE + axes, np.uint8)
        array[..., -1] = 3
        found = read_image(save(tmp_path / "a.nii.gz", array)).array
        assert found.shape == SHAPE + tuple(n for n in axes if n > 1)
        assert found.max() == 3

    @pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
    def test_other_formats_share_the_world_of_nifti(self, tmp_path, suffix):
        source = save(tmp_path / "a.nii.gz", ramp(), affine=np.diag([-2.0, -0.5, 3, 1]))
        sitk.WriteImage(sitk.ReadImage(str(source)), str(tmp_path / f"b{suffix}"))
        nifti, other = read_image(source), read_image(tmp_path / f"b{suffix}")
        np.testing.assert_array_equal(other.array, nifti.array)
        np.testing.assert_allclose(other.affine, nifti.affine, atol=1e-6)

    @pytest.mark.parametrize(("unit", "factor"), [("micron", 1e-3), ("meter", 1e3)])
    def test_other_units_become_millimetres_and_are_reported(self, tmp_path, unit, factor):
        path = save(tmp_path / "a.nii.gz", ramp(), change=lambda header: header.set_xyzt_units(unit))
        np.testing.assert_allclose(read_image(path).affine[:3], OBLIQUE[:3] * factor, rtol=1e-6)
        assert codes(path) == ["unit"]

    @pytest.mark.parametrize("unit", ["mm", "um", "\u00b5m", "microns"])
    def test_the_unit_of_nrrd_is_heard(self, tmp_path, unit):
        image = sitk.GetImageFromArray(ramp().T)
        image.SetSpacing((15.0, 16.0, 17.0))
        image.SetOrigin((1.0, 2.0, 3.0))
        path = tmp_path / "a.nrrd"
        sitk.WriteImage(image, str(path))
        plain = read_image(path)
        head, voxels = path.read_bytes().split(b"\n\n", 1)
        path.write_bytes(head + f'\nspace units: "{unit}" "{unit}" "{unit}"\n\n'.encode() + voxels)
        factor = 1 if unit == "mm" else 1e-3
        np.testing.assert_allclose(read_image(path).affine[:3], factor * plain.affine[:3])
        np.testing.assert_allclose(read_grid(Source(path))[1], read_image(path).affine)
        assert codes(path) == ([] if unit == "mm" else ["unit"])
        rewrite(path, tmp_path / "b.nrrd", None, ramp())
        np.testing.assert_allclose(read_image(tmp_path / "b.nrrd").affine, read_image(path).affine)
        path.write_bytes(path.read_bytes().replace(f'"{unit}" "{unit}" "'.encode(), f'"{unit}" "m" "'.encode()))
        with pytest.raises(DataError, match="space units"):
            read_image(path)

    @pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
    def test_a_fourth_axis_of_one_is_none(self, tmp_path, suffix):
        path = tmp_path / f"a{suffix}"
        sitk.WriteImage(sitk.GetImageFromArray(ramp().T[None], isVector=False), str(path))
        np.testing.assert_array_equal(read_image(path).array, ramp())
        shape, affine = read_grid(Source(path))
        assert (shape[:3], affine) == (SHAPE, pytest.approx(np.diag([-1, -1, 1, 1])))
        rewrite(path, tmp_path / f"b{suffix}", None, 2 * ramp())
        np.testing.assert_array_equal(read_image(tmp_path / f"b{suffix}").array, 2 * ramp())

    def test_a_unit_that_is_no_length_is_not_heard(self, tmp_path):
        path = tmp_path / "a.nrrd"
        sitk.WriteImage(sitk.GetImageFromArray(ramp().T), str(path))
        head, voxels = path.read_bytes().split(b"\n\n", 1)
        path.write_bytes(head + b'\nspace units: "pixel" "pixel" "pixel"\n\n' + voxels)
        assert codes(path) == []
        assert read_image(path).spacing == (1, 1, 1)

    def test_names_keep_their_dots_and_hidden_files_stay_out(self, tmp_path):
        for name in ("b.v1.2.nii.gz", "a.NII", "._a.nii.gz", "a.txt"):
            (tmp_path / name).touch()
        assert [case_id(path) for path in list_volumes(tmp_path)] == ["a", "b.v1.2"]


class TestGridFromTheHeader:
    @pytest.mark.parametrize("unit", ["mm", "micron", "meter", "unknown"])
    @pytest.mark.parametrize("pixdim", [1.5, 0.0, -1.5])
    def test_is_that_of_the_volume(self, tmp_path, unit, pixdim):
        image = nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), None)
        image.set_qform(np.diag([1.5, 2, 3, 1]), 1)
        image.header["sform_code"] = 0
        image.header.set_xyzt_units(unit)
        image.header["pixdim"][1] = pixdim
        image.header["vox_offset"] = 352
        path = tmp_path / "a.nii.gz"
        path.write_bytes(gzip.compress(image.header.binaryblock + bytes(4) + bytes(5 * 6 * 7)))
        volume = read_volume(path)
        shape, affine = read_grid(Source(path))
        assert shape == volume.shape
        assert np.array_equal(affine, volume.affine)

    def test_has_a_place_in_space(self, tmp_path):
        path = tmp_path / "a.nii"
        write_image(path, np.zeros((5, 6, 7)), np.eye(4))
        header = nib.load(path).header
        header["srow_x"] = 0
        path.write_bytes(header.binaryblock + path.read_bytes()[348:])
        with pytest.raises(DataError, match=r"a\.nii: its affine cannot be inverted"):
            read_grid(Source(path))


class TestRefusal:
    def refused(self, path):
        with pytest.raises(DataError) as error:
            read_image(path)
        assert str(error.value).startswith(f"{path}: ")
        return str(error.value)

    def test_voxels_that_begin_inside_the_header(self, tmp_path):
        write_image(tmp_path / "a.nii", ramp(), np.eye(4))
        raw = bytearray((tmp_path / "a.nii").read_bytes())
        raw[108:112] = bytes(4)
        (tmp_path / "a.nii").write_bytes(raw)
        assert "voxels begin at byte 0, but the header itself has 348 bytes" in self.refused(tmp_path / "a.nii")

    def test_a_metaimage_that_is_cut_short_is_called_so(self, tmp_path):
        path = tmp_path / "a.mha"
        sitk.WriteImage(sitk.GetImageFromArray(ramp().T), str(path))
        path.write_bytes(path.read_bytes()[:-100])
        said = self.refused(path)
        assert "damaged or cut short" in said
        assert "No such file" not in said

    def test_a_label_map_of_another_shape_or_of_fractions_is_not_written(self, tmp_path):
        like = read_image(save(tmp_path / "a.nii.gz", ramp()))
        for array in (np.zeros((5, 6, 8), np.uint8), np.full(like.shape, 0.5), np.full(like.shape, 70_000)):
            with pytest.raises(ValueError, match=r"b\.nii\.gz: "):
                write_label(tmp_path / "b.nii.gz", array, like)
        assert not (tmp_path / "b.nii.gz").exists()

    def test_missing_file_folder_and_unknown_format(self, tmp_path):
        assert "no such file" in self.refused(tmp_path / "a.nii.gz")
        (tmp_path / "series").mkdir()
        assert "no DICOM" in self.refused(tmp_path / "series")
        (tmp_path / "a.img").write_bytes(b"1234")
        assert "not a known format; expected one of" in self.refused(tmp_path / "a.img")

    @pytest.mark.parametrize(
        ("content", "word"),
        [
            (b"", "empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
            (b"<!DOCTYPE html><html>403</html>", "web page"),
            (b"PK\x03\x04" + bytes(400), "zip"),
            (gzip.compress(b"<html>" + bytes(400), mtime=0), "web page"),
            (gzip.compress(bytes(200), mtime=0), "header is incomplete"),
            (gzip.compress(bytes(400), mtime=0), "magic"),
        ],
    )
    @pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
    def test_content_that_is_no_volume_is_named(self, tmp_path, content, word, name):
        (tmp_path / name).write_bytes(content)
        assert word in self.refused(tmp_path / name)

    def test_a_stream_cut_or_changed_anywhere_is_refused(self, tmp_path):
        rng = np.random.default_rng(0)
        whole = save(tmp_path / "a.nii.gz", rng.integers(0, 999, SHAPE).astype(np.int16)).read_bytes()
        path = tmp_path / "b.nii.gz"
        for cut in (len(whole) - 1, len(whole) // 2, 30):
            path.write_bytes(whole[:cut])
            assert "gzip stream" in self.refused(path)
        path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])  # the checksum itself
        assert "CRC" in self.refused(path)

    @pytest.mark.parametrize(
        ("field", "value", "word"),
        [
            ("dim", (3, 5, 6, 70, 1, 1, 1, 1), "420 bytes"),
            ("dim", (3, 32767, 32767, 32767, 1, 1, 1, 1), "32767 x 32767 x 32767"),
            ("dim", (3, 5, -6, 7, 1, 1, 1, 1), "5 x -6 x 7"),
            ("dim", (3, 5, 0, 7, 1, 1, 1, 1), "5 x 0 x 7"),
            ("dim", (2, 5, 42, 1, 1, 1, 1, 1), "expected a 3D volume"),
            ("datatype", 12345, "12345"),
        ],
    )
    def test_header_that_promises_what_the_file_lacks(self, tmp_path, field, value, word):
        assert word in self.refused(patch(save(tmp_path / "a.nii", ramp()), **{field: value}))

    @pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
    def test_voxels_that_are_not_one_real_number(self, tmp_path, dtype):
        assert "one real number" in self.refused(save(tmp_path / "a.nii.gz", np.zeros(SHAPE, dtype)))

    @pytest.mark.parametrize("value", [0.0, np.nan])
    def test_affine_without_an_inverse(self, tmp_path, value):
        path = save(tmp_path / "a.nii", ramp())
        assert "affine" in self.refused(patch(path, srow_x=value, qform_code=0))

    def test_a_tiny_spacing_is_not_taken_for_a_missing_axis(self, tmp_path):
        path = save(tmp_path / "a.nii.gz", ramp(), affine=np.diag([1e-5, 1e-5, 1e-5, 1]))
        assert read_image(path).spacing == pytest.approx((1e-5,) * 3)

    def test_meta_image_whose_voxels_are_missing_names_them(self, tmp_path):
        sitk.WriteImage(sitk.GetImageFromArray(ramp()), str(tmp_path / "a.mhd"))
        (tmp_path / "a.raw").unlink()
        assert "a.raw" in self.refused(tmp_path / "a.mhd")


class TestOddities:
    def test_content_that_belies_the_suffix_is_read_and_reported(self, tmp_path):
        path = save(tmp_path / "a.nii", ramp())
        packed, plain = tmp_path / "b.nii", tmp_path / "c.nii.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        plain.write_bytes(path.read_bytes())
        for odd in (packed, plain):
            np.testing.assert_array_equal(read_image(odd).array, ramp())
            assert codes(odd) == ["suffix"]

    def test_no_orientation(self, tmp_path):
        path = save(tmp_path / "a.nii", ramp())
        assert codes(patch(path, sform_code=0, qform_code=0)) == ["no_orientation"]

    @pytest.mark.parametrize(("factor", "expected"), [(1.02, ["spacing_disagrees"]), (1.005, [])])
    def test_spacing_of_sform_and_pixdim(self, tmp_path, factor, expected):
        path = save(tmp_path / "a.nii", ramp())
        x, y, z = read_image(path).spacing
        assert codes(patch(path, qform_code=0, pixdim=(1, x, y, z * factor, 1, 1, 1, 1))) == expected

    @pytest.mark.parametrize(("qform_code", "used"), [(1, (1.5, 1.5, 10.0)), (0, (1.0, 1.0, 1.0))])
    def test_a_sform_without_lengths_gives_way_to_a_qform_that_has_them(self, tmp_path, qform_code, used):
        path = save(tmp_path / "a.nii", ramp(), affine=np.diag([1.5, 1.5, 10.0, 1.0]))
        rows = {f"srow_{axis}": row for axis, row in zip("xyz", np.eye(4), strict=False)}
        patch(path, qform_code=qform_code, **rows)
        assert read_image(path).spacing == used
        assert codes(path) == ["unit_sform" if qform_code else "spacing_disagrees"]
        write_label(tmp_path / "label.nii.gz", np.zeros(SHAPE, np.uint8), like=read_image(path))
        assert read_label(tmp_path / "label.nii.gz").spacing == used

    def test_forms_that_place_the_volume_differently(self, tmp_path):
        path = patch(save(tmp_path / "a.nii", ramp()), qoffset_x=OBLIQUE[0, 3] + 30)
        assert codes(path) == ["forms_disagree"]
        assert "30 mm" in read_volume(path).oddities[0].found

    @pytest.mark.parametrize("size", [0.0, -1.0])
    def test_pixdim_that_is_not_positive_is_reported_in_silence(self, tmp_path, size, capfd):
        path = save(tmp_path / "a.nii", ramp(), affine=np.eye(4))
        patch(path, sform_code=0, pixdim=(1, size, 1, 1, 1, 1, 1, 1))
        assert codes(path) == ["pixdim"]
        assert capfd.readouterr() == ("", "")


class TestLabels:
    def test_floats_near_integers_are_labels(self, tmp_path):
        array = (ramp() % 3).astype(np.float32)
        label = read_label(save(tmp_path / "a.nii.gz", array + np.float32(5e-4)))
        assert label.array.dtype == np.int32
        np.testing.assert_array_equal(label.array, array)

    @pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
    def test_other_floats_are_refused_with_their_number(self, tmp_path, value):
        array = np.zeros(SHAPE, np.float32)
        array[1:3, 0, 0] = value
        with pytest.raises(DataError, match=f"found 2 other voxels, for example {value:g}"):
            read_label(save(tmp_path / "a.nii.gz", array))

    def test_values_beyond_int32_do_not_wrap(self, tmp_path):
        with pytest.raises(DataError, match="class numbers"):
            read_label(save(tmp_path / "a.nii.gz", np.full(SHAPE, 2**32 - 1, np.uint32)))


class TestWriting:
    @pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
    def test_a_label_keeps_the_header_that_it_is_like(self, tmp_path, kind):
        def dress(header):
            header.set_xyzt_units("micron")
            header.set_slope_inter(2, 1)
            header["descrip"] = b"scanner"
            header["qform_code"], header["sform_code"] = 1, 2
            header["qoffset_x"] += 4  # the two forms differ

        source = save(tmp_path / "a.nii.gz", np.stack([ramp(), ramp()], -1), change=dress, kind=kind)
        like = read_image(source)
        write_label(tmp_path / "out" / "b.nii.gz", ramp() % 3, like)

        before, after = nib.load(source), nib.load(tmp_path / "out" / "b.nii.gz")
        assert type(after) is kind
        assert after.shape == SHAPE
        assert after.get_data_dtype() == np.uint8
        for form in ("get_sform", "get_qform"):
            for mine, theirs in zip(getattr(after, form)(coded=True), getattr(before, form)(coded=True), strict=True):
                np.testing.assert_array_equal(mine, theirs)
        assert bytes(after.header["descrip"]).startswith(b"scanner")
        np.testing.assert_array_equal(read_label(tmp_path / "out" / "b.nii.gz").array, ramp() % 3)
        np.testing.assert_array_equal(read_label(tmp_path / "out" / "b.nii.gz").affine, like.affine)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.nii.gz"]

    @pytest.mark.parametrize(("highest", "dtype"), [(255, np.uint8), (256, np.uint16)])
    def test_a_label_takes_the_smallest_type_that_holds_it(self, tmp_path, highest, dtype):
        array = np.zeros(SHAPE, np.int64)
        array[4, 5, 6] = highest
        write_label(tmp_path / "a.nii.gz", array, Volume(array, OBLIQUE))
        assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == dtype
        assert read_label(tmp_path / "a.nii.gz").array[4, 5, 6] == highest

    @pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
    def test_an_image_is_found_at_the_same_place_by_itk(self, tmp_path, dtype):
        affine = np.diag([-2.0, 0.5, 3, 1])
        affine[:3, 3] = 1, -2, 3
        write_image(tmp_path / "a.nii.gz", ramp(dtype), affine)
        image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, ramp())
        x, y, z = image.TransformIndexToPhysicalPoint((4, 5, 6))
        np.testing.assert_allclose((-x, -y, z), (affine @ (4, 5, 6, 1))[:3])

    def test_a_mask_is_written_as_numbers(self, tmp_path):
        write_image(tmp_path / "a.nii.gz", ramp() > 7, OBLIQUE)
        np.testing.assert_array_equal(read_label(tmp_path / "a.nii.gz").array, ramp() > 7)

    def test_a_failed_write_leaves_nothing(self, tmp_path):
        with pytest.raises(nib.spatialimages.HeaderDataError):
            write_image(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.float16), OBLIQUE)
        assert list(tmp_path.iterdir()) == []


def test_an_output_keeps_geometry_and_description_and_nothing_that_names_a_patient(tmp_path):
    image = nib.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))
    image.header["descrip"], image.header["db_name"], image.header["aux_file"] = b"TE=30", b"MUELLER", b"MRN-99"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"PatientName=MUELLER"))
    nib.save(image, tmp_path / "image.nii.gz")
    like = read_image(tmp_path / "image.nii.gz")
    write_label(tmp_path / "label.nii.gz", np.ones((5, 6, 7), np.uint8), like=like)
    written = nib.load(tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(written.affine, image.affine)
    assert written.header["descrip"] == b"TE=30"
    content = gzip.decompress((tmp_path / "label.nii.gz").read_bytes())
    assert b"MUELLER" not in content
    assert b"MRN-99" not in content
    assert b"MUELLER" in gzip.decompress((tmp_path / "image.nii.gz").read_bytes())
    assert [extension.get_content() for extension in nib.load(tmp_path / "image.nii.gz").header.extensions]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_volume_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"a\.nii\.gz: a folder, device or pipe"):
        read_volume(tmp_path / "a.nii.gz")
