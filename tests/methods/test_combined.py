"""What the combined method is made of: each part by itself, what it costs, and the methods it reduces to."""

import itertools
from dataclasses import replace

import pytest
import torch
from by_hand import MIDWAY, RISE, SHAPE, assert_step, dice, doubt, nll, part_ways, squares
from by_hand import batch as patches
from pydantic import ValidationError
from torch import nn

from medssl.catalogue import cost
from medssl.ema import ema_update
from medssl.errors import ConfigError
from medssl.methods import METHODS
from medssl.methods.combined import Said
from medssl.networks import NetworkConfig, make_network
from medssl.parts.frequency import split_frequencies
from medssl.parts.losses import dice_ce
from medssl.parts.mix import paste, random_box
from medssl.parts.pseudo import largest_component
from medssl.parts.sample import Progress, Sample, TrainBatch
from medssl.parts.schedules import generator
from medssl.run import parse_method

LATER = Progress(60, 100)
BANDED = {  # the settings that most tests of parts are about
    "bands": ["low", "high"], "turn": 1, "whole": False, "pseudo": "dice_ce", "dice": "linear", "full_weight": 1.0,
    "full_band": 0.2, "own": 0.5, "trust": "certainty", "disputed": 0.5,
}  # fmt: skip
PLAIN = {  # one student that sees all, its teacher, hard labels that count alike
    "axes": [(0, 1, 2)], "bands": ["full"], "trust": "alike", "disputed": 1.0, "full_weight": 0.0, "cross_weight": 0.0,
}  # fmt: skip
APART = {**PLAIN, "copy_paste": False, "alpha": 0.0, "pretrain": 0.0, "largest_component": False, "full_band": 0.0}


