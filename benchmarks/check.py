"""Measure how often `medssl check` finds a mirrored label and an unlabelled image from another dataset.

    python benchmarks/check.py Task04_Hippocampus ACDC LA --strangers ct_abdomen.nii.gz \\
        --out benchmarks/results/check.json

Each case is read once, by `check` itself. In the first test, one label at a time is mirrored between left and right
and compared with all other cases unchanged. In the second test, some labels are drawn at random and the others are
hidden. Cases of the dataset should then not be reported as far from the labelled ones, whereas strangers, images from
elsewhere that are added to it, should be.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import tell

from medssl.data.cases import Case
from medssl.data.check import check, check_cases
from medssl.data.findings import Facts
from medssl.data.grid import Turn
from medssl.data.io import case_id, read_label
from medssl.data.looks import count_voxels
from medssl.data.outliers import compare, distances
from medssl.data.volume import Source

Pair = tuple[Case, Facts]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path, help="folders of labelled datasets")
    parser.add_argument("--strangers", nargs="+", type=Path, default=[], help="images unlike those of the datasets")
    parser.add_argument("--labelled", nargs="+", type=int, default=[5, 10, 20], help="numbers of labels to keep")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    tell([measure(folder, options) for folder in options.sets], options.out)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers of one dataset."""
    report = check(folder, workers=0)
    pairs = list(zip(report.cases, report.facts, strict=True))
    strangers = [stranger(path) for path in options.strangers]
    labelled = [index for index, (_, facts) in enumerate(pairs) if facts.sides]
    rng = np.random.default_rng(options.seed)
    return {
        "set": folder.name,
        "cases": len(pairs),
        "findings": [f"{finding.case} {finding.code}" for finding in report.findings if finding.case is not None],
        "mirrored": mirror_each(pairs, labelled),
        "hidden": [
            hide_at_random(pairs, labelled, count, strangers, options.draws, rng)
            for count in options.labelled
            if count < len(labelled)
        ],
    }


def mirror_each(pairs: Sequence[Pair], labelled: Sequence[int]) -> dict[str, int]:
    """Mirror one label after another; count those that are reported, and other cases reported with them."""
    found = false_alarms = 0
    for index in labelled:
        case, facts = pairs[index]
        named = called("flip_suspected", [*pairs[:index], (case, mirrored(case, facts)), *pairs[index + 1 :]])
        found += case.id in named
        false_alarms += len(named - {case.id})
    return {"labels": len(labelled), "found": found, "false_alarms": false_alarms}


def mirrored(case: Case, facts: Facts) -> Facts:
    """Return what `check` would measure if left and right of the label were swapped within the volume."""
    assert case.label is not None
    label = read_label(case.label)
    axis = Turn.to("RAS", label.affine).axes[0]
    return replace(facts, sides=count_voxels(replace(label, array=np.flip(label.array, axis))).sides)


def hide_at_random(
    pairs: Sequence[Pair],
    labelled: Sequence[int],
    count: int,
    strangers: Sequence[Pair],
    draws: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Keep `count` labels and hide the others, `draws` times; list cases of the set and strangers reported as far."""
    own: list[list[str]] = []
    strange = dict.fromkeys((case.id for case, _ in strangers), 0)
    for _ in range(draws):
        kept = set(rng.choice(labelled, count, replace=False).tolist())
        rest = [pair if index in kept else unlabelled(*pair) for index, pair in enumerate(pairs)]
        named = called("far_from_labelled", [*rest, *strangers])
        own.append(sorted(named - strange.keys()))
        for id in named & strange.keys():
            strange[id] += 1
    return {
        "labelled": count, "unlabelled": len(pairs) - count, "draws": draws, "called_far": own,
        "called_far_on_average": round(sum(map(len, own)) / draws, 2), "draws_that_call_a_stranger": strange,
    }  # fmt: skip


def unlabelled(case: Case, facts: Facts) -> Pair:
    """Return the case as it would be without its label."""
    return replace(case, label=None), replace(facts, voxels={}, ignored=0, sides={}, label_digest="")


def stranger(image: Path) -> Pair:
    """Return an image from elsewhere as a case without a label."""
    id = f"stranger {case_id(image)}"
    case = Case(id, id, (Source(image),), None)
    return case, check_cases([case]).facts[0]


def called(code: str, pairs: Sequence[Pair]) -> set[str]:
    """Return the ids of the cases with this finding."""
    cases, facts = zip(*pairs, strict=True)
    findings = compare(cases, facts, None, distances(cases, facts))
    return {finding.case for finding in findings if finding.code == code and finding.case}


if __name__ == "__main__":
    main()
