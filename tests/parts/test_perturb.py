import torch

from medssl.parts.perturb import dropped, strong_view

SHAPE = (5, 6, 7)


def test_a_strong_view_belongs_to_its_volume_and_leaves_the_image_alone():
    torch.manual_seed(0)
    image = torch.randn(6, 2, *SHAPE)
    before = image.clone()
    views = strong_view(image, range(6))
    assert torch.equal(image, before)
    assert views.shape == image.shape
    torch.testing.assert_close(views[4:], strong_view(image[4:], (4, 5)))
    assert not torch.allclose(views[4:], strong_view(image[4:], (14, 15)))
    changed = (views - image).abs().amax((1, 2, 3, 4)) > 1e-3
    assert changed.sum() >= 4


def test_strong_views_stay_finite_and_in_reach_even_where_nothing_is_seen():
    torch.manual_seed(0)
    flat = torch.full((20, 1, *SHAPE), 3.0)
    torch.testing.assert_close(strong_view(flat, range(20)), flat)
    views = strong_view(torch.randn(40, 1, *SHAPE), range(40))
    assert torch.isfinite(views).all()
    assert views.abs().max() < 10


def test_half_of_the_strong_views_are_blurred_and_half_of_the_others_bent():
    """Of three equally spaced grey levels: a blur makes more of them, and a bend spaces them unequally."""
    torch.manual_seed(0)
    views = strong_view(torch.randint(0, 3, (300, 1, *SHAPE)).float(), range(300))
    levels = [view.unique() for view in views]
    sharp = [each for each in levels if len(each) == 3]
    bent = [low + high - 2 * middle for low, middle, high in sharp if (low + high - 2 * middle).abs() > 1e-3]
    assert 120 < len(sharp) < 180
    assert 0.4 < len(bent) / len(sharp) < 0.6
    assert min(bent) < 0 < max(bent)


def test_a_strong_view_blurs_nothing_across_thick_slices():
    """What one slice alone shows stays in it, and is blurred along the other axes as often as before."""
    image = torch.zeros(60, 1, 9, 11, 7)
    image[:, :, 4, 5, 3] = 1
    views = strong_view(image, range(60), (True, True, False))
    spread = [(view - view[:, :1, :1, :1]).abs().amax((0, 1, 2)) > 1e-4 for view in views]
    assert all(slices.tolist() == [place == 3 for place in range(7)] for slices in spread)
    lines = torch.stack([(view - view[:, :1, :1, :1]).abs().amax((0, 2, 3)) > 1e-4 for view in views])
    assert 20 < (lines.sum(1) > 1).sum() < 40


def test_a_strong_view_moves_nothing():
    """A bright block stays the brightest place, where it was."""
    image = torch.zeros(30, 1, 9, 11, 13)
    image[:, :, 3:6, 4:8, 5:9] = 1
    views = strong_view(image, range(30))
    inside, outside = views[:, 0, 4, 5:7, 6:8].mean((1, 2)), views[:, 0, 0, 0, 0]
    assert (inside > outside).all()
    torch.testing.assert_close(views.flip(2), strong_view(image.flip(2), range(30)), atol=1e-5, rtol=0)


def test_what_is_dropped_is_made_up_for_on_average():
    features = torch.ones(2, 50, *SHAPE)
    kept = dropped(features, 0.25, (1, 2))
    assert set(kept.flatten().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(kept.mean().item() - 1) < 0.02
    assert torch.equal(dropped(features, 0.0, (1, 2)), features)
    whole = dropped(features, 0.5, (1, 2), channels=True)
    assert torch.equal(whole.amin((2, 3, 4)), whole.amax((2, 3, 4)))
    assert not torch.equal(whole[0], whole[1])