def make(name, kernel=3, **settings):
    torch.manual_seed(0)
    config = parse_method({"name": name, **settings})
    return METHODS[name](config, lambda **changes: nn.Conv3d(1, 3, kernel, padding=kernel // 2))


def build(kernel=3, **settings):
    return make("combined", kernel, **{**BANDED, **settings})


def batch(size=2):
    torch.manual_seed(1)
    images = torch.randn(2 * size, 1, *SHAPE)
    return TrainBatch(images[:size], torch.randint(0, 3, (size, *SHAPE)), images[size:], tuple(range(size)))


def step(method, progress=LATER, seed=0, size=2):
    return method.step(batch(size), progress, generator(seed))


def total(result):
    return torch.stack(list(result.losses.values())).sum()


def gradients(method, loss):
    nets = [list(student.parameters()) for student in method.students()]
    return torch.autograd.grad(loss, [p for net in nets for p in net], allow_unused=True)


def same_weights(ours, theirs):
    """Both with the networks of ours, students and teachers in order."""
    part_ways(ours)
    for mine, other in zip((*ours.students(), *ours.teachers()), (*theirs.students(), *theirs.teachers()), strict=True):
        with torch.no_grad():
            for p, q in zip(other.parameters(), mine.parameters(), strict=True):
                p.copy_(q)
    return ours, theirs


def assert_same(ours, theirs, names, progress=LATER, size=2):
    """The same losses under other names, and the same gradients."""
    mine, other = step(ours, progress, size=size), step(theirs, progress, size=size)
    torch.testing.assert_close([mine.losses[name] for name in names], [other.losses[names[name]] for name in names])
    for name, loss in mine.losses.items():
        assert name in names or loss.item() == 0
    torch.testing.assert_close(gradients(ours, total(mine)), gradients(theirs, total(other)))


class TestReductions:
    @pytest.mark.parametrize("clean", [True, False])
    @pytest.mark.parametrize("size", [2, 4])
    def test_one_full_band_student_with_hard_labels_is_bcp(self, clean, size):
        shared = {"alpha": 0.3, "box": 0.5, "largest_component": clean}
        ours, bcp = same_weights(build(**PLAIN, **shared), make("bcp", **shared))
        mine, theirs = step(ours, size=size), step(bcp, size=size)
        torch.testing.assert_close(total(mine), total(theirs))
        torch.testing.assert_close(gradients(ours, total(mine)), gradients(bcp, total(theirs)))
        for name in ("pseudo/1", "prior/2"):
            torch.testing.assert_close(mine.stats[name], theirs.stats[name])

    def test_its_stage_one_and_its_teacher_are_those_of_bcp(self):
        ours, bcp = same_weights(build(**PLAIN), make("bcp"))
        assert_same(ours, bcp, {"pretrain": "pretrain"}, Progress(11, 100), size=4)
        for iteration in (11, 12, 99):
            mine, theirs = (method.followers(Progress(iteration, 100))[0] for method in (ours, bcp))
            assert mine.decay == theirs.decay

    def test_students_that_see_all_are_bcp_each_with_a_box_of_its_own(self):
        bcp, ours = make("bcp"), build(**{**PLAIN, "bands": ["full", "full", "full"]})
        boxes = [shown.box for shown in ours.drawn(batch().image, generator(0))]
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(boxes, 2))
        labelled, pseudo = Sample.of(batch().image, batch().label), bcp.pseudo_label(batch().unlabelled)
        expected = 0
        for box in boxes:
            inward, outward = paste(pseudo[:1], labelled[1:], box), paste(labelled[:1], pseudo[1:], box)
            expected += sum(bcp.mixed_loss(bcp.pair.student(one.image), one, box) for one in (inward, outward))
        torch.testing.assert_close(total(step(ours)), expected)

    def test_students_that_see_all_and_start_alike_part(self):
        ours = build(bands=["full", "full"], full_band=1.0)
        one, other = torch.autograd.grad(total(step(ours)), [student.net.weight for student in ours.group(0).students])
        assert not torch.allclose(one, other)

    def test_groups_of_equal_networks_are_bcp_in_turn(self):
        bcp, ours = make("bcp"), build(**{**PLAIN, "axes": 2 * [(0, 1, 2)]})
        for net in (*ours.students(), *ours.teachers()):
            net.net.load_state_dict(bcp.pair.student.state_dict())
        for iteration in (60, 61):
            torch.testing.assert_close(total(step(ours, Progress(iteration, 100))), total(step(bcp)))

    def test_without_copy_paste_and_pseudo_labels_it_is_mean_teacher(self):
        settings = {**APART, "full_weight": 0.7, "ramp": 0.9, "dice": "squared"}
        theirs = make("mean_teacher", noise=0.0, consistency_weight=0.7, ramp=0.9)
        assert_same(*same_weights(build(**settings), theirs), {"labelled": "supervised", "full": "consistency"})
        for iteration in (0, 1, 9, 99):
            mine, other = (method.followers(Progress(iteration, 100))[0] for method in (build(**settings), theirs))
            assert mine.decay == other.decay

    def test_bands_make_it_cross_frequency_training(self):
        settings = {**APART, "bands": ["low", "high"], "full_weight": 0.7, "cross_weight": 0.4, "dice": "squared"}
        ours, cfc = same_weights(build(**settings), make("cfc_mt", full_weight=1.4, cross_weight=0.8))
        mine, theirs = step(ours), step(cfc)
        expected = theirs.losses
        expected["labelled"] = expected["supervised_low"] + expected["supervised_high"]
        for name, other in {"labelled": "labelled", "full": "full_frequency", "cross": "cross_frequency"}.items():
            torch.testing.assert_close(mine.losses[name], expected.pop(other))
        torch.testing.assert_close(gradients(ours, total(mine)), gradients(cfc, total(step(cfc))))
        torch.testing.assert_close(mine.stats["dissent"], theirs.stats["dissent"])

    def test_with_all_terms_off_it_is_supervised_learning(self):
        ours, supervised = build(**APART, dice="squared"), make("supervised")
        supervised.student.load_state_dict(ours.students()[0].net.state_dict())
        assert_same(ours, supervised, {"labelled": "supervised"})

    @pytest.mark.parametrize("scope", ["voxel", "sample"])
    def test_losses_on_labels_by_the_others_alone_are_on_those_of_umct(self, scope):
        settings = {"axes": 3 * [(0, 1, 2)], "own": 0.0, "scope": scope, "turn": 0, "alpha": 0.3, "full_weight": 0.7}
        ours = part_ways(build(**{**APART, **settings, "ramp": 0.5, "pseudo": "ce"}))
        umct, data = make("umct", uncertainty="entropy", scope=scope), batch()
        for mine, theirs in zip(ours.teachers(), umct.nets, strict=True):
            theirs.load_state_dict(mine.net.state_dict())
        targets, students = umct.targets(*umct.opinions(data.unlabelled, data.seeds)), ours.students()
        said = [student(data.unlabelled) for student in students]
        expected = {
            "labelled": sum(dice_ce(student(data.image), data.label, dice="linear") for student in students),
            "pseudo": 0.3 * sum(nll(z, q.argmax(1)).mean() for z, q in zip(said, targets, strict=True)),
            "full": 0.7 * RISE * sum(squares(z.softmax(1), q).mean() for z, q in zip(said, targets, strict=True)),
        }
        assert_step(ours.step(data, MIDWAY, generator(0)).losses, expected, students)


@pytest.mark.parametrize("pseudo", ["ce", "dice_ce"])
def test_losses_are_those_of_the_equations(pseudo):
    """Two groups of two students, teachers that are told apart from them and label the weak view."""
    settings = {"bands": ["low", "high"], "full_band": 0.0, "ramp": 0.5, "pseudo": pseudo}
    weights = {"alpha": 0.3, "full_weight": 0.7, "cross_weight": 0.4, "own": 0.3, "disputed": 0.6}
    method, data = part_ways(make("combined", **settings, **weights)), patches(unlabelled=2)
    boxes = [shown.box for shown in method.drawn(data.image, generator(0))]
    p = torch.stack([net(data.weak).softmax(1) for net in method.teachers()]).detach()
    unsure = torch.stack([doubt(one) for one in p])
    counts = torch.minimum(1 / (unsure + 1e-3), 20 * (1 / (unsure + 1e-3)).amin(0)).unsqueeze(2)
    disputed = p[0].argmax(1) != p[1].argmax(1)
    assert 0.2 < disputed.float().mean() < 0.8

    def mean(values, trust, region):
        return (trust * region * values).sum() / region.sum()

    def told(logits, target, trust, region):
        ce = mean(nll(logits, target), trust, region)
        return ce if pseudo == "ce" else (ce + mean(1.0, trust, region) * dice(logits, target, trust * region)) / 2

    def labelled(logits, label, region):
        return (mean(nll(logits, label), 1.0, region) + dice(logits, label, region)) / 2

    expected = dict.fromkeys(("labelled", "pseudo", "full", "cross"), 0.0)
    for number in (0, 1):
        by = counts * torch.tensor([0.3 if number == k else 1.0 for k in (0, 1)]).view(2, 1, 1, 1, 1, 1)
        q = (by * p).sum(0) / by.sum(0)
        target, trust = largest_component(q.argmax(1), 3), (1 - doubt(q)) * torch.where(disputed, 0.6, 1.0)
        seen = []
        for student, box in zip(method.group(number).students, boxes, strict=True):
            mine, other = student.view.apply(data.image), student.view.apply(data.unlabelled)
            inward, outward = torch.where(box, other[:1], mine[1:]), torch.where(box, mine[:1], other[1:])
            whole, inward, outward = student.net(torch.cat([mine, inward, outward])).split([2, 1, 1])
            expected["labelled"] += labelled(whole, data.label, torch.ones_like(trust))
            expected["labelled"] += labelled(inward, data.label[1:], ~box[None])
            expected["labelled"] += labelled(outward, data.label[:1], box[None])
            expected["pseudo"] += 0.3 * told(inward, target[:1], trust[:1], box[None])
            expected["pseudo"] += 0.3 * told(outward, target[1:], trust[1:], ~box[None])
            seen.append(torch.cat([inward, outward]).softmax(1))
        where = [torch.stack([box, ~box]) for box in boxes]
        for one, other, here in zip(seen, seen[::-1], where, strict=True):
            expected["full"] += 0.7 * RISE * mean(squares(one, q), trust, here)
            expected["cross"] += 0.4 * RISE * mean(squares(one, other.detach()), trust, where[0] & where[1])
    assert_step(method.step(data, MIDWAY, generator(0)).losses, expected, method.students())


class TestCost:
    """A backward pass as two forward ones, patches of one size."""

    @staticmethod
    def passes(method):
        found = cost(method)
        return found.student + found.teacher + 2 * found.backward

    @pytest.mark.parametrize(
        ("settings", "times"),
        [
            ({}, 2),
            ({"turn": 1}, 16 / 14),
            ({"turn": 1, "axes": 3 * [(0, 1, 2)]}, 18 / 14),
            ({"turn": 1, "bands": ["low", "high"]}, 2),
            ({"whole": False}, 16 / 14),
            ({"whole": False, "bands": ["low", "high"], "turn": 1, "teachers": "student"}, 20 / 14),
            ({"copy_paste": False}, 2),
            ({"pretrain": 0.95}, 24 / 14),
            ({**PLAIN, "whole": False}, 8 / 14),
        ],
        ids=[
            "default",
            "turns",
            "three groups",
            "bands",
            "pasted only",
            "a teacher each",
            "no copy-paste",
            "stage one",
            "BCP",
        ],
    )
    def test_a_step_costs_at_most_twice_mean_teacher(self, settings, times):
        teacher, ours = (
            METHODS[values["name"]](parse_method(values), lambda **changes: nn.Conv3d(1, 2, 1))
            for values in ({"name": "mean_teacher"}, {"name": "combined", **settings})
        )
        assert self.passes(ours) == pytest.approx(times * self.passes(teacher))
        assert times <= 2


class TestTurns:
    def test_a_resting_group_gets_no_gradient_and_its_teacher_waits(self):
        for iteration, active in ((60, 0), (61, 1), (62, 0)):
            method = build()
            total(step(method, Progress(iteration, 100))).backward()
            for number in (0, 1):
                learns = [p.grad is not None for net in method.group(number).students for p in net.parameters()]
                assert all(learns) if number == active else not any(learns)
            (follow,) = method.followers(Progress(iteration, 100))
            assert follow.teacher is method.group(active).teachers[0]
            assert list(follow.students) == method.group(active).students

    def test_turns_last_as_long_as_they_say(self):
        method = build(turn=3, pretrain=0.0)
        progress = [Progress(i, 100) for i in range(12)]
        assert [number for p in progress for number in method.turn(p)] == 2 * [0, 0, 0, 1, 1, 1]
        assert [method.steps(p) for p in progress] == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]

    def test_without_turns_all_groups_learn_what_they_would_in_theirs(self):
        together = total(step(part_ways(build(turn=0)), Progress(60, 100)))
        method = part_ways(build(ramp=0.0))
        apart = [total(step(method, Progress(i, 100))) for i in (60, 61)]
        torch.testing.assert_close(together, sum(apart))


