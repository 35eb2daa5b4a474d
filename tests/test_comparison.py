"""Run folders compared by patient: rows hold several draws and seeds, and the numbers are those of their patients."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from medssl.comparison import (
    comparison_table,
    gains,
    load_runs,
    make_rows,
    notes,
    rank_rows,
    scale_of,
)  # fmt: skip
from medssl.data.volume import Source
from medssl.errors import ConfigError
from medssl.metrics import ClassScore, Measures
from medssl.plots import rank_plot
from medssl.score_file import write_scores
from medssl.scores import Scores
from medssl.statistics import verdict

PATIENTS = tuple(f"patient {i}" for i in range(8))
CASES = tuple(f"{patient} {scan}" for patient in PATIENTS for scan in ("ED", "ES"))
STRICT = Measures(metrics=("dice", "iou", "hd95", "asd"))
HARD = dict(zip(CASES, np.random.default_rng(0).uniform(-0.1, 0.1, len(CASES)), strict=True))


@pytest.fixture
def write(tmp_path):
    """Write a run folder whose cases score about `level`; some part of it is left to chance."""

    def write(
        method,
        seed=1,
        level=0.7,
        *,
        labelled=("x",),
        cases=CASES,
        patients=True,
        noise=0.01,
        settings=None,
        measures=STRICT,
    ):
        run = tmp_path / f"{method}-{'-'.join(labelled)}-{seed}"
        run.mkdir()
        config = {
            "data": {"name": "toy", "classes": ["background", "heart"]},
            "method": {"name": method},
            "augment": {"preset": "weak"},
            "train": {"iterations": 30, "seed": seed},
            "window": {"network": "student"},
        }
        for section, values in (settings or {}).items():
            config[section] |= values
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        unlabelled = sorted({"x", "y", "z"} - set(labelled))
        split = {"labelled": list(labelled), "unlabelled": unlabelled, "val": [], "test": list(CASES)}
        if patients:
            split["patients"] = {case: case.rpartition(" ")[0] for case in CASES}
        (run / "splits.json").write_text(json.dumps(split))
        (run / "env.json").write_text("{}")
        (run / "metrics.csv").write_text("step,loss/a,seconds_per_step\n30,0.5,0.1\n")
        rng = np.random.default_rng([seed, len(method), *map(ord, "".join(labelled))])
        scores = [_score(case, level + HARD[case] + noise * rng.normal()) for case in cases]
        files = dict.fromkeys(cases, (run / "p", Source(run / "r")))
        table = Scores(scores, convention=measures.conventions[0], measures=measures, files=files)
        write_scores(run / "scores.csv", table)
        return run

    return write


def _score(case, dice):
    values = {"dice": float(dice), "iou": float(dice / (2 - dice)), "hd95": 10 * (1 - dice), "asd": 1 - dice}
    return ClassScore(case, "heart", 1, "scored", 5, 5, values)


def rows_of(*runs):
    return make_rows(load_runs(runs))


def points(gain):
    """Mean difference of Dice over patients in percent."""
    return 100 * gain.comparison.difference.mean


def several(write, methods, **options):
    """Rows of each method `(name, level)` with three seeds."""
    return rows_of(*(write(name, seed, level, **options) for name, level in methods for seed in (1, 2, 3)))


def test_patients_count_once_however_many_cases_they_have(write):
    (row,) = rows_of(write("supervised", cases=[*CASES[:5], CASES[6]], noise=0))
    values = [HARD[case] + 0.7 for case in CASES]
    expected = np.mean([np.mean(values[:2]), np.mean(values[2:4]), values[4], values[6]])
    assert row.interval().patients == 4
    assert row.interval().mean == pytest.approx(expected)
    assert row.describe().mean == pytest.approx(expected)


def test_a_gain_is_told_by_patient_with_interval_tests_and_words(write):
    rows = several(write, [("supervised", 0.7), ("mean_teacher", 0.75), ("other", 0.7)])
    nothing, gain, none = gains(rows)
    assert nothing is None
    assert points(gain) == pytest.approx(5, abs=0.5)
    assert (gain.comparison.difference.patients, gain.baseline) == (8, rows[0])
    assert gain.comparison.p_holm == pytest.approx(2 * gain.comparison.p)
    assert verdict(gain.comparison).startswith("better by ")
    assert verdict(none.comparison).startswith("inside the noise: ")


def test_any_method_can_be_the_reference(write):
    rows = several(write, [("supervised", 0.7), ("bcp", 0.75), ("mean_teacher", 0.72)])
    one, nothing, other = gains(rows, reference="bcp")
    assert nothing is None
    assert (points(one), points(other)) == (pytest.approx(-5, abs=0.5), pytest.approx(-3, abs=0.5))


def test_rows_of_other_labelled_counts_are_families_of_their_own(write):
    few = [write(method, seed, level) for method, level in (("supervised", 0.6), ("bcp", 0.7)) for seed in (1, 2)]
    more = [write(method, seed, level, labelled=("x", "y"))
            for method, level in (("supervised", 0.7), ("bcp", 0.8), ("other", 0.9)) for seed in (1, 2)]  # fmt: skip
    rows = rows_of(*few, *more)
    found = {(row.key.method, row.key.labelled): gain for row, gain in zip(rows, gains(rows), strict=True)}
    assert found["bcp", 1].baseline.key.labelled == 1
    assert found["bcp", 1].comparison.p_holm == found["bcp", 1].comparison.p
    assert found["bcp", 2].comparison.p_holm == pytest.approx(2 * found["bcp", 2].comparison.p)
    assert {labelled: ranking.names for labelled, ranking in rank_rows(rows).items()} == {
        1: ("bcp, 1 labelled", "supervised, 1 labelled"),
        2: ("other, 2 labelled", "bcp, 2 labelled", "supervised, 2 labelled"),
    }


def test_the_curve_of_a_row_is_the_mean_of_its_runs_where_they_have_a_value(write):
    runs = [write("bcp", 1), write("bcp", 2)]
    (runs[0] / "metrics.csv").write_text("step,val/dice\n10,0.5\n20,0.6\n30,nan\n")
    (runs[1] / "metrics.csv").write_text("step,val/dice\n10,0.7\n")
    (row,) = rows_of(*runs)
    points = [(point.step, len(point.values), point.mean, point.sd) for point in row.curve("val/dice")]
    assert points == [(10, 2, pytest.approx(0.6), pytest.approx(0.02**0.5)), (20, 1, 0.6, None)]
    assert row.last_gain is None


def test_draws_of_labelled_cases_share_a_row_and_are_no_fault(write):
    draws = [("x",), ("y",), ("z",)]
    rows = rows_of(*(write(method, seed, level, labelled=draw) for draw in draws for seed in (1, 2)
                     for method, level in (("supervised", 0.7), ("bcp", 0.75))))  # fmt: skip
    assert [(row.key.method, len(row.runs)) for row in rows] == [("supervised", 6), ("bcp", 6)]
    assert notes(rows) == []
    assert rows[1].interval().trainings == 6
    heads, *cells = comparison_table(rows)
    assert [(row[heads.index("draws")], row[heads.index("seeds")]) for row in cells] == [("3", "2")] * 2


def test_rows_of_other_draws_are_named(write):
    rows = rows_of(write("supervised", labelled=("x",)), write("bcp", labelled=("y",)))
    assert notes(rows) == ["bcp, 1 labelled: compared with a supervised row that used other draws of labelled cases."]


def test_a_seed_that_occurs_twice_in_a_draw_is_named(write):
    runs = [write("bcp", 1), write("bcp", 1, labelled=("y",)), write("bcp", 2)]
    assert notes(rows_of(*runs)) == []
    config = yaml.safe_load((runs[2] / "config.yaml").read_text())
    config["train"]["seed"] = 1
    (runs[2] / "config.yaml").write_text(yaml.safe_dump(config))
    assert notes(rows_of(*runs)) == ["bcp, 1 labelled: a seed occurs more than once (1, 1, 1)."]


def test_a_run_that_does_not_know_its_patients_learns_them_from_another(write):
    old, new = write("supervised", patients=False), write("bcp")
    (row,) = rows_of(old)
    assert row.interval().patients == len(CASES)
    assert any("recorded patient: 16 (patient 0 ED, " in note for note in notes([row]))
    rows = rows_of(old, new)
    assert rows[0].interval().patients == len(PATIENTS)
    assert notes(rows) == []


def test_distances_are_better_when_shorter(write):
    rows = several(write, [("supervised", 0.7), ("bcp", 0.8)])
    _, gain = gains(rows, "hd95")
    assert gain.comparison.difference.mean == pytest.approx(-1, abs=0.2)
    assert verdict(gain.comparison, scale_of("hd95")).startswith("better by ")
    assert rank_rows(rows, "hd95")[1].names[0] == "bcp, 1 labelled"


def test_who_misses_what_is_hard_is_no_nearer_for_it(write):
    both = ("heart", "vessel")

    def rescore(run, missed=()):
        scores = [replace(_score(case, 0.8 if name == "heart" else 0.3), class_name=name, label=label)
                  for case in CASES for label, name in enumerate(both, 1)]  # fmt: skip
        scores = [replace(one, status="missed", values={"dice": 0.0, "iou": 0.0})
                  if one.class_name == "vessel" and one.case in missed else one for one in scores]  # fmt: skip
        files = dict.fromkeys(CASES, (run / "p", Source(run / "r")))
        write_scores(run / "scores.csv", Scores(scores, measures=STRICT, files=files))
        return run

    finds = [rescore(write("supervised", seed)) for seed in (1, 2, 3)]
    misses = [rescore(write("bcp", seed), CASES[:8] if seed == 2 else ()) for seed in (1, 2, 3)]
    rows = rows_of(*finds, *misses)
    assert rows[1].describe("hd95").mean < rows[0].describe("hd95").mean
    assert gains(rows, "hd95")[1].comparison.difference.mean == 0
    assert points(gains(rows)[1]) == pytest.approx(-2.5)
    assert len(set(rank_rows(rows, "hd95")[1].mean_ranks)) == 1
    assert notes(rows) == [
        "bcp, 1 labelled: misses a class 2.7 times per run, supervised, 1 labelled 0.0 times. Distances do not always "
        "penalise a missed class; Dice does."
    ]


def test_what_some_runs_have_no_dice_of_counts_for_none_and_inventions_are_told(write):
    """A third of the patients lacks the structure: no Dice where it is left out, 0 where it is invented."""
    healthy = CASES[:6]

    def rescore(run, invented=()):
        empty = {
            case: ClassScore(case, "heart", 1, "invented", 5, 0, {"dice": 0.0, "iou": 0.0})
            if case in invented
            else ClassScore(case, "heart", 1, "absent", 0, 0, {})
            for case in healthy
        }
        scores = [empty.get(case, _score(case, 0.8 + HARD[case])) for case in CASES]
        files = dict.fromkeys(CASES, (run / "p", Source(run / "r")))
        write_scores(run / "scores.csv", Scores(scores, measures=STRICT, files=files))
        return run

    runs = [rescore(write("supervised", seed), healthy[seed : seed + 1]) for seed in (1, 2, 3)]
    runs += [rescore(write("bcp", seed), healthy) for seed in (1, 2, 3)]
    rows = rows_of(*runs)
    alike = np.mean([HARD[case] + 0.8 for case in CASES[6:]])
    assert rows[0].interval().mean == pytest.approx(alike)
    assert rows[0].describe().sd_of_trainings == pytest.approx(0)
    assert rows[1].interval().mean == pytest.approx(alike * 5 / 8)  # which every run of it has, at 0
    _, gain = gains(rows)
    assert (points(gain), gain.comparison.difference.patients) == (pytest.approx(0), 5)
    told = notes(rows)
    assert any("invents a class 6.0 times per run, supervised, 1 labelled 1.0 times" in note for note in told)
    assert not any("scored on the same cases" in note for note in told)


def test_the_reference_is_the_nearest_row_whatever_the_order_of_runs(write):
    runs = [write("supervised", seed, settings={"train": {"iterations": steps, "seed": seed}})
            for seed, steps in ((1, 30), (2, 60), (3, 900))]  # fmt: skip
    runs.append(write("bcp", settings={"train": {"iterations": 90, "seed": 1}}))
    for order in (runs, runs[::-1]):
        rows = rows_of(*order)
        found = dict(zip((row.key.method for row in rows), gains(rows), strict=True))
        assert found["bcp"].baseline.key.steps == 60


def test_distances_of_runs_that_share_the_cases_among_them_are_compared(write):
    halves = [(1, CASES[:8]), (2, CASES[8:])]
    rows = rows_of(*(write(name, seed, level, cases=half)
                     for name, level in (("supervised", 0.7), ("bcp", 0.8)) for seed, half in halves))  # fmt: skip
    assert [gains(rows, metric)[1].comparison.difference.patients for metric in ("dice", "hd95")] == [8, 8]


def test_a_distance_of_zero_is_compared(write):
    runs = write("supervised"), write("bcp")
    files = dict.fromkeys(CASES, (runs[1] / "p", Source(runs[1] / "r")))
    (runs[1] / "scores.csv").unlink()
    write_scores(runs[1] / "scores.csv", Scores([_score(case, 1.0) for case in CASES], measures=STRICT, files=files))
    rows = rows_of(*runs)
    assert gains(rows, "hd95")[1].comparison.difference.mean == pytest.approx(-rows[0].describe("hd95").mean)


def test_draws_of_as_many_patients_are_a_row_however_many_cases_these_have(write):
    draws = [(CASES[0], CASES[1]), (CASES[2],), (CASES[4], CASES[5])]
    runs = [write(method, labelled=draw) for draw in draws for method in ("supervised", "bcp")]
    assert len(rows_of(*runs)) == 4
    for run in runs:
        split = json.loads((run / "splits.json").read_text())
        (run / "splits.json").write_text(json.dumps({**split, "counted": "patients"}))
    rows = rows_of(*runs)
    assert [(row.name, len(row.runs)) for row in rows] == [("supervised, 1 labelled", 3), ("bcp, 1 labelled", 3)]
    assert gains(rows)[1].comparison.difference.trainings == 3
    assert len(rows_of(*runs, write("other"))) == 5  # whose split tells nothing, so that cases are counted


def test_settings_of_training_that_a_row_does_not_share_with_its_reference_are_named(write):
    theirs = {"labelled_batch": 4, "lr": 0.1, "unlabelled_batch": 2}  # supervised looks at none
    rows = rows_of(write("supervised"), write("bcp", settings={"train": theirs}))
    assert notes(rows) == [
        "bcp, 1 labelled: also differs from supervised, 1 labelled, in train.labelled_batch, train.lr."
    ]


def test_distances_in_voxels_are_called_so(write):
    rows = several(write, [("supervised", 0.7), ("bcp", 0.8)], measures=replace(STRICT, units="voxel"))
    heads, _, bcp = comparison_table(rows, "hd95")
    said = dict(zip(heads, bcp, strict=True))
    assert float(said["hd95, voxels"]) == pytest.approx(rows[1].describe("hd95").mean, abs=0.05)
    assert " voxels (95 % interval " in said["verdict against supervised"]


def test_numbers_by_different_rules_are_not_compared(write):
    ours = write("bcp", measures=replace(STRICT, conventions=("monai",)))
    theirs, voxels = write("supervised"), write("supervised", 2, measures=replace(STRICT, units="voxel"))
    with pytest.raises(ConfigError) as caught:
        load_runs([ours, theirs])
    for words in (f"monai in voxel ({ours / 'scores.csv'})", f"strict in mm ({theirs / 'scores.csv'})", "--convention"):
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match=r"strict in mm .*, strict in voxel .* the same --units"):
        load_runs([theirs, voxels])


def test_surface_dice_of_different_tolerances_is_a_note(write):
    rows = rows_of(write("bcp"), write("bcp", 2, measures=replace(STRICT, tolerances={"heart": 2.0})))
    assert notes(rows) == ["The runs were scored with different tolerances: their NSD cannot be compared."]


def test_the_table_has_the_numbers_of_rows_and_gains(write):
    rows = rows_of(
        write("supervised", level=0.7, noise=0), write("bcp", level=0.75, noise=0), write("worst", level=0.5, noise=0)
    )
    heads, *cells = comparison_table(rows)
    (supervised, bcp, _), mean = cells, 100 * np.mean(list(HARD.values()))
    assert {len(row) for row in cells} == {len(heads)}
    said = dict(zip(heads, bcp, strict=True))
    assert (said["steps"], said["minutes"]) == ("30", "0.05")
    assert (said["method"], said["draws"], said["seeds"], said["patients"]) == ("bcp, 1 labelled", "1", "1", "8")
    assert (said["labelled"], said["labelled patients"]) == ("1", "1")
    assert said["dice, %"] == f"{75 + mean:.1f}"
    assert said["against supervised"] == "+5.0"
    assert said["p, Holm, against supervised"] == "0.016"  # 2 / 2^8, twice
    assert said["verdict against supervised"].startswith(
        "these networks are better: +5.0 points, 95 % interval 5.0 to 5.0; only 8 patients; one seed"
    )
    assert supervised[heads.index("verdict against supervised")] == supervised[heads.index("against supervised")] == ""


def test_each_reference_has_columns_and_a_family_of_its_own(write):
    rows = several(write, [("supervised", 0.7), ("bcp", 0.75), ("mean_teacher", 0.72)])
    both = "supervised", "bcp"
    heads, *cells = comparison_table(rows, "dice", both)
    assert len(set(heads)) == len(heads)
    said = {row[0].partition(",")[0]: dict(zip(heads, row, strict=True)) for row in cells}
    for reference in both:
        alone, *lines = comparison_table(rows, "dice", [reference])
        for line in lines:
            one = dict(zip(alone, line, strict=True))
            assert one.items() <= said[line[0].partition(",")[0]].items()
    assert float(said["supervised"]["against bcp"]) == -float(said["bcp"]["against supervised"]) < -4
    assert said["bcp"]["against bcp"] == said["supervised"]["p against supervised"] == ""
    assert said["mean_teacher"]["verdict against bcp"].startswith("worse by 2.8 points")


def test_a_run_without_scores_has_a_row_without_numbers(write):
    runs = [write("supervised"), write("bcp")]
    (runs[1] / "scores.csv").unlink()
    rows = rows_of(*runs)
    assert gains(rows) == [None, None]
    assert rank_rows(rows) == {}
    heads, _, unscored = comparison_table(rows)
    assert set(unscored[heads.index("dice, %") :]) == {""}


def test_ranks_can_be_drawn(write):
    rows = several(write, [("supervised", 0.7), ("bcp", 0.75), ("$other_", 0.72)])
    (ranking,) = rank_rows(rows).values()
    uri = rank_plot(ranking, {row.name: row.colour for row in rows})
    assert uri.startswith("data:image/svg+xml;base64,")
    assert uri == rank_plot(ranking, {row.name: row.colour for row in rows})
