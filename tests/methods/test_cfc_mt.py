"""Two students on frequency bands and the teacher that follows their mean."""

import numpy as np
import pytest
import torch
from by_hand import MIDWAY, RISE, SHAPE, assert_step, batch, part_ways, segmentation, squares
from torch import nn

from medssl.config import parse
from medssl.data.recipe import Recipe
from medssl.ema import ema_update
from medssl.methods import METHODS
from medssl.parts.frequency import split_frequencies
from medssl.parts.sample import Progress
from medssl.parts.schedules import generator
from medssl.predictor import Predictor, WindowConfig, chosen_networks
from medssl.run import RunConfig, build_method, parse_method
from medssl.trainer import TrainConfig, make_optimizer

LATER = Progress(60, 100)
BANDS = {"hard": (0.0, 0.0), "soft": (0.2, 0.65)}


def build(**settings):
    torch.manual_seed(0)
    config = parse_method({"name": "cfc_mt", "ramp": 0.0, **settings})
    return METHODS["cfc_mt"](config, lambda **changes: nn.Conv3d(1, 3, 3, padding=1))


def leaking(low, high, **settings):
    return build(high_in_low=low, low_in_high=high, **settings)


def step(method, progress=LATER):
    return method.step(batch(), progress, generator(0))


def test_all_three_networks_start_from_the_same_weights_and_share_none():
    method = build()
    low, high, teacher = (net.state_dict() for net in (method.low, method.high, method.teacher))
    for name in low:
        assert torch.equal(low[name], high[name])
        assert torch.equal(low[name], teacher[name])
    assert len({p.data_ptr() for p in method.parameters()}) == 6


@pytest.mark.parametrize("kind", ["haar", "gauss", "fft"])
@pytest.mark.parametrize(("a", "b"), BANDS.values(), ids=BANDS)
def test_each_student_sees_its_band_and_the_teacher_the_image(kind, a, b):
    method, seen = leaking(a, b, frequency={"kind": kind}), {}
    for name in ("low", "high", "teacher"):
        net = getattr(method, name).net
        net.register_forward_hook(lambda net, args, out, name=name: seen.update({name: args[0]}))
    step(method)
    images = torch.cat([batch().image, batch().unlabelled])
    low, high = split_frequencies(images, kind)
    for name, band in {"low": low + a * high, "high": high + b * low}.items():
        gain = images.std((2, 3, 4), keepdim=True) / band.std((2, 3, 4), keepdim=True)
        torch.testing.assert_close(seen[name], gain * band)
    assert torch.equal(seen["teacher"], batch().unlabelled)


@pytest.mark.parametrize(("a", "b"), [*BANDS.values(), (1.0, 1.0)])
def test_losses_are_those_of_the_equations(a, b):
    method = part_ways(leaking(a, b, cross_weight=0.7, full_weight=1.3, ramp=0.5))
    data, low, high = batch(), method.low, method.high
    p_low, p_high = (student(data.unlabelled).softmax(1) for student in (low, high))
    p = method.teacher(data.unlabelled).softmax(1)
    cross = squares(p_low, p_high.detach()).mean() + squares(p_high, p_low.detach()).mean()
    expected = {
        "supervised_low": segmentation(low(data.image), data.label),
        "supervised_high": segmentation(high(data.image), data.label),
        "cross_frequency": 0.7 * RISE * cross / 2,
        "full_frequency": 1.3 * RISE * (squares(p_low, p).mean() + squares(p_high, p).mean()) / 2,
    }
    assert_step(step(method, MIDWAY).losses, expected, [low, high])


def test_equal_students_with_all_frequencies_have_nothing_to_settle_and_different_ones_are_two_mean_teachers():
    losses = step(leaking(1.0, 1.0)).losses
    assert losses["cross_frequency"] < 1e-12
    assert losses["full_frequency"] < 1e-12
    method, data = part_ways(leaking(1.0, 1.0)), batch()
    nets = method.low.net, method.high.net, method.teacher.net
    low, high, teacher = (net(data.unlabelled).softmax(1) for net in nets)
    losses = step(method).losses
    full = (squares(low, teacher) + squares(high, teacher)) / 2
    torch.testing.assert_close(losses["full_frequency"], full.mean())
    torch.testing.assert_close(losses["cross_frequency"], squares(low, high).mean())


