"""Statistics over patients: intervals hold what they promise, comparisons are symmetric, words follow from both."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from medssl.statistics import (
    DISTANCES,
    Comparison,
    Interval,
    Replicate,
    bootstrap_mean,
    corrected,
    critical_difference,
    describe,
    holm,
    paired,
    rank,
    verdict,
)  # fmt: skip


def measured(table, draw="d", first=0):
    """Values of a method from a `(seeds, patients)` table."""
    return {
        Replicate(draw, first + seed): {f"patient {i:03}": float(value) for i, value in enumerate(row)}
        for seed, row in enumerate(np.atleast_2d(table))
    }


def table(seed, trainings=3, patients=11, *, shift=0.0):
    return np.random.default_rng(seed).normal(0.8 + shift, 0.1, (trainings, patients))


# ---- intervals


@pytest.mark.parametrize(
    ("trainings", "patients", "of_patient", "of_training", "bounds"),
    [(1, 8, 1, 0, (0.92, 0.98)), (1, 40, 1, 0, (0.92, 0.98)), (3, 20, 1, 0.3, (0.92, 0.985)),
     (3, 20, 0.2, 1, (0.89, 0.98))],
)  # fmt: skip
def test_intervals_hold_the_true_mean_as_often_as_they_say(trainings, patients, of_patient, of_training, bounds):
    rng, times, held = np.random.default_rng(7), 500, 0
    for _ in range(times):
        values = of_patient * rng.normal(size=patients) + of_training * rng.normal(size=(trainings, 1))
        interval = bootstrap_mean(measured(values + 0.1 * rng.normal(size=values.shape)), resamples=800)
        held += interval.low <= 0 <= interval.high
    # The bounds leave three standard errors of 500 draws about 0.95, and what so few trainings cost.
    assert bounds[0] <= held / times <= bounds[1]


def test_methods_that_are_alike_are_seldom_told_apart():
    rng, times, found = np.random.default_rng(3), 400, 0
    for _ in range(times):
        patient = rng.normal(size=15)
        ours, theirs = (patient + 0.3 * rng.normal(size=(3, 1)) + 0.5 * rng.normal(size=(3, 15)) for _ in range(2))
        found += not verdict(paired(measured(ours), measured(theirs), resamples=800)).startswith("inside the noise")
    assert found / times <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / times)


def test_luck_of_seeds_fools_the_signed_ranks_and_not_the_verdict():
    rng = np.random.default_rng(5)
    patient, luck = rng.normal(size=15), np.array([[0.5], [-0.3], [0.6]])
    lucky = patient + luck + 0.1 * rng.normal(size=(3, 15))
    comparison = paired(measured(lucky), measured(patient + 0 * luck))
    assert comparison.p < 0.01
    assert verdict(comparison).startswith("inside the noise: ")


def test_lucky_seeds_of_many_methods_seldom_make_one_differ():
    rng, families, found = np.random.default_rng(6), 60, 0
    for _ in range(families):
        patient = rng.normal(size=16)
        methods = [patient + 0.3 * rng.normal(size=(3, 1)) + 0.5 * rng.normal(size=(3, 16)) for _ in range(9)]
        reference, *others = map(measured, methods)
        family = corrected([paired(other, reference, resamples=800) for other in others])
        found += not all(verdict(one).startswith("inside the noise") for one in family)
    assert found / families <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / families)


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.05, 0.1])
def test_the_p_of_an_interval_says_whether_it_holds_zero(shift):
    for seed in range(12):
        found = paired(measured(table(seed, shift=shift)), measured(table(seed + 100)))
        swapped = paired(measured(table(seed + 100)), measured(table(seed, shift=shift)))
        assert found.p_interval == swapped.p_interval
        assert 2 / 10_000 <= found.p_interval <= 1
        if abs(found.p_interval - 0.05) > 0.001:
            assert (found.p_interval < 0.05) == found.difference.excludes_zero


def test_methods_that_differ_are_told_apart():
    rng = np.random.default_rng(4)
    patient = rng.normal(0.7, 0.1, 20)
    ours, theirs = (patient + gain + 0.01 * rng.normal(size=(3, 20)) for gain in (0.03, 0.0))
    assert verdict(paired(measured(ours), measured(theirs))).startswith("better by ")
    assert verdict(paired(measured(theirs), measured(ours))).startswith("worse by ")


def test_one_training_has_the_interval_of_its_patients_alone():
    values = table(1, 1, 200)
    interval = bootstrap_mean(measured(values))
    reach = stats.t.ppf(0.975, 199) * values.std(ddof=1) / math.sqrt(200)
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx((values.mean() - reach, values.mean() + reach), rel=0.005)
    assert (interval.patients, interval.trainings) == (200, 1)


def test_seeds_that_disagree_widen_the_interval():
    patients = table(1, 1, 30)
    alike, apart = (measured(patients + np.array([[-s], [0], [s]])) for s in (0.0, 0.1))
    one, other = bootstrap_mean(alike), bootstrap_mean(apart)
    assert other.high - other.low > 1.5 * (one.high - one.low)


def test_draws_are_taken_whole():
    """Many seeds of two draws that disagree say no more about draws than one seed of each."""
    rows = [measured(np.full((seeds, 9), value), draw) for seeds in (1, 8) for draw, value in (("a", 0.6), ("b", 0.8))]
    few, many = bootstrap_mean(rows[0] | rows[1]), bootstrap_mean(rows[2] | rows[3])
    assert (few.mean, few.low, few.high) == pytest.approx((many.mean, many.low, many.high))


def test_a_single_patient_has_no_interval():
    interval = bootstrap_mean(measured([[0.5], [0.7]]))
    assert (interval.mean, interval.low, interval.high) == (pytest.approx(0.6), None, None)
    assert "one patient: +10.0 points, no interval" in verdict(paired(measured([[0.6]]), measured([[0.5]])))


def test_missing_values_are_left_out():
    values = measured([[0.1, 0.5, 0.9], [0.3, 0.5, 0.7]])
    del values[Replicate("d", 1)]["patient 000"]
    assert bootstrap_mean(values).mean == pytest.approx((0.1 + 0.5 + 0.8) / 3)
    with pytest.raises(ValueError, match="no patient"):
        bootstrap_mean({Replicate("d", 1): {}})


def test_the_order_of_patients_and_seeds_changes_nothing():
    ours, theirs = measured(table(1)), measured(table(2))
    turned = {key: dict(reversed(found.items())) for key, found in reversed(ours.items())}
    assert paired(turned, theirs) == paired(ours, theirs)
    assert bootstrap_mean(turned) == bootstrap_mean(ours)


def test_patients_under_other_names_change_the_interval_by_chance_only():
    values = table(1, 3, 40)
    one, other = bootstrap_mean(measured(values)), bootstrap_mean(measured(values[:, ::-1]))
    assert other.mean == pytest.approx(one.mean)
    assert other.high - other.low == pytest.approx(one.high - one.low, rel=0.05)


# ---- pairs


@pytest.mark.parametrize("first", [0, 7])
def test_swapped_methods_have_swapped_signs(first):
    """Whether they hold the same seeds or others."""
    ours, theirs = measured(table(1)), measured(table(2), first=first)
    one, other = paired(ours, theirs), paired(theirs, ours)
    assert other.difference.mean == -one.difference.mean
    assert (other.difference.low, other.difference.high) == (-one.difference.high, -one.difference.low)
    assert (other.effect, other.p) == (-one.effect, one.p)


def test_a_constant_gain_moves_all_by_itself():
    ours, theirs = table(1), table(2)
    before, after = paired(measured(ours), measured(theirs)), paired(measured(ours + 0.25), measured(theirs))
    for end in ("mean", "low", "high"):
        assert getattr(after.difference, end) == pytest.approx(getattr(before.difference, end) + 0.25)


def test_what_both_methods_share_cancels():
    """Hard patients and unlucky seeds hit both."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(1, 12)) + rng.normal(size=(4, 1))
    together = paired(measured(shared + 0.5), measured(shared)).difference
    assert (together.low, together.high) == pytest.approx((0.5, 0.5))
    apart = paired(measured(shared + 0.5), measured(shared, first=9)).difference
    assert apart.low < 0 < 1 < apart.high


