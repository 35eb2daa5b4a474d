import pytest

from medssl.data.names import read_id_list


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["", ".nii", ".nii.gz", ".NII.GZ", ".nrrd", ".mha", ".mhd", ".h5", ".hdf5", ".npz"])
def test_a_list_may_write_the_ending_of_a_file_behind_an_id(tmp_path, ending, encoding):
    (tmp_path / "list.txt").write_text(f"case.01{ending}\n\ncase.02{ending}\n", encoding=encoding)
    assert read_id_list(tmp_path / "list.txt") == ["case.01", "case.02"]
