import torch

from medssl.parts.gauges import gap, gauges, removed, volumes

SHAPE = (5, 6, 7)


def draw(size=2, classes=4):
    torch.manual_seed(0)
    return torch.randint(0, classes, (size, *SHAPE))


def values(stats):
    return [value.item() for value in stats.values()]


def test_volumes_are_the_shares_of_the_classes():
    target = draw()
    stats = volumes("pseudo", target, 5)
    assert list(stats) == [f"pseudo/{value}" for value in range(5)]
    torch.testing.assert_close(torch.stack(list(stats.values())), torch.bincount(target.flatten(), minlength=5) / 420)
    assert stats["pseudo/4"] == 0


def test_voxels_without_weight_have_no_volume():
    target = torch.zeros(1, *SHAPE, dtype=torch.long)
    target[:, :2] = 1
    target[:, 2:] = 2
    weight = torch.ones(1, *SHAPE)
    weight[:, 2:] = 0
    assert values(volumes("pseudo", target, 3, weight)) == [0, 1, 0]
    assert values(volumes("pseudo", target, 3, 0 * weight)) == [0, 0, 0]
    assert values(volumes("pseudo", target[:0], 3)) == [0, 0, 0]


def test_the_gap_is_the_share_of_voxels_named_otherwise():
    target = draw(classes=3)
    logits = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float().requires_grad_()
    assert gap(logits, target) == 0
    other = target.clone()
    other[0] = (other[0] + 1) % 3
    assert gap(logits, other) == 0.5
    first = torch.zeros(2, *SHAPE)
    first[0] = 0.25
    assert gap(logits, other, first) == 1
    assert gap(logits, other, 0 * first) == 0
    assert not gap(logits, other).requires_grad


def test_what_was_removed_is_a_share_of_the_foreground():
    named = torch.zeros(2, *SHAPE, dtype=torch.long)
    assert removed(named, named) == 0
    named[0, :2], named[1, 4] = 1, 2
    kept = named.clone()
    kept[0, 1] = 0
    assert removed(named, kept) == 1 / 3
    assert removed(named, 0 * named) == 1


def test_gauges_of_a_step_without_unlabelled_volumes_are_nothing():
    none = draw()[:0]
    stats = gauges(draw(), none, 4, weight=none.float(), student=torch.zeros(0, 4, *SHAPE))
    assert all((value > 0) == name.startswith("prior/") for name, value in stats.items())


def test_the_prior_is_that_of_the_annotated_voxels():
    label = torch.tensor([0, 1, 1, 2, 0, 0]).view(1, 1, 2, 3)
    known = torch.tensor([1, 1, 1, 1, 0, 0]).view(1, 1, 2, 3).bool()
    stats = gauges(label, label[:0], 3, known=known)
    assert [stats[f"prior/{value}"].item() for value in range(3)] == [0.25, 0.5, 0.25]


def test_selected_is_the_mean_weight_and_one_where_all_count():
    target, weight = draw(), torch.rand(2, *SHAPE)
    torch.testing.assert_close(gauges(target, target, 4, weight=weight)["selected"], weight.mean())
    assert gauges(target, target, 4)["selected"] == 1
    assert "gap" not in gauges(target, target, 4)
