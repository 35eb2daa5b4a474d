"""Choose patients by what their labels hold, so that classes and volumes are spread over the parts of a split.

A split does this only on request and records it: if annotated cases are used as unlabelled ones, their labels have
influenced the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medssl.data.prepared import PreparedCase, PreparedDataset
from medssl.progress import tracked

LEVELS = 3
"""Levels of the volume of a class: small, middle or large among the patients that have it."""
TRIED = 8
"""Number of patients, the first ones of the shuffled order, that are compared for the next place. More would spread
volumes better, but make draws with different seeds more alike."""
SLAB = 32
"""Number of slices of a label that are counted at a time."""


@dataclass(frozen=True)
class Strata:
    """Volumes of classes by patient."""

    patients: tuple[str, ...]
    volumes: NDArray[np.float64]
    """`(patients, classes without the background)`, cubic millimetres, the mean over a patient's annotated scans."""

    def next_patient(
        self, drawn: Sequence[str], fitting: Sequence[str], free: Sequence[str], *, spare: bool = False
    ) -> str:
        """Return the patient of `fitting` that adds most classes to `drawn`; among equals, the best mix of volumes.

        Args:
            fitting: shuffled; the first ones are preferred.
            free: all patients that are not in a part yet.
            spare: skip a patient who is the last of `free` with a class, so that parts drawn later can have it.
        """
        mine, theirs = self._places(fitting), self._places(drawn)
        if spare:
            last = self._has[self._places(free)].sum(0) == 1
            spared = [place for place in mine if not (self._has[place] & last).any()]
            mine = spared or mine
        news = (self._has[mine] & ~self._has[theirs].any(0)).sum(1)
        tried = [place for place, new in zip(mine, news, strict=True) if new == news.max()][:TRIED]
        mixes = (self._levels[theirs].sum(0) + self._levels[tried]) / (len(theirs) + 1)
        distances = ((mixes - self._levels.mean(0)) ** 2).sum(1).round(9)
        return self.patients[tried[int(distances.argmin())]]

    def _places(self, patients: Sequence[str]) -> list[int]:
        return [self._place[patient] for patient in patients]

    @cached_property
    def _place(self) -> dict[str, int]:
        return {patient: place for place, patient in enumerate(self.patients)}

    @cached_property
    def _has(self) -> NDArray[np.bool_]:
        return self.volumes > 0

    @cached_property
    def _levels(self) -> NDArray[np.float64]:
        """One-hot, `(patients, classes x LEVELS)`: the level of the volume of each class; all 0 if it is absent."""
        found = np.zeros((*self.volumes.shape, LEVELS))
        for number, volumes in enumerate(self.volumes.T):
            having = np.flatnonzero(volumes)
            ranks = np.searchsorted(np.sort(volumes[having]), volumes[having])
            found[having, number, ranks * LEVELS // max(1, len(having))] = 1
        return found.reshape(len(self.patients), -1)


def read_strata(dataset: PreparedDataset) -> Strata:
    """Compute the volumes of classes in all labels of a prepared dataset; unlabelled cases are skipped."""
    cases = [case for _, case in sorted(dataset.cases.items()) if case.labelled]
    counted = (_volumes(case, len(dataset.config.classes)) for case in cases)
    volumes = tracked("labels", [case.id for case in cases], counted)
    by_patient: dict[str, list[NDArray[np.float64]]] = {}
    for case, found in zip(cases, volumes, strict=True):
        by_patient.setdefault(case.subject, []).append(found)
    means = [np.mean(found, axis=0) for found in by_patient.values()]
    return Strata(tuple(by_patient), np.reshape(means, (len(means), len(dataset.config.classes) - 1)))


def _volumes(case: PreparedCase, classes: int) -> NDArray[np.float64]:
    label = case.open_label()
    counts = np.zeros(classes)
    for start in range(0, label.shape[0], SLAB):
        counts += np.bincount(label[start : start + SLAB].ravel(), minlength=classes)[:classes]
    return counts[1:] * float(np.prod(case.grid.spacing))
