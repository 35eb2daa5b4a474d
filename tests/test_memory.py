import time
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from medssl.errors import ConfigError, OutOfMemoryError
from medssl.memory import CONTEXT, USABLE, Memory, estimate, fit, parts_of_batch
from medssl.methods import METHODS
from medssl.parts.sample import TrainBatch
from medssl.run import RunConfig
from medssl.train import make_trainer

DYNUNET = {"name": "dynunet", "channels": (16, 32, 64), "strides": ((2, 2, 1), 2), "kernels": ((3, 3, 1), 3, 3)}
UNET = {"name": "unet", "channels": (16, 32), "strides": (2,)}


def config_of(method="mean_teacher", network=UNET, spacing=(None, None, None), **train):
    """A run of three classes; the precision is fixed, since `auto` asks the machine."""
    train = {"patch": (80, 64, 48), "labelled_batch": 4, "unlabelled_batch": 4, "precision": "fp32", **train}
    data = {"name": "test", "classes": ("background", "one", "two"), "recipe": {"spacing": spacing}}
    return RunConfig.model_validate({"data": data, "method": {"name": method}, "network": network, "train": train})


def tensors_of(memory):
    """Bytes that torch's allocator would see."""
    return memory.total - CONTEXT


def real_peaks(config):
    """Most bytes that torch's CPU allocator held during two real steps of the trainer, by torch's own profiler: at any
    time, and while no convolution was running."""
    train, needed = config.train, METHODS[config.method.name].needs_unlabelled
    unlabelled = train.unlabelled_batch if needed else 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trainer = make_trainer(config, Path(), torch.device("cpu"))
        trainer.iteration = train.iterations - 2
        batch = TrainBatch(
            torch.randn(train.labelled_batch, 1, *train.patch),
            torch.randint(0, 3, (train.labelled_batch, *train.patch)),
            torch.randn(unlabelled, 1, *train.patch),
            tuple(range(unlabelled)),
        )
        for _ in range(2):
            trainer.train_step(batch)
    moments = []  # (time, bytes taken, convolutions begun)
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            moments.append((event.start_ns(), event.nbytes(), 0))
        elif event.name() in ("aten::convolution", "aten::convolution_backward"):
            moments += [(event.start_ns(), 0, 1), (event.start_ns() + event.duration_ns(), 0, -1)]
    live = running = peak = between = 0
    for _, taken, begun in sorted(moments):
        live, running = live + taken, running + begun
        peak = max(peak, live)
        if not running:
            between = max(between, live)
    return peak, between


SMALL = {"patch": (32, 24, 20), "labelled_batch": 2, "unlabelled_batch": 2}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("method", "network", "extra"),
    [
        ("supervised", {**UNET, "dropout": 0.2}, {"optimizer": "adamw"}),
        ("bcp", {**UNET, "residual_units": 2}, {"labelled_batch": 4, "unlabelled_batch": 4, "accumulate": 2}),
        ("mean_teacher", DYNUNET, {"activation_checkpointing": True}),
        ("bcp", DYNUNET, {}),
    ],
)
def test_estimate_is_what_training_takes(method, network, extra, precision):
    """All tensors on any CPU. Copies within a convolution are up to its instructions: in fp32 those estimated or fewer;
    in bf16 none, or more than all tensors on a CPU that converts to fp32, so they are checked in fp32 alone."""
    config = config_of(method, network, precision=precision, **{**SMALL, **extra})
    memory, (peak, between) = estimate(config), real_peaks(config)
    assert 0.98 < (memory.total - memory.workspace) / between < 1.05
    if precision == "fp32":
        assert 0.95 < tensors_of(memory) / peak < 1.35


@pytest.mark.parametrize("method", METHODS)
def test_a_step_too_large_for_this_machine_is_estimated_in_seconds(method):
    config = config_of(method, {"dropout": 0.1}, patch=(224, 224, 160), labelled_batch=8, unlabelled_batch=8)
    started = time.process_time()
    assert estimate(config).total > 100 * 2**30
    assert time.process_time() - started < 20


def test_parts_of_an_estimate():
    sgd, adamw, alone = estimate(config_of()), estimate(config_of(optimizer="adamw")), estimate(config_of("supervised"))
    assert sgd.weights == 2 * alone.weights  # a teacher as large as the student
    assert sgd.gradients == sgd.optimiser == alone.weights == adamw.optimiser // 2
    assert sgd.total == sgd.weights + sgd.gradients + sgd.optimiser + sgd.activations + sgd.workspace
    assert str(Memory(2**30, 0, 0, 2**31, 2**29)) == (
        "3.5 GiB (weights 1.00, gradients 0.00, optimiser 0.00, activations 2.00, workspace 0.50)"
    )


def test_networks_that_learn_beside_the_students_are_counted(monkeypatch):
    class WithHelper(METHODS["supervised"]):
        def __init__(self, config, make_net):
            super().__init__(config, make_net)
            self.head = torch.nn.Linear(1000, 1000, bias=False)

        def helpers(self):
            return [self.head]

    without = estimate(config_of("supervised", optimizer="adamw"))
    monkeypatch.setitem(METHODS, "supervised", WithHelper)
    more = estimate(config_of("supervised", optimizer="adamw"))
    assert (more.weights - without.weights, more.gradients - without.gradients) == (4_000_000, 4_000_000)
    assert more.optimiser - without.optimiser == 8_000_000


