import sys

import numpy as np
import pytest

from medssl.data.hdf5 import has_label, read_h5
from medssl.data.io import read_volume
from medssl.data.volume import Source
from medssl.errors import ConfigError, DataError, DeviceError

SHAPE = (5, 6, 7)


def ramp(dtype=np.float32):
    return np.arange(np.prod(SHAPE), dtype=dtype).reshape(SHAPE)


@pytest.fixture
def save(tmp_path):
    h5py = pytest.importorskip("h5py")

    def save(name="a.h5", **datasets):
        with h5py.File(tmp_path / name, "w") as file:
            for key, value in datasets.items():
                file[key] = value
        return tmp_path / name

    return save


def codes(volume):
    return [odd.code for odd in volume.oddities]


def test_a_file_that_promises_more_than_memory_holds_is_named(save):
    h5py = pytest.importorskip("h5py")
    path = save("a.h5", label=ramp())
    with h5py.File(path, "a") as file:
        file.create_dataset("image", (100_000,) * 3, np.float32, chunks=(8, 8, 8))
    with pytest.raises(DataError, match=r"a\.h5: its voxels do not fit into memory"):
        read_volume(Source(path, "image"))


class TestReading:
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
    def test_axes_stand_as_the_caller_says(self, save, dtype):
        atrium = save("a.h5", image=ramp(dtype))
        ventricle = save("b.h5", image=ramp(dtype).transpose(2, 1, 0))
        slice_ = save("c.h5", image=ramp(dtype)[..., 3].T)
        for path, axes, wanted in (
            (atrium, "xyz", ramp()),
            (ventricle, "zyx", ramp()),
            (slice_, "zyx", ramp()[..., 3:4]),
        ):
            volume = read_h5(path, "image", axes=axes)
            np.testing.assert_array_equal(volume.array, wanted)
            assert volume.array.dtype == dtype
            assert volume.path == path

    def test_masks_of_truth_values_become_numbers(self, save):
        label = read_h5(save(label=ramp() > 9), "label").array
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, ramp() > 9)

    def test_what_the_file_does_not_say_is_reported(self, save):
        volume = read_h5(save(image=ramp()), "image")
        np.testing.assert_array_equal(volume.affine, np.diag([-1, -1, 1, 1]))
        assert codes(volume) == ["no_orientation", "no_spacing"]

    def test_spacing_runs_along_x_y_z_whatever_the_axes(self, save):
        path = save(image=ramp().T, spacing=[0.5, 0.75, 5])
        stored = read_h5(path, "image", axes="zyx")
        assert stored.spacing == (0.5, 0.75, 5)
        given = read_h5(path, "image", axes="zyx", spacing=(0.625, 0.625, 2))
        assert given.spacing == (0.625, 0.625, 2)
        assert given.shape == stored.shape == SHAPE
        assert codes(given) == codes(stored) == ["no_orientation"]

    def test_a_label_may_be_absent(self, save):
        assert has_label(save("a.h5", image=ramp(), label=ramp()))
        assert not has_label(save("b.h5", image=ramp()))


class TestRefusal:
    def refused(self, path, dataset="image"):
        with pytest.raises(DataError) as error:
            read_h5(path, dataset)
        assert str(error.value).startswith(f"{path}: ")
        return str(error.value)

    @pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.9])
    def test_a_cut_file_is_named(self, save, share):
        path = save(image=np.arange(5000.0).reshape(10, 20, 25), label=np.zeros((10, 20, 25)))
        raw = path.read_bytes()
        path.write_bytes(raw[: int(share * len(raw))])
        assert "damaged" in self.refused(path)
        with pytest.raises(DataError, match=r"a\.h5"):
            has_label(path)

    def test_damage_inside_is_found_when_voxels_are_read(self, save, tmp_path):
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "a.h5", "w") as file:
            noise = np.random.default_rng(0).integers(0, 255, (20, 20, 20))
            file.create_dataset("image", data=noise, compression="gzip", chunks=(20, 20, 20))
        raw = bytearray((tmp_path / "a.h5").read_bytes())
        raw[len(raw) // 2] ^= 255
        (tmp_path / "a.h5").write_bytes(raw)
        assert "damaged" in self.refused(tmp_path / "a.h5")

    def test_other_files_and_none(self, save, tmp_path):
        assert "no such file" in self.refused(tmp_path / "absent.h5")
        (tmp_path / "b.h5").write_text("version https://git-lfs.github.com/spec/v1")
        assert "not an HDF5 file" in self.refused(tmp_path / "b.h5")

    def test_data_sets_that_are_no_volume(self, save):
        assert "found: image, label" in self.refused(save(image=ramp(), label=ramp()), "mask")
        assert "shape 2 x 5 x 6 x 7" in self.refused(save(image=np.zeros((2, *SHAPE))))
        assert "one number" in self.refused(save(image=3))
        assert "complex" in self.refused(save(image=ramp() * 1j))
        assert "found: image" in self.refused(save(**{"image/inner": ramp()}))
        assert "'spacing'" in self.refused(save(image=ramp(), spacing=[1, 0, 1]))

    def test_wrong_spacing(self, save):
        path = save(image=ramp())
        for spacing in ((1, 1), (1, 1, -1), (1, 1, float("nan"))):
            with pytest.raises(ConfigError, match="three positive"):
                read_h5(path, "image", spacing=spacing)

    def test_without_h5py_the_error_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "h5py", None)
        with pytest.raises(DeviceError, match=r"pip install 'medssl\[h5\]'") as error:
            read_h5(tmp_path / "a.h5", "image")
        assert error.value.exit_code == 4