class TestStageOne:
    def test_networks_of_a_group_stay_one_and_groups_apart(self):
        method = part_ways(build(teachers="student", turn=0))
        means = [sum(net.net.weight for net in method.group(n).students).detach() / 2 for n in (0, 1)]
        for follow in method.followers(Progress(0, 100)):
            ema_update(follow.teacher, follow.students, follow.decay)
        for number, mean in enumerate(means):
            for net in (*method.group(number).students, *method.group(number).teachers):
                torch.testing.assert_close(net.net.weight, mean)
        assert not torch.allclose(*means)

    def test_it_looks_at_no_unlabelled_patch(self):
        data = batch()
        other = TrainBatch(data.image, data.label, torch.full_like(data.unlabelled, torch.nan), data.seeds)
        torch.testing.assert_close(total(build().step(other, Progress(0, 100), generator(0))),
                                   total(step(build(), Progress(0, 100))))  # fmt: skip

    def test_networks_of_a_group_start_alike(self):
        for number, method in enumerate(2 * [build()]):
            weights = [net.net.weight for net in (*method.group(number).students, *method.group(number).teachers)]
            assert len({w.data_ptr() for w in weights}) == 3
            assert all(torch.equal(w, weights[0]) for w in weights)


class TestBands:
    @pytest.mark.parametrize("filtered", ["before", "after", "unlabelled"])
    def test_students_see_their_bands_of_what_is_pasted(self, filtered):
        method, seen, data = build(filtered=filtered, full_band=0.0), [], batch()
        for student in method.group(0).students:
            student.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
        step(method)
        shown = method.drawn(data.image, generator(0))
        assert torch.equal(shown[0].box, random_box(SHAPE, 2 / 3, generator(0)))
        for image, student, box in zip(seen, method.group(0).students, [one.box for one in shown], strict=True):
            band = student.view.apply
            mine = band(data.image) if filtered == "before" else data.image
            other = data.unlabelled if filtered == "after" else band(data.unlabelled)
            pasted = torch.cat([torch.where(box, other[:1], mine[1:]), torch.where(box, mine[:1], other[1:])])
            torch.testing.assert_close(image, band(pasted) if filtered == "after" else pasted)
        assert not torch.allclose(*seen)

    def test_bands_may_be_of_the_consistency_alone(self):
        ours, full = same_weights(build(filtered="consistency", full_band=0.0), build(bands=["full", "full"]))
        seen, data = [], batch()
        for student in ours.group(0).students:
            student.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
        mine, theirs = step(ours).losses, step(full).losses
        for name in ("labelled", "pseudo"):
            torch.testing.assert_close(mine[name], theirs[name])
        assert not torch.allclose(mine["full"], theirs["full"])
        for image, student in zip(seen[1::2], ours.group(0).students, strict=True):
            torch.testing.assert_close(image, student.view.apply(data.unlabelled))

    def test_bands_are_soft_and_those_of_the_settings(self):
        low, high = split_frequencies(batch().image, "gauss", sigma=1.0)
        settings = {"frequency": {"kind": "gauss", "sigma": 1.0}, "high_in_low": 0.3, "low_in_high": 0.4}
        students = build(**settings).group(0).students
        for student, band in zip(students, (low + 0.3 * high, high + 0.4 * low), strict=True):
            gain = batch().image.std((2, 3, 4), keepdim=True) / band.std((2, 3, 4), keepdim=True)
            torch.testing.assert_close(student.view.apply(batch().image), gain * band)

    def test_in_their_share_of_the_steps_all_students_see_all(self):
        method, whole = build(full_band=0.25), 0
        for seed in range(100):
            views = [shown.view for shown in method.drawn(batch().image, generator(seed))]
            whole += all(torch.equal(view.apply(batch().image), batch().image) for view in views)
            assert len({type(view) for view in views}) == 1
        assert 12 < whole < 38

    def test_a_teacher_sees_all_or_what_its_student_sees(self):
        image = batch().image
        assert torch.equal(build().group(0).teachers[0].view.apply(image), image)
        each = build(teachers="student")
        for teacher, student in zip(each.teachers(), each.students(), strict=True):
            assert torch.equal(teacher.view.apply(image), student.view.apply(image))
        follows = each.followers(Progress(61, 100))
        assert [list(follow.students) for follow in follows] == [[student] for student in each.group(1).students]


