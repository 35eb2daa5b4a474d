"""Published numbers: every file reads, every figure has a source, and digits stay as printed."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from medssl import config
from medssl.config import load_yaml
from medssl.errors import ConfigError
from medssl.published import PublishedRow, published_rows

FILES = sorted((Path(__file__).resolve().parents[1] / "configs" / "published").glob("*.yaml"))
NAMES = [path.stem for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_figure_of_every_file_becomes_a_cell_as_printed(path):
    rows, entries = published_rows(path.stem), load_yaml(path.read_text())["rows"]
    cells = [[str(v) for v in (row.dice, row.jaccard, row.hd95, row.asd) if v is not None] for row in rows]
    assert sorted(cells) == sorted(entry["printed"].split(" / ") for entry in entries)
    assert {row.dataset for row in rows} == {path.stem}


@pytest.mark.parametrize("name", NAMES)
def test_every_row_says_who_where_and_how_and_is_plausible(name):
    rows = published_rows(name)
    assert rows
    assert len({(row.method, row.labelled) for row in rows}) == len(rows)
    for row in rows:
        assert "" not in (row.method, row.source.name, row.source.address, row.protocol)
        assert row.jaccard is None or row.jaccard < row.dice
        assert row.hd95 is None or row.asd < row.hd95


@pytest.mark.parametrize("name", NAMES)
def test_rows_come_with_few_labels_first(name):
    rows = published_rows(name)
    assert [row.labelled for row in rows] == sorted(row.labelled for row in rows)


def test_a_dataset_without_a_file_has_no_rows():
    assert published_rows("phantom_cardiac") == []


def test_a_known_row_is_the_printed_one():
    (row,) = [row for row in published_rows("la") if (row.method, row.labelled) == ("UA-MT", 8)]
    assert (row.dice, row.jaccard, row.hd95, row.asd) == tuple(map(Decimal, ("84.25", "73.48", "13.84", "3.36")))
    assert (row.unlabelled, row.secondary, row.unit, row.source.address) == (72, True, "voxels", "yyliu01/TraCoCo")


def test_rows_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        published_rows("la")[0].dice = Decimal(100)
    assert PublishedRow.model_config["extra"] == "forbid"


TABLE = {
    "dataset": "toy", "train": 9, "protocol": "drawn", "sources": {"a": {"name": "table 1", "address": "arXiv 1"}},
    "rows": [{"method": "x", "labelled": 2, "printed": "50.10", "source": "a"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"printed": "50.10 / 40.0"}, "expected `Dice` or"),
        ({"source": "b"}, "but differ in a, b"),
        ({"dise": 3}, "unknown key"),
        ({"source": None}, "source"),
    ],
)
def test_a_broken_row_is_refused(tmp_path, monkeypatch, change, said):
    monkeypatch.setattr("medssl.published.bundled", lambda _: tmp_path / "toy.yaml")
    (tmp_path / "toy.yaml").write_text(json.dumps(TABLE))
    assert [str(row.dice) for row in published_rows("toy")] == ["50.10"]
    (tmp_path / "toy.yaml").write_text(json.dumps(TABLE | {"rows": [TABLE["rows"][0] | change]}))
    with pytest.raises(ConfigError, match=said):
        published_rows("toy")


def test_the_files_travel_with_the_package():
    assert all(config.bundled(f"published/{name}.yaml") for name in ("acdc", "la", "pancreas"))
