"""What every method owes the trainer, over all of METHODS, class counts and odd shapes."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from medssl.config import bundled
from medssl.ema import ema_update
from medssl.methods import METHODS
from medssl.networks import NetworkConfig, make_network
from medssl.parts.sample import Progress, TrainBatch
from medssl.parts.schedules import generator
from medssl.run import build_method, load_run_config, parse_method
from medssl.trainer import TrainConfig, make_optimizer

CASES = [(1, 2, (5, 6, 7)), (1, 4, (8, 8, 4)), (2, 3, (6, 5, 9)), (1, 3, (7, 9, 1))]  # the last one is a slice
STAGES = [Progress(0, 100), Progress(60, 100), Progress(90, 100)]
ROUND = 5
"""Steps of a run of 100 within which every student learns; groups take turns in some methods."""


READY = {"uamt": {"threshold": 1.0}, "fixmatch": {"threshold": 0.0}, "sss": {"threshold": 0.0, "enhancement": 0.0}}
"""Settings by which an untrained network's pseudo-labels count."""


class TinyNet(nn.Module):
    """Two convolutions that take any shape, with dropout and a normalisation that teachers must follow."""

    def __init__(self, channels, classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(channels, 6, 3, padding=1),
            nn.BatchNorm3d(6),
            nn.Dropout(0.1),
            nn.ReLU(),
            nn.Conv3d(6, classes, 1),
        )

    def forward(self, image):
        return self.body(image)


def build(name, channels, classes, **settings):
    torch.manual_seed(0)
    config = parse_method({"name": name, **READY.get(name, {}), **settings})
    return METHODS[name](config, lambda **changes: TinyNet(channels, classes)).train()


def make_batch(channels, classes, shape, size=2):
    torch.manual_seed(1)
    return TrainBatch(
        image=torch.randn(size, channels, *shape),
        label=torch.randint(0, classes, (size, *shape)),
        unlabelled=torch.randn(size, channels, *shape),
        seeds=tuple(range(size)),
        weak=torch.randn(size, channels, *shape),
    )


def seeded_step(method, batch, progress):
    """A step whose students' dropout is drawn as the trainer has it drawn."""
    torch.manual_seed(2)
    return method.step(batch, progress, generator(0))


def total(result):
    return torch.stack(list(result.losses.values())).sum()


def distances(one, two):
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return [(a - b).abs().sum().item() for a, b in pairs]


@pytest.fixture(params=sorted(METHODS))
def name(request):
    return request.param


@pytest.mark.parametrize(("channels", "classes", "shape"), CASES)
@pytest.mark.parametrize("progress", STAGES, ids=["start", "later", "end"])
def test_losses_are_finite_and_positive(name, channels, classes, shape, progress):
    result = build(name, channels, classes).step(make_batch(channels, classes, shape), progress, generator(0))
    assert result.losses
    for loss in result.losses.values():
        assert loss.shape == ()
        assert torch.isfinite(loss)
        assert loss > 0
    assert all(not value.requires_grad for value in result.stats.values())
    assert not result.losses.keys() & result.stats.keys()


@pytest.mark.parametrize(("channels", "classes", "shape"), CASES)
@pytest.mark.parametrize("progress", STAGES, ids=["start", "later", "end"])
def test_students_get_gradients_and_teachers_none(name, channels, classes, shape, progress):
    method, batch = build(name, channels, classes), make_batch(channels, classes, shape)
    for step in range(ROUND):
        now = Progress(progress.iteration + step, progress.total)
        total(method.step(batch, now, generator(step))).backward()
    for student in method.students():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    for teacher in method.teachers():
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_teachers_start_as_their_student_and_move_towards_it(name):
    method = build(name, 1, 3)
    follows = [follow for step in range(ROUND) for follow in method.followers(Progress(60 + step, 100))]
    teachers = {id(follow.teacher): follow for follow in follows}
    assert teachers.keys() == {id(teacher) for teacher in method.teachers()}
    for follow in teachers.values():
        student = follow.students[0]
        torch.testing.assert_close(follow.teacher.state_dict(), student.state_dict())
        with torch.no_grad():
            for p in student.parameters():
                p.add_(1)
        gap = distances(follow.teacher, student)
        ema_update(follow.teacher, follow.students, follow.decay)
        now = distances(follow.teacher, student)
        assert 0 < follow.decay < 1
        assert all(0 < n < g for n, g in zip(now, gap, strict=True))


