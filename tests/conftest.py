"""Shared fixtures: small made datasets, and the real volumes where they lie beside the repository."""

from __future__ import annotations

import locale
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from medssl.data.cases import DatasetConfig
from medssl.data.io import list_volumes, read_label, write_image, write_label
from medssl.data.recipe import Recipe
from medssl.prepare import prepare

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
    # torch's compile workers are forked from a process with threads, and one may inherit a lock that nobody opens.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _locale_stays():
    """Writing DICOM through SimpleITK leaves the process in the C locale, where text is ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture
def real_data():
    """Folder of real volumes; the test is skipped where there is none."""
    if not REAL.is_dir():
        pytest.skip(f"no real volumes at {REAL}")
    return REAL


def write_balls(folder: Path, labelled: int, unlabelled: int = 0, shape=(20, 18, 14), seed: int = 0) -> Path:
    """A dataset in the folder layout: one bright ball with a brighter core in noise; two classes."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    for i in range(labelled + unlabelled):
        centre = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
        distance = np.linalg.norm(grid - centre, axis=-1)
        radius = rng.uniform(4, 5.5)
        label = (distance < radius).astype(np.uint8) + (distance < radius / 2)
        image = 100 + 60.0 * label + rng.normal(0, 8, shape)
        affine = np.diag([1.0, 1.0, 1.5, 1.0])
        write_image(folder / "images" / f"ball_{i:02}.nii.gz", image.astype(np.float32), affine)
        if i < labelled:
            write_image(folder / "labels" / f"ball_{i:02}.nii.gz", label.astype(np.uint8), affine)
    return folder


BALLS = DatasetConfig(
    name="balls", classes=("background", "shell", "core"), recipe=Recipe(spacing=(1.0, 1.0, 1.5), crop=False)
)


@pytest.fixture(scope="session")
def balls(tmp_path_factory):
    """`(raw folder, prepared folder)` of 8 labelled and 4 unlabelled balls; read only."""
    root = tmp_path_factory.mktemp("balls")
    raw = write_balls(root / "raw", labelled=8, unlabelled=4)
    prepare(raw, root / "prepared", BALLS, workers=0)
    return raw, root / "prepared"


PARTLY = BALLS.model_copy(
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


@pytest.fixture(scope="session")
def partly_annotated(tmp_path_factory):
    """`(raw folder, prepared folder)` of balls with values of their own, annotated in part; read only."""
    root = tmp_path_factory.mktemp("partly")
    raw = write_balls(root / "raw", labelled=8, unlabelled=4)
    for path in list_volumes(raw / "labels"):
        label = read_label(path)
        write_label(path, in_own_values(label.array), label)
    prepare(raw, root / "prepared", PARTLY, workers=0)
    return raw, root / "prepared"
