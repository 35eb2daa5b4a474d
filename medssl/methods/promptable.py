"""Networks that segment what they are pointed at: a small one of our own, and the SAM 2 family from a local checkpoint.

Ravi et al., "SAM 2: Segment Anything in Images and Videos", arXiv 2408.00714. The package `sam2` is wanted only where
such a network is asked for. The weights that Meta released were not at hand when this was written, and nothing was run
with them. How prompts and masks are translated is tested; the package itself, 1.1.0, was run with random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from medssl.errors import ConfigError, DeviceError
from medssl.parts.prompts import Prompt

AT_ONCE = 8
"""Slices that pass through a backbone together."""
SAM2_NEEDS = """method.backbone: sam2 needs
  the package   pip install git+https://github.com/facebookresearch/sam2.git
  the weights   https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_small.pt (about 180 MB),
                downloaded to any place on this machine: --set method.checkpoint=FILE
Those of another size want their own method.architecture. To train without: --set method.backbone=none"""


class PromptableBackbone(Protocol):
    """A network that is shown slices once, and then segments in each what its prompts point at."""

    def encode(self, slices: Tensor) -> Any:
        """What `predict` wants to know of `(N, 3, X, Y)`: slices, each between its neighbours, as three channels."""

    def predict(self, encoded: Any, prompts: Sequence[Prompt], where: Sequence[int]) -> Tensor:
        """Logits `(P, X, Y)` of the prompted components.

        Args:
            encoded: what the last call of `encode` gave.
            where: the slice of each prompt, in [0, N).
        """


def answers(backbone: PromptableBackbone, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Logits `(P, X, Y)` of prompts for the slices of images, `(B, X, Y, Z)`, in the order of the prompts.

    Without prompts a backbone passes no slice, so that its weights have a gradient of 0 rather than none.
    """
    places = sorted({(prompt.volume, prompt.plane) for prompt in prompts})
    logits, order = [], []
    for first in range(0, max(1, len(places)), AT_ONCE):
        here = places[first : first + AT_ONCE]
        chosen = [n for n, prompt in enumerate(prompts) if (prompt.volume, prompt.plane) in here]
        asked = [prompts[n] for n in chosen]
        encoded = backbone.encode(triples(images, here))
        logits.append(backbone.predict(encoded, asked, [here.index((one.volume, one.plane)) for one in asked]))
        order += chosen
    return torch.cat(logits)[torch.tensor(order, dtype=torch.long, device=images.device).argsort()]


