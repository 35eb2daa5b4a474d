import csv
import itertools
import re
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from medssl.data.dicom import is_series_folder, read_series, series_of
from medssl.data.io import read_grid, read_volume, write_image
from medssl.data.volume import Source
from medssl.errors import DataError

SHAPE = (5, 6, 7)
TURN = np.linalg.qr([[0.8, -0.5, 0.3], [0.4, 0.9, 0.1], [-0.2, 0.1, 1.0]])[0]
OBLIQUE = TURN * np.sign(np.linalg.det(TURN))  # LPS: columns are the directions of x, y and z
STRAIGHT = np.eye(3)
SPACING = np.array([0.7, 1.25, 2.5])
ORIGIN = np.array([-31.5, 12.25, 104.0])
SLOPE = {"0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1"}


def ramp(dtype=np.int16):
    return np.arange(np.prod(SHAPE), dtype=dtype).reshape(SHAPE)


def at(x, y, z):
    return ORIGIN + np.array([x, y, z])


def text(numbers):
    return "\\".join(f"{x:.12g}" for x in numbers)


def save_slice(path, pixels, position, axes=STRAIGHT, spacing=SPACING, uid="1.2.3.4", depth=9.0, **tags):
    """One slice `(X, Y)`; tags are written as `t0008_103e`, and None leaves one out."""
    image = sitk.GetImageFromArray(pixels.T[None])
    known = {
        "0008|0060": "MR",
        "0008|103e": "a scan",
        "0020|000d": "1.2.3",
        "0020|000e": uid,
        "0020|0032": text(position),
        "0020|0037": text([*axes[:, 0], *axes[:, 1]]),
        "0028|0030": text(spacing[1::-1]),
        "0018|0050": "4",  # neither this thickness nor `depth` is the distance of a stack's slices
    }
    image.SetSpacing([float(x) for x in (*spacing[:2], depth)])
    for tag, value in (known | {name[1:].replace("_", "|"): value for name, value in tags.items()}).items():
        if value is not None:
            image.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(path.with_suffix(".dcm")))
    writer.Execute(image)
    path.with_suffix(".dcm").rename(path)
    return path


def save_series(folder, array=None, axes=STRAIGHT, step=None, name="{:03}.dcm", keep=range(SHAPE[2]), **rest):
    """A series of `ramp()`; `step` is from slice to slice, along the normal where None."""
    folder.mkdir(exist_ok=True)
    array = ramp() if array is None else array
    step = axes[:, 2] * SPACING[2] if step is None else np.array(step)
    for k in keep:
        save_slice(folder / name.format(k), array[..., k], ORIGIN + k * step, axes, **rest)
    return folder


def hide(path, tag):
    """Rename a tag to one that nobody reads: SimpleITK writes some of its own accord."""
    raw = path.read_bytes()
    assert raw.count(tag) == 1
    path.write_bytes(raw.replace(tag, tag[:2] + bytes([tag[2] + 1, tag[3]])))


def affine_of(axes, step=None):
    affine = np.eye(4)
    affine[:3, :3] = axes * SPACING
    if step is not None:
        affine[:3, 2] = step
    affine[:3, 3] = ORIGIN
    return np.diag([-1, -1, 1, 1]) @ affine


def refused(folder, series=None):
    with pytest.raises(DataError) as error:
        read_series(folder, series)
    assert str(error.value).startswith(str(folder))
    return str(error.value)


