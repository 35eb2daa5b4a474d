"""Boxes and points for components, and which components get them."""

import numpy as np
import pytest

from medssl.parts.prompts import FACTS, NEGATIVES, describe, make_prompts

SHAPE = (12, 11, 7)


def boxes(*places):
    """A label of one box per class, given as (x, y, z) slices."""
    label = np.zeros(SHAPE, np.int64)
    for value, place in enumerate(places, 1):
        label[place] = value
    return label


def sure(label, classes=3, certainty=0.95):
    """Probabilities of a network that says so with this certainty."""
    probs = np.full((classes, *label.shape), (1 - certainty) / (classes - 1), np.float32)
    np.put_along_axis(probs, label[None], certainty, 0)
    return probs


ONE = boxes(np.s_[3:7, 2:8, 1:6])
BOTH = boxes(np.s_[3:7, 2:8, 1:6], np.s_[8:11, 4:9, 0:7])
IMAGE = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def prompts(label, known=None, **rules):
    return make_prompts(sure(label), IMAGE, known=known, **rules)


def planes(found):
    return [(prompt.target, prompt.plane) for prompt in found]


@pytest.mark.parametrize("margin", [0, 1, 4])
def test_a_prompt_is_a_box_around_its_component_with_a_point_inside_and_others_outside(margin):
    for prompt in prompts(BOTH, margin=margin, every=1):
        component = BOTH[..., prompt.plane] == prompt.target
        assert (prompt.mask == component).all()
        rows, columns = np.nonzero(component)
        drawn = np.zeros_like(component)
        drawn[prompt.box] = True
        inner = np.s_[max(0, rows.min() - margin) : rows.max() + margin + 1, max(0, columns.min() - margin) :
                      columns.max() + margin + 1]  # fmt: skip
        expected = np.zeros_like(component)
        expected[inner] = True
        assert (drawn == expected).all()
        assert [s.stop <= side for s, side in zip(prompt.box, component.shape, strict=True)] == [True, True]
        inside, outside = prompt.points[prompt.signs == 1], prompt.points[prompt.signs == 0]
        assert len(inside) == 1
        assert component[tuple(inside[0])]
        assert len(outside) == (NEGATIVES if margin else 0)
        assert len(prompt.signs) == len(prompt.points) == 1 + NEGATIVES
        for place in map(tuple, outside):
            assert drawn[place]
            assert BOTH[(*place, prompt.plane)] == 0


def test_the_point_inside_is_the_innermost_place():
    label = np.zeros(SHAPE, np.int64)
    label[2:9, 1:8, 2] = 1
    label[5, 8:11, 2] = 1  # a tail, which would draw a centre of mass along
    (prompt,) = prompts(label)
    assert prompt.points[0].tolist() == [5, 4]


def test_the_window_visits_every_nth_slice_from_its_start():
    assert planes(prompts(ONE, every=1)) == [(1, z) for z in range(1, 6)]
    assert planes(prompts(ONE, every=2)) == [(1, 2), (1, 4)]
    assert planes(prompts(ONE, every=2, start=1)) == [(1, 1), (1, 3), (1, 5)]
    assert planes(prompts(BOTH, every=3)) == [(1, 3), (2, 0), (2, 3), (2, 6)]


def test_unreliable_components_get_no_prompt():
    probs = sure(BOTH)
    probs[:, BOTH == 2] = np.array([0.2, 0.1, 0.7])[:, None]
    assert {prompt.target for prompt in make_prompts(probs, IMAGE)} == {1}
    assert {prompt.target for prompt in make_prompts(probs, IMAGE, reliable=0.65)} == {1, 2}


def test_a_slice_whose_area_jumps_gets_no_prompt():
    label = ONE.copy()
    label[4:7, :, 3] = label[5:7, 2:8, 3] = 0  # a third of the area beside it is left
    label[3, 2:8, 3] = 1
    assert planes(prompts(label, every=1)) == [(1, 1), (1, 5)]
    assert planes(prompts(label, every=1, change=0.8)) == [(1, z) for z in range(1, 6)]


def test_a_class_with_one_component_gets_prompts_for_the_largest():
    label = ONE.copy()
    label[10:, 10:, 1:6] = 1
    assert len(prompts(label)) == 2 * len(prompts(ONE))
    assert [p.points[0].tolist() for p in prompts(label, single=[1])] == [p.points[0].tolist() for p in prompts(ONE)]
    assert len(prompts(label, single=[2])) == len(prompts(label))


def test_what_is_known_of_a_component_is_its_size_centre_and_intensity():
    rows = describe(BOTH, IMAGE, 3)
    assert rows.shape == (2, 1 + FACTS)
    np.testing.assert_allclose(rows[0], [1, 4 * 6 * 5, 4.5, 4.5, 3, IMAGE[BOTH == 1].mean()], rtol=1e-6)
    assert describe(np.zeros(SHAPE, np.int64), IMAGE, 3).shape == (0, 1 + FACTS)


@pytest.mark.parametrize(
    ("fact", "low", "high"),
    [("volume", 130, 200), ("volume", 50, 110), ("row", 5, 9), ("column", 0, 4), ("slice", 4, 6), ("intensity", 1, 2)],
)
def test_a_component_unlike_the_known_ones_gets_no_prompt(fact, low, high):
    column = 1 + ["volume", "row", "column", "slice", "intensity"].index(fact)
    known = np.repeat(describe(ONE, IMAGE, 3), 40, 0)
    assert len(prompts(ONE, known)) == 2
    known[:, column] = np.linspace(low, high, 40)
    assert prompts(ONE, known) == []
    known[:, column] = np.linspace(-200, 300, 40)
    assert len(prompts(ONE, known)) == 2


def test_volumes_in_the_tails_of_the_known_ones_are_not_believed():
    known = np.repeat(describe(ONE, IMAGE, 3), 40, 0)
    known[:3, 1] = 10  # three of forty: one more than the lowest twentieth
    known[3:, 1] = 1000
    assert len(prompts(ONE, known)) == 2
    known[2, 1] = 1000
    assert prompts(ONE, known) == []


def test_a_class_that_no_label_showed_gets_no_prompt():
    known = describe(BOTH, IMAGE, 3)
    assert {prompt.target for prompt in prompts(BOTH, known)} == {1, 2}
    assert {prompt.target for prompt in prompts(BOTH, known[known[:, 0] == 2])} == {2}
    assert prompts(BOTH, np.zeros((5, 1 + FACTS))) == []


def test_background_alone_has_nothing_to_point_at():
    assert prompts(np.zeros(SHAPE, np.int64)) == []
