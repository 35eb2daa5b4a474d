"""What `medssl methods` says: counted on steps, and read from the files that choose a method."""

import pytest
from typer.testing import CliRunner

from medssl.catalogue import describe, entries
from medssl.cli import app
from medssl.config import bundled
from medssl.errors import ConfigError
from medssl.methods import METHODS


@pytest.fixture(scope="module")
def found():
    return {one.file: one for one in entries()}


def test_every_method_and_every_file_is_listed(found):
    assert {one.method for one in found.values()} == set(METHODS)
    assert found.keys() == {path.name for path in bundled("method/bcp.yaml").parent.glob("*.yaml")}


def test_every_file_has_a_title_and_its_paper(found):
    assert all(one.title for one in found.values())
    assert [one.file for one in found.values() if not one.sources] == ["supervised.yaml"]
    assert found["bcp.yaml"].sources == ("2305.00673",)


@pytest.mark.parametrize(
    ("file", "networks", "cost"),
    [
        ("supervised.yaml", (1, 0), (2, 0, 2)),
        ("mean_teacher.yaml", (1, 1), (4, 2, 4)),
        ("uamt.yaml", (1, 1), (4, 2 + 8 * 2, 4)),  # the target and eight passes
        ("cps.yaml", (2, 0), (8, 0, 8)),
        ("fixmatch.yaml", (1, 0), (2 + 4, 0, 4)),  # the weak view without a gradient
        ("unimatch.yaml", (1, 0), (2 + 6 + 2, 0, 8)),  # two strong views, and one with fewer channels
        ("bcp.yaml", (1, 1), (2, 2, 2)),  # half of each batch's voxels are seen
        ("cfc_mt.yaml", (2, 1), (8, 2, 8)),
        ("ucf_mix.yaml", (2, 1), (8 + 4, 2, 8 + 4)),  # and the mix, which passes the views by
        ("rail.yaml", (4, 2), (8 + 8, 2, 8)),  # the resting group without a gradient
        ("umct.yaml", (3, 0), (3 * 4 + 3 * 10 * 2, 0, 12)),  # ten passes of each view over the unlabelled
        ("sss.yaml", (1, 0), (2 + 2 + 4, 0, 2 + 4)),  # the weak view without a gradient, two strong views
        ("combined.yaml", (2, 2), (2 * 4, 2 * 2, 8)),  # each student on whole and on pasted patches
    ],
)
def test_networks_and_passes_are_those_of_the_paper(found, file, networks, cost):
    one = found[file]
    assert (one.students, one.teachers) == networks
    assert (one.cost.student, one.cost.teacher, one.cost.backward) == cost


def test_the_command_lists_and_tells():
    listed = CliRunner().invoke(app, ["methods"])
    assert listed.exit_code == 0
    assert "unimatch.yaml" in listed.output
    told = CliRunner().invoke(app, ["methods", "uamt"])
    assert told.exit_code == 0
    assert "arXiv 1907.07034" in told.output
    assert "method.passes: 8" in told.output
    with pytest.raises(ConfigError, match="'umat' is not a method"):
        describe("umat")


def test_every_file_that_is_listed_is_told_of_with_its_values(found):
    for file in found:
        assert "Settings" in describe(file.removesuffix(".yaml"))
    assert "with the values of configs/method/unimatch.yaml:" in describe("unimatch")
    assert "method.views: 2\n" in describe("unimatch")
    assert "method.views: 1\n" in describe("fixmatch")


def test_a_method_is_described_with_the_values_of_its_file_and_all_nested_settings():
    assert "  method.dice: 'foreground'\n" in describe("rail")
    text = describe("sss")
    assert "  method.prompts.every: 2\n" in text
    assert "Slices from one that gets prompts to the next" in text
    assert "Prompting(" not in text