class TestGeometry:
    @pytest.mark.parametrize("axes", [STRAIGHT, OBLIQUE])
    @pytest.mark.parametrize("name", ["{:03}.dcm", "IM{}", "{:03}.IMA"])
    def test_voxels_come_back_where_they_lay(self, tmp_path, axes, name):
        volume = read_series(save_series(tmp_path / "s", axes=axes, name=name))
        np.testing.assert_array_equal(volume.array, ramp())
        np.testing.assert_allclose(volume.affine, affine_of(axes), atol=1e-6)
        assert volume.oddities == ()
        assert volume.path == tmp_path / "s"

    def test_positions_order_slices_whatever_their_names(self, tmp_path):
        straight = read_series(save_series(tmp_path / "a", axes=OBLIQUE))
        folder = save_series(tmp_path / "b", axes=OBLIQUE)
        for old, new in zip(range(7), "gcafbde", strict=True):
            (folder / f"{old:03}.dcm").rename(folder / f"{new}.dcm")
        shuffled = read_series(folder)
        np.testing.assert_array_equal(shuffled.array, straight.array)
        np.testing.assert_array_equal(shuffled.affine, straight.affine)

    def test_a_nifti_volume_made_into_slices_keeps_its_world(self, tmp_path):
        affine = np.array([[0.0, -1.2, 0.0, 3.0], [0.78, 0.0, -1.2, -7.5], [0.44, 0.0, 2.1, 11.0], [0, 0, 0, 1]])
        write_image(tmp_path / "a.nii.gz", ramp(), affine)
        nifti = read_volume(tmp_path / "a.nii.gz")
        lps = np.diag([-1.0, -1, 1, 1]) @ nifti.affine
        axes = lps[:3, :3] / nifti.spacing
        (tmp_path / "s").mkdir()
        for k in range(SHAPE[2]):
            position = lps[:3, 3] + k * lps[:3, 2]
            save_slice(tmp_path / "s" / f"{k}.dcm", nifti.array[..., k], position, axes, nifti.spacing)
        found = read_series(tmp_path / "s")
        worlds = [
            {int(v.array[i]): v.affine[:3] @ (*i, 1) for i in itertools.product(*map(range, SHAPE))}
            for v in (nifti, found)
        ]
        for value, place in worlds[0].items():
            np.testing.assert_allclose(worlds[1][value], place, atol=1e-4)

    @pytest.mark.parametrize("axes", [STRAIGHT, OBLIQUE])
    def test_a_tilted_gantry_keeps_its_shear_and_is_reported(self, tmp_path, axes):
        step = 2.5 * axes[:, 2] + 2.5 * np.tan(np.radians(12)) * axes[:, 1]
        volume = read_series(save_series(tmp_path / "s", axes=axes, step=step))
        np.testing.assert_allclose(volume.affine, affine_of(axes, step), atol=1e-6)
        (odd,) = volume.oddities
        assert odd.code == "gantry_tilt"
        assert "12 degrees" in odd.found
        assert "dcm2niix" in odd.fix
        assert volume.shear == pytest.approx(np.sin(np.radians(12)), abs=1e-6)

    @pytest.mark.parametrize("said", ["0.71\\0.71\\0\\0\\0\\-1", "0.87\\0.5\\0\\0\\0\\-1", "1\\0.003\\0\\0\\1\\0"])
    def test_rounded_directions_are_no_lengths(self, tmp_path, said):
        (tmp_path / "s").mkdir()
        first, second = np.reshape([float(x) for x in said.split("\\")], (2, 3))
        normal = np.cross(first, second) / np.linalg.norm(np.cross(first, second))
        for k in range(SHAPE[2]):
            path = save_slice(tmp_path / "s" / f"{k}.dcm", ramp()[..., k], ORIGIN + k * SPACING[2] * normal, OBLIQUE)
            # SimpleITK would not write it
            raw, place = path.read_bytes(), re.compile(rb"(\x20\x00\x37\x00.{4})([-0-9.\\]+ ?)", re.DOTALL)
            raw, count = place.subn(lambda found: found[1] + said.encode().ljust(len(found[2])), raw)
            assert count == 1
            path.write_bytes(raw)
        volume = read_series(tmp_path / "s")
        assert volume.spacing == pytest.approx(tuple(SPACING), rel=1e-6)
        assert volume.shear < 1e-6
        along = np.diag([-1, -1, 1]) @ volume.affine[:3, 0] / SPACING[0]
        assert along == pytest.approx(first / np.linalg.norm(first), abs=1e-6)

    def test_slices_without_a_slope_that_others_have_are_told_of(self, tmp_path):
        array = np.full(SHAPE, 7, np.int16)
        folder = save_series(tmp_path / "s", array, t0028_1052="-1000", t0028_1053="1")
        plain = read_series(folder)
        assert plain.oddities == ()
        tag = re.compile(rb"\x28\x00([\x52\x53])\x10(.\x00\x00\x00)")
        raw = (folder / "002.dcm").read_bytes()
        raw, count = tag.subn(lambda found: b"\x28\x00" + found[1] + b"\x11" + found[2], raw)
        assert count == 2
        (folder / "002.dcm").write_bytes(raw)
        volume = read_series(folder)
        (odd,) = volume.oddities
        assert (odd.code, "002.dcm" in odd.found) == ("rescale", True)
        assert np.array_equal(np.delete(volume.array, 2, 2), np.delete(plain.array, 2, 2))
        assert (volume.array[..., 2] != plain.array[..., 2]).all()

    def test_rounded_positions_are_no_fault_and_larger_shifts_are(self, tmp_path):
        folder = save_series(tmp_path / "s")
        for shift, codes in ((0.009, []), (0.1, ["uneven_slices"])):
            save_slice(folder / "003.dcm", ramp()[..., 3], at(0, 0, 7.5 + shift))
            assert [odd.code for odd in read_series(folder).oddities] == codes
        save_slice(folder / "003.dcm", ramp()[..., 3], at(0, 1, 7.5))
        assert "003.dcm lies 1 mm" in refused(folder)

    def test_one_slice_is_a_volume_of_one(self, tmp_path):
        folder = save_series(tmp_path / "s", keep=[2], axes=OBLIQUE, depth=3.25)
        for tag, depth in ((None, 3.25), (b"\x18\x00\x88\x00", 4), (b"\x18\x00\x50\x00", 1)):  # each time one less
            if tag is not None:
                hide(folder / "002.dcm", tag)
            volume = read_series(folder)
            np.testing.assert_array_equal(volume.array, ramp()[..., 2:3])
            assert volume.spacing == pytest.approx((0.7, 1.25, depth))

    def test_a_slice_without_a_place_is_read_and_reported_and_a_stack_is_not(self, tmp_path):
        good, bad = text([*STRAIGHT[:, 0], *STRAIGHT[:, 1]]).encode(), b"0\\0\\0\\0\\0\\0"
        one, many = save_series(tmp_path / "a", keep=[4]), save_series(tmp_path / "b")
        for folder in (one, many):
            (folder / "004.dcm").write_bytes((folder / "004.dcm").read_bytes().replace(good, bad))
        volume = read_series(one)
        assert [odd.code for odd in volume.oddities] == ["no_orientation"]
        np.testing.assert_array_equal(volume.array, ramp()[..., 4:5])
        assert "1 of 7 files (004.dcm)" in refused(many)

    def test_a_slice_without_spacing_is_reported(self, tmp_path):
        folder = save_series(tmp_path / "s", keep=[0], spacing=np.ones(3))
        hide(folder / "000.dcm", b"\x28\x00\x30\x00")
        assert [odd.code for odd in read_series(folder).oddities] == ["no_spacing"]


