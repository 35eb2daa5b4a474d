import torch

from medssl.parts.pseudo import largest_component


def test_keeps_the_larger_of_two_boxes_per_class():
    target = torch.zeros(2, 9, 8, 7, dtype=torch.long)
    target[0, 0:2, 0:2, 0:2] = 1
    target[0, 5:8, 5:8, 4:6] = 1
    target[0, 0:2, 6:8, 0:5] = 2
    clean = largest_component(target, 3)
    assert (clean[0, 0:2, 0:2, 0:2] == 0).all()
    assert (clean == 1).sum() == 3 * 3 * 2
    assert torch.equal(clean == 2, target == 2)


def test_never_creates_voxels_and_leaves_empty_empty():
    torch.manual_seed(0)
    target = torch.randint(0, 3, (2, 5, 6, 7)) * (torch.rand(2, 5, 6, 7) < 0.2)
    before = target.clone()
    clean = largest_component(target, 3)
    assert torch.equal(target, before)
    assert ((clean == 0) | (clean == target)).all()
    assert (largest_component(torch.zeros(1, 5, 6, 7, dtype=torch.long), 3) == 0).all()


def test_corners_connect():
    target = torch.zeros(1, 5, 6, 7, dtype=torch.long)
    target[0, 0, 0, 0] = target[0, 1, 1, 1] = target[0, 2, 2, 2] = 1
    assert torch.equal(largest_component(target, 2), target)
