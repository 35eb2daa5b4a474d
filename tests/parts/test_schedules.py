import itertools
import math

import pytest
import torch

from medssl.parts.sample import Progress
from medssl.parts.schedules import generator, poly, ramp_up


def test_ramp_starts_at_e_to_minus_five_and_ends_at_one():
    values = [ramp_up(Progress(i, 100), 0.4) for i in range(101)]
    assert values[0] == pytest.approx(math.exp(-5))
    assert values[40:] == [1.0] * 61
    assert all(a < b for a, b in itertools.pairwise(values[:41]))
    assert ramp_up(Progress(0, 100), 0) == 1


def test_poly_falls_from_one_to_zero():
    assert poly(Progress(0, 50)) == 1
    assert poly(Progress(50, 50)) == 0
    assert poly(Progress(25, 50)) == pytest.approx(0.5**0.9)


def test_generator_is_a_function_of_its_seeds():
    def draw(*seed):
        return torch.rand(4, generator=generator(*seed)).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(a, b)) for a in range(5) for b in range(5)}) == 25
