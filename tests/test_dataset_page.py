"""`medssl check` with its page and its fixes, as a user types it."""

import base64
import html
import io
import json
import re

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from medssl.cli import app
from medssl.data.cases import DatasetConfig
from medssl.data.check import check
from medssl.data.io import write_image
from medssl.data.volume import Volume
from medssl.palette import class_colour
from medssl.report.dataset import MOST_CASES, write_dataset_page
from medssl.thumbnails import SIDE, draw_case

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (13, 11, 9)
DATASET = DatasetConfig(name="made", classes=("background", "wall"))


def run(*words):
    return CliRunner().invoke(app, ["check", *map(str, words)])


@pytest.fixture
def raw(tmp_path):
    rng = np.random.default_rng(0)
    for id in ("a", "b", "c<i>"):
        write_image(tmp_path / "raw" / "images" / f"{id}.nii.gz", rng.normal(size=SHAPE).astype(np.float32), AFFINE)
        label = (rng.random(SHAPE) < 0.5).astype(np.float32)
        write_image(tmp_path / "raw" / "labels" / f"{id}.nii.gz", label, AFFINE)
    (tmp_path / "raw" / "labels" / "a.nii.gz").unlink()
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "wall": 1}}))
    return tmp_path / "raw"


def pictures(page):
    return re.findall(r'<article class="card ?(\w*) ?">\s*<h3>(.*?)</h3>', page)


class TestPage:
    def test_it_shows_every_case_those_with_findings_first(self, raw, tmp_path):
        image = np.zeros(SHAPE, np.float32)
        write_image(raw / "images" / "b.nii.gz", image, AFFINE)
        (raw / "images" / "d.nii.gz").write_bytes(b"")
        done = run(raw, "--html", tmp_path / "page.html", "--workers", 0)
        assert done.exit_code == 3
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert pictures(page) == [("error", "d"), ("warning", "b"), ("warning", "c&lt;i&gt;"), ("", "a")]
        assert page.count("data:image/jpeg") == 3
        assert "<i>" not in page
        assert "the file is empty (0 bytes)" in page
        assert str(raw / "images") not in page.split("<h2>")[1]
        for line in ("<b>4</b>cases", "<b>2</b>labelled", "<b>2</b>unlabelled"):
            assert line in page

    def test_it_needs_nothing_from_elsewhere_and_allows_nothing(self, raw):
        write_dataset_page(check(raw, DATASET, workers=0, draw=draw_case), raw.parent / "page.html")
        page = (raw.parent / "page.html").read_text(encoding="utf-8")
        assert "default-src 'none'" in html.unescape(page)
        assert not re.findall(r'(?:src|href)="(?!data:|#)', page)

    def test_a_label_stored_along_other_axes_is_drawn_the_same(self, raw):
        expected = check(raw, DATASET, workers=0, draw=draw_case)
        path = raw / "labels" / "b.nii.gz"
        nib.save(nib.load(path).as_reoriented(np.array([[2, 1], [0, -1], [1, 1]])), path)
        found = check(raw, DATASET, workers=0, draw=draw_case)
        assert [facts.picture for facts in found.facts] == [facts.picture for facts in expected.facts]

    def test_workers_draw_the_same(self, raw):
        alone, spread = (check(raw, DATASET, workers=workers, draw=draw_case) for workers in (0, 2))
        assert alone == spread
        assert all(facts.picture for facts in alone.facts)
        assert all(facts.picture is None for facts in check(raw, DATASET, workers=0).facts)

    def test_large_datasets_show_so_many(self, raw):
        rng = np.random.default_rng(1)
        for number in range(MOST_CASES + 3):
            write_image(raw / "images" / f"x{number:03d}.nii", rng.normal(size=(4, 3, 5)).astype(np.float32), AFFINE)
        (raw / "images" / "z.nii").write_bytes(b"")
        write_dataset_page(check(raw, DATASET, workers=0, draw=draw_case), raw.parent / "page.html")
        page = (raw.parent / "page.html").read_text(encoding="utf-8")
        found = pictures(page)
        assert len(found) == MOST_CASES
        assert found[0] == ("error", "z")
        assert "7 more are not shown" in page

    def test_a_page_that_is_there_stays(self, raw, tmp_path):
        page = tmp_path / "page.html"
        page.write_text("mine")
        done = run(raw, "--html", page)
        assert done.exit_code != 0
        assert page.read_text(encoding="utf-8") == "mine"
        assert run(raw, "--html", page, "--overwrite", "--workers", 0).exit_code == 0
        assert page.read_text(encoding="utf-8") != "mine"


