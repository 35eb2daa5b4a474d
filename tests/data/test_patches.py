"""Patches: functions of (seed, n); labels only where training may read them."""

import shutil
import threading

import numpy as np
import pytest
import torch

from medssl.data import patches, prepared
from medssl.data.draw import Wish, make_split
from medssl.data.patches import PatchStream, TrainingData
from medssl.data.prepared import read_prepared
from medssl.errors import DataError


@pytest.fixture
def data(balls):
    dataset = read_prepared(balls[1])
    return TrainingData(dataset, make_split(dataset, Wish(labelled=2, val=2, test=2)))


def stream(data, labels=True, **kwargs):
    ids = data.split.labelled if labels else data.split.unlabelled
    return PatchStream(data, ids, (8, 9, 10), **{"seed": (7, 0), "labels": labels, **kwargs})


def test_a_sample_is_a_function_of_seed_and_number(data):
    one, two, other = stream(data), stream(data), stream(data, seed=(8, 0))
    for n in (0, 5, 123):
        assert all(torch.equal(a, b) for a, b in zip(one[n], two[n], strict=True))
    assert any(not torch.equal(one[n][0], other[n][0]) for n in range(5))


def test_the_place_of_a_patch_hangs_on_seed_and_number_and_may_be_any(data):
    (id,) = data.split.labelled[:1]
    whole = np.asarray(data.image(id)[...])[0]
    patch = tuple(n - 1 for n in whole.shape)

    cuts = {p: tuple(slice(a, a + n) for a, n in zip(p, patch, strict=True)) for p in np.ndindex(2, 2, 2)}

    def place(sample):
        return next(p for p, cut in cuts.items() if np.array_equal(sample[0][0], whole[cut]))

    one, other = (PatchStream(data, [id], patch, seed=(seed, 0), labels=False) for seed in (7, 8))
    places = [[place(s[n]) for n in range(80)] for s in (one, other)]
    assert [set(each) == set(np.ndindex(2, 2, 2)) for each in places] == [True, True]
    assert places[0] != places[1]


