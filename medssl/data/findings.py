"""Findings of a dataset check: as values, as JSON, printed, and as the error that stops a job."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from medssl.data.cases import Case
from medssl.data.looks import Look
from medssl.errors import DataError
from medssl.words import by, visible

if TYPE_CHECKING:
    from rich.console import Console

FARTHEST = 5
"""Number of unlabelled cases that the summary names with their distance."""

PRINTED = 20
"""Number of warnings of one kind that are printed."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or unusual in one file. Several lines in `found` belong together, such as two grids."""

    case: str | None
    """None if it concerns the dataset as a whole."""
    file: Path
    severity: Literal["error", "warning"]
    code: str
    found: str
    fix: str


@dataclass(frozen=True)
class Facts:
    """What is known of one case for the summary and for comparing cases."""

    case: str
    shape: tuple[int, int, int] | None = None
    """Shape of the image as stored; None if it cannot be read."""
    spacing: tuple[float, float, float] | None = None
    voxels: dict[int, int] = field(default_factory=dict)
    """Number of voxels by label value; empty without a readable label."""
    ignored: int = 0
    """Voxels that nobody annotated."""
    look: Look | None = None
    """None when the image cannot be read."""
    sides: dict[int, float] = field(default_factory=dict)
    """Mean position of each class between the patient's left (-0.5) and right (0.5)."""
    digests: tuple[str, ...] = ()
    """Digest of the voxels of each image; empty for a constant or unreadable image."""
    label_digest: str = ""
    series: str = ""
    """The uid of the DICOM series that the image was read from."""
    picture: Any = None
    """What the `draw` function of `check` returned."""


class Distance(NamedTuple):
    """Distance of an unlabelled case from the labelled ones; 1 is that of the most unusual labelled case."""

    case: str
    score: float