class TestPictures:
    def draw(self, array, label=None, affine=AFFINE):
        strip = draw_case(Volume(array.astype(np.float32), affine), label if label is None else Volume(label, affine))
        picture = Image.open(io.BytesIO(strip))
        assert picture.size == (3 * SIDE, SIDE)
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        return [pixels[:, place * SIDE : (place + 1) * SIDE] for place in range(3)]

    @pytest.mark.parametrize("flip", [1, -1])
    def test_the_right_side_is_on_the_left_and_the_head_is_up_however_it_is_stored(self, flip):
        array = np.zeros((20, 20, 20))
        array[13:, :, 13:] = 1  # right, above
        affine = np.diag([flip, 1.0, 1.0, 1.0])
        axial, coronal, _ = self.draw(array[::flip] if flip < 0 else array, affine=affine)
        lit = coronal.sum(2) > 300
        rows, columns = (where.mean() / SIDE for where in np.nonzero(lit))
        assert rows < 0.4
        assert columns < 0.4
        assert axial.max() < 30  # its middle slice is below

    def test_slices_have_their_size_in_millimetres(self):
        array = np.random.default_rng(0).normal(size=(20, 10, 4)) + 5
        _, coronal, sagittal = self.draw(array, affine=np.diag([1.0, 1.0, 2.5, 1.0]))
        for picture, width in ((coronal, 1.0), (sagittal, 0.5)):
            lit = picture.sum(2) > 60
            assert np.ptp(np.nonzero(lit)[0]) / SIDE == pytest.approx(0.5, abs=0.05)
            assert np.ptp(np.nonzero(lit)[1]) / SIDE == pytest.approx(width, abs=0.05)

    def test_classes_have_outlines_where_the_label_is_largest(self):
        label = np.zeros((20, 20, 20), np.int32)
        label[5:15, 5:15, 2:4] = 1
        label[8:12, 8:12, 2:4] = 2
        axial, _, _ = self.draw(np.zeros((20, 20, 20)), label)
        for value in (1, 2):
            colour = np.array([int(class_colour(value)[i : i + 2], 16) for i in (1, 3, 5)])
            near = np.abs(axial - colour).max(2) < 90
            assert near.sum() > 20
        assert axial[SIDE // 2, SIDE // 2].max() < 90  # an outline, not an area

    @pytest.mark.parametrize("shape", [(1, 1, 1), (5, 6, 1), (5, 6, 7, 2)])
    def test_odd_shapes(self, shape):
        self.draw(np.full(shape, np.nan))
        self.draw(np.zeros(shape), np.ones(shape[:3], np.int32))


class TestFix:
    def test_it_writes_a_copy_and_tells_of_it(self, raw, tmp_path):
        done = run(raw, "--fix", tmp_path / "fixed", "--html", tmp_path / "page.html", "--workers", 0)
        assert done.exit_code == 0, done.output
        assert "fixed float_label" in done.output
        assert "2 fixes written to" in done.output
        assert "What <code>medssl check</code> found in " + str(tmp_path / "fixed") in (
            tmp_path / "page.html"
        ).read_text(encoding="utf-8")
        done = run(tmp_path / "fixed", "--json", "--workers", 0)
        assert [finding["code"] for finding in json.loads(done.stdout)["findings"]] == ["odd_id"]  # of c<i>

    def test_three_when_an_error_is_left_and_json_tells_both(self, raw, tmp_path):
        (raw / "images" / "b.nii.gz").write_bytes(b"")
        done = run(raw, "--fix", tmp_path / "fixed", "--json", "--workers", 0)
        assert done.exit_code == 3
        values = json.loads(done.stdout)
        assert values["unusable"] == ["b"]
        assert {fix["change"] for fix in values["fixes"]} == {"float_label"}
        assert values["source"] == values["fixed"]

    def test_a_folder_that_is_there_stays(self, raw, tmp_path):
        (tmp_path / "fixed").mkdir()
        done = run(raw, "--fix", tmp_path / "fixed", "--workers", 0)
        assert done.exit_code != 0
        assert list((tmp_path / "fixed").iterdir()) == []


def test_pictures_in_the_page_can_be_opened(raw):
    write_dataset_page(check(raw, DATASET, workers=0, draw=draw_case), raw.parent / "page.html")
    for found in re.findall(r'data:image/jpeg;base64,([^"]+)', (raw.parent / "page.html").read_text(encoding="utf-8")):
        assert Image.open(io.BytesIO(base64.b64decode(found))).size == (3 * SIDE, SIDE)