class TestValues:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32])
    def test_integers_keep_their_type(self, tmp_path, dtype):
        volume = read_series(save_series(tmp_path / "s", ramp().astype(dtype)))
        assert volume.array.dtype == dtype
        np.testing.assert_array_equal(volume.array, ramp())

    def test_each_slice_has_its_own_slope(self, tmp_path):
        (tmp_path / "s").mkdir()
        slopes = [1, 0.25, 3, 0.125, 2, 17, 0.5]
        expected = ramp() * np.array(slopes) - 3
        for k, slope in enumerate(slopes):
            tags = SLOPE | {"0028|1053": str(slope), "0028|1052": "-3"}
            save_slice(
                tmp_path / "s" / f"{k}.dcm", expected[..., k].astype(np.float64), at(0, 0, k),
                **{f"t{tag.replace('|', '_')}": value for tag, value in tags.items()},
            )  # fmt: skip
        np.testing.assert_allclose(read_series(tmp_path / "s").array, expected)

    def test_colours_are_refused(self, tmp_path):
        image = sitk.GetImageFromArray(np.zeros((6, 5, 3), np.uint8), isVector=True)
        (tmp_path / "s").mkdir()
        sitk.WriteImage(image, str(tmp_path / "s" / "a.dcm"))
        assert "colours" in refused(tmp_path / "s")