def test_every_case_comes_once_per_round_in_an_order_of_its_own(data):
    s = stream(data, labels=False)
    rounds = [[s.case_of(round * len(s.ids) + k) for k in range(len(s.ids))] for round in range(8)]
    assert all(sorted(each) == sorted(s.ids) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_start_anywhere_and_workers_change_nothing(data, monkeypatch, in_memory):
    """Threads read from memory, processes from disk."""
    if not in_memory:
        monkeypatch.setattr(patches, "MEMORY_LIMIT", 0)
    s, numbers = stream(data, foreground=0.5), [range(2 * i, 2 * i + 2) for i in range(6)]
    assert s.in_memory == in_memory
    whole = list(s.batches(numbers))
    late = list(s.batches(numbers[3:]))
    workers = list(s.batches(numbers, workers=2))
    assert len(whole) == len(workers) == 6
    for a, b in zip(whole[3:], late, strict=True):
        assert torch.equal(a[0], b[0])
    for a, b in zip(whole, workers, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_memory_and_disk_give_the_same_patches(data, monkeypatch):
    kept = stream(data, foreground=0.5)
    monkeypatch.setattr(patches, "MEMORY_LIMIT", 0)
    read = stream(data, foreground=0.5)
    assert all(torch.equal(a, b) for n in range(8) for a, b in zip(kept[n], read[n], strict=True))


def test_processes_that_share_a_machine_share_its_memory(data):
    """So many that none of them may hold anything."""
    alone, crowded = stream(data), stream(data, sharing=2**40)
    assert alone.in_memory
    assert not crowded.in_memory
    assert all(torch.equal(a, b) for n in range(8) for a, b in zip(alone[n], crowded[n], strict=True))


def test_a_patch_of_a_label_reads_only_the_blocks_it_touches(tmp_path):
    """Damage beyond the patch's own blocks goes unnoticed."""
    volume, path = np.random.default_rng(0).integers(0, 255, (128, 128, 128), np.uint8), tmp_path / "label.b2nd"
    prepared.write_packed(path, volume)
    content = bytearray(path.read_bytes())
    content[len(content) * 7 // 10 : len(content) * 8 // 10] = bytes(len(content) * 8 // 10 - len(content) * 7 // 10)
    path.write_bytes(content)
    opened = prepared.open_packed(path)
    np.testing.assert_array_equal(opened[3:30, 40:60, 0:64], volume[3:30, 40:60, 0:64])
    with pytest.raises(RuntimeError):  # the damage is there
        opened[...]


def test_stopping_early_leaves_no_reader_behind(data):
    s = stream(data)
    before = threading.active_count()
    reading = s.batches([range(2 * i, 2 * i + 2) for i in range(50)], workers=2)
    next(reading)
    reading.close()
    assert threading.active_count() == before


def test_patch_is_cut_from_image_and_label_at_one_place(data):
    s = stream(data)
    image, label = s[3]
    whole = np.asarray(data.image(s.case_of(3))[...])[0]
    target = np.asarray(data.label(s.case_of(3))[...])
    places = np.argwhere(np.isclose(whole, image[0, 0, 0, 0].item()))
    assert any(
        np.array_equal(whole[x : x + 8, y : y + 9, z : z + 10], image[0])
        and np.array_equal(target[x : x + 8, y : y + 9, z : z + 10], label)
        for x, y, z in places
    )


def test_a_patch_larger_than_the_volume_is_padded_with_zeros(data):
    image, label = PatchStream(data, data.split.labelled, (32, 9, 30), seed=(0,), labels=True)[0]
    assert image.shape == (1, 32, 9, 30)
    assert (image[:, :6] == 0).all()
    assert (image[:, 26:] == 0).all()
    assert (label[[*range(6), *range(26, 32)]] == 0).all()
    inside = label[6:26, :, 8:22].numpy()
    whole = [np.asarray(data.label(id)[...]) for id in data.split.labelled]
    assert inside.any()
    assert any(np.array_equal(inside, one[:, y : y + 9]) for one in whole for y in range(one.shape[1] - 8))


def test_foreground_share_centres_patches_on_labels(data):
    small = {"patch": (3, 3, 3), "ids": data.split.labelled, "seed": (1,), "labels": True}
    centred = PatchStream(data, **small, foreground=1.0)
    assert all(centred[n][1][1, 1, 1] > 0 for n in range(30))
    anywhere = PatchStream(data, **small)
    assert not all(anywhere[n][1][1, 1, 1] > 0 for n in range(30))


def test_class_weights_say_how_often_a_class_is_in_the_middle(data):
    small = {"patch": (3, 3, 3), "ids": data.split.labelled, "seed": (1,), "labels": True, "foreground": 1.0}
    middles = {
        weights: np.array([int(one[n][1][1, 1, 1]) for n in range(400)])
        for weights in (None, (1, 1), (0, 1), (3, 1))
        for one in [PatchStream(data, **small, class_weights=weights)]
    }
    assert set(middles[(0, 1)]) == {2}
    for weights, share in ((None, 0.5), ((1, 1), 0.5), ((3, 1), 0.75)):
        assert abs((middles[weights] == 1).mean() - share) < 0.08


def test_unlabelled_streams_have_no_label(data):
    assert len(stream(data, labels=False)[0]) == 1


def test_training_may_not_read_test_images_or_unlabelled_labels(data):
    with pytest.raises(DataError, match="training must not read it, because it is in part test"):
        data.image(data.split.test[0])
    for id in (*data.split.test, *data.split.unlabelled):
        with pytest.raises(DataError, match="must not read its label"):
            data.label(id)
    assert data.label(data.split.val[0]).shape == data.image(data.split.val[0]).shape[1:]


def test_test_labels_open_only_where_the_split_says_selection_on_test(data, balls):
    with pytest.raises(DataError, match="must not read its label, because the case is in part test"):
        data.label(data.split.test[0])
    dataset = read_prepared(balls[1])
    split = make_split(dataset, Wish(labelled=2, test=2, val_is_test=True))
    assert TrainingData(dataset, split).label(split.test[0])[...].ndim == 3


def test_streams_work_when_the_forbidden_files_do_not_exist(balls, tmp_path):
    dataset = read_prepared(shutil.copytree(balls[1], tmp_path / "prepared"))
    data = TrainingData(dataset, make_split(dataset, Wish(labelled=2, val=2, test=2)))
    for id in data.split.unlabelled:
        (dataset.cases[id].folder / "label.b2nd").unlink(missing_ok=True)
    for id in data.split.test:
        shutil.rmtree(dataset.cases[id].folder)
    assert all(len(stream(data, labels=False)[n]) == 1 for n in range(12))
    assert all(len(stream(data)[n]) == 2 for n in range(6))
