"""The page of `medssl check --html`: findings, tables, plots and pictures of a dataset, with errors first."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medssl.data.cases import Case
from medssl.data.findings import FARTHEST, Facts, Finding, Report
from medssl.data.looks import PERCENTILES
from medssl.data.outliers import AXES
from medssl.palette import class_colour
from medssl.plots import histograms, level_plot
from medssl.report.page import Figure, fill, write_pages
from medssl.report.tables import Cell, Column, Table
from medssl.words import by

MOST_CASES = 200
"""Number of cases shown at most."""
MOST_LINES = 1000
"""Number of findings in the table at most."""


@dataclass(frozen=True)
class Card:
    """One case on the page."""

    case: Case
    facts: Facts
    uri: str
    """Its picture as a data URI; empty if there is none."""
    findings: tuple[Finding, ...]

    @property
    def level(self) -> str:
        """The worst severity among its findings: error or warning; empty without findings."""
        return min((finding.severity for finding in self.findings), default="")

    @property
    def size(self) -> str:
        """Number of voxels and spacing along each axis, as stored."""
        if self.facts.shape is None or self.facts.spacing is None:
            return "cannot be read"
        return f"{by(self.facts.shape)} voxels of {by(round(mm, 3) for mm in self.facts.spacing)} mm"


def write_dataset_page(report: Report, path: Path) -> None:
    """Write the findings of a check as one HTML file, with the pictures that `check` drew."""
    cards = _cards(report)
    page = fill(
        "dataset.html",
        ["sort.js"],
        title=report.source.resolve().name if report.source else "Dataset",
        source=report.source,
        summary=report.summary,
        unusable=len(report.unusable),
        errors=len(report.errors),
        warnings=len(report.findings) - len(report.errors),
        tables=[table for table in (_findings(report), _classes(report), _distances(report)) if table],
        left_out=max(0, len(report.findings) - MOST_LINES),
        figures=_figures(report),
        colours=[(name, class_colour(value)) for value, name in enumerate(report.classes or ()) if value],
        cards=cards[:MOST_CASES],
        unseen=max(0, len(cards) - MOST_CASES),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pages({path: page})


def _cards(report: Report) -> list[Card]:
    """Return all cases: those with errors first, then those with warnings, then the rest."""
    by_case: dict[str | None, list[Finding]] = {}
    for finding in report.findings:
        by_case.setdefault(finding.case, []).append(finding)
    cards = []
    for case, facts in zip(report.cases, report.facts, strict=True):
        picture = facts.picture
        uri = "data:image/jpeg;base64," + base64.b64encode(picture).decode() if picture else ""
        cards.append(Card(case, facts, uri, tuple(by_case.get(case.id, ()))))
    return sorted(cards, key=lambda card: ("error", "warning", "").index(card.level))


# ---- tables


def _findings(report: Report) -> Table:
    columns = [Column(head, kind="text") for head in ("Case", "What")]
    columns += [Column(head, kind="long") for head in ("Found", "What to do", "File")]
    found = sorted(report.findings, key=lambda finding: finding.severity)[:MOST_LINES]
    lines = [
        [
            Cell(finding.case or "all"),
            Cell(f"{finding.severity} {finding.code}", colour="#c0392b" if finding.severity == "error" else "#e69f00"),
            Cell(report.relative("; ".join(finding.found.split("\n")))),
            Cell(finding.fix),
            Cell(report.relative(str(finding.file))),
        ]
        for finding in found
    ]
    words = "Findings, errors first. Cases with errors cannot be used and stop medssl prepare; warnings do not."
    return Table("findings", words, columns, [("", lines)])


def _classes(report: Report) -> Table:
    columns = [Column("Class", kind="text"), Column("Value"), Column("Share of voxels", "%"), Column("Labels with it")]
    lines = [
        [
            Cell(
                known["name"] or "not declared",
                colour=class_colour(known["value"]) if (known["value"] or 0) > 0 else "",
            ),
            Cell("–" if known["value"] is None else str(known["value"])),
            Cell(f"{100 * known['share']:.3f}", order=known["share"]),
            Cell(str(known["cases"])),
        ]
        for known in report.summary["classes"]
    ]
    return Table("classes", "Classes in the labels.", columns, [("", lines)])


def _distances(report: Report) -> Table:
    columns = [Column("Unlabelled case", kind="text"), Column("Distance", "1: the most unusual labelled case")]
    lines = [[Cell(case), Cell(f"{score:.2f}", order=score)] for case, score in report.distances[: 4 * FARTHEST]]
    words = (
        "Unlabelled cases that are least like the labelled ones in spacing, size and grey levels of the image. Distant "
        "cases can harm training: the network then learns from its own predictions on images unlike the labelled ones."
    )
    return Table("distances", words, columns, [("", lines)])


# ---- plots


def _figures(report: Report) -> list[Figure]:
    looks = [(fact.case, fact.look) for fact in report.facts if fact.look is not None]
    if not looks:
        return []
    figures = [
        Figure(histograms(_by_axis([look.spacing for _, look in looks]), "spacing, mm"), "Spacing of the images."),
        Figure(histograms(_by_axis([look.shape for _, look in looks]), "voxels"), "Size of the images in voxels."),
    ]
    odd = {finding.case for finding in report.findings if finding.code == "intensity_outlier"}
    grey = [(case in odd, look.levels) for case, look in looks if look.levels]
    if grey:
        picked = [PERCENTILES.index(percent) for percent in (0.5, 25.0, 50.0, 75.0, 99.5)]
        levels = [[each[i] for i in picked] for _, each in grey]
        words = "Grey levels of each image: all but 1 % of the voxels (pale), the middle half (dark), the median (dot)."
        words += " Orange: unlike the other images." if odd else ""
        figures.append(Figure(level_plot(levels, [is_odd for is_odd, _ in grey], "grey level"), words))
    return figures


def _by_axis(rows: Sequence[tuple[float, ...]]) -> list[tuple[str, list[float]]]:
    return [(name, [row[axis] for row in rows]) for axis, name in enumerate(AXES)]
