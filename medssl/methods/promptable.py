"""Promptable networks, which segment what a prompt points at: a small one of our own, and the SAM 2 family.

Ravi et al., "SAM 2: Segment Anything in Images and Videos", arXiv 2408.00714. The package `sam2` is needed only with
`backbone: sam2`, and its weights are read from a local file. Nothing was run with the weights that Meta released. Tests
cover the conversion of prompts and masks; the package itself, version 1.1.0, was run with random weights.
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
"""Number of slices in one forward pass of a backbone."""
SAM2_NEEDS = """method.backbone: sam2 needs
  the package   pip install git+https://github.com/facebookresearch/sam2.git
  the weights   https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_small.pt (about 180 MB),
                download them, then name the file: --set method.checkpoint=FILE
Weights of another model size need their own method.architecture. To train without SAM 2: --set method.backbone=none"""


class PromptableBackbone(Protocol):
    """A network that encodes slices once and then segments what each prompt points at."""

    def encode(self, slices: Tensor) -> Any:
        """Encode slices `(N, 3, X, Y)` for `predict`; the three channels are a slice between its two neighbours."""

    def predict(self, encoded: Any, prompts: Sequence[Prompt], where: Sequence[int]) -> Tensor:
        """Return logits `(P, X, Y)` of the prompted components.

        Args:
            encoded: result of the last call of `encode`.
            where: the slice of each prompt, in [0, N).
        """


def answers(backbone: PromptableBackbone, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Return a backbone's logits for prompts on slices of `(B, X, Y, Z)`: `(P, X, Y)`, in the order of the prompts.

    Without prompts the backbone still runs, on no slice, so that its weights have a gradient of 0 rather than none.
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
    """Return slices of `(B, X, Y, Z)` with their two neighbours as channels, `(N, 3, X, Y)`.

    The first and the last slice of a volume are repeated in place of a missing neighbour.

    Args:
        places: volume and slice of each.
    """
    volumes, slices = torch.tensor(places, dtype=torch.long, device=images.device).view(-1, 2).unbind(1)
    near = slices.unsqueeze(1) + torch.arange(-1, 2, device=images.device)  # (N, 3)
    return images[volumes.unsqueeze(1), :, :, near.clamp(0, images.shape[-1] - 1)]


def vote(
    probs: Tensor, prompts: Sequence[Prompt], answer: Tensor, *, share: float, overlap: float
) -> tuple[Tensor, Tensor]:
    """Combine class probabilities with a promptable network's answers, each within the box of its prompt.

    There the vote gives the prompted class the probability of the answer, and divides the rest between the other
    classes as before. The vote has weight `share`, `probs` have weight 1.

    Args:
        probs: `(B, C, X, Y, Z)`, slices along the last axis.
        answer: probabilities of the prompted components, `(P, X, Y)`.
        overlap: Dice with the prompt's component that an answer must exceed within the box to count.

    Returns:
        New probabilities, and the number of answers that counted.
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
            here += 1e-6  # where the prompted class was certain, the others share the rest equally
            here[prompt.target] = 0
            here *= (1 - mask) / here.sum(0)
            here[prompt.target] = mask
    return (probs + share * voted) / (1 + share), counts.sum()


def shown(prompts: Sequence[Prompt], sides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Masks of the boxes and components of prompts, `(P, X, Y)` bool each."""
    boxes, own = torch.zeros(2, len(prompts), *sides, dtype=torch.bool)
    for box, mask, prompt in zip(boxes, own, prompts, strict=True):
        box[prompt.box] = True
        mask.copy_(torch.from_numpy(prompt.mask))
    return boxes, own


class StandIn(nn.Module):
    """A small promptable network, trained from random weights beside a student.

    It sees a prompt as three more channels: the box, points inside and points outside. Its convolutions are 3D with
    flat kernels, because code that changes the memory layout of networks expects 3D ones.
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
    """The image predictor of the package `sam2` as a `PromptableBackbone`; it is not trained.

    The predictor stretches slices to the square input of its network, and masks back.
    """

    def __init__(self, predictor: Any) -> None:
        self.predictor = predictor

    def encode(self, slices: Tensor) -> Tensor:
        """Pass slices to the predictor as `(X, Y, 3)` of grey levels 0 to 255; it keeps them until the next call."""
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
    """Load a network of the SAM 2 family onto a device.

    Args:
        checkpoint: file with the weights; nothing is downloaded.
        architecture: name of their configuration in the package `sam2`.

    Raises:
        ConfigError: the file is missing or does not hold such weights.
        DeviceError: the package cannot be imported.
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
    except Exception as error:  # hydra, pickle and torch raise many kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ConfigError(
            f"method.checkpoint: {checkpoint}: cannot be loaded as weights of method.architecture {architecture} "
            f"({reason})\n{SAM2_NEEDS}"
        ) from error
    return SAM2(SAM2ImagePredictor(model))
