"""What is said of a training's rows, when, and how often."""

import pytest

from medssl.watchman import Watchman

HEALTHY = {
    "loss/supervised": 0.4, "loss/consistency": 0.01, "stat/prior/0": 0.9, "stat/prior/1": 0.08, "stat/prior/2": 0.02,
    "stat/pseudo/0": 0.92, "stat/pseudo/1": 0.07, "stat/pseudo/2": 0.01, "stat/selected": 0.8, "stat/gap": 0.02,
    "stat/lag/0": 0.01, "waiting": 0.1,
}  # fmt: skip
FAULTS = {
    "20% of the steps have been skipped": {"skipped": 0.2},
    "waiting for patches": {"waiting": 0.6},
    "no unlabelled voxel has counted": {"stat/selected": 0.0, "loss/consistency": 0.0},
    "loss/consistency has been exactly 0": {"loss/consistency": 0.0},
    "every unlabelled voxel has counted": {"stat/selected": 1.0},
    "a teacher has had its student's weights": {"stat/lag/0": 0.0},
    "far from its student's": {"stat/lag/0": 0.8},
    "the same class in nearly every voxel": {"stat/gap": 0.0},
    "nearly as many voxels as there are foreground voxels": {"stat/gap": 0.09},
    "pseudo-labels assign class core to 9.00% of the voxels, labels to 2.00%": {
        "stat/pseudo/0": 0.84,
        "stat/pseudo/2": 0.09,
    },
    "all pseudo-labels have been background": {
        "stat/pseudo/0": 1.0,
        "stat/pseudo/1": 0.0,
        "stat/pseudo/2": 0.0,
        "stat/gap": 0.0,
    },
    "pseudo-labels assign class core to 0.10% of the voxels, labels to 2.00%": {"stat/pseudo/2": 0.001},
}


def watchman(rows=5, settings=("threshold", "largest_component", "ema_decay")):
    return Watchman(("background", "shell", "core"), rows, settings)


def told(guard, row, times):
    return [words for _ in range(times) for words in guard.look(row)]


def test_nothing_is_said_of_a_healthy_run():
    assert told(watchman(), HEALTHY, 50) == []


@pytest.mark.parametrize("words", FAULTS)
def test_each_fault_is_said_once_with_cause_and_remedy(words):
    guard, row = watchman(), {**HEALTHY, **FAULTS[words]}
    assert told(guard, row, 4) == []
    (said,) = told(guard, row, 20)
    assert words in said
    assert "The likely cause: " in said
    assert "\n" not in said
    assert "  " not in said


@pytest.mark.parametrize("words", FAULTS)
def test_a_fault_that_comes_and_goes_is_no_fault(words):
    guard = watchman()
    rows = [{**HEALTHY, **FAULTS[words]}] * 3 + [HEALTHY]
    assert [said for row in rows * 5 for said in guard.look(row)] == []


def test_a_run_that_goes_on_hears_nothing_twice():
    faulty = {**HEALTHY, "stat/gap": 0.0}
    before, after = watchman(), watchman()
    told(before, faulty, 10)
    told(after, faulty, 10)  # the old rows
    assert told(after, faulty, 10) == []


def test_validations_between_rows_and_stages_without_gauges_are_passed_over():
    guard = watchman()
    assert told(guard, {"loss/pretrain": 0.5}, 20) == []
    for _ in range(5):
        guard.look({"val/dice": 0.5})
        said = guard.look({**HEALTHY, "stat/gap": 0.0})
    assert len(said) == 1


def test_a_group_that_goes_wrong_is_noticed_though_another_takes_turns_with_it():
    """The second group's teacher has lost a class and stands still."""
    well = {key: value for key, value in HEALTHY.items() if key != "stat/lag/0"}
    rows = [{**well, "stat/lag/0": 0.01}, {**well, "stat/lag/1": 0.0, "stat/pseudo/2": 0.0}] * 5
    guard = watchman()
    said = [words for row in rows for words in guard.look(row)]
    assert len(said) == 2
    assert any("a teacher has had its student's weights" in words for words in said)
    assert any("pseudo-labels assign class core to 0.00%" in words for words in said)


def test_advice_names_settings_that_the_method_has():
    faulty = {**HEALTHY, "stat/pseudo/2": 0.0}
    assert "method." not in told(watchman(settings=()), faulty, 5)[0]
    assert "largest_component" not in told(watchman(settings=("threshold",)), faulty, 5)[0]
    assert told(watchman(settings=()), {**HEALTHY, "stat/selected": 1.0}, 5) == []
    for settings, remedy in ((("alpha",), "raise method.alpha."), ((), "raise it.")):
        assert remedy in told(watchman(settings=settings), {**HEALTHY, "stat/selected": 0.0}, 5)[0]
    assert "ema_decay" not in told(watchman(settings=()), {**HEALTHY, "stat/gap": 0.09}, 5)[0]


def test_two_students_that_have_become_one_network_are_noticed():
    assert "or two students" in told(watchman(), {**HEALTHY, "stat/dissent": 0.0}, 20)[0]
    assert told(watchman(), {**HEALTHY, "stat/dissent": 0.01}, 20) == []


def test_what_is_little_for_an_image_may_be_much_for_a_small_organ():
    organ = {"stat/prior/0": 0.9995, "stat/prior/1": 0.0003, "stat/prior/2": 0.0002,
             "stat/pseudo/0": 0.9995, "stat/pseudo/1": 0.0003, "stat/pseudo/2": 0.0002}  # fmt: skip
    assert told(watchman(), {**HEALTHY, **organ, "stat/gap": 9e-5}, 20) == []
    assert len(told(watchman(), {**HEALTHY, **organ, "stat/gap": 1e-7}, 20)) == 1


def test_a_class_that_labels_do_not_show_either_is_not_missed():
    assert told(watchman(), {**HEALTHY, "stat/pseudo/2": 0.0, "stat/prior/2": 0.0}, 20) == []
