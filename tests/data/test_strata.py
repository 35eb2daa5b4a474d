"""Drawing by label content: every class among the labelled, volumes spread, and only when asked for."""

import numpy as np
import pytest

from medssl.data.cases import Case, DatasetConfig
from medssl.data.draw import Wish, make_draws, make_folds, make_split
from medssl.data.looks import Look
from medssl.data.prepared import Sources, read_prepared, write_case, write_dataset
from medssl.data.recipe import Grid, Prepared
from medssl.data.strata import Strata, read_strata
from medssl.data.volume import Source

CONFIG = DatasetConfig(name="x", classes=("background", "common", "rare"))


def store(tmp_path, labels, spacing=(1.0, 1.0, 1.0)):
    """A prepared folder with a case for each label; None for a case without one."""
    cases = []
    for id, label in labels.items():
        shape = (5, 6, 7)
        grid = Grid(shape, np.eye(4).tolist(), (0, 1, 2), (False,) * 3, (0, 0, 0), shape, spacing, shape, spacing)
        source = Source(tmp_path / f"{id}.nii.gz")
        cases.append(Case(id, id[:3], (source,), None if label is None else source))
        prepared = Prepared(np.zeros((1, *shape), np.float32), label, grid)
        look = Look(shape, spacing, (), 0.0, True)
        write_case(tmp_path, cases[-1], prepared, Sources.of(cases[-1], CONFIG), look)
    write_dataset(tmp_path, CONFIG, cases)
    return read_prepared(tmp_path)


def label(common, rare=0):
    flat = np.zeros(210, np.uint8)
    flat[:common], flat[common : common + rare] = 1, 2
    return flat.reshape(5, 6, 7)


def test_volumes_are_cubic_millimetres_and_the_mean_of_a_patient(tmp_path):
    labels = {"p00_a": label(10), "p00_b": label(30, 4), "p01_a": label(8, 2), "p01_b": None, "p02_a": None}
    strata = read_strata(store(tmp_path, labels, spacing=(0.5, 2.0, 3.0)))
    assert strata.patients == ("p00", "p01")
    np.testing.assert_allclose(strata.volumes, [[60, 6], [24, 6]])


def rare_in(*having, count=30):
    """Everyone has the common class, in growing volumes; some have the rare one."""
    volumes = np.array([[10.0 + n, 5.0 * (n in having)] for n in range(count)])
    return Strata(tuple(f"p{n:02}" for n in range(count)), volumes)


def plain(tmp_path, strata):
    return store(tmp_path, {f"{patient}_a": label(1) for patient in strata.patients})


@pytest.mark.parametrize("seed", range(5))
def test_a_class_that_one_patient_has_is_among_the_labelled(tmp_path, seed):
    strata = rare_in(17)
    split = make_split(plain(tmp_path, strata), Wish(labelled=2, val=8, test=8, seed=seed, strata=strata))
    assert "p17_a" in split.labelled


@pytest.mark.parametrize("seed", range(5))
def test_a_class_that_three_patients_have_is_in_every_part(tmp_path, seed):
    strata = rare_in(3, 17, 22)
    split = make_split(plain(tmp_path, strata), Wish(labelled=2, val=2, test=2, seed=seed, strata=strata))
    for part in (split.labelled, split.val, split.test):
        assert len({"p03_a", "p17_a", "p22_a"} & set(part)) == 1


def test_volumes_are_spread_better_than_by_chance(tmp_path):
    strata = rare_in(*range(30))
    dataset = plain(tmp_path, strata)

    def missed(given):
        """Parts of six that lack small, middle or large volumes, of 40 seeds."""
        parts = [make_split(dataset, Wish(labelled=6, test=4, seed=seed, strata=given)).labelled for seed in range(40)]
        return sum(len({int(id[1:3]) // 10 for id in part}) < 3 for part in parts)

    assert missed(strata) == 0
    assert missed(None) > 3


def test_larger_labelled_parts_contain_the_smaller_and_keep_the_others(tmp_path):
    strata = rare_in(3, 17, 22)
    dataset = plain(tmp_path, strata)
    few, more = (make_split(dataset, Wish(labelled=n, val=3, test=3, seed=1, strata=strata)) for n in (2, 9))
    assert set(few.labelled) < set(more.labelled)
    assert (few.val, few.test) == (more.val, more.test)


def test_seeds_still_draw_different_patients(tmp_path):
    strata = rare_in(*range(0, 30, 2))
    draws = make_draws(plain(tmp_path, strata), Wish(labelled=3, val=2, test=3, strata=strata), 6)
    assert len({split.labelled for split in draws}) >= 5
    assert len({split.test for split in draws}) == 1


def test_a_class_is_in_as_many_folds_as_it_has_patients(tmp_path):
    strata = rare_in(3, 17, 22)
    made = make_folds(plain(tmp_path, strata), Wish(labelled=4, strata=strata), 3)
    assert all(len({"p03_a", "p17_a", "p22_a"} & set(split.val)) == 1 for split in made)
    assert sorted(id for split in made for id in split.val) == [f"p{n:02}_a" for n in range(30)]


def test_the_split_says_that_labels_were_looked_at_and_whose(tmp_path):
    labels = {f"p{n:02}_a": label(5 + n, n % 2) if n < 8 else None for n in range(12)}
    dataset = store(tmp_path, labels)
    strata = read_strata(dataset)
    split = make_split(dataset, Wish(labelled=3, val=2, test=2, strata=strata))
    assert split.quirks == ("stratified by labels", "unlabelled labels seen")
    every = make_split(dataset, Wish(labelled=4, val=2, test=2, strata=strata))
    assert every.quirks == ("stratified by labels",)
    assert make_split(dataset, Wish(labelled=3, val=2, test=2)).quirks == ()
