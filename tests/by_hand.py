"""What tests of methods hold a step to: plain torch as papers write it, for a batch whose images all differ."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from medssl.parts.sample import Progress, TrainBatch

SHAPE = (5, 6, 7)
MIDWAY = Progress(25, 100)
"""Half way up a ramp of half the run, and past the first stages."""
RISE = math.exp(-5 * (1 - 0.5) ** 2)
"""How far such a ramp is up then."""


class TinyNet(nn.Module):
    """Any shape to three classes, with batch norm, dropout, and a block that is a decoder."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout(dropout))
        self.decoder = nn.Conv3d(4, 3, 3, padding=1)
        self.decoder.encoded = (4,)

    def forward(self, image):
        return self.decoder(self.encoder(image))


def part_ways(method):
    """Networks that differ, and are sure of some voxels, as after some training."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return method


def batch(labelled=2, unlabelled=3, shape=SHAPE):
    """Patches of three classes; the weak view is not the one that students see."""
    torch.manual_seed(1)
    image, label = torch.randn(labelled, 1, *shape), torch.randint(0, 3, (labelled, *shape))
    weak, strong = torch.randn(2, unlabelled, 1, *shape)
    return TrainBatch(image, label, strong, tuple(range(1, unlabelled + 1)), weak)


def nll(logits, target):
    """`-log p` of the target class, `(B, X, Y, Z)`."""
    return F.cross_entropy(logits, target, reduction="none")


def dice(logits, target, weight=1.0):
    """One minus Dice with squares below the line, over batch and voxels, each counted `weight` times."""
    probs, truth = logits.softmax(1), onehot(target)
    weight = (weight * torch.ones_like(probs[:, 0])).unsqueeze(1)
    overlap, size = ((weight * x).sum((0, 2, 3, 4)) for x in (probs * truth, probs**2 + truth**2))
    return 1 - ((2 * overlap + 1e-5) / (size + 1e-5)).mean()


def segmentation(logits, label):
    """The mean of cross-entropy and Dice that most methods have on labelled patches."""
    return (nll(logits, label).mean() + dice(logits, label)) / 2


def onehot(target):
    """`(B, X, Y, Z)` as `(B, 3, X, Y, Z)`."""
    return F.one_hot(target, 3).movedim(-1, 1)


def squares(probs, others):
    """Mean over classes of squared differences, `(B, X, Y, Z)`."""
    return ((probs - others) ** 2).mean(1)


def doubt(probs):
    """Entropy over that of three equal classes, `(B, X, Y, Z)`."""
    return -(probs * probs.log()).sum(1) / math.log(3)


def assert_step(losses, expected, students):
    """The same losses by name, and the same gradients of their sum."""
    torch.testing.assert_close(losses, expected)
    learned = [p for student in students for p in student.parameters()]
    ours, theirs = (torch.autograd.grad(sum(each.values()), learned) for each in (losses, expected))
    torch.testing.assert_close(ours, theirs)
