"""A dataset with values of its own, voxels that nobody annotated and a region: from files to a report."""

import numpy as np
import pytest
import torch
from conftest import BALLS, write_balls

from medssl.config import parse
from medssl.data.cases import IGNORED
from medssl.data.nifti import list_volumes, read_label, write_label
from medssl.data.patches import TrainingData
from medssl.data.prepared import read_prepared
from medssl.data.splits import make_split, write_split
from medssl.errors import ConfigError
from medssl.logs import NoLog
from medssl.prepare import prepare
from medssl.run import RunConfig, make_predictor
from medssl.train import make_streams, make_trainer, open_data, score_cases, train

CONFIG = BALLS.model_copy(
    update={
        "values": {"shell": (3,), "core": (7, 9)},
        "ignore": (200,),
        "regions": {"ball": ("shell", "core")},
    }
)


def in_own_values(label):
    """Shell 3, core 7 and 9 in turn; somebody annotated every third slice along Z."""
    values = np.array([0, 3, 7], np.uint8)[label]
    values[..., ::2][values[..., ::2] == 7] = 9
    values[..., 1::3] = values[..., 2::3] = 200
    return values


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """`(raw folder, prepared folder, splits.json)` of balls that were annotated in part; read only."""
    root = tmp_path_factory.mktemp("partly")
    raw = write_balls(root / "raw", labelled=8, unlabelled=4)
    for path in list_volumes(raw / "labels"):
        label = read_label(path)
        write_label(path, in_own_values(label.array), label)
    dataset = prepare(raw, root / "prepared", CONFIG, workers=0)
    write_split(root / "splits.json", make_split(dataset, labelled=2, val=2, test=2, seed=0))
    return raw, root / "prepared", root / "splits.json"


@pytest.fixture
def config(partly):
    def make(method="supervised", data=(), **train_settings):
        found = read_prepared(partly[1]).config.model_dump(mode="json") | dict(data)
        batch = {"labelled_batch": 2, "unlabelled_batch": 0 if method == "supervised" else 2}
        return parse(RunConfig, {
            "data": {**found, "root": str(partly[1]), "splits": str(partly[2])},
            "method": {"name": method},
            "network": {"name": "unet", "channels": [4, 8], "strides": [2], "dropout": 0.1},
            "augment": {"preset": "strong"},
            "train": {"iterations": 200, "patch": [12, 12, 8], "lr": 0.01, "optimizer": "adamw", "validate_every": 200,
                      "log_every": 1, **batch, **train_settings},
        })  # fmt: skip

    return make


def test_batches_hold_classes_and_where_they_are_known(config):
    settings = config(iterations=20)
    data = open_data(settings)
    trainer = make_trainer(settings, settings.data.root / "nowhere", torch.device("cpu"))
    batches = list(trainer.batches(*make_streams(settings, data), last=20))
    assert {value for batch in batches for value in batch.label.unique().tolist()} == {0, 1, 2}
    shares = [batch.known.float().mean().item() for batch in batches]
    assert all(batch.known.dtype == torch.bool and not batch.label[~batch.known].any() for batch in batches)
    assert 0.2 < np.mean(shares) < 0.5


@pytest.mark.parametrize("method", ["supervised", "mean_teacher"])
def test_training_learns_what_lies_where_nobody_annotated_too(config, balls, tmp_path, method):
    """The network is scored on the same volumes with their whole labels."""
    settings = config(method)
    run = train(settings, tmp_path / "run", quiet=True)
    trainer = make_trainer(settings, run, torch.device("cpu"))
    trainer.load(run / "last.pt")
    whole = TrainingData(read_prepared(balls[1]), open_data(settings).split)
    found = score_cases(
        make_predictor(trainer.method, settings, trainer.device), whole, whole.split.val, "val", 0, NoLog()
    )
    assert found["dice"] > 0.6


def test_validation_counts_what_was_annotated_and_nothing_else(config):
    """A prediction that is right where somebody looked and wrong everywhere else is perfect."""
    settings = config()
    data = open_data(settings)

    class Oracle:
        classes = settings.data.classes

        def probabilities(self, image):
            reference = next(data.label(id)[...] for id in data.split.val if np.array_equal(data.image(id)[...], image))
            assert (reference == IGNORED).any()
            answer = np.where(reference == IGNORED, 2, reference)
            return np.stack([answer == value for value in range(3)]).astype(np.float32)

    assert score_cases(Oracle(), data, data.split.val, "val", 1, NoLog())["dice"] == 1


@pytest.mark.parametrize("data", [{"ignore": []}, {"values": {"shell": [3], "core": [7]}}])
def test_labels_that_were_prepared_with_other_values_are_refused(config, data):
    with pytest.raises(ConfigError, match="was prepared with"):
        open_data(config(data=data))