class TestTargets:
    def test_voxels_keep_their_place_and_their_soft_target_when_pasted(self):
        """A network of single voxels says of a pasted voxel what its equal, the teacher, said of it unpasted."""
        method = build(1, **{**PLAIN, "full_weight": 1.0})
        assert step(method, size=4).losses["full"] < 1e-12
        with torch.no_grad():
            method.students()[0].net.weight.add_(torch.randn(3, 1, 1, 1, 1))
        assert step(method, size=4).losses["full"] > 1e-4

    def test_voxels_in_dispute_count_half_as_much(self):
        method, image = part_ways(build(disputed=0.5)), batch().unlabelled
        probs = torch.stack([net(image).softmax(1) for net in method.teachers()]).detach()
        agree = probs[0].argmax(1) == probs[1].argmax(1)
        assert 0 < agree.sum() < agree.numel()
        halved, whole = (m.told(0, image, Said.of(probs)).pseudo.weight for m in (method, build(disputed=1.0)))
        torch.testing.assert_close(halved, torch.where(agree, whole, whole / 2))
        torch.testing.assert_close(step(method).stats["disputed"], 1 - agree.float().mean())

    def test_a_group_counts_its_own_teacher_as_often_as_it_says(self):
        probs = torch.tensor([[0.7, 0.3], [0.3, 0.7]]).view(2, 1, 2, 1, 1, 1).expand(2, 1, 2, *SHAPE)
        image = torch.zeros(1, 1, *SHAPE)
        for own in (0.0, 0.5, 1.0):
            for number in (0, 1):
                told = build(own=own).told(number, image, Said.of(probs))
                fused = told.probs[0, number]  # equally sure: plain shares
                torch.testing.assert_close(fused, torch.full(SHAPE, (0.7 * own + 0.3) / (own + 1)))

    @pytest.mark.parametrize("settings", [{"most": 1.0}, {"floor": 1e6}])
    def test_a_bound_or_a_floor_that_is_high_makes_teachers_count_alike(self, settings):
        three = {"axes": 3 * [(0, 1, 2)], "own": 1.0}
        probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]]).view(3, 1, 2, 1, 1, 1).expand(3, 1, 2, *SHAPE)
        image, said = torch.zeros(1, 1, *SHAPE), Said.of(probs)
        assert not torch.allclose(build(**three).told(0, image, said).probs, probs.mean(0))
        torch.testing.assert_close(build(**three, **settings).told(0, image, said).probs, probs.mean(0))

    def test_each_of_three_students_is_told_the_mean_square_to_the_others(self):
        method = part_ways(build(**{**APART, "bands": 3 * ["full"], "cross_weight": 0.4, "ramp": 0.0}))
        one, two, three = (student(batch().unlabelled).softmax(1) for student in method.students())
        apart = squares(one, two).mean() + squares(one, three).mean() + squares(two, three).mean()
        torch.testing.assert_close(step(method).losses["cross"], 0.4 * apart)

    def test_the_gap_looks_at_unlabelled_voxels_only(self):
        """Networks that say 1 of labelled voxels and 2 of unlabelled ones, by their grey level."""
        method, data = build(1, **PLAIN), batch()
        with torch.no_grad():
            for net in (*method.students(), *method.teachers()):
                net.net.weight.copy_(torch.tensor([0.0, 50.0, -50.0]).view(3, 1, 1, 1, 1))
        data = replace(data, image=torch.ones_like(data.image), unlabelled=-torch.ones_like(data.unlabelled))
        stats = method.step(data, LATER, generator(0)).stats
        assert stats["pseudo/2"] == 1
        assert stats["gap"] == 0

    def test_a_volume_is_told_the_same_in_any_batch(self):
        method, image = part_ways(build()), batch(4).unlabelled
        probs = torch.stack([net(image).softmax(1) for net in method.teachers()]).detach()
        whole, alone = method.told(0, image, Said.of(probs)), method.told(0, image[2:3], Said.of(probs[:, 2:3]))
        torch.testing.assert_close(whole.pseudo.target[2:3], alone.pseudo.target)
        torch.testing.assert_close(whole.pseudo.weight[2:3], alone.pseudo.weight)


