"""The numbers that files in configs/method claim of papers and released code, written down once more."""

import pytest

from medssl.config import bundled
from medssl.run import load_run_config

BANDS = {"high_in_low": 0.2, "low_in_high": 0.65}  # XNet v2
LEFT_ATRIUM = {"consistency_weight": 0.1, "ramp": 1.0, "noise": 0.1, "ema_decay": 0.99}
PASTED = {"box": 2 / 3, "alpha": 0.5, "weighting": "region", "ema_decay": 0.99, "largest_component": True}
PUBLISHED = {
    "mean_teacher": LEFT_ATRIUM,
    "uamt": {**LEFT_ATRIUM, "passes": 8, "threshold": 0.75, "dice": "foreground", "batch": "2 + 2"},
    "cps": {"cross_weight": 0.1, "ramp": 1.0, "batch": "2 + 2"},
    "fixmatch": {"threshold": 0.95, "views": 1, "strong_weight": 1.0, "cutmix": 0, "feature_dropout": 0, "loss": "ce"},
    "unimatch": {"threshold": 0.95, "views": 2, "strong_weight": 0.5, "cutmix": 0.5, "feature_dropout": 0.5,
                 "feature_weight": 0.5, "loss": "dice"},
    "bcp": {**PASTED, "pretrain": 2000 / 17000, "pretrain_loss": "whole", "dice": "linear", "batch": "4 + 4"},
    "bcp_acdc": {**PASTED, "pretrain": 10000 / 40000, "pretrain_loss": "sides", "dice": "squared", "batch": "12 + 12",
                 "iterations": 40000, "schedule": "constant"},
    "bcp_pancreas": {**PASTED, "pretrain": 1800 / 6800, "pretrain_loss": "whole", "dice": "linear", "batch": "4 + 4",
                     "iterations": 6800, "optimizer": "adamw", "schedule": "constant", "lr": 0.001, "weight_decay": 0},
    "rail": {"turn": 0.0244, "ramp": 3000 / 8000, "ema_decay": 0.999, "temperature": 0.1, "disagreement_weight": 0.5,
             "error_weight": 0.05, "confidence_weight": 20, "flatness_weight": 0.1, "teacher_weight": 10,
             "dice": "foreground", "batch": "1 + 1"},
    "umct": {"pretrain": 20000 / 25000, "cotraining_weight": 0.2, "uncertainty": "dropout", "passes": 10,
             "scope": "sample", "batch": "4 + 4"},
    "cfc_mt": {**BANDS, "ramp": 6000 / 15000, "ema_decay": 0.99},
    "ucf_mix": {**BANDS, "ramp": 6000 / 15000, "ema_decay": 0.99},
    "sss": {"threshold": 0.95, "views": 2},  # those of UniMatch
    "combined": {"box": 2 / 3, "alpha": 0.5, "pretrain": 2000 / 17000, "ema_decay": 0.99},  # those of BCP
    "supervised": {},
}  # fmt: skip


def test_no_file_is_left_out():
    assert PUBLISHED.keys() == {path.stem for path in bundled("method/bcp.yaml").parent.glob("*.yaml")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_the_published_ones(name):
    config = load_run_config([bundled("data/hippocampus.yaml"), bundled(f"method/{name}.yaml")], [])
    found = {**config.train.model_dump(), **config.method.model_dump()}
    found["batch"] = f"{config.train.labelled_batch} + {config.train.unlabelled_batch}"
    assert {key: found[key] for key in PUBLISHED[name]} == pytest.approx(PUBLISHED[name])
