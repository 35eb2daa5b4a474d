import pickle

import pytest
import torch

from medssl.checkpoint import load_checkpoint, save_checkpoint
from medssl.errors import DataError


def test_tensors_and_plain_values_come_back(tmp_path):
    values = {"a": torch.arange(5), "b": {"c": [1, 2.5, "x", None, True]}}
    save_checkpoint(tmp_path / "x.pt", values)
    loaded = load_checkpoint(tmp_path / "x.pt")
    assert torch.equal(loaded["a"], values["a"])
    assert loaded["b"] == values["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_a_failed_save_leaves_the_earlier_file(tmp_path):
    save_checkpoint(tmp_path / "x.pt", {"step": 1})
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_checkpoint(tmp_path / "x.pt", {"step": lambda: 2})
    assert load_checkpoint(tmp_path / "x.pt")["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    torch.save({"format": 1, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match=r"evil\.pt"):
        load_checkpoint(tmp_path / "evil.pt")
    assert "code ran" not in capsys.readouterr().out


def test_missing_damaged_and_foreign_files_are_named(tmp_path):
    (tmp_path / "damaged.pt").write_bytes(b"abc")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    for name in ("missing", "damaged", "foreign"):
        with pytest.raises(DataError, match=name):
            load_checkpoint(tmp_path / f"{name}.pt")