def test_only_patients_of_both_methods_are_compared():
    ours, theirs = measured(table(1, 2, 9)), measured(table(2, 2, 7))
    assert paired(ours, theirs).difference.patients == 7
    with pytest.raises(ValueError, match="no patient"):
        paired(ours, {Replicate("d", 0): {"another": 1.0}})


def p_of(ours, theirs):
    return paired(measured(ours), measured(theirs), resamples=1).p


@pytest.mark.parametrize("patients", [6, 20, 51, 80])
def test_wilcoxon_is_that_of_scipy(patients):
    ours, theirs = table(1, 3, patients, shift=0.03), table(2, 3, patients)
    expected = stats.wilcoxon(ours.mean(0) - theirs.mean(0), method="exact" if patients <= 50 else "approx").pvalue
    assert p_of(ours, theirs) == pytest.approx(expected)


def test_wilcoxon_leaves_out_patients_without_a_difference():
    ours = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    theirs = ours - np.array([0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    assert p_of(ours, theirs) == pytest.approx(2 / 2**6)
    assert p_of(ours, ours) == 1
    assert p_of(ours[:5], theirs[:5]) is None


def test_wilcoxon_is_exact_with_ties():
    """Against all signs, counted one by one."""
    changes = np.array([1, 1, -1, 2, 2, 3, 3, 3])
    ranks = stats.rankdata(np.abs(changes))
    sums = np.array([ranks @ np.array(signs) for signs in itertools.product((0, 1), repeat=8)])
    expected = 2 * (sums >= ranks[changes > 0].sum()).mean()
    assert p_of(changes, 0 * changes) == pytest.approx(expected)
    assert p_of(np.full(8, 0.05), np.zeros(8)) == pytest.approx(2 / 2**8)


def test_holm_as_computed_by_hand():
    # 0.01 x 4, 0.02 x 3, 0.03 x 2, then 0.04 x 1, which may not fall below the 0.06 before it.
    assert holm([0.03, 0.01, None, 0.04, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_description_is_that_of_patients_means():
    found = describe(measured([[0.0, 0.4, 0.8], [0.2, 0.4, 1.2]]))
    assert (found.mean, found.median, found.sd) == pytest.approx((0.5, 0.4, np.std([0.1, 0.4, 1.0], ddof=1)))
    assert found.sd_of_trainings == pytest.approx(np.std([0.4, 0.6], ddof=1))


# ---- many methods


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_critical_difference_is_that_of_demsars_table(methods, q):
    expected = q * math.sqrt(methods * (methods + 1) / (6 * 14))
    assert critical_difference(methods, 14) == pytest.approx(expected, rel=5e-4)


def test_the_best_method_of_every_patient_is_first_in_every_resample():
    patients = table(0, 1, 9)
    ranking = rank({name: measured(patients + gain) for name, gain in (("low", 0), ("high", 0.2), ("middle", 0.1))})
    assert ranking.names == ("high", "middle", "low")
    assert ranking.mean_ranks == (1, 2, 3)
    assert ranking.places == ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    # Friedman's statistic is at its largest, (k - 1) n = 18 with two degrees of freedom.
    assert ranking.friedman == pytest.approx(math.exp(-9))


def test_distances_are_ranked_from_the_smallest():
    methods = {name: measured(table(0, 1, 9) + gain) for name, gain in (("near", 0), ("far", 1))}
    assert rank(methods, higher_is_better=False).names == ("near", "far")
    assert rank(methods).names == ("far", "near")


def test_methods_that_are_one_share_ranks_and_places():
    values = measured(table(0))
    ranking = rank({"a": values, "b": values, "c": values})
    assert ranking.mean_ranks == (2, 2, 2)
    assert ranking.places == ((1, 0, 0),) * 3
    assert ranking.friedman is None


def test_places_of_a_close_race_are_shared():
    ranking = rank({"a": measured(table(1, 3, 20)), "b": measured(table(2, 3, 20))})
    first, second = ranking.places
    assert sum(first) == pytest.approx(1)
    assert 0.02 < second[0] < 0.98
    with pytest.raises(ValueError, match="ranking needs two methods or more, got"):
        rank({"a": measured(table(1))})


# ---- words


def test_a_mean_that_few_patients_make_is_told_from_what_most_show():
    """Nine of sixty fail with one method alone; the other is a little worse for all the rest."""
    rng = np.random.default_rng(0)
    theirs = rng.normal(0.8, 0.02, (3, 60))
    ours = theirs - 0.01 + rng.normal(0, 0.002, (3, 60))
    theirs[:, :9] = 0.2
    ours[:, :9] = 0.7
    found = paired(measured(ours), measured(theirs))
    assert (found.difference.mean > 0.05, found.difference.excludes_zero, found.lean) == (True, True, -1)
    assert found.p < 0.05
    assert verdict(found).startswith("better on average, though the ranks of patients lean the other way: +")
    back = paired(measured(theirs), measured(ours))
    assert back.lean == 1
    assert verdict(back).startswith("worse on average, though the ranks of patients lean the other way: -")


def outcome(mean, low, high, p=0.001, p_holm=None, p_interval_holm=None, patients=20, trainings=3):
    return Comparison(Interval(mean, low, high, patients, trainings), 1.0, p, 0.01, p_holm, p_interval_holm)


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        (outcome(0.018, 0.009, 0.027), "better by 1.8 points (95 % interval 0.9 to 2.7)"),
        (outcome(-0.018, -0.027, -0.009), "worse by 1.8 points (95 % interval 0.9 to 2.7)"),
        (outcome(0.004, -0.006, 0.013, p=0.4), "inside the noise: +0.4 points, 95 % interval -0.6 to 1.3"),
        (outcome(-0.0001, -0.006, 0.013, p=0.4), "inside the noise: +0.0 points, 95 % interval -0.6 to 1.3"),
        (outcome(0.018, 0.009, 0.027, p=0.07),
         "inside the noise: +1.8 points, 95 % interval 0.9 to 2.7, but p = 0.070"),
        (outcome(0.018, 0.009, 0.027, p=0.03, p_holm=0.09),
         "inside the noise: +1.8 points, 95 % interval 0.9 to 2.7, but p = 0.090 for all comparisons together"),
        (outcome(0.018, 0.009, 0.027, p_holm=0.03, p_interval_holm=0.08),
         "inside the noise: +1.8 points, 95 % interval 0.9 to 2.7, but p = 0.080 for all comparisons together"),
        (outcome(0.018, 0.009, 0.027, p_holm=0.03, p_interval_holm=0.04),
         "better by 1.8 points (95 % interval 0.9 to 2.7)"),
        (outcome(0.018, 0.009, 0.027, p=None, patients=4),
         "too few patients to tell: +1.8 points, 95 % interval 0.9 to 2.7; only 4 patients"),
        (outcome(0.018, 0.009, 0.027, trainings=1),
         "these networks are better: +1.8 points, 95 % interval 0.9 to 2.7; one seed: the spread of training is not in "
         "it"),
        (replace(outcome(0.07, 0.024, 0.121), lean=-1),
         "better on average, though the ranks of patients lean the other way: +7.0 points, 95 % interval 2.4 to 12.1"),
        (replace(outcome(-0.018, -0.027, -0.009), lean=-1), "worse by 1.8 points (95 % interval 0.9 to 2.7)"),
        (outcome(0.010, 0.0002, 0.020), "better by 1.0 points (95 % interval 0.02 to 2.0)"),
        (outcome(0.018, 0.009, 0.027, p=0.0502),
         "inside the noise: +1.8 points, 95 % interval 0.9 to 2.7, but p = 0.0502"),
    ],
)  # fmt: skip
def test_the_verdict_in_words(comparison, words):
    assert verdict(comparison) == words


def test_a_shorter_distance_is_better():
    assert verdict(outcome(-0.81, -1.2, -0.4), DISTANCES["mm"]) == "better by 0.8 mm (95 % interval 0.4 to 1.2)"