@pytest.mark.parametrize("progress", STAGES, ids=["start", "later", "end"])
def test_step_changes_neither_batch_nor_weights(name, progress):
    """Nor the teachers' running statistics; a student's follow what it learns from."""
    method, batch = build(name, 1, 3), make_batch(1, 3, (5, 6, 7))
    batch_before, teachers = copy.deepcopy(batch), copy.deepcopy([net.state_dict() for net in method.teachers()])
    weights = {k: v.clone() for k, v in method.named_parameters()}
    method.step(batch, progress, generator(0))
    for part in ("image", "label", "unlabelled", "weak"):
        assert torch.equal(getattr(batch, part), getattr(batch_before, part))
    assert all(torch.equal(v, weights[k]) for k, v in method.named_parameters())
    torch.testing.assert_close([net.state_dict() for net in method.teachers()], teachers, rtol=0, atol=0)


VARIANTS = [*((name, {}) for name in sorted(METHODS)), ("bcp", {"weighting": "voxel"}),
            ("bcp", {"pretrain_loss": "sides"}), ("combined", {"pseudo": "dice_ce", "copy_paste": False}),
            ("fixmatch", {"cutmix": 1.0}), ("rail", {"dice": "linear"})]  # fmt: skip
each_variant = pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=lambda value: str(value))


def step_with_gradients(name, settings, batch, progress):
    """Losses, gauges and gradients of a step, as plain numbers."""
    method = build(name, 1, 3, **settings)
    result = seeded_step(method, batch, progress)
    total(result).backward()
    gradients = [0.0 if p.grad is None else p.grad.flatten().tolist() for p in method.parameters()]
    return [{k: v.item() for k, v in each.items()} for each in (result.losses, result.stats)], gradients


@each_variant
@pytest.mark.parametrize("progress", STAGES, ids=["start", "later", "end"])
def test_what_a_label_says_where_nobody_annotated_changes_nothing(name, settings, progress):
    batch = make_batch(1, 3, (5, 6, 7))
    known = torch.rand(batch.label.shape, generator=generator(5)) < 0.6
    one, other = (
        replace(batch, known=known, label=torch.where(known, batch.label, value)) for value in (0, 2)
    )  # fmt: skip
    found = step_with_gradients(name, settings, one, progress)
    assert found == step_with_gradients(name, settings, other, progress)
    assert found != step_with_gradients(name, settings, replace(one, known=None), progress)


@each_variant
@pytest.mark.parametrize("progress", STAGES, ids=["start", "later", "end"])
def test_a_batch_that_was_annotated_everywhere_is_an_ordinary_one(name, settings, progress):
    batch = make_batch(1, 3, (5, 6, 7))
    whole = replace(batch, known=torch.ones_like(batch.label, dtype=torch.bool))
    one, other = (step_with_gradients(name, settings, each, progress) for each in (batch, whole))
    assert one[0] == [pytest.approx(each, rel=1e-5) for each in other[0]]


@each_variant
@pytest.mark.parametrize("progress", STAGES, ids=["start", "later", "end"])
def test_a_batch_without_an_annotated_voxel_is_no_reason_to_stop(name, settings, progress):
    batch = make_batch(1, 3, (5, 6, 7))
    nothing = replace(batch, label=torch.zeros_like(batch.label), known=torch.zeros_like(batch.label, dtype=torch.bool))
    method = build(name, 1, 3, **settings)
    result = seeded_step(method, nothing, progress)
    total(result).backward()
    assert torch.isfinite(total(result))
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in method.parameters())
    assert [v for k, v in result.losses.items() if k.startswith(("supervised", "pretrain", "labelled"))] == (
        [0] * len([k for k in result.losses if k.startswith(("supervised", "pretrain", "labelled"))])
    )