def triples(images: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """Slices of `(B, X, Y, Z)` between their neighbours, `(N, 3, X, Y)`; an outermost one stands in for a missing one.

    Args:
        places: volume and slice of each.
    """
    volumes, slices = torch.tensor(places, dtype=torch.long, device=images.device).view(-1, 2).unbind(1)
    near = slices.unsqueeze(1) + torch.arange(-1, 2, device=images.device)  # (N, 3)
    return images[volumes.unsqueeze(1), :, :, near.clamp(0, images.shape[-1] - 1)]


def vote(
    probs: Tensor, prompts: Sequence[Prompt], answer: Tensor, *, share: float, overlap: float
) -> tuple[Tensor, Tensor]:
    """Class probabilities with a network's answers mixed in, each within the box of its prompt.

    There the prompted class gets the probability of the answer, and the other classes share the rest as before; this
    counts `share` times where `probs` count once.

    Args:
        probs: `(B, C, X, Y, Z)`, slices last.
        answer: probabilities of the prompted components, `(P, X, Y)`.
        overlap: Dice with the prompt's component that an answer must exceed within the box, or it does not count.

    Returns:
        New probabilities, and how many answers counted.
    """
    boxes, own = (each.to(answer.device) for each in shown(prompts, answer.shape[1:]))
    inside = (answer > 0.5) & boxes
    both, either = (own & inside).sum((1, 2)), own.sum((1, 2)) + inside.sum((1, 2))
    counts = 2 * both > overlap * either
    voted = probs.clone()
    for prompt, mask, agrees in zip(prompts, answer, counts.tolist(), strict=True):
        if agrees:
            here = voted[(prompt.volume, slice(None), *prompt.box, prompt.plane)]  # (C, x, y), a view
            mask = mask[prompt.box]
            here += 1e-6  # where the prompted class was certain, the others come back as equals
            here[prompt.target] = 0
            here *= (1 - mask) / here.sum(0)
            here[prompt.target] = mask
    return (probs + share * voted) / (1 + share), counts.sum()


def shown(prompts: Sequence[Prompt], sides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Boxes and components of prompts, `(P, X, Y)` bool each."""
    boxes, own = torch.zeros(2, len(prompts), *sides, dtype=torch.bool)
    for box, mask, prompt in zip(boxes, own, prompts, strict=True):
        box[prompt.box] = True
        mask.copy_(torch.from_numpy(prompt.mask))
    return boxes, own


class StandIn(nn.Module):
    """A small promptable network, trained from nothing beside a student.

    It sees a prompt as three more channels: the box, points inside and points outside. Its kernels are flat 3D ones, as
    whoever lays out a 3D network expects.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*_layer(3, width, 1), *_layer(width, width, 2))
        self.decoder = nn.Sequential(*_layer(width + 3, width, 4), *_layer(width, width, 1), nn.Conv3d(width, 1, 1))

    def encode(self, slices: Tensor) -> Tensor:
        return cast(Tensor, self.encoder(slices.unsqueeze(-1)))  # (N, K, X, Y, 1)

    def predict(self, encoded: Tensor, prompts: Sequence[Prompt], where: Sequence[int]) -> Tensor:
        features = encoded[torch.tensor(where, dtype=torch.long, device=encoded.device)]
        drawn = _drawn(prompts, encoded.shape[2:4]).to(features).unsqueeze(-1)
        return cast(Tensor, self.decoder(torch.cat([features, drawn], 1)))[:, 0, ..., 0]


def _layer(channels: int, width: int, reach: int) -> list[nn.Module]:
    kernel, padding, dilation = (3, 3, 1), (reach, reach, 0), (reach, reach, 1)
    convolution = nn.Conv3d(channels, width, kernel, padding=padding, dilation=dilation)
    return [convolution, nn.GroupNorm(4, width), nn.LeakyReLU(0.1)]


def _drawn(prompts: Sequence[Prompt], sides: Sequence[int]) -> Tensor:
    """Box, points inside and points outside of each prompt, `(P, 3, X, Y)` of zeros and ones."""
    drawn = torch.zeros(len(prompts), 3, *sides)
    for picture, prompt in zip(drawn, prompts, strict=True):
        picture[(0, *prompt.box)] = 1
        for (row, column), sign in zip(prompt.points.tolist(), prompt.signs.tolist(), strict=True):
            if sign >= 0:
                picture[2 - sign, row, column] = 1
    return drawn


class SAM2:
    """The image predictor of the package `sam2` behind our interface; it is not trained.

    The predictor stretches slices to the square that its network wants, and its masks back.
    """

    def __init__(self, predictor: Any) -> None:
        self.predictor = predictor

    def encode(self, slices: Tensor) -> Tensor:
        """Hand grey levels from 0 to 255 over, as `(X, Y, 3)` each; the predictor keeps them until the next call."""
        flat = slices.detach().float().flatten(1)
        low, high = (flat.quantile(share, 1).view(-1, 1, 1, 1) for share in (0.005, 0.995))
        grey = ((slices - low) / (high - low).clamp_min(1e-6)).clamp(0, 1).mul(255).round().to(torch.uint8)
        self.predictor.set_image_batch(list(grey.movedim(1, -1).cpu().numpy()))
        return slices

    def predict(self, encoded: Tensor, prompts: Sequence[Prompt], where: Sequence[int]) -> Tensor:
        by_slice = [[n for n, place in enumerate(where) if place == number] for number in range(len(encoded))]
        masks, _, _ = self.predictor.predict_batch(
            point_coords_batch=[torch.stack([_points(prompts[n]) for n in each]).numpy() for each in by_slice],
            point_labels_batch=[torch.stack([torch.from_numpy(prompts[n].signs) for n in each]).numpy()
                                for each in by_slice],
            box_batch=[torch.stack([_corners(prompts[n]) for n in each]).numpy() for each in by_slice],
            multimask_output=False, return_logits=True,
        )  # fmt: skip
        logits = encoded.new_zeros(len(prompts), *encoded.shape[2:])
        for each, mask in zip(by_slice, masks, strict=True):
            logits[each] = torch.from_numpy(mask).to(logits).view(len(each), *logits.shape[1:])
        return logits


def _points(prompt: Prompt) -> Tensor:
    """Points as (column, row), which SAM 2 calls x and y."""
    return torch.from_numpy(prompt.points).flip(1).float()


def _corners(prompt: Prompt) -> Tensor:
    """First and last column and row of the box, as x, y, x, y."""
    rows, columns = prompt.box
    return torch.tensor([columns.start, rows.start, columns.stop - 1, rows.stop - 1], dtype=torch.float32)


def load_sam2(checkpoint: Path | None, architecture: str, device: torch.device) -> SAM2:
    """A network of the SAM 2 family on a device.

    Args:
        checkpoint: a file with the weights; nothing is downloaded.
        architecture: the package's name for their configuration.

    Raises:
        ConfigError: no such file, or it does not hold such weights.
        DeviceError: the package is not installed.
    """
    if checkpoint is None:
        raise ConfigError(f"method.checkpoint: not given\n{SAM2_NEEDS}")
    if not checkpoint.is_file():
        raise ConfigError(f"method.checkpoint: {checkpoint}: no such file\n{SAM2_NEEDS}")
    try:
        from sam2.build_sam import build_sam2
        from sam2.sam2_image_predictor import SAM2ImagePredictor
    except ImportError as error:
        raise DeviceError(f"the package sam2 cannot be imported: {error}\n{SAM2_NEEDS}") from error
    try:
        model = build_sam2(architecture, str(checkpoint), device=str(device))
    except Exception as error:  # whatever hydra, pickle or torch raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ConfigError(
            f"method.checkpoint: {checkpoint}: no weights of method.architecture {architecture} ({reason})\n"
            f"{SAM2_NEEDS}"
        ) from error
    return SAM2(SAM2ImagePredictor(model))
