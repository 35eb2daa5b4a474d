"""What a run's scans are like, and scans that are unlike them."""

import json

import pytest

from medssl.data.likeness import Likeness
from medssl.data.looks import Look

MR = (0.0, 5.0, 40.0, 100.0, 180.0, 300.0, 400.0)
CT = (-1000.0, -990.0, -300.0, 20.0, 60.0, 400.0, 1500.0)


def look(shape=(40, 50, 30), spacing=(1.0, 1.0, 2.0), levels=MR, factor=1.0):
    return Look(shape, spacing, tuple(factor * level for level in levels), 0.1, False)


def codes(likeness, one):
    return [odd.code for odd in likeness.oddities(one)]


@pytest.fixture(params=["fresh", "from a file"])
def likeness(request):
    """Of scans whose sizes differ by a fifth, and whose grey levels, which have no unit, by a factor of four."""
    looks = [look((40 + n, 50, 30), factor=1 + n / 3) for n in range(9)]
    found = Likeness.of(looks)
    return found if request.param == "fresh" else Likeness.model_validate(json.loads(found.model_dump_json()))


def test_scans_of_the_same_kind_pass(likeness):
    for one in (look(), look((52, 60, 40)), look(spacing=(0.8, 1.2, 2.9)), look(factor=10), look(levels=())):
        assert codes(likeness, one) == []


def test_what_is_unlike_is_told_by_kind(likeness):
    assert codes(likeness, look(spacing=(0.3, 1.0, 2.0))) == ["unlike_spacing", "unlike_extent"]
    assert codes(likeness, look((40, 50, 90))) == ["unlike_extent"]
    assert codes(likeness, look(factor=200)) == codes(likeness, look(levels=CT)) == ["unlike_levels"]
    (odd,) = likeness.oddities(look(spacing=(1.0, 1.0, 0.9), shape=(40, 50, 66)))
    assert odd.found == "spacing 1 x 1 x 0.9 mm, but the scans of the run have 2 mm head-foot"


def test_levels_with_a_unit_are_compared_as_they_are():
    scans = Likeness.of([look(levels=CT)] * 5)
    assert codes(scans, look(levels=(-1024, -990, -200, 100, 80, 300, 1600))) == []
    assert codes(scans, look(levels=tuple(level + 1000 for level in CT))) == ["unlike_levels"]
    assert codes(scans, look(levels=MR)) == ["unlike_levels"]


def test_of_few_scans_or_without_grey_levels_nothing_is_claimed():
    assert Likeness.of([look()] * 4) is None
    assert codes(Likeness.of([look(levels=())] * 6), look(levels=CT)) == []
