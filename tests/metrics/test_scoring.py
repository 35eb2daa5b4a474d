"""All classes of a volume at once are each class by itself, in any memory layout and any number of threads."""

import numpy as np
import pytest

from medssl.data.volume import Volume
from medssl.metrics import Measures, asd, dice, hd95, iou, score_case

SPACING = (0.5, 2.0, 3.0)
CLASSES = {1: "liver", 2: "spleen", 7: "tooth", 300: "canal"}


def label_maps(seed, shape=(13, 11, 17)):
    """Nested boxes of the classes, moved and eaten away in the prediction."""
    rng = np.random.default_rng(seed)
    reference = np.zeros(shape, np.int32)
    for label in CLASSES:
        x, y, z = (int(rng.integers(0, side - 5)) for side in shape)
        reference[x : x + 5, y : y + 4, z : z + 5] = label
    prediction = np.roll(reference, (1, 0, -1), (0, 1, 2))
    prediction[rng.random(shape) < 0.1] = 0
    return prediction, reference


def scores(prediction, reference, measures=None, **options):
    pair = [Volume(array, np.diag([*SPACING, 1.0])) for array in (prediction, reference)]
    return score_case("a", *pair, CLASSES, measures, **options)


@pytest.mark.parametrize("seed", range(4))
def test_a_class_scores_as_its_masks_do(seed):
    prediction, reference = label_maps(seed)
    for score in scores(prediction, reference)["strict"]:
        pair = prediction == score.label, reference == score.label
        assert (score.prediction_voxels, score.reference_voxels) == tuple(int(mask.sum()) for mask in pair)
        assert (score.dice, score.iou) == (dice(*pair), iou(*pair))
        assert (score.hd95, score.asd) == (hd95(*pair, SPACING), asd(*pair, SPACING))
        more = int(pair[0].sum()) - int(pair[1].sum())
        assert score.value("volume_difference") == pytest.approx(
            more * np.prod(SPACING) / 1000
        )  # millilitres; > 0: too much


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_memory_layout_type_and_threads_change_nothing(order, dtype):
    prediction, reference = (np.where(array == 300, 99, array) for array in label_maps(1))
    classes = Measures(instances=("tooth",), centreline=("canal",))
    expected = scores(prediction, reference, classes)
    prediction, reference = (np.asarray(array, dtype, order=order) for array in (prediction, reference))
    assert scores(prediction, reference, classes) == expected
    assert scores(prediction, np.ascontiguousarray(reference), classes, threads=3) == expected


def test_conventions_side_by_side_are_each_by_itself():
    pair = label_maps(2)
    together = scores(*pair, Measures(("strict", "monai", "ssl4mis", "brats", "nnunet")))
    for name, rows in together.items():
        for mine, alone in zip(rows, scores(*pair, Measures((name,)))[name], strict=True):
            assert alone.values.items() <= mine.values.items()


def test_instances_and_centrelines_are_measured_for_their_classes_alone():
    rows = scores(*label_maps(3), Measures(instances=("tooth",), centreline=("canal",)))["strict"]
    assert [row.value("instance_f1") is not None for row in rows] == [False, False, True, False]
    assert [row.value("cldice") is not None for row in rows] == [False, False, False, True]


@pytest.mark.parametrize("value", [-1, 2**16])
def test_labels_that_no_label_map_has_are_refused(value):
    array = np.full((3, 4, 5), value, np.int32)
    with pytest.raises(ValueError, match="labels"):
        scores(array, np.zeros_like(array))
    with pytest.raises(ValueError, match="shape"):
        scores(array, array[:2])