def test_parts_of_a_batch_keep_what_is_known_beside_its_label():
    batch = make_batch(1, 3, (5, 6, 7), size=4)
    batch = replace(batch, known=batch.label != 1, weak=2 * batch.unlabelled)
    for index in range(2):
        part = batch.part(index, 2)
        assert torch.equal(part.known, part.label != 1)
        assert torch.equal(part.weak, 2 * part.unlabelled)
        assert torch.equal(part.image, batch.image[index::2])
        assert part.seeds == batch.seeds[index::2]
    assert make_batch(1, 3, (5, 6, 7)).part(0, 2).known is None


@pytest.mark.parametrize("progress", STAGES, ids=["start", "later", "end"])
def test_same_inputs_give_same_losses(name, progress):
    batch = make_batch(1, 3, (5, 6, 7))
    one, two = (seeded_step(build(name, 1, 3), batch, progress) for _ in range(2))
    assert {k: v.item() for k, v in one.losses.items()} == {k: v.item() for k, v in two.losses.items()}


def test_state_reloads(name):
    batch, progress = make_batch(1, 3, (5, 6, 7)), STAGES[-1]
    method, other = build(name, 1, 3), build(name, 1, 3)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.05)
    other.load_state_dict(method.state_dict())
    one, two = (seeded_step(m, batch, progress) for m in (method, other))
    assert total(one).item() == total(two).item()


def test_teachers_stay_in_evaluation_mode(name):
    method = build(name, 1, 3).train()
    assert all(student.training for student in method.students())
    assert not any(teacher.training for teacher in method.teachers())


@pytest.mark.parametrize("progress", STAGES, ids=["start", "later", "end"])
def test_teachers_look_at_unlabelled_patches_alone(name, progress):
    method, batch, seen = build(name, 1, 3), make_batch(1, 3, (5, 6, 7)), []
    for teacher in method.teachers():
        teacher.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    method.step(replace(batch, image=batch.image + 1000), progress, generator(0))
    assert all(image.abs().max() < 100 for image in seen)
    assert bool(seen) is bool(method.teachers()) or progress is STAGES[0]


def test_the_optimiser_holds_each_network_that_learns_once_and_no_teacher(name):
    method = build(name, 1, 3)
    held = [p for group in make_optimizer(method, TrainConfig()).param_groups for p in group["params"]]
    learning = [p for net in (*method.students(), *method.helpers()) for p in net.parameters()]
    assert sorted(map(id, held)) == sorted(map(id, learning))
    assert not {id(p) for teacher in method.teachers() for p in teacher.parameters()} & set(map(id, held))


def test_weights_that_would_never_learn_are_refused(name):
    method = build(name, 1, 3)
    method.forgotten = nn.Conv3d(1, 1, 1)
    with pytest.raises(TypeError, match=r"forgotten.weight, forgotten.bias require gradients .* `helpers`"):
        make_optimizer(method, TrainConfig())
    method.forgotten.requires_grad_(False)
    make_optimizer(method, TrainConfig())


def test_gauges_of_all_methods_have_the_same_names(name):
    """At the end of a run, when every method uses unlabelled patches."""
    method = build(name, 1, 3)
    stats = method.step(make_batch(1, 3, (5, 6, 7)), STAGES[-1], generator(0)).stats
    if not METHODS[name].needs_unlabelled:
        assert not stats
        return
    assert 0 <= stats["selected"] <= 1
    for kind in ("prior", "pseudo"):
        torch.testing.assert_close(sum(stats[f"{kind}/{value}"] for value in range(3)), torch.tensor(1.0))
    assert 0 <= stats["gap"] <= 1
    assert ("dissent" in stats) == (name in {"cfc_mt", "ucf_mix", "rail", "umct"})
    if name in {"mean_teacher", "cps", "cfc_mt", "rail", "umct"}:
        assert stats["selected"] == 1
    assert ("removed" in stats) == getattr(method.config, "largest_component", False)
    assert 0 <= stats.get("removed", 0) <= 1


