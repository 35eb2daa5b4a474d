"""Notes for the reader of a comparison: where runs, rows and their references differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from medssl.comparison.rows import BASELINE, Row, numbered, reference_row, shared_structures
from medssl.comparison.runs import Run, digest
from medssl.config import flatten
from medssl.data.splits import PARTS
from medssl.scores import Scores, counted
from medssl.words import listed

_SEED_AND_PLACE = {"train.seed", "train.workers", "data.root", "data.splits"}
_STEPS = {"train.iterations", "train.validate_every"}
_DRAW = {"splits.labelled", "splits.unlabelled"}


def notes(rows: Sequence[Row], references: Sequence[str] = (BASELINE,)) -> list[str]:
    """Return, as sentences, what a reader must know before comparing the numbers of rows and of their references."""
    found = [note for row in rows for run in row.runs for note in _notes_of_run(run)]
    for row in rows:
        found += _notes_of_row(row)
        baselines = (reference_row(row, rows, "dice", reference) for reference in references)
        found += [note for baseline in baselines if baseline for note in _notes_of_pair(row, baseline)]
    unknown = {case for row in rows for run in row.scored for case in run.case_dice if case not in run.patients}
    if unknown:
        found.append(f"Scored cases without a recorded patient: {listed(sorted(unknown))}. Each counts as a patient of "
                     "its own, so intervals are too narrow if a patient has several cases.")  # fmt: skip
    found += _notes_of_files([run for row in rows for run in row.runs])
    found += _notes_of_scoring([run for row in rows for run in row.scored])
    sets = {frozenset(score.case for score in run.scores or ()) for row in rows for run in row.scored}
    if len(sets) > 1:
        found.append("The runs were not all scored on the same cases: means over different cases cannot be compared.")
    asked = [run.scores.measures for row in rows for run in row.scored if run.scores]
    if any((one.tolerance, one.tolerances) != (asked[0].tolerance, asked[0].tolerances) for one in asked):
        found.append("The runs were scored with different tolerances: their NSD cannot be compared.")
    return list(dict.fromkeys(found))


def _notes_of_files(runs: Sequence[Run]) -> list[str]:
    """Name cases whose files differ between runs that used them in the same way, with or without their label."""
    content: dict[tuple[str, bool], set[str]] = defaultdict(set)
    for run in runs:
        unlabelled = set(run.splits["unlabelled"])
        for case, one in run.content.items():
            content[case, case in unlabelled].add(one)
    changed = {case for (case, _), versions in content.items() if len(versions) > 1}
    if not changed:
        return []
    return [f"Training cases whose files differ between runs: {listed(sorted(changed))}. Their images or labels were "
            "changed and prepared again."]  # fmt: skip


def _notes_of_scoring(runs: Sequence[Run]) -> list[str]:
    """Say where runs were scored on different classes, or a case against different references."""
    found, counting = [], dict[tuple[str, ...], str]()
    sizes: dict[tuple[str, str], set[int]] = defaultdict(set)
    for run in runs:
        scores = run.scores or Scores()
        counting.setdefault(tuple(sorted({score.class_name for score in counted(scores)})), run.path.name)
        for score in scores:
            sizes[score.case, score.class_name].add(score.reference_voxels)
    if len(counting) > 1:
        told = "; ".join(f"{', '.join(names)} in {run}" for names, run in counting.items())
        found.append(f"The runs were scored on different classes or regions: {told}; their means cannot be compared.")
    if other := sorted({case for (case, _), each in sizes.items() if len(each) > 1}):
        found.append(f"Cases whose reference differs between runs, in the voxel count of a class: {listed(other)}.")
    return found


def _notes_of_run(run: Run) -> list[str]:
    name, found = run.path.name, _notes_of_protocol(run)
    if run.last_step < run.key.steps:
        found.append(f"{name}: its log ends at step {run.last_step:,} of {run.key.steps:,}.")
    if run.scores is None:
        return [*found, f"{name}: not scored; its folder holds no scores.csv."]
    method = run.settings["method.name"]
    if run.made.method not in (None, method):
        found.append(f"{name}: its predictions come from the method {run.made.method}, not {method}.")
    scored = {score.case for score in run.scores}
    for part in PARTS[:3]:
        inside = sorted(scored & set(run.splits[part]))
        if inside:
            found.append(f"{name}: scored on cases of the {part} part of its split: {listed(inside)}.")
    left = sorted(set(run.splits["test"]) - scored)
    if left:
        found.append(f"{name}: test cases that were not scored: {listed(left)}, of {len(run.splits['test'])}.")
    return found


def _notes_of_protocol(run: Run) -> list[str]:
    """Name the habits of published protocols that a run follows, and its departures from its own protocol."""
    name, found = run.path.name, []
    if "selection on test" in run.quirks:
        found.append(
            f"{name}: SELECTION ON TEST. Its validation cases are its test cases, so the scores of its best.pt are too "
            "high. Compare them only with published numbers that were selected in the same way."
        )
    if "renamed frames" in run.quirks:
        found.append(f"{name}: its split was read from lists that count a patient's frames in order (renamed frames).")
    if "unlabelled labels seen" in run.quirks:
        found.append(
            f"{name}: its patients were drawn by the contents of labels (stratified by labels), including labels of "
            "cases that count as unlabelled. With unlabelled scans alone, this choice would not be possible."
        )
    elif "stratified by labels" in run.quirks:
        found.append(f"{name}: its patients were drawn so that classes and volumes are spread (stratified by labels).")
    if run.settings.get("data.recipe.resize"):
        side = " x ".join(map(str, run.settings["data.recipe.resize"]))
        found.append(
            f"{name}: trained on slices resized to {side} (nearest neighbour); spacing was ignored (2D resize)."
        )
    departures = run.settings.get("protocol.departures")
    if departures:
        found.append(f"Unlike the published {run.settings['protocol.name']}: {'; '.join(departures)}.")
    return found


def _notes_of_row(row: Row) -> list[str]:
    found = []
    replicates = [run.replicate for run in row.runs]
    if len(set(replicates)) < len(replicates):
        seeds = ", ".join(str(run.seed) for run in row.runs)
        found.append(f"{row.name}: a seed occurs more than once ({seeds}).")
    differing = [key for key in differing_facts(row.runs) if key not in _SEED_AND_PLACE | _DRAW]
    if differing:
        found.append(f"{row.name}: its runs differ in more than their seed: {', '.join(differing)}.")
    return found


def _notes_of_pair(row: Row, baseline: Row) -> list[str]:
    found, other, shared = [], baseline.key, len({case for case, _ in shared_structures([row, baseline], "dice")})
    if not shared:
        return []
    name = other.method
    if (other.augment, other.steps) != (row.key.augment, row.key.steps):
        found.append(
            f"{row.name}: compared with a {name} row that used {other.augment} augmentation and {other.steps:,} steps."
        )
    both = row.runs[0], baseline.runs[0]
    told = _SEED_AND_PLACE | _STEPS
    if not all(run.settings.get("train.unlabelled_batch") for run in both):
        told = told | {"train.unlabelled_batch"}  # one of the rows does not use unlabelled cases
    asked = ["method.dice"] if all("method.dice" in run.settings for run in both) else []
    differing = [key for key in differing_facts(both)
                 if (key.startswith(("train.", "network.")) and key not in told) or key in asked]  # fmt: skip
    if differing:
        found.append(f"{row.name}: also differs from {baseline.name}, in {', '.join(differing)}.")
    found += _notes_of_counts(row, baseline)
    if len({frozenset(run.replicate.draw for run in each.scored) for each in (row, baseline)}) > 1:
        found.append(f"{row.name}: compared with a {name} row that used other draws of labelled cases.")
    if shared < max(len({case for case, _ in numbered(each.scored, "dice")}) for each in (row, baseline)):
        found.append(f"{row.name}: the difference from {name} uses only the cases that both rows have ({shared}).")
    return found


def _notes_of_counts(row: Row, baseline: Row) -> Iterable[str]:
    """Say where one of two rows misses or invents classes more often, which some metrics do not show."""
    scores = [score for each in (row, baseline) for run in each.scored for score in run.scores or ()]
    faults = [("missed", "misses", "Distances do not always penalise a missed class; Dice does.")]
    if any(score.status == "absent" and score.dice is None for score in scores):
        told = ("A case without the class has a Dice only where a run invents it. If only some runs do, the case is "
                "left out of the comparison, and only these counts show the inventions.")  # fmt: skip
        faults.append(("invented", "invents", told))
    for fault, verb, told in faults:
        ours, theirs = (
            sum(getattr(run.summary.overall, fault) for run in each.scored if run.summary) / len(each.scored)
            for each in (row, baseline)
        )
        if ours != theirs:
            yield f"{row.name}: {verb} a class {ours:.1f} times per run, {baseline.name} {theirs:.1f} times. {told}"


def facts(run: Run) -> dict[str, Any]:
    """Return everything in which two runs can differ, without the logging settings; case lists by number and digest."""
    settings = {key: value for key, value in run.settings.items() if not key.startswith("logging.")}
    splits = {f"splits.{part}": digest(run.splits[part]) for part in PARTS}
    made = flatten(run.made.model_dump(include={"checkpoint", "window"}, exclude_defaults=True), "prediction.")
    return {**settings, **splits, **flatten(run.environment, "env."), **made}


def differing_facts(runs: Iterable[Run]) -> list[str]:
    """Return the keys of `facts` in which runs differ; `prediction.` and `env.` keys count only where recorded."""
    known = [facts(run) for run in runs]
    differing = []
    for key in dict.fromkeys(key for each in known for key in each):
        values = [each.get(key) for each in known if key in each or not key.startswith(("prediction.", "env."))]
        if any(value != values[0] for value in values):
            differing.append(key)
    return differing