def test_the_teacher_follows_the_mean_of_both_students():
    method = part_ways(build())
    (follow,) = method.followers(Progress(500, 1000))
    assert follow.decay == 0.99
    assert [method.followers(Progress(i, 1000))[0].decay for i in (0, 1, 9)] == [0.0, 0.5, 0.9]
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    ema_update(follow.teacher, follow.students, follow.decay)
    low, high = method.low.state_dict(), method.high.state_dict()
    for name, value in method.teacher.state_dict().items():
        torch.testing.assert_close(value, 0.99 * before[name] + 0.01 * (low[name] + high[name]) / 2)


def test_the_optimiser_moves_the_students_weights_and_no_others():
    method = build()
    groups = make_optimizer(method, TrainConfig()).param_groups
    nets = [method.low.net, method.high.net]
    assert [[id(p) for p in g["params"]] for g in groups] == [[id(p) for p in net.parameters()] for net in nets]


@pytest.mark.parametrize("which", ["student", "teacher", "ensemble"])
def test_at_inference_each_network_sees_its_band_as_in_training(which):
    method, image = part_ways(build()), batch().unlabelled[:1]
    predictor = Predictor(
        chosen_networks(method, which), Recipe(), WindowConfig(), patch=SHAPE, channels=("image",), classes="abc",
        device=torch.device("cpu"),
    )  # fmt: skip
    low, high = split_frequencies(image)
    soft, sharp = low + 0.2 * high, high + 0.65 * low
    loud = [band * image.std() / band.std() for band in (soft, sharp)]
    probs = [net.net(x).softmax(1) for net, x in zip((method.low, method.high), loud, strict=True)]
    teacher = method.teacher.net(image).softmax(1)
    chosen = {"student": probs, "teacher": [teacher], "ensemble": [*probs, teacher]}[which]
    expected = torch.stack(chosen).mean(0)[0].detach().numpy()
    np.testing.assert_allclose(predictor.probabilities(image[0].numpy()), expected, atol=1e-5)


def test_networks_get_float32_bands_under_autocast():
    method, seen = build(), []
    method.low.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    with torch.autocast("cpu", torch.bfloat16):
        result = step(method)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], method.low.view.apply(torch.cat([batch().image, batch().unlabelled])))
    assert all(torch.isfinite(loss) for loss in result.losses.values())


def run_of(recipe_spacing, **frequency):
    values = {
        "data": {"name": "slices", "classes": ["a", "b"], "recipe": {"spacing": recipe_spacing}},
        "method": {"name": "cfc_mt", "frequency": frequency},
        "network": {"name": "unet", "channels": [4, 8], "strides": [2]},
    }
    return parse(RunConfig, values)


@pytest.mark.parametrize("kind", ["haar", "gauss", "fft"])
def test_bands_follow_the_spacing_of_the_data(kind):
    slices = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8, 8)
    thick = build_method(run_of([1.5, 1.5, 10.0], kind=kind))
    torch.testing.assert_close(thick.low.view.apply(slices), slices)
    cubes = build_method(run_of([1.5, 1.5, 1.5], kind=kind))
    low = cubes.low.view.split(slices)[0]
    assert low[..., 2:6].std() < 0.1 * slices.std()
    finer = build_method(run_of([0.3, 0.3, 0.3], kind=kind))
    torch.testing.assert_close(finer.low.view.split(slices)[0], low)


def test_a_spacing_that_is_given_wins_and_none_is_written_down():
    run = run_of([1.5, 1.5, None])
    assert run.to_plain()["method"]["frequency"]["spacing"] is None
    assert run.method.on_grid(run.data.recipe.nominal_spacing).frequency.spacing == (1.5, 1.5, 1.5)
    given = run_of([1.5, 1.5, None], spacing=[1.5, 1.5, 8.0])
    assert given.method.on_grid(given.data.recipe.nominal_spacing).frequency.spacing == (1.5, 1.5, 8.0)


def test_gauges_tell_how_far_the_three_networks_are_apart():
    together = step(leaking(1.0, 1.0)).stats
    assert together["gap"] == together["dissent"] == 0
    method = leaking(1.0, 1.0)
    with torch.no_grad():
        method.high.net.bias[2] = method.teacher.net.bias[2] = 1e6
    stats = step(method).stats
    assert stats["pseudo/2"] == 1
    assert stats["dissent"] > 0.5
    torch.testing.assert_close(stats["gap"], stats["dissent"] / 2)