@dataclass(frozen=True)
class Report:
    """The result of a check. `unusable` decides the exit code."""

    source: Path | None
    cases: tuple[Case, ...]
    findings: tuple[Finding, ...]
    facts: tuple[Facts, ...]
    """One for each case, in the same order."""
    classes: tuple[str, ...] | None
    """Names by label value; None if they are not declared."""
    distances: tuple[Distance, ...] = ()
    """Unlabelled cases, the farthest from the labelled ones first; empty where nothing could be compared."""
    layout: str | None = None
    """The layout in which the source was read."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that keep a case, or the dataset, from being used."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def unusable(self) -> tuple[str, ...]:
        """Ids with an error, each once: of cases, and of labels whose image is missing."""
        return tuple(dict.fromkeys(finding.case for finding in self.errors if finding.case is not None))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Counts and ranges in plain values; `shape` and `spacing` are per axis, as stored."""
        labelled = sum(case.label is not None for case in self.cases)
        voxels: Counter[int | None] = Counter()
        holding: Counter[int | None] = Counter()
        for facts in self.facts:
            held = facts.voxels | ({None: facts.ignored} if facts.ignored else {})
            voxels.update(held)
            holding.update(held.keys())
        classes: dict[int | None, str] = dict(enumerate(self.classes or ()))
        names = {**classes, None: "ignored"}
        return {
            "cases": len(self.cases),
            "labelled": labelled,
            "unlabelled": len(self.cases) - labelled,
            "subjects": len({case.subject for case in self.cases}),
            "shape": _range(facts.shape for facts in self.facts),
            "spacing": _range(facts.spacing for facts in self.facts),
            "classes": [
                {
                    "value": value,
                    "name": names.get(value),
                    "share": voxels[value] / max(1, voxels.total()),
                    "cases": holding[value],
                }
                for value in sorted(voxels.keys() | classes.keys(), key=lambda value: (value is None, value))
            ],
        }

    def to_json(self) -> dict[str, Any]:
        """Everything in plain values."""
        return {
            "source": None if self.source is None else str(self.source),
            "layout": self.layout,
            "summary": self.summary,
            "unusable": list(self.unusable),
            "distances": [distance._asdict() for distance in self.distances],
            "findings": [asdict(finding) | {"file": str(finding.file)} for finding in self.findings],
        }

    def print(self, console: Console) -> None:
        """Print the findings, a line each, grouped by kind with errors first, and then the summary."""
        from rich.text import Text

        groups: dict[tuple[str, str, str], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.severity, finding.code, finding.fix), []).append(finding)
        for (severity, code, fix), findings in sorted(groups.items(), key=lambda group: group[0][0]):
            style = "bold red" if severity == "error" else "yellow"
            title = Text.assemble((f"{severity} {code}", style), visible(f" ({len(findings)}): {fix}"))
            console.print(title, soft_wrap=True)
            width = max(len(finding.case or "") for finding in findings)
            shown = findings if severity == "error" else findings[:PRINTED]
            for finding in shown:
                line = f"  {finding.case or '':{width}}  " + "; ".join(_lines(finding))
                console.print(Text(visible(self.relative(line))), soft_wrap=True)
            if len(findings) > len(shown):
                console.print(f"  ... and {len(findings) - len(shown)} more; --json and --html list them all")
        for line in self._summary_lines():
            console.print(Text(visible(line)), soft_wrap=True)

    def relative(self, text: str) -> str:
        """Return a text in which paths inside the source are relative to it."""
        return text if self.source is None else re.sub(rf"(?<![\w/.-]){re.escape(f'{self.source}{os.sep}')}", "", text)

    def _summary_lines(self) -> Iterator[str]:
        facts = self.summary
        if self.layout:
            yield f"layout {self.layout}"
        yield (
            f"{facts['cases']} cases: {facts['labelled']} labelled, {facts['unlabelled']} unlabelled, "
            f"{facts['subjects']} subjects; {len(self.unusable)} unusable, {len(self.findings)} findings"
        )
        for name, unit in (("shape", "voxels"), ("spacing", "mm")):
            if facts[name]:
                span = " / ".join(by(facts[name][key]) for key in ("min", "median", "max"))
                yield f"{name} {span} {unit} (min / median / max of each axis)"
        for known in facts["classes"]:
            name = known["name"] or "(not declared)"
            name = name if known["value"] is None else f"class {known['value']} {name}"
            yield f"{name}: {known['share']:.3%} of voxels, in {known['cases']} cases"
        if self.distances:
            shown = ", ".join(f"{case} {score:.2f}" for case, score in self.distances[:FARTHEST])
            yield f"farthest unlabelled cases (1 is the distance of the most unusual labelled case): {shown}"
        elif facts["labelled"] and facts["unlabelled"]:
            yield "unlabelled cases were not compared with the labelled ones: too few labelled cases"


def require_usable(report: Report) -> None:
    """Stop before a dataset with errors is used.

    Raises:
        DataError: every error, by case.
    """
    if not report.errors:
        return
    width = max(len(finding.case or "") for finding in report.errors)
    lines = []
    for finding in report.errors:
        first, *rest = _lines(finding)
        lines.append(f"  {finding.case or '':{width}}  {first}")
        lines += [f"  {'':{width}}  {line}" for line in rest]
    fixes = dict.fromkeys(f"  {finding.code}: {finding.fix}" for finding in report.errors)
    ids = {case.id for case in report.cases} | set(report.unusable)
    title = f"{len(report.unusable)} of {len(ids)} cases cannot be used"
    advice = "Fix the files, or move these cases out of the folder."
    raise DataError("\n".join([title, *lines, advice, *fixes]))


def _lines(finding: Finding) -> list[str]:
    """Return the lines of a finding, with its file unless the text names it."""
    named = str(finding.file) in finding.found
    return (finding.found if named else f"{finding.found}  {finding.file}").split("\n")


def _range(rows: Iterable[tuple[float, ...] | None]) -> dict[str, list[float]] | None:
    table = np.array([row for row in rows if row is not None])
    if not len(table):
        return None
    return {name: getattr(np, name)(table, axis=0).tolist() for name in ("min", "median", "max")}