class TestWhatIsSeen:
    def test_teachers_label_the_weak_view_and_students_learn_on_the_strong_one(self):
        data, told, shown = batch(), [], []
        weak = replace(data, weak=data.unlabelled + 1)
        method = part_ways(build(**PLAIN))
        method.teachers()[0].net.register_forward_pre_hook(lambda net, args: told.append(args[0]))
        method.students()[0].net.register_forward_pre_hook(lambda net, args: shown.append(args[0]))
        method.step(weak, LATER, generator(0))
        assert torch.equal(told[0], weak.weak)
        box = random_box(SHAPE, 2 / 3, generator(0))
        assert torch.equal(shown[0][0], torch.where(box, data.unlabelled[0], data.image[1]))

        strong = part_ways(build(**PLAIN, teachers_see="strong"))
        torch.testing.assert_close(total(strong.step(weak, LATER, generator(0))), total(step(strong)))

    def test_whole_labelled_patches_add_the_loss_of_supervised_learning(self):
        ours, without = part_ways(build(**PLAIN, whole=True)), part_ways(build(**PLAIN))
        data = batch()
        extra = dice_ce(ours.students()[0](data.image), data.label, dice="linear")
        torch.testing.assert_close(step(ours).losses["labelled"], step(without).losses["labelled"] + extra)
        torch.testing.assert_close(step(ours).losses["pseudo"], step(without).losses["pseudo"])
        for name, value in step(without).stats.items():
            torch.testing.assert_close(step(ours).stats[name], value)

    def test_a_student_of_either_band_sees_both_in_turn_and_all_at_inference(self):
        method, seen, data = build(bands=["either"], full_band=0.25, whole=True), [], batch()
        assert torch.equal(method.students()[0].view.apply(data.image), data.image)
        method.group(0).students[0].net.register_forward_pre_hook(lambda net, args: seen.append(args[0][:2]))
        for seed in range(100):
            step(method, seed=seed)
        wanted = [view.apply(data.image) for view in method.bands.values()]
        full, low, high = (sum(torch.equal(image, one) for image in seen) for one in wanted)
        assert full + low + high == 100
        assert 12 < full < 38
        assert min(low, high) > 20


