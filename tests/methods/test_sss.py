"""Consistency on features that strong views agree on, and the votes of a promptable network."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import MIDWAY, TinyNet, assert_step, dice, nll, part_ways, segmentation
from by_hand import batch as patches
from test_train import plain_settings
from torch import nn
from typer.testing import CliRunner

from medssl.cli import app
from medssl.config import dump, parse
from medssl.data.draw import Wish, make_split
from medssl.data.prepared import read_prepared
from medssl.data.recipe import Recipe
from medssl.data.splits import write_split
from medssl.errors import ConfigError
from medssl.logs import read_metrics
from medssl.methods import METHODS
from medssl.methods.inside import decoder_blocks, with_agreeing_channels
from medssl.networks import NetworkConfig, make_network
from medssl.parts.perturb import strong_view
from medssl.parts.prompts import describe
from medssl.parts.sample import Progress, TrainBatch
from medssl.parts.schedules import generator, mix
from medssl.predictor import Predictor, WindowConfig, chosen_networks
from medssl.run import RunConfig, build_method, parse_method
from medssl.train import train
from medssl.trainer import TrainConfig, make_optimizer

SHAPE = (8, 12, 4)
LATER = Progress(60, 100)
NETWORKS = ["unet", "dynunet"]


def real(name="unet"):
    network = NetworkConfig(name=name, channels=(4, 8, 16), strides=((2, 2, 1), (2, 2, 2)))
    return lambda **changes: make_network(network.changed(**changes), 1, 3)


def build(make=None, **settings):
    torch.manual_seed(0)
    make = make or (lambda **changes: nn.Conv3d(1, 3, 3, padding=1))
    settings = {"enhancement": 0.0, "threshold": 0.0, **settings}
    return METHODS["sss"](parse_method({"name": "sss", **settings}), make).train()


def batch(seed=1):
    torch.manual_seed(seed)
    label = torch.randint(0, 3, (2, *SHAPE))
    return TrainBatch(torch.randn(2, 1, *SHAPE), label, torch.randn(3, 1, *SHAPE), (5, 6, 7))


def bright(gain=1.0):
    """The same boxes on dark ground in labelled and unlabelled patches; class 1 is of grey 1, class 2 of grey 2."""
    label = torch.zeros(4, *SHAPE, dtype=torch.long)
    label[0, 1:5, 2:9] = label[2, 1:5, 2:9] = 1
    label[1, 2:7, 4:10] = label[3, 2:7, 4:10] = 2
    torch.manual_seed(1)
    image = gain * (label + 0.01 * torch.randn(label.shape)).unsqueeze(1)
    return TrainBatch(image[:2], label[:2], image[2:], (5, 6))


def seeing(**settings):
    """A student that sees them."""
    method = build(lambda **changes: nn.Conv3d(1, 3, 1), backbone="stand_in", **settings)
    with torch.no_grad():
        method.student.weight.copy_(torch.tensor([0.0, 20.0, 40.0]).view(3, 1, 1, 1, 1))
        method.student.bias.copy_(torch.tensor([0.0, -10.0, -40.0]))
    return method


def step(method, data, rng=0):
    return method.step(data, LATER, generator(rng))


def test_losses_are_those_of_the_equations():
    method = part_ways(build(TinyNet, threshold=0.8, views=3, strong_weight=0.7, enhancement=2.0))
    data, student = replace(patches(), fine=(False, True, True)), method.student
    confidence, target = copy.deepcopy(student).eval()(data.weak).detach().softmax(1).max(1)
    trust = torch.where(confidence >= 0.8, confidence, 0)
    assert 0.2 < (trust > 0).float().mean() < 0.8
    losses = method.step(data, MIDWAY, generator(0)).losses
    seeds = [[mix(seed, view) for seed in data.seeds] for view in range(3)]
    views = [strong_view(data.unlabelled, each, data.fine) for each in seeds]
    logits = with_agreeing_channels(student, torch.cat(views), 3, 2.0).chunk(3)
    told = [(trust * nll(z, target)).mean() + trust.mean() * dice(z, target, trust) for z in logits]
    expected = {"supervised": segmentation(student(data.image), data.label), "strong": 0.7 * sum(told) / 2 / 3}
    assert_step(losses, expected, [student])


def test_the_stand_in_is_not_told_off_where_nobody_annotated():
    method, data = seeing(prompts={"every": 1}), bright()
    known = torch.ones_like(data.label, dtype=torch.bool)
    known[:, :, 5:] = False  # cuts through both components
    cut = replace(data, label=data.label * known, known=known)
    with torch.no_grad():
        method.backbone.decoder[-1].weight.zero_()
        method.backbone.decoder[-1].bias.fill_(50.0)  # yes everywhere, which is wrong beside the components
    loss, as_background = (
        method.lesson(method.backbone, one, 3, generator(0)) for one in (cut, replace(cut, known=None))
    )
    assert 0 < loss < as_background


def test_an_unsure_network_learns_nothing_from_unlabelled_patches():
    method = build(threshold=0.95)
    with torch.no_grad():
        method.student.weight.zero_()
        method.student.bias.zero_()
    result = step(method, batch())
    assert result.losses["strong"] == result.stats["selected"] == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_strong_views_are_compared_at_each_scale_of_the_decoder(name):
    losses = {s: step(build(real(name), enhancement=s), batch()).losses for s in (0.0, 3.0)}
    assert losses[0.0]["supervised"] == losses[3.0]["supervised"]
    assert losses[0.0]["strong"] != losses[3.0]["strong"]
    alone = [step(build(real(name), enhancement=s, views=1), batch()).losses["strong"] for s in (0.0, 3.0)]
    torch.testing.assert_close(*alone)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_of_the_decoder_is_weighed_and_none_afterwards(name):
    net = real(name)()
    torch.manual_seed(1)
    both = torch.randn(4, 1, *SHAPE)
    inputs = {}
    blocks = decoder_blocks(net)
    for strength in (0.0, 3.0):
        seen = inputs.setdefault(strength, [])
        for block in blocks:  # a hook that comes later is called later, hence on the first layer within
            first = next(module for module in block.modules() if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)))
            first.register_forward_pre_hook(lambda layer, args, seen=seen: seen.append(args[0].detach()))
        with_agreeing_channels(net, both, 2, strength)
        assert not any(block._forward_pre_hooks for block in blocks)
        for module in net.modules():
            module._forward_pre_hooks.clear()
    assert len(blocks) == len(inputs[0.0]) == len(inputs[3.0]) == 2
    assert all(not torch.allclose(one, two) for one, two in zip(inputs[0.0], inputs[3.0], strict=True))


def test_a_network_that_hides_its_decoder_is_refused():
    with pytest.raises(ConfigError, match=r"method\.enhancement"):
        build(enhancement=2.0)


@pytest.mark.parametrize("backbone", ["none", "stand_in"])
def test_at_inference_the_student_alone_predicts_and_is_an_ordinary_network(backbone):
    method, plain = build(real(), enhancement=2.0, backbone=backbone), real()()
    assert method.students()[0].state_dict().keys() == plain.state_dict().keys()
    step(method, batch())
    image = batch().unlabelled[:1]
    predictor = Predictor(
        chosen_networks(method, "student"), Recipe(), WindowConfig(), patch=SHAPE, channels=("image",), classes="abc",
        device=torch.device("cpu"),
    )  # fmt: skip
    plain.load_state_dict(method.students()[0].state_dict())
    expected = plain.eval()(image).softmax(1)[0].detach().numpy()
    np.testing.assert_allclose(predictor.probabilities(image[0].numpy()), expected, atol=1e-5)


def test_the_optimiser_moves_the_student_and_the_stand_in_each_by_itself():
    method = seeing()
    groups = make_optimizer(method, TrainConfig()).param_groups
    nets = [method.student, method.backbone]
    assert [[id(p) for p in g["params"]] for g in groups] == [[id(p) for p in net.parameters()] for net in nets]
    losses = step(method, bright()).losses
    losses["stand_in"].backward()
    assert all(p.grad.abs().sum() > 0 for p in method.backbone.parameters())
    assert all(p.grad is None for p in method.student.parameters())
    method.zero_grad()
    losses = step(method, bright()).losses
    (losses["supervised"] + losses["strong"]).backward()
    assert all(p.grad is None for p in method.backbone.parameters())


def test_what_is_known_comes_from_labelled_patches_alone_the_latest_first():
    method, data = seeing(), bright()
    other = TrainBatch(data.image, data.label, torch.randn_like(data.unlabelled), data.seeds)
    step(method, data)
    once = method.known.clone()
    rows = [describe(y.numpy(), x[0].numpy(), 3) for x, y in zip(data.image, data.label, strict=True)]
    expected = np.concatenate(rows)
    np.testing.assert_allclose(once[:2].numpy(), expected)
    assert (once[2:] == 0).all()
    same = seeing()
    step(same, other)
    assert torch.equal(same.known, once)
    flipped = TrainBatch(data.image.flip(0), data.label.flip(0), data.unlabelled, data.seeds)
    step(method, flipped)
    np.testing.assert_allclose(method.known[:4].numpy(), np.concatenate([expected[::-1], expected]))


def taught(method, steps=60):
    """After its stand-in has learned from patches of various brightness."""
    optimiser = torch.optim.Adam(method.backbone.parameters(), 0.01)
    for n in range(steps):
        optimiser.zero_grad()
        step(method, bright(gain=0.9 + 0.2 * n / steps), rng=n).losses["stand_in"].backward()
        optimiser.step()
    return method


def test_a_taught_stand_in_is_heard_where_components_look_like_labelled_ones():
    method, data = taught(seeing()), bright()
    result = step(method, data)
    assert result.stats["heard"] == 1
    assert result.stats["prompted"] == pytest.approx(0.5, abs=0.26)  # every second slice
    strange = TrainBatch(data.image, data.label, 1.3 * data.unlabelled, data.seeds)  # brighter than any label
    stats = step(method, strange).stats
    assert stats["prompted"] == stats["heard"] == 0


def test_votes_reach_the_target_and_stay_within_bounds():
    method, data = taught(seeing()), bright()
    probs = method.student(data.unlabelled).detach().softmax(1)
    doubting = 0.6 * probs + 0.4 / 3
    voted, stats = method.heard(method.backbone, data, 0.9 * probs + 0.1 / 3)
    assert stats["heard"] > 0
    torch.testing.assert_close(voted.sum(1), torch.ones(2, *SHAPE))
    changed = (voted - (0.9 * probs + 0.1 / 3)).abs().amax(1)
    assert 0 < changed.max() <= 1 / 3
    assert method.heard(method.backbone, data, doubting)[1]["prompted"] == 0, "unreliable components are not prompted"


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_across_another_axis_are_those_of_turned_patches(axis):
    order = [2, 0, 1] if axis == 0 else [0, 2, 1]  # where the slices' axis, 2 before, is `axis` now
    data = bright()
    turned = TrainBatch(
        data.image.permute(0, 1, *(2 + n for n in order)), data.label.permute(0, *(1 + n for n in order)),
        data.unlabelled.permute(0, 1, *(2 + n for n in order)), data.seeds,
    )  # fmt: skip
    here, there = step(seeing(), data), step(seeing(prompts={"axis": axis}), turned)
    torch.testing.assert_close(here.losses["stand_in"], there.losses["stand_in"])
    torch.testing.assert_close(here.stats["prompted"], there.stats["prompted"])
    method, other = taught(seeing()), seeing(prompts={"axis": axis})
    other.load_state_dict(method.state_dict())
    probs = 0.9 * method.student(data.unlabelled).detach().softmax(1) + 0.1 / 3
    axes = [0, 1, *(2 + n for n in order)]
    voted, stats = method.heard(method.backbone, data, probs)
    assert stats["heard"] > 0
    again, _ = other.heard(other.backbone, turned, probs.permute(axes))
    torch.testing.assert_close(again, voted.permute(axes))


def test_patches_without_foreground_teach_the_stand_in_nothing_and_stop_nobody():
    method, data = seeing(), bright()
    result = step(method, TrainBatch(data.image, torch.zeros_like(data.label), data.unlabelled, data.seeds))
    assert result.losses["stand_in"] == 0
    result.losses["stand_in"].backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in method.backbone.parameters())  # as processes want it
    assert (method.known == 0).all()


def test_only_a_backbone_has_gauges_and_a_vote():
    assert not {"prompted", "heard"} & step(build(), batch()).stats.keys()
    assert {"prompted", "heard"} <= step(build(backbone="stand_in"), batch()).stats.keys()


class TestRuns:
    @pytest.fixture
    def settings(self, balls, tmp_path):
        path = tmp_path / "splits.json"
        write_split(path, make_split(read_prepared(balls[1]), Wish(labelled=2, val=2, test=2)))

        def make(iterations=20, **method):
            plain = plain_settings(balls, path, "sss", iterations=iterations)
            return {**plain, "method": {"name": "sss", **method}}

        return make

    def test_the_stand_in_learns_beside_the_student_and_a_cut_run_is_a_whole_one(self, settings, tmp_path):
        config = parse(RunConfig, settings(backbone="stand_in", threshold=0.4, prompts={"reliable": 0.4}))
        run = train(config, tmp_path / "run", quiet=True)
        loss = [row["loss/stand_in"] for row in read_metrics(run / "metrics.csv") if "loss/stand_in" in row]
        assert len(loss) == 20
        assert sum(loss[-5:]) / 5 < 0.8 * sum(loss[:2]) / 2
        train(config, tmp_path / "cut", until=11, quiet=True)
        train(config, tmp_path / "cut", resume=True, quiet=True)
        one, two = (torch.load(folder / "last.pt")["method"] for folder in (run, tmp_path / "cut"))
        assert {"known", "backbone.encoder.0.weight"} <= one.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_absent_weights_stop_a_training_before_it_writes_anything(self, settings, tmp_path):
        dump(settings(backbone="sam2", checkpoint=str(tmp_path / "sam2.pt")), tmp_path / "config.yaml")
        words = ["train", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
        result = CliRunner().invoke(app, words)
        assert isinstance(result.exception, ConfigError)
        assert str(tmp_path / "sam2.pt") in str(result.exception)
        assert "https://dl.fbaipublicfiles.com" in str(result.exception)
        assert not (tmp_path / "run").exists()

    def test_predictions_need_no_weights_of_the_backbone(self, settings):
        method = build_method(parse(RunConfig, settings(backbone="sam2")))
        assert [type(net) for net in chosen_networks(method, "student")] == [type(method.student)]
        assert method.backbone is None