@pytest.mark.parametrize(
    ("cleaning", "settings", "seen"), [("bcp", {}, "unlabelled"), ("combined", {"axes": [[0, 1, 2]]}, "weak")]
)
def test_what_cleaning_removes_is_a_share_of_what_was_named(cleaning, settings, seen):
    batch, methods = make_batch(1, 3, (5, 6, 7)), []
    for largest in (True, False):
        methods.append(build(cleaning, 1, 3, largest_component=largest, **settings))
        torch.manual_seed(3)
        for teacher in methods[-1].teachers():
            for p in teacher.parameters():
                p.data.add_(torch.randn_like(p))
    kept, named = (method.pseudo_label(getattr(batch, seen)).target for method in methods)
    assert (kept > 0).sum() < (named > 0).sum()
    stats = methods[0].step(batch, STAGES[-1], generator(0)).stats
    assert stats["removed"].item() == pytest.approx((kept != named).sum().item() / (named > 0).sum().item())


def test_works_with_the_real_network_and_thick_slices(name):
    network = NetworkConfig(channels=(4, 8, 8), strides=((2, 2, 1), (2, 2, 2)), kernels=((3, 3, 1), 3, 3), dropout=0.1)
    config = parse_method({"name": name})
    method = METHODS[name](config, lambda **changes: make_network(network.changed(**changes), 2, 4))
    result = method.step(make_batch(2, 4, (8, 12, 6)), STAGES[-1], generator(0))
    assert torch.isfinite(total(result))


def test_labels_of_unlabelled_volumes_are_nowhere_in_the_batch():
    assert set(TrainBatch.__dataclass_fields__) == {"image", "label", "unlabelled", "seeds", "weak", "known", "fine"}


@pytest.mark.parametrize("path", sorted(bundled("method/bcp.yaml").parent.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("network", ["unet", "dynunet"])
def test_published_settings_make_a_step(path, network):
    small = ["network.channels=[4,8,16]", "network.strides=[2,2]", f"network.name={network}"]
    if (path.stem, network) == ("umct", "unet"):
        small.append("method.flat_levels=0")  # as the file says
    config = load_run_config([bundled("data/hippocampus.yaml"), path], small)
    result = build_method(config).train().step(make_batch(1, 3, (12, 8, 8)), STAGES[-1], generator(0))
    assert torch.isfinite(total(result))


TELLS = {
    "mean_teacher": lambda method: method.pair.teacher,
    "bcp": lambda method: method.pair.teacher,
    "uamt": lambda method: method.pair.teacher,
    "cps": lambda method: method.second,
    "fixmatch": lambda method: method.student,
    "cfc_mt": lambda method: method.teacher,
    "rail": lambda method: method.group(0).pair.teacher,
    "sss": lambda method: method.student,
    "umct": lambda method: method.nets[1],
    "combined": lambda method: method.group(1).teachers[0],
}
"""Who labels unlabelled patches, the first network's where there are several, if one network does and nothing is
cleaned."""
ALONE = {
    "bcp": {"largest_component": False},
    "umct": {"views": [[0, 1, 2], [1, 2, 0]], "uncertainty": "entropy", "flat_levels": 0},
    "combined": {"largest_component": False, "own": 0},
}
"""Settings by which it is so."""


@pytest.mark.parametrize("name", TELLS)
def test_canaries_are_told_what_the_network_says_that_labels_in_a_step(name):
    method, image = build(name, 1, 3, **ALONE.get(name, {})).eval(), make_batch(1, 3, (5, 6, 7)).unlabelled
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.5 * torch.randn_like(p))
        said = TELLS[name](method)(image).argmax(1)
        assert torch.equal(method.pseudo_label(image).target, said)
        others = [net(image).argmax(1) for net in (*method.students(), *method.teachers())]
    assert sum(torch.equal(said, other) for other in others) == 1


@pytest.mark.parametrize(("channels", "classes", "shape"), CASES)
def test_every_method_that_needs_unlabelled_patches_says_what_it_would_tell_them(name, channels, classes, shape):
    method = build(name, channels, classes).eval()
    image, before = make_batch(channels, classes, shape).unlabelled, copy.deepcopy(method.state_dict())
    with torch.no_grad():
        told, again = method.pseudo_label(image), method.pseudo_label(image)
    assert (told is None) is not METHODS[name].needs_unlabelled
    if told is None:
        return
    assert told.target.shape == told.weight.shape == (2, *shape)
    assert 0 <= told.target.min() <= told.target.max() < classes
    assert told.weight.min() >= 0
    assert torch.equal(told.target, again.target)
    torch.testing.assert_close(method.state_dict(), before, rtol=0, atol=0)
