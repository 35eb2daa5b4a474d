"""What only a GPU can show: `pytest -m gpu`. Skipped where there is none."""

import pytest
import torch
from test_train import plain_settings

from medssl.augment import Augment, AugmentConfig
from medssl.checkpoint import load_checkpoint
from medssl.config import parse
from medssl.data.draw import Wish, make_split
from medssl.data.prepared import read_prepared
from medssl.data.splits import write_split
from medssl.device import choose_device
from medssl.logs import RunLog, read_metrics
from medssl.methods import METHODS
from medssl.run import RunConfig
from medssl.train import make_streams, make_trainer, open_data, train
from medssl.trainer import averaged

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that this build of torch can use"),
]


@pytest.fixture
def settings(balls, tmp_path):
    path = tmp_path / "splits.json"
    write_split(path, make_split(read_prepared(balls[1]), Wish(labelled=2, val=2, test=2)))

    def make(name, *, network=None, **settings):
        section = settings.pop("method", {"name": name})
        plain = plain_settings(balls, path, name, **settings)
        return parse(RunConfig, {**plain, "network": {**plain["network"], **(network or {})}, "method": section})

    return make


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_trains_and_resumes(settings, tmp_path, method, precision):
    config = settings(method, iterations=20, precision=precision)
    train(config, tmp_path / "run", until=12, device="cuda", quiet=True)
    run = train(config, tmp_path / "run", resume=True, device="cuda", quiet=True)
    assert load_checkpoint(run / "last.pt")["iteration"] == 20
    rows = read_metrics(run / "metrics.csv")
    assert [row["step"] for row in rows if "lr" in row] == list(range(1, 21))


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deterministic_run_repeats_bit_for_bit(settings, tmp_path, method, precision):
    config = settings(method, iterations=20, precision=precision, deterministic=True)
    try:
        train(config, tmp_path / "whole", device="cuda", quiet=True)
        train(config, tmp_path / "parts", until=12, device="cuda", quiet=True)
        train(config, tmp_path / "parts", resume=True, device="cuda", quiet=True)
    finally:
        torch.use_deterministic_algorithms(False)
    whole, parts = (load_checkpoint(tmp_path / name / "last.pt")["method"] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_never_waits_for_the_device(settings, tmp_path, method, precision):
    """CUDA's own check: any synchronising call is an error. BCP's cleaning, which asks back, is off."""
    uncleaned = {"largest_component": False, "pretrain": 0.0}
    extra = {"bcp": uncleaned, "combined": uncleaned, "umct": {"pretrain": 0.0}}.get(method, {})
    config = settings(method, precision=precision, method={"name": method, **extra})
    data = open_data(config)
    trainer = make_trainer(config, tmp_path, choose_device("cuda"))
    batches = trainer.batches(*make_streams(config, data), config.train.iterations)
    log = RunLog(tmp_path, quiet=True)
    with log.progress(0, 20):
        for step in range(8):
            torch.cuda.set_sync_debug_mode("error" if step >= 3 else "default")
            try:
                result = trainer.train_step(next(batches))
                trainer.check(lambda step: "")
                averages = averaged(result)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            log.step(trainer.iteration, averages, trainer.lr)
    log.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == list(range(1, 9))


@pytest.mark.parametrize("preset", ["weak", "strong"])
def test_augmentation_is_that_of_the_cpu_and_never_waits(preset):
    augment = Augment(AugmentConfig(preset=preset), (16, 16, 12), (1.0, 1.0, 1.5), 3)
    torch.manual_seed(0)
    image, label = torch.randn(6, 2, 16, 16, 12), torch.randint(0, 3, (6, 16, 16, 12))
    draws = [augment.draw(0, n) for n in range(6)]
    here = augment.apply(image, draws, label)
    there = image.cuda(), label.cuda()
    augment.apply(there[0], draws, there[1])  # moves the bank of noise
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = augment.apply(there[0], draws, there[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(moved[0].cpu(), here[0], atol=1e-3, rtol=1e-3)
    assert (moved[1].cpu() == here[1]).float().mean() > 0.999


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"uamt", "umct"}))  # their dropout is drawn by the device
def test_same_losses_as_the_cpu(settings, tmp_path, method):
    config = settings(method, network={"dropout": 0.0}, precision="fp32", tf32=False, optimizer="sgd")
    losses = []
    for device in ("cpu", "cuda"):
        run = train(config, tmp_path / device, device=device, quiet=True, until=6)
        rows = read_metrics(run / "metrics.csv")
        losses.append([sum(v for k, v in row.items() if k.startswith("loss/")) for row in rows])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
