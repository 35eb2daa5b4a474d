"""The gallery of a report: pictures of each row's worst, median and best cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medssl.comparison import Row, Run
from medssl.data.cases import DatasetConfig
from medssl.data.grid import aligned
from medssl.data.io import read_image
from medssl.data.labels import read_pair
from medssl.data.volume import Source, Volume
from medssl.errors import DataError
from medssl.metrics import ClassScore
from medssl.overlay import Slice, overlay
from medssl.progress import mapper, tracked
from medssl.words import by

WORST = 4
"""Number of worst cases shown for each row, by default."""
_FEW = 12  # with fewer cases, starting processes takes longer than it saves


@dataclass(frozen=True)
class Files:
    """The files of one prediction: image, label maps and uncertainty."""

    image: Source
    prediction: Path
    reference: Source
    uncertainty: Path | None
    data: DatasetConfig | None = None
    """Meaning of the reference's label values; None: the values are class indices."""

    def read(self) -> tuple[Volume, Volume, Volume]:
        """Read the image, the prediction and the reference, all of one shape, label maps as they are scored.

        Raises:
            DataError: a file no longer exists or cannot be read, or the shapes differ.
        """
        paths = {"image": self.image.path, "prediction": self.prediction, "reference": self.reference.path}
        gone = [f"the {role} {path} no longer exists" for role, path in paths.items() if not path.exists()]
        if gone:
            raise DataError(" and ".join(gone))
        prediction, reference = read_pair(self.prediction, self.reference, self.data)
        image = aligned(read_image(self.image), prediction)
        if image.shape != prediction.shape:
            raise DataError(
                f"the image {self.image} has {by(image.shape)} voxels, its label maps have {by(prediction.shape)}"
            )
        return image, prediction, reference


@dataclass(frozen=True)
class Picture:
    """A case chosen by its rank, with its slices, or with the reason why there are none (`fault`)."""

    rank: str
    case: str
    dice: float
    scores: list[ClassScore]
    files: Files | None
    slices: list[Slice]
    fault: str


@dataclass(frozen=True)
class Wall:
    """The pictures of one row, taken from its first scored run."""

    row: Row
    run: Run
    pictures: list[Picture]


def draw_gallery(rows: Sequence[Row], *, worst: int = WORST, workers: int = 2) -> list[Wall]:
    """Draw the `worst` worst cases, the median and the best of each row's first scored run."""
    chosen = [(row, row.scored[0], ranked(row.scored[0].case_dice, worst)) for row in rows if row.scored]
    jobs = [(files_of(run, case), case) for _, run, cases in chosen for _, case in cases]
    with mapper(workers if len(jobs) >= _FEW else 0) as apply:
        drawn = iter(tracked("draw cases", [case for _, case in jobs], apply(_draw, [files for files, _ in jobs])))
    walls = []
    for row, run, cases in chosen:
        pictures = []
        for rank, case in cases:
            slices, fault = next(drawn)
            scores = [score for score in run.scores or () if score.case == case]
            pictures.append(Picture(rank, case, run.case_dice[case], scores, files_of(run, case), slices, fault))
        walls.append(Wall(row, run, pictures))
    return walls


def ranked(dice: Mapping[str, float], worst: int) -> list[tuple[str, str]]:
    """Return rank and id of the worst cases, then of the median (the lower of two) and of the best; no case twice."""
    order = [case for _, case in sorted((value, case) for case, value in dice.items())]
    if len(order) == 1:
        return [("only", order[0])]
    names = {case: "worst" if i == 0 else f"{i + 1}{_th(i + 1)} worst" for i, case in enumerate(order[:worst])}
    if order:
        names.setdefault(order[(len(order) - 1) // 2], "median")
        names[order[-1]] = "best"
    return [(rank, case) for case, rank in names.items()]


def files_of(run: Run, case: str) -> Files | None:
    """Return the files of a run's case; None if predictions.json does not name its image."""
    images = run.made.images.get(case)
    if images is None or run.scores is None:
        return None
    prediction, reference = run.scores.files[case]
    unsure = run.uncertainty_of(prediction)
    return Files(Source.parse(images[0]), prediction, reference, unsure if unsure and unsure.exists() else None,
                 run.scores.data)  # fmt: skip


def _th(number: int) -> str:
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0, "th")


def _draw(files: Files | None) -> tuple[list[Slice], str]:
    """Return the slices of a case and an empty text, or no slices and the reason."""
    if files is None:
        return [], "predictions.json beside the prediction is missing or does not name the image of this case"
    try:
        return overlay(*files.read()), ""
    except DataError as error:
        return [], str(error)
