"""What the processes of tests/test_distributed.py run: some steps of each method, and what came of them.

torchrun --nproc-per-node N tests/train_together.py SETTINGS.json RESULTS.json
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

from medssl.config import parse
from medssl.distributed import gathered, is_first, joined
from medssl.parts import processes
from medssl.run import RunConfig
from medssl.train import make_streams, make_trainer, open_data, validate_cases
from medssl.trainer import averaged


class NoPictures:
    def picture(self, *args):
        pass


def steps(settings, device, count):
    """Losses of each step, validation scores, and digests of every process's weights."""
    config = parse(RunConfig, settings)
    data = open_data(config)
    trainer = make_trainer(config, Path(), device)
    losses = []
    for batch in trainer.batches(*make_streams(config, data), count):
        result = averaged(trainer.train_step(batch))
        losses.append({name: value.item() for name, value in result.losses.items()})
    digest = hashlib.sha256()
    for tensor in trainer.method.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    scores = validate_cases(trainer, config, data, NoPictures())
    return {"losses": losses, "scores": scores, "digests": gathered([digest.hexdigest()])}


def main():
    torch.set_num_threads(1)
    settings, results = map(Path, sys.argv[1:])
    with joined("cpu") as device:
        found = {name: steps(each, device, 6) for name, each in json.loads(settings.read_text()).items()}
        found = {"processes": processes.count(), **found}
        writes = is_first()
    found["threads"] = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if writes:
        results.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
