import numpy as np
import pytest
import torch
from scipy import ndimage

from medssl.parts.pseudo import entropy, largest_component, likeliest, propagated_largest_component, sharpen


def plainly_largest(target, classes):
    """Labels of a whole volume, one class after the other, with no eye on speed."""
    kept = torch.zeros_like(target)
    for volume, clean in zip(target, kept, strict=True):
        for value in range(1, classes):
            components, count = ndimage.label((volume == value).numpy(), np.ones((3, 3, 3)))
            sizes = [(components == number).sum() for number in range(1, count + 1)]
            if sizes:
                clean[torch.from_numpy(components == 1 + int(np.argmax(sizes)))] = value
    return kept


def noise(density, classes):
    torch.manual_seed(0)
    return torch.randint(1, classes, (2, 13, 11, 9)) * (torch.rand(2, 13, 11, 9) < density)


def snake(size=13):
    """One path, a voxel wide, that fills a cube line by line and plane by plane: the longest way for a label."""
    volume = torch.zeros(size, size, size, dtype=torch.long)
    corner = 0, 0
    for x in range(0, size, 2):
        rows = list(range(0, size, 2)) if corner[0] == 0 else list(range(size - 1, -1, -2))
        end = corner[1]
        for row, following in zip(rows, [*rows[1:], None], strict=True):
            volume[x, row] = 1
            end = size - 1 - end
            if following is not None:
                volume[x, (row + following) // 2, end] = 1
        corner = rows[-1], end
        if x + 1 < size:
            volume[x + 1, rows[-1], end] = 1
    return volume


def spiral(size=21):
    """One path in a plane from its corner inwards."""
    plane = torch.zeros(size, size, dtype=torch.long)
    place, heading, side = [0, 0], 0, size - 1
    plane[0, 0] = 1
    for turn in range(size):
        for _ in range(side):
            place[heading % 2] += 1 if heading < 2 else -1
            plane[tuple(place)] = 1
        heading = (heading + 1) % 4
        side -= 2 * (turn >= 2 and turn % 2 == 0)
    return plane.unsqueeze(1).expand(-1, 2, -1).contiguous()


def balls():
    """Two balls that touch, a larger and a smaller one apart, and a core of another class."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (31, 23, 19)), indexing="ij"), -1)
    volume = torch.zeros(31, 23, 19, dtype=torch.long)
    for centre, radius, value in [((6, 6, 6), 5, 1), ((6, 15, 8), 5, 1), ((23, 12, 9), 7, 1), ((23, 12, 9), 3, 2),
                                  ((2, 20, 16), 2, 2)]:  # fmt: skip
        volume[(grid - torch.tensor(centre)).float().norm(dim=-1) < radius] = value
    return volume


SHAPES = {
    **{f"noise of {n} classes at {density}": (noise(density, n), n) for n in (2, 4) for density in (0.05, 0.2, 0.6, 1)},
    **{f"snake by {axes}": (snake().permute(axes)[None], 2) for axes in [(0, 1, 2), (2, 1, 0), (1, 2, 0)]},
    "snake from its end": (snake().flip(0, 1, 2)[None], 2),
    "cut snake": (torch.where(torch.arange(13**3).view(1, 13, 13, 13) % 83 == 40, 0, snake()), 2),
    "spiral": (spiral()[None], 2),
    "spiral from its end": (spiral().flip(0, 2)[None], 2),
    "balls": (torch.stack([balls(), balls().flip(0, 1)]), 3),
    "a line": (torch.tensor([1, 1, 0, 2, 2, 1, 1, 0, 1]).view(1, 1, 9, 1), 3),
    "no foreground": (torch.zeros(2, 5, 6, 7, dtype=torch.long), 3),
    "no classes": (torch.zeros(2, 5, 6, 7, dtype=torch.long), 1),
    "bytes": (noise(0.3, 4).byte(), 4),
}


@pytest.mark.parametrize("way", [largest_component, propagated_largest_component])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_ways_keep_what_labels_of_whole_volumes_say(way, shape):
    target, classes = SHAPES[shape]
    before = target.clone()
    clean = way(target, classes)
    assert torch.equal(clean, plainly_largest(target, classes))
    assert clean.dtype == target.dtype
    assert torch.equal(target, before)


@pytest.mark.parametrize("shape", ["snake by (0, 1, 2)", "spiral"])
def test_the_longest_paths_are_one_component(shape):
    target, classes = SHAPES[shape]
    assert ndimage.label(target[0].numpy(), np.ones((3, 3, 3)))[1] == 1
    assert torch.equal(propagated_largest_component(target, classes), target)


@pytest.mark.parametrize("way", [largest_component, propagated_largest_component])
def test_of_equal_components_the_first_in_memory_is_kept(way):
    target = torch.zeros(1, 5, 6, 7, dtype=torch.long)
    target[0, 0, 5, 5:] = target[0, 1:3, 0, 0] = target[0, 4, 2:4, 3] = 1
    clean = way(target, 2)
    assert (clean == 1).sum() == 2
    assert (clean[0, 0, 5, 5:] == 1).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gpu_keeps_the_same(shape):
    target, classes = SHAPES[shape]
    assert torch.equal(largest_component(target.cuda(), classes).cpu(), plainly_largest(target, classes))


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


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_the_likeliest_class_is_the_first_of_the_largest(classes):
    logits = torch.randn(2, classes, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(likeliest(logits), logits.argmax(1))


def test_entropy_is_nothing_for_a_sure_class_and_one_for_equal_classes():
    probs = torch.zeros(2, 4, 5, 6, 7)
    probs[0, 2] = 1
    probs[1] = 0.25
    torch.testing.assert_close(entropy(probs), torch.stack([torch.zeros(5, 6, 7), torch.ones(5, 6, 7)]))
    torch.testing.assert_close(entropy(torch.stack([probs, probs]))[1], entropy(probs))


class TestSharpen:
    def probs(self):
        torch.manual_seed(0)
        return torch.randn(2, 3, 5, 6, 7).softmax(1)

    def test_temperature_one_changes_nothing(self):
        torch.testing.assert_close(sharpen(self.probs(), 1.0), self.probs())

    @pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
    def test_probabilities_sum_to_one_and_keep_their_order(self, temperature):
        sharp = sharpen(self.probs(), temperature)
        torch.testing.assert_close(sharp.sum(1), torch.ones(2, 5, 6, 7))
        assert torch.equal(sharp.argsort(1), self.probs().argsort(1))

    def test_a_small_temperature_leaves_the_likeliest_class_alone(self):
        sharp = sharpen(self.probs(), 1e-6)
        assert torch.equal(sharp, torch.nn.functional.one_hot(self.probs().argmax(1), 3).movedim(-1, 1).float())

    def test_impossible_classes_stay_so(self):
        probs = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1, 1)
        assert torch.equal(sharpen(probs, 0.1), probs)