class TestFaults:
    def test_a_gap_is_measured_and_its_neighbours_named(self, tmp_path):
        message = refused(save_series(tmp_path / "s", keep=[0, 1, 4, 5, 6], axes=OBLIQUE))
        assert "7.5 mm between 001.dcm and 004.dcm" in message
        assert "2.5 mm apart" in message
        assert "3 mm" not in message

    def test_of_three_slices_the_gap_is_the_wider_step(self, tmp_path):
        assert "5 mm between 001.dcm and 003.dcm" in refused(save_series(tmp_path / "s", keep=[0, 1, 3]))

    def test_files_at_one_position_are_both_named(self, tmp_path):
        folder = save_series(tmp_path / "s")
        save_slice(folder / "again", ramp()[..., 0], at(0, 0, 7.5))
        assert "003.dcm and again" in refused(folder)

    def test_a_series_all_at_one_position_is_refused(self, tmp_path):
        assert "slices at 1 position)" in refused(save_series(tmp_path / "s", step=(0, 0, 0)))

    @pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.95])
    def test_a_cut_file_is_named_even_where_another_series_is_asked_for(self, tmp_path, share):
        folder = save_series(tmp_path / "s")
        save_series(folder, name="b{}.dcm", uid="1.2.3.5")
        raw = (folder / "004.dcm").read_bytes()
        (folder / "004.dcm").write_bytes(raw[: int(share * len(raw))])
        assert refused(folder, "1.2.3.5").startswith(f"{folder / '004.dcm'}: ")
        with pytest.raises(DataError, match=r"004\.dcm"):
            series_of(folder)

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"axes": OBLIQUE}, "direction"),
            ({"spacing": SPACING * 2}, "spacing in mm"),
            ({"pixels": np.zeros((5, 7), np.int16)}, "size in pixels"),
        ],
    )
    def test_what_differs_within_a_series_is_listed(self, tmp_path, change, word):
        folder = save_series(tmp_path / "s")
        other = {"pixels": ramp()[..., 0], "position": ORIGIN - [0, 0, 2.5]} | change
        save_slice(folder / "other.dcm", **other)
        message = refused(folder)
        assert f"a series must have one {word}, found 2" in message
        assert "000.dcm, 001.dcm, 002.dcm, 003.dcm, 004.dcm and 2 more" in message
        assert message.splitlines()[2].endswith(": other.dcm")
        assert ("localizer" in message) == (word == "direction")

    def test_wide_images_may_not_differ_by_one_column(self, tmp_path):
        (tmp_path / "s").mkdir()
        for k, width in enumerate((2000, 2001)):
            save_slice(tmp_path / "s" / f"{k}.dcm", np.zeros((width, 2), np.uint8), at(0, 0, k))
        assert "size in pixels" in refused(tmp_path / "s")

    def test_missing_and_empty_folders(self, tmp_path):
        assert "cannot be read" in refused(tmp_path / "absent")
        assert "no DICOM image" in refused(tmp_path)
        assert series_of(tmp_path) == {}


def save_volumes(folder, count, step=(0.0, 0.0, 0.0), **tags):
    """A series of several volumes of 7 slices, each `step` further; tags as `save_slice` has them, one for each."""
    folder.mkdir()
    for number in range(count):
        said = {name: values[number] for name, values in tags.items()}
        for k in range(SHAPE[2]):
            position = at(0, 0, 2.5 * k) + number * np.array(step)
            save_slice(folder / f"{number}_{k}.dcm", ramp()[..., k] + number, position, **said)
    return folder


