import pytest
import torch

from medssl.parts.mix import paste, random_box
from medssl.parts.sample import Sample


@pytest.mark.parametrize("shape", [(12, 12, 12), (12, 10, 7), (5, 1, 9)])
@pytest.mark.parametrize("fraction", [0.1, 2 / 3, 1.0])
def test_box_fits_any_patch(shape, fraction):
    rng = torch.Generator().manual_seed(0)
    sides = [max(1, int(size * fraction + 1e-6)) for size in shape]
    for _ in range(50):
        inside = random_box(shape, fraction, rng).nonzero()
        assert (inside.amax(0) - inside.amin(0) + 1).tolist() == sides


def test_box_reaches_every_face():
    rng = torch.Generator().manual_seed(0)
    boxes = torch.stack([random_box((5, 6, 7), 2 / 3, rng) for _ in range(300)]).any(0)
    assert boxes.all()


def test_box_has_the_published_size():
    box = random_box((112, 112, 80), 2 / 3, torch.Generator().manual_seed(1))
    assert box.sum().item() == 74 * 74 * 53


def samples():
    torch.manual_seed(0)
    one = Sample.of(torch.randn(2, 3, 5, 6, 7), torch.randint(0, 3, (2, 5, 6, 7)))
    two = Sample.of(torch.randn(2, 3, 5, 6, 7), torch.randint(0, 3, (2, 5, 6, 7)), trust=0.5)
    return one, two


def test_pasting_moves_image_target_and_weight_together():
    one, two = samples()
    box = random_box((5, 6, 7), 0.5, torch.Generator().manual_seed(0))
    mixed = paste(inside=one, outside=two, box=box)
    for name in ("target", "weight"):
        assert torch.equal(getattr(mixed, name)[:, box], getattr(one, name)[:, box])
        assert torch.equal(getattr(mixed, name)[:, ~box], getattr(two, name)[:, ~box])
    assert torch.equal(mixed.image[:, :, box], one.image[:, :, box])
    assert torch.equal(mixed.image[:, :, ~box], two.image[:, :, ~box])


def test_pasting_back_restores():
    one, two = samples()
    box = random_box((5, 6, 7), 0.5, torch.Generator().manual_seed(0))
    restored = paste(inside=one, outside=paste(inside=two, outside=one, box=box), box=box)
    assert torch.equal(restored.image, one.image)
    assert torch.equal(restored.target, one.target)
    assert torch.equal(restored.weight, one.weight)