def test_labels_by_nobody_are_refused():
    with pytest.raises((ConfigError, ValidationError), match="own: 0 leaves pseudo-labels to other groups"):
        build(own=0.0, axes=[(0, 1, 2)])


def test_groups_that_look_along_different_axes_label_for_each_other():
    network, shape = NetworkConfig(channels=(4, 8, 8), strides=((1, 2, 2), (2, 2, 2))), (4, 8, 12)
    config = parse_method({"name": "combined", "axes": [(0, 1, 2), (1, 2, 0)], "turn": 0})
    torch.manual_seed(0)
    method = METHODS["combined"](config, lambda **changes: make_network(network.changed(**changes), 1, 3))
    images, label = torch.randn(4, 1, *shape), torch.randint(0, 3, (2, *shape))
    result = method.step(TrainBatch(images[:2], label, images[2:], (0, 1)), LATER, generator(0))
    total(result).backward()
    assert all(net(images).shape == (4, 3, *shape) for net in (*method.students(), *method.teachers()))
    assert all(any(p.grad.abs().sum() > 0 for p in student.parameters()) for student in method.students())


def test_networks_of_a_group_are_made_for_its_axes():
    asked = []

    def make_net(**changes):
        asked.append(changes)
        return nn.Conv3d(1, 2, 1)

    METHODS["combined"](parse_method({"name": "combined", "axes": [(0, 1, 2), (1, 2, 0)]}), make_net)
    assert asked == [{"axes": (0, 1, 2)}, {"axes": (1, 2, 0)}]