class TestSeveralVolumes:
    def test_time_points_are_counted_and_what_tells_them_apart_is_named(self, tmp_path):
        folder = save_volumes(tmp_path / "s", 3, t0020_0012=["1", "2", "3"], t0008_0032=["10", "10", "20"])
        message = refused(folder)
        assert "slices share a position (21 slices at 7 positions): 0_0.dcm and 1_0.dcm, 1_0.dcm and 2_0.dcm" in message
        assert "which differ in AcquisitionNumber (1, 2, 3) and AcquisitionTime (10, 20);" in message
        assert "into a separate folder" in message
        assert "dcm2niix" in message

    @pytest.mark.parametrize("step", [(0, 0, 0.003), (0.003, 0, 0)])
    def test_rounding_parts_no_positions(self, tmp_path, step):
        assert "21 slices at 7 positions" in refused(save_volumes(tmp_path / "s", 3, step))

    @pytest.mark.parametrize("step", [0, 0.3, 1.25, 17.5])
    @pytest.mark.parametrize("tag", ["t0020_0100", "t0018_0086"])
    def test_time_points_and_echoes_are_no_volume_wherever_they_lie(self, tmp_path, step, tag):
        message = refused(save_volumes(tmp_path / "s", 2, (0, 0, step), **{tag: ["1", "2"]}))
        assert "a series must hold one volume, found 14 slices of 2, by" in message

    def test_acquisitions_between_each_other_are_reported_and_those_in_a_row_are_not(self, tmp_path):
        numbers = ["1", "2"]
        (odd,) = read_series(save_volumes(tmp_path / "a", 2, (0, 0, 1.25), t0020_0012=numbers)).oddities
        assert odd.code == "taken_in_turns"
        assert "AcquisitionNumber (1, 2)" in odd.found
        volume = read_series(save_volumes(tmp_path / "b", 2, (0, 0, 17.5), t0020_0012=numbers))
        assert volume.oddities == ()
        assert volume.shape == (5, 6, 14)

    def test_a_volume_may_be_taken_in_turns_slice_by_slice(self, tmp_path):
        (tmp_path / "s").mkdir()
        for k, number in enumerate("1526374"):
            tags = {"t0020_0012": number, "t0008_0032": str(k % 2)}
            save_slice(tmp_path / "s" / f"{k}.dcm", ramp()[..., k], at(0, 0, 2.5 * k), **tags)
        assert read_series(tmp_path / "s").oddities == ()

    def test_a_folder_for_each_volume_is_what_helps(self, tmp_path):
        folder = save_volumes(tmp_path / "s", 2, t0020_0100=["1", "2"])
        for number in range(2):
            (tmp_path / str(number)).mkdir()
            for path in folder.glob(f"{number}_*"):
                path.rename(tmp_path / str(number) / path.name)
            np.testing.assert_array_equal(read_series(tmp_path / str(number)).array, ramp() + number)


class TestSeries:
    @pytest.fixture
    def two(self, tmp_path):
        folder = save_series(tmp_path / "s", uid="1.2.3.4", t0008_103e="T1 axial")
        save_series(folder, -ramp(), name="b{}", keep=range(4), uid="1.2.3.5", t0008_103e="été", t0008_0060="CT")
        return folder

    def test_each_is_described(self, two):
        found = series_of(two)
        assert list(found) == ["1.2.3.4", "1.2.3.5"]
        first, second = found.values()
        assert (first.modality, first.description, first.files, first.size) == ("MR", "T1 axial", 7, (5, 6, 1))
        assert (second.modality, second.files, second.paths[0]) == ("CT", 4, two / "b0")

    def test_one_of_several_is_asked_for(self, two):
        message = refused(two)
        for words in ("2 series", "1.2.3.4  MR  7 files, 5 x 6 pixels  T1 axial", "1.2.3.5  CT  4 files", "uid"):
            assert words in message
        np.testing.assert_array_equal(read_series(two, "1.2.3.5").array, -ramp()[..., :4])
        assert "no series 1.2" in refused(two, "1.2")

    def test_text_in_an_unknown_alphabet_can_still_be_printed(self, tmp_path):
        folder = save_series(tmp_path / "s", keep=[0], t0008_103e="abcdef")
        raw = (folder / "000.dcm").read_bytes()
        (folder / "000.dcm").write_bytes(raw.replace(b"abcdef", b"T\xeate 1"))
        assert next(iter(series_of(folder).values())).description.encode().endswith(b"te 1")

    def test_what_is_no_image_is_passed_over(self, two):
        (two / "notes.txt").write_text("not DICOM")
        (two / "scan.nii.gz").write_bytes(b"\x1f\x8b")
        (two / "._000.dcm").write_bytes(bytes(200))
        (two / "deeper").mkdir()
        save_slice(two / "deeper" / "c.dcm", ramp()[..., 0], ORIGIN, uid="1.2.3.6")
        (two / "DICOMDIR").write_bytes(begun("1.2.840.10008.1.3.10"))
        for kind in ("88.22", "66", "66.1", "66.4", "481.2", "481.3", "11.1"):
            # A report, raw data, a registration, a segmentation, a dose, structures, presentation states.
            (two / f"other{kind}.dcm").write_bytes(begun(f"1.2.840.10008.5.1.4.1.1.{kind}"))
        assert list(series_of(two)) == ["1.2.3.4", "1.2.3.5"]
        (two / "image.dcm").write_bytes(begun("1.2.840.10008.5.1.4.1.1.2"))
        assert "image.dcm" in refused(two)

    def test_a_folder_is_told_by_its_files(self, two, tmp_path):
        assert is_series_folder(two)
        assert not is_series_folder(tmp_path)
        assert not is_series_folder(tmp_path / "absent")
        other = tmp_path / "other"
        other.mkdir()
        (other / "DICOMDIR").write_bytes(begun("1.2.840.10008.1.3.10"))
        (other / "a.nii.gz").touch()
        assert not is_series_folder(other)
        (two / "b0").rename(other / "plain")
        assert is_series_folder(other)


