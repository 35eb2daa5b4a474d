"""Each convention beside its tool, on drawn and random masks; and where the tools part."""

import math
import warnings

import numpy as np
import pytest
import torch
from monai import metrics

from medssl.data.volume import Volume
from medssl.errors import ConfigError
from medssl.metrics import CONVENTIONS, METRICS, Measures, score_case

SHAPE = (6, 7, 9)
SPACING = (0.5, 2.0, 3.0)


def values(prediction, reference, convention, **measures):
    """Numbers of two masks under a convention, by metric."""
    pair = [Volume(mask.astype(np.int32), np.diag([*SPACING, 1.0])) for mask in (prediction, reference)]
    (score,) = score_case("a", *pair, {1: "organ"}, Measures((convention,), **measures))[convention]
    return score.values


def blob(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(SHAPE) < 0.1
    x, y, z = rng.integers(0, 3, 3)
    mask[x : x + 3, y : y + 4, z : z + 5] = True
    return mask


EMPTY = np.zeros(SHAPE, bool)
PAIRS = {"missed": (EMPTY, blob(0)), "invented": (blob(0), EMPTY), "absent": (EMPTY, EMPTY)}
PAIRS |= {f"random {seed}": (blob(seed), blob(seed + 50)) for seed in range(6)}
ALL_PAIRS = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def monai_values(prediction, reference, spacing, tolerance):
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
    distance = {"include_background": True, "spacing": spacing}
    rates = metrics.get_confusion_matrix(*pair, include_background=True)
    average = metrics.compute_average_surface_distance
    found = {
        "dice": metrics.compute_dice(*pair),
        "iou": metrics.compute_iou(*pair),
        "precision": metrics.compute_confusion_matrix_metric("precision", rates),
        "recall": metrics.compute_confusion_matrix_metric("sensitivity", rates),
        "hd95": metrics.compute_hausdorff_distance(*pair, percentile=95, **distance),
        "hd95_max": metrics.compute_hausdorff_distance(*pair, percentile=95, **distance),
        "hd": metrics.compute_hausdorff_distance(*pair, **distance),
        "asd": average(*pair, **distance),
        "asd_directed": average(*pair, **distance),
        "assd": average(*pair, symmetric=True, **distance),
        "nsd": metrics.compute_surface_dice(*pair, class_thresholds=[tolerance], **distance),
    }
    return {name: number_of(value) for name, value in found.items()}


def number_of(value):
    """None in place of NaN."""
    value = float(value)
    return None if math.isnan(value) else value


def assert_same(mine, theirs):
    for name, value in theirs.items():
        assert mine[name] == (None if value is None else pytest.approx(value, rel=1e-5)), name


@pytest.mark.filterwarnings("ignore")
@ALL_PAIRS
@pytest.mark.parametrize("units", [None, "mm"])
def test_monai_is_what_monai_says_by_default(pair, units):
    mine = values(*pair, "monai", units=units, tolerance=1.5)
    theirs = monai_values(*pair, None if units is None else SPACING, 1.5)
    assert_same(mine, theirs)
    assert {name for name, value in mine.items() if value is not None} <= theirs.keys()


@ALL_PAIRS
def test_ssl4mis_is_medpy_in_voxels_and_zero_where_a_mask_is_empty(pair):
    binary = pytest.importorskip("medpy.metric.binary", reason="medpy is not installed")
    theirs = dict.fromkeys(("dice", "iou", "hd95", "asd"), 0.0)
    if pair[0].any() and pair[1].any():
        tools = {"dice": binary.dc, "iou": binary.jc, "hd95": binary.hd95, "asd": binary.asd}
        theirs = {name: float(tool(*pair)) for name, tool in tools.items()}
    assert_same(values(*pair, "ssl4mis"), theirs)


@pytest.mark.parametrize("seed", range(4))
def test_pooled_hd95_and_both_asd_are_those_of_medpy(seed):
    binary = pytest.importorskip("medpy.metric.binary", reason="medpy is not installed")
    pair = blob(seed), blob(seed + 50)
    theirs = {
        "hd95_pooled": binary.hd95(*pair, SPACING),
        "assd": binary.assd(*pair, SPACING),
        "asd_directed": binary.asd(*pair, SPACING),
        "hd": binary.hd(*pair, SPACING),
        "relative_volume": 100 * binary.ravd(*pair),
    }
    assert_same(values(*pair, "strict"), theirs)


@ALL_PAIRS
def test_nnunet_divides_voxels_and_leaves_out_what_is_nowhere(pair):
    prediction, reference = pair
    true, false, lost = (prediction & reference).sum(), (prediction & ~reference).sum(), (~prediction & reference).sum()
    with np.errstate(invalid="ignore"):
        theirs = {
            "dice": number_of(2 * true / (2 * true + false + lost)),
            "iou": number_of(true / (true + false + lost)),
        }
    assert_same(values(*pair, "nnunet"), theirs)


@pytest.mark.parametrize(
    ("status", "convention", "dice", "hd95"),
    [
        ("absent", "strict", None, None), ("missed", "strict", 0, None), ("invented", "strict", 0, None),
        ("absent", "monai", None, None), ("missed", "monai", 0, None), ("invented", "monai", None, None),
        ("absent", "nnunet", None, None), ("missed", "nnunet", 0, None), ("invented", "nnunet", 0, None),
        ("absent", "ssl4mis", 0, 0), ("missed", "ssl4mis", 0, 0), ("invented", "ssl4mis", 0, 0),
        ("absent", "brats", 1, 0), ("missed", "brats", 0, 373.13), ("invented", "brats", 0, 373.13),
    ],
)  # fmt: skip
def test_an_empty_class_scores_what_the_convention_says(status, convention, dice, hd95):
    found = values(*PAIRS[status], convention)
    assert (found.get("dice"), found.get("hd95")) == (dice, hd95)


def test_both_definitions_of_hd95_part_on_two_strays():
    bar = np.zeros((1, 12, 20), bool)
    bar[0, 0] = True
    astray = bar.copy()
    astray[0, 10, :2] = True
    found = values(astray, bar, "strict", units="voxel")
    assert found["hd95"] == found["hd95_max"] == pytest.approx(np.percentile([0] * 20 + [10, 10], 95))
    assert found["hd95_pooled"] == 0
    assert values(astray, bar, "ssl4mis")["hd95"] == 0


def test_strict_leaves_a_quotient_by_nothing_undefined():
    missed, invented = values(*PAIRS["missed"], "strict"), values(*PAIRS["invented"], "strict")
    assert (missed["precision"], missed["recall"], missed["relative_volume"]) == (None, 0, -100)
    assert (invented["precision"], invented["recall"], invented["relative_volume"]) == (0, None, None)
    assert (missed["nsd"], missed["boundary_iou"]) == (0, 0)
    assert set(values(*PAIRS["absent"], "strict").values()) == {None}


def test_a_convention_lends_its_name_to_no_number_that_its_tool_lacks():
    pair = blob(1), blob(2)
    for name, convention in CONVENTIONS.items():
        measures = Measures(("strict", name) if name != "strict" else ("strict",))
        volumes = [Volume(mask.astype(np.int32), np.diag([*SPACING, 1.0])) for mask in pair]
        (score,) = score_case("a", *volumes, {1: "organ"}, measures)[name]
        assert {metric for metric, value in score.values.items() if value is not None} <= set(convention.metrics)


def test_distances_scale_with_the_spacing_and_nothing_else_does():
    pair = blob(1), blob(2)
    found, voxels = (values(*pair, "strict", units=units) for units in ("mm", "voxel"))
    volumes = [Volume(mask.astype(np.int32), np.diag([2.0, 2.0, 2.0, 1.0])) for mask in pair]
    (twice,) = score_case("a", *volumes, {1: "organ"}, Measures(tolerance=2.0))["strict"]
    for name, value in voxels.items():
        factor = 2 if METRICS[name].kind == "distance" else 1
        if METRICS[name].kind != "volume":
            assert twice.value(name) == pytest.approx(factor * value)
    assert found["hd95"] != voxels["hd95"]


def test_nsd_takes_the_tolerance_of_the_class():
    line, shifted = np.zeros((3, 4, 9), bool), np.zeros((3, 4, 9), bool)
    line[1, 1, 2:7], shifted[1, 2, 2:7] = True, True  # 2 mm apart
    assert values(line, shifted, "strict", tolerance=1.9)["nsd"] == 0
    assert values(line, shifted, "strict", tolerance=2.0)["nsd"] == 1
    assert values(line, shifted, "strict", tolerance=9.0, tolerances={"organ": 1.0})["nsd"] == 0
    assert values(line, shifted, "strict", tolerance=0.0)["nsd"] == 0
    assert values(line, line, "strict", tolerance=0.0)["nsd"] == 1


@pytest.mark.parametrize("side", [0.3, 0.4, 0.5, 0.6, 0.7])
def test_nsd_reaches_as_far_as_a_voxel_whose_side_is_the_tolerance(side):
    cube, larger = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    cube[3:6, 3:6, 3:6], larger[3:6, 3:6, 2:7] = True, True
    volumes = [Volume(mask.astype(np.int32), np.diag([*[np.float32(side)] * 3, 1.0])) for mask in (cube, larger)]
    (found,) = score_case("a", *volumes, {1: "organ"}, Measures(tolerance=side))["strict"]
    assert found.value("nsd") == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"conventions": ("lax",)}, {"conventions": ()}, {"conventions": ("strict", "strict")}, {"units": "inch"},
        {"tolerance": -1.0}, {"tolerance": math.nan}, {"tolerances": {"organ": math.inf}}, {"metrics": ("f2",)},
    ],
)  # fmt: skip
def test_odd_measures_are_refused(wrong):
    with pytest.raises(ConfigError):
        Measures(**wrong)


def test_fewer_metrics_are_fewer_columns_with_the_same_numbers():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        some = values(blob(1), blob(2), "strict", metrics=("nsd", "dice"))
    everything = values(blob(1), blob(2), "strict")
    assert list(some) == ["dice", "nsd"]
    assert some == {name: everything[name] for name in some}