@pytest.mark.parametrize(
    "cheaper",
    [
        {"precision": "bf16"},
        {"accumulate": 2},
        {"activation_checkpointing": True},
        {"patch": (80, 64, 40)},
        {"unlabelled_batch": 2, "labelled_batch": 2},
    ],
)
def test_what_saves_memory_lowers_the_estimate(cheaper):
    assert estimate(config_of(**cheaper)).activations < 0.9 * estimate(config_of()).activations


def test_a_part_has_the_gradients_of_the_parts_before_beside_it():
    wide = {**UNET, "channels": (64, 256)}
    alone = estimate(config_of(network=wide, labelled_batch=2, unlabelled_batch=2))
    shared = estimate(config_of(network=wide), processes=2)
    second = estimate(config_of(network=wide, accumulate=2))
    others = 2 * 80 * 64 * 48 * (4 + 4 + 8)  # images and labels of the other part, which stay where they are
    assert shared.activations == pytest.approx(alone.activations + alone.gradients, rel=1e-3)
    assert second.activations == pytest.approx(shared.activations + others, rel=1e-3)


def test_unlabelled_patches_that_a_method_ignores_take_no_memory():
    some, none = (estimate(config_of("supervised", unlabelled_batch=count)) for count in (8, 0))
    assert some == none


def test_patch_must_pass_through_the_network():
    with pytest.raises(ConfigError, match="patch"):
        estimate(config_of(patch=(32, 23, 20)))


def test_a_run_that_fits_stays_as_it_is():
    config = config_of()
    fitted, reasons = fit(config, 2**40)
    assert fitted is config
    assert reasons == []


def budget_for(config):
    """The smallest budget in which a run fits as it is."""
    return int(estimate(config).total / USABLE) + 1


def changes(reasons):
    return [reason.partition(":")[0] for reason in reasons]


def test_changes_come_in_order_and_each_gives_its_reason():
    batches = {"labelled_batch": 4, "unlabelled_batch": 8, "patch": (80, 64, 16)}
    config, parts = config_of(**batches), config_of(**batches, accumulate=4)
    again = config_of(**batches, accumulate=4, activation_checkpointing=True)

    fitted, reasons = fit(config, budget_for(parts))
    assert fitted == parts
    assert changes(reasons) == ["train.accumulate 1 -> 2", "train.accumulate 2 -> 4"]
    assert all("GiB, more than 90% of" in reason for reason in reasons)

    fitted, reasons = fit(config, budget_for(again))
    assert fitted == again
    assert changes(reasons)[2:] == ["train.activation_checkpointing False -> True"]
    assert fit(fitted, budget_for(again)) == (fitted, [])


@pytest.mark.parametrize(
    ("method", "batch", "most"), [("mean_teacher", (6, 9), 3), ("bcp", (4, 4), 2), ("bcp", (2, 2), 1)]
)
def test_parts_are_alike_and_even_where_a_method_pairs_patches(method, batch, most):
    config = config_of(method, labelled_batch=batch[0], unlabelled_batch=batch[1])
    with pytest.raises(OutOfMemoryError, match=f"train.accumulate {most} "):
        fit(config.model_copy(update={"train": config.train.model_copy(update={"patch": (16, 16, 16)})}), CONTEXT)


def test_parts_hold_the_patches_that_a_method_mixes_with_each_other():
    config = config_of("fixmatch", labelled_batch=4, unlabelled_batch=4)
    assert parts_of_batch(config) == [1, 2, 4]
    mixing = config.model_copy(update={"method": config.method.model_copy(update={"cutmix": 0.5})})
    assert parts_of_batch(mixing) == [1, 2]
    assert parts_of_batch(mixing, processes=2) == [1]
    with pytest.raises(ConfigError, match=r"unlabelled_batch 4: .*, method fixmatch mixes .* 2 in each process"):
        parts_of_batch(mixing, processes=4)


def test_batch_norm_is_never_computed_twice():
    config = config_of("supervised", {**UNET, "norm": "batch"}, labelled_batch=1)
    smaller = config_of("supervised", {**UNET, "norm": "batch"}, labelled_batch=1, patch=(78, 64, 48))
    assert fit(config, budget_for(smaller))[0] == smaller


def test_the_longest_side_in_millimetres_shrinks_by_a_stride_and_thin_sides_stay():
    run = {"method": "supervised", "network": {**UNET, "strides": ((4, 4, 2),)}, "spacing": (0.5, 1.0, None)}
    config = config_of(**run, labelled_batch=1, patch=(68, 40, 14), activation_checkpointing=True)
    smaller = config_of(**run, labelled_batch=1, patch=(64, 32, 14), activation_checkpointing=True)
    fitted, reasons = fit(config, budget_for(smaller))
    assert fitted == smaller
    assert changes(reasons) == [
        "train.patch [68, 40, 14] -> [68, 36, 14]",
        "train.patch [68, 36, 14] -> [68, 32, 14]",
        "train.patch [68, 32, 14] -> [64, 32, 14]",
    ]


def test_what_can_never_fit_is_refused_with_the_least_that_would_do():
    config = config_of("supervised", labelled_batch=1, patch=(20, 18, 14))
    with pytest.raises(OutOfMemoryError, match=r"fits into 0\.5 GiB; the smallest needs 0\.9 GiB.*\[16, 16, 14\]"):
        fit(config, 2**29)
    fit(config, int(0.9 * 2**30))