def encode(elements, explicit=True):
    """Bytes of `(group, number, type, value)`; the value of a sequence (SQ) is a list of its items' elements."""
    return b"".join(encode_one(*element, explicit) for element in elements)


def encode_one(group, number, kind, value, explicit):
    if kind == "SQ":
        items = [encode(item, explicit) for item in value]
        value = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
    elif isinstance(value, int):
        value = struct.pack("<I" if kind == "UL" else "<H", value)
    elif isinstance(value, str):
        value = value.encode()
    value += (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
    size = struct.pack("<I", len(value))
    if explicit:
        size = kind.encode() + (b"\0\0" + size if kind in ("OB", "OW", "SQ") else size[:2])
    return struct.pack("<HH", group, number) + size + value


def begun(kind, syntax="1.2.840.10008.1.2.1"):
    """The beginning of a file that holds an object of a kind."""
    meta = encode([(2, 1, "OB", b"\0\1"), (2, 2, "UI", kind), (2, 3, "UI", "1.2.3.9"), (2, 0x10, "UI", syntax)])
    return bytes(128) + b"DICM" + encode([(2, 0, "UL", len(meta))]) + meta


def save_enhanced(folder, heights, aside=0.0, slopes=None, places=True, explicit=True, more=(),
                  kind="1.2.840.10008.5.1.4.1.1.2.1"):  # fmt: skip
    """A multi-frame CT of `ramp()`, which SimpleITK cannot write: a frame at each height."""
    folder.mkdir(exist_ok=True)
    directions = (0x20, 0x9116, "SQ", [[(0x20, 0x37, "DS", "1\\0\\0\\0\\1\\0")]])
    spacing = (0x28, 0x9110, "SQ", [[(0x18, 0x50, "DS", "9"), (0x28, 0x30, "DS", "1.25\\0.7")]])
    frames = []
    for k, height in enumerate(heights):
        frame = []
        if places:
            frame.append((0x20, 0x9113, "SQ", [[(0x20, 0x32, "DS", text(at(0, aside * height, height)))]]))
        if slopes:
            words = [(0x28, 0x1052, "DS", "0"), (0x28, 0x1053, "DS", str(slopes[k])), (0x28, 0x1054, "LO", "US")]
            frame.append((0x28, 0x9145, "SQ", [words]))
        frames.append(frame)
    body = [
        (0x08, 0x16, "UI", kind),
        (0x08, 0x18, "UI", "1.2.3.9"),
        (0x08, 0x60, "CS", "CT"),
        (0x20, 0x0D, "UI", "1.2.3"),
        (0x20, 0x0E, "UI", "1.2.3.4"),
        (0x28, 0x02, "US", 1),
        (0x28, 0x04, "CS", "MONOCHROME2"),
        (0x28, 0x08, "IS", str(SHAPE[2])),
        (0x28, 0x10, "US", SHAPE[1]),
        (0x28, 0x11, "US", SHAPE[0]),
        *((0x28, number, "US", value) for number, value in ((0x100, 16), (0x101, 16), (0x102, 15), (0x103, 0))),
        *more,
        (0x5200, 0x9229, "SQ", [[directions, spacing]]),
        (0x5200, 0x9230, "SQ", frames),
        (0x7FE0, 0x10, "OW", ramp().T.astype("<u2").tobytes()),
    ]
    syntax = "1.2.840.10008.1.2" + ".1" * explicit
    (folder / "frames").write_bytes(begun(kind, syntax) + encode(sorted(body, key=lambda one: one[:2]), explicit))
    return folder


def test_a_scout_in_the_folder_of_its_scan_is_left_out_and_told(tmp_path):
    for k in range(SHAPE[2]):
        save_slice(tmp_path / f"{k}.dcm", ramp()[..., k], at(0, 0, 2.5 * k), uid="1.2.3.4")
    alone = read_series(tmp_path)
    save_slice(tmp_path / "0_scout.dcm", ramp()[..., 0], at(0, 0, 40), uid="1.2.3.5")
    both = read_series(tmp_path)
    np.testing.assert_array_equal(both.array, alone.array)
    assert [odd.code for odd in both.oddities] == ["scout"]
    assert read_grid(Source(tmp_path))[0] == SHAPE
    assert read_series(tmp_path, "1.2.3.5").shape == (*SHAPE[:2], 1)
    save_slice(tmp_path / "1_scout.dcm", ramp()[..., 1], at(0, 0, 45), uid="1.2.3.5")
    assert "2 series in one folder" in refused(tmp_path)


class TestFrames:
    @pytest.mark.parametrize("order", [range(7), range(6, -1, -1), (3, 0, 6, 1, 5, 2, 4)])
    @pytest.mark.parametrize("explicit", [True, False])
    def test_positions_order_frames(self, tmp_path, order, explicit):
        volume = read_series(save_enhanced(tmp_path / "s", [2.5 * k for k in order], explicit=explicit))
        np.testing.assert_array_equal(volume.array, ramp()[..., np.argsort(order)])
        np.testing.assert_allclose(volume.affine, affine_of(STRAIGHT), atol=1e-6)
        assert volume.oddities == ()
        assert next(iter(series_of(tmp_path / "s").values())).size == SHAPE

    def test_faults_name_frames(self, tmp_path):
        assert "frame 3 and frame 4" in refused(save_enhanced(tmp_path / "a", [0, 1, 2, 4, 5, 6, 7]))
        assert "frame 2 and frame 3" in refused(save_enhanced(tmp_path / "b", [0, 1, 1, 2, 3, 4, 5]))
        tilted = read_series(save_enhanced(tmp_path / "c", range(7), aside=0.2))
        assert [odd.code for odd in tilted.oddities] == ["gantry_tilt"]

    def test_one_slope_is_applied_and_several_are_refused(self, tmp_path):
        volume = read_series(save_enhanced(tmp_path / "a", range(7), slopes=[2] * 7))
        np.testing.assert_array_equal(volume.array, 2 * ramp())
        assert "differ in slope" in refused(save_enhanced(tmp_path / "b", range(7), slopes=range(1, 8)))

    @pytest.mark.parametrize("explicit", [True, False])
    def test_what_looks_like_an_element_among_the_pixels_is_none(self, tmp_path, explicit):
        folder = save_enhanced(tmp_path / "s", [2.5 * k for k in (3, 0, 6, 1, 5, 2, 4)], explicit=explicit)
        raw = (folder / "frames").read_bytes()
        position = (0x20).to_bytes(2, "little") + (0x32).to_bytes(2, "little")
        stray = position + (b"DS" + (6).to_bytes(2, "little") if explicit else (6).to_bytes(4, "little")) + b"1\\2\\3 "
        (folder / "frames").write_bytes(raw[: -len(stray)] + stray)
        volume = read_series(folder)
        assert volume.spacing == pytest.approx((0.7, 1.25, 2.5))
        assert volume.oddities == ()

    def test_frames_without_positions_and_spacing_are_refused(self, tmp_path):
        assert "positions of the 7 frames are not found, nor is" in refused(
            save_enhanced(tmp_path / "s", range(7), places=False)
        )

    def test_frames_without_positions_are_read_as_they_come_and_reported(self, tmp_path):
        """As in a plain CT of several frames with one spacing, which SimpleITK knows."""
        kind, spacing = "1.2.840.10008.5.1.4.1.1.2", [(0x28, 0x30, "DS", "1.25\\0.7"), (0x18, 0x88, "DS", "2.5")]
        volume = read_series(save_enhanced(tmp_path / "s", range(7), places=False, more=spacing, kind=kind))
        np.testing.assert_array_equal(volume.array, ramp())
        assert [odd.code for odd in volume.oddities] == ["multi_frame"]

    def test_pixels_packed_in_a_way_that_is_not_read_are_told_as_such(self, tmp_path):
        folder = save_enhanced(tmp_path / "s", range(7))
        raw = (folder / "frames").read_bytes()
        (folder / "frames").write_bytes(raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.9\0"))
        assert "compressed as 1.2.840.10008.1.9.9, which medssl cannot read; convert" in refused(folder)

    @pytest.mark.parametrize("explicit", [True, False])
    def test_a_film_is_no_volume(self, tmp_path, explicit):
        time = [(0x18, 0x1063, "DS", "33.3")]
        folder = save_enhanced(tmp_path / "s", range(7), places=False, explicit=explicit, more=time)
        assert "its 7 frames are a film" in refused(folder)

    def test_time_points_in_one_file_are_no_volume(self, tmp_path):
        message = refused(save_enhanced(tmp_path / "s", [0, 0, 0, 1, 1, 1, 1]))
        assert "7 slices at 2 positions): frame 1 and frame 2" in message

    def test_a_volume_is_one_file(self, tmp_path):
        folder = save_enhanced(tmp_path / "s", range(7))
        (folder / "again").write_bytes((folder / "frames").read_bytes())
        assert "2 files in one series" in refused(folder)


ODD_WORDS = {
    "dicom/missing_slice": ["gap of 2 mm", "014.dcm and 016.dcm"],
    "dicom/duplicate_slice": ["013.dcm and 013_again.dcm"],
    "dicom/truncated_file": ["015.dcm"],
    "dicom/two_series": ["2 series", "T1 post contrast, crop", "hippocampus crop"],
}


def test_the_collection_of_odd_series_is_met_as_stated(real_data):
    with (real_data / "odd" / "expected.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["path"].startswith("dicom/")]
    assert {row["path"] for row in rows if row["expect"] == "reject"} == ODD_WORDS.keys()
    for row in rows:
        folder = real_data / "odd" / row["path"]
        assert is_series_folder(folder)
        if row["expect"] == "reject":
            message = refused(folder)
            for words in ODD_WORDS[row["path"]]:
                assert words in message
        else:
            assert read_series(folder).oddities == ()


def test_a_real_oblique_series_is_spaced_by_its_positions(real_data):
    complete = read_series(real_data / "odd" / "dicom" / "complete")
    assert complete.shape == (35, 51, 32)
    assert complete.spacing == pytest.approx((1, 1, 1))
    oblique = read_series(real_data / "odd" / "dicom" / "oblique")
    assert oblique.shape == (96, 96, 22)
    assert oblique.spacing == pytest.approx((0.6875, 0.6875, 6.5), abs=1e-3)
    # Names are reversed, so the lowest slice has the last one.
    first = sitk.ReadImage(str(real_data / "odd" / "dicom" / "oblique" / "022.dcm"))
    np.testing.assert_array_equal(oblique.array[..., 0], sitk.GetArrayFromImage(first)[0].T)
    np.testing.assert_allclose(oblique.affine[:3, 3] * [-1, -1, 1], first.GetOrigin(), atol=1e-6)
