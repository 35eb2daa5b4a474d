"""Find cases that are unlike the rest of their dataset, which no file shows by itself.

A value is an outlier if it lies outside the middle 80 % of the values of the other cases, by more than the width of
that range and by more than scanners usually differ. A dataset of two protocols therefore has no outliers, and each
finding can say what is usual. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medssl.data.cases import PATIENT_FIRST, Case, namesakes
from medssl.data.findings import Distance, Facts, Finding
from medssl.data.grid import STORED, THICK_SLICE_RATIO
from medssl.data.looks import Look
from medssl.words import by, some

FEWEST = 5
"""Fewest cases to compare with; with fewer, nothing is called unusual."""
FEWEST_SIDES = 8
"""Fewest labelled cases for comparing left and right."""
SPACING_FACTOR = 1.5
SIZE_FACTOR = 2.0
RANGE_FACTOR = 5.0
"""Grey levels of MRI have no unit, so ranges differ widely without a fault."""
UNIT_SHIFT = 300.0
"""Difference of grey levels that have a unit (HU); air and water differ by less between scanners."""
UNIT_LOW = -200.0
"""Grey levels that reach below this have a unit (HU); otherwise they would start at 0."""
FAR = 2.0
"""An unlabelled case is reported if its distance exceeds this many times that of the most unusual labelled case. With
few labelled cases the limit is higher: `FAR * (1 + FEWEST / labelled)`."""
ALIKE = 0.1
"""Smallest unit of distances, in spreads; used if all labelled cases are nearer to each other."""
RARE = 0.02
"""A class is reported as missing if at most this share of the labelled cases lacks it."""

AXES = ("left-right", "front-back", "head-foot")
_BACKGROUND = {0}


def compare(
    cases: Sequence[Case],
    facts: Sequence[Facts],
    classes: Sequence[str] | None,
    apart: Sequence[Distance],
    orientation: str = "RAS",
) -> Iterator[Finding]:
    """Compare the cases with each other and yield what is unusual.

    Args:
        facts: in the order of `cases`.
        apart: their `distances`.
        orientation: see `Recipe.orientation`.
    """
    pairs = list(zip(cases, facts, strict=True))
    yield from _same_volumes(pairs)
    yield from _divided_series(pairs)
    yield from _divided_subjects(cases)
    yield from _namesakes(cases)
    yield from _odd_geometry(pairs)
    yield from () if orientation == STORED else _mixed_slices(pairs)
    yield from _odd_levels(pairs)
    yield from _identity(pairs)
    yield from _missed_classes(pairs, classes)
    yield from _flips(pairs)
    yield from _far(pairs, apart)


def distances(cases: Sequence[Case], facts: Sequence[Facts]) -> tuple[Distance, ...]:
    """Return the unlabelled cases, the farthest from the labelled ones first; none with fewer than `FEWEST` of these.

    Sizes, spacings and grey levels of the images are compared, each in units of its spread among the labelled cases.
    The distance of a case is its mean distance to the three nearest labelled cases.
    """
    known = [(case, fact.look) for case, fact in zip(cases, facts, strict=True) if fact.look and fact.look.levels]
    labelled = np.array([_features(look) for case, look in known if case.label is not None])
    others = [(case.id, _features(look)) for case, look in known if case.label is None]
    if len(labelled) < FEWEST or not others:
        return ()
    middle = np.median(labelled, axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(labelled - middle), axis=0), 0.5 * labelled.std(0))
    spread = np.maximum(spread, 0.05)  # even if all labelled cases share a value, 5 % is no difference
    own = np.array([_nearest(row, np.delete(labelled, i, 0), spread) for i, row in enumerate(labelled)])
    unit = max(own.max(), ALIKE)
    found = [Distance(id, float(_nearest(row, labelled, spread) / unit)) for id, row in others]
    return tuple(sorted(found, key=lambda each: (-each.score, each.case)))


def _features(look: Look) -> NDArray[np.float64]:
    """Logarithms of sizes, spacings and texture, and where the middle grey levels lie between the extremes."""
    inner = (np.array(look.levels[1:-1]) - look.levels[0]) / look.range
    texture = np.log(max(look.texture, 1e-3))
    return np.array([*np.log(look.spacing), *np.log(look.extent), *(4 * inner), texture])


def _nearest(row: NDArray[np.float64], table: NDArray[np.float64], spread: NDArray[np.float64]) -> float:
    apart = np.sqrt((((table - row) / spread) ** 2).mean(1))
    return float(np.sort(apart)[:3].mean())


Pairs = Sequence[tuple[Case, Facts]]


def _finding(case: Case, file: Path, code: str, found: str, fix: str) -> Finding:
    return Finding(case.id, file, "warning", code, found, fix)


# ---- the same twice


def _same_volumes(pairs: Pairs) -> Iterator[Finding]:
    images: dict[str, tuple[Case, Facts]] = {}
    labels: dict[str, Case] = {}
    for case, fact in pairs:
        twins = set()
        for source, name in zip(case.images, fact.digests, strict=False):
            first, known = images.setdefault(name, (case, fact)) if name else (case, fact)
            if first.id != case.id:
                twins.add(first.id)
                same = bool(fact.label_digest) and fact.label_digest == known.label_digest
                found = f"voxel for voxel the same image as {first.id}" + _says_of_labels(case, first, same)
                fix = "keep one of them; if they land in two parts of a split, a training image is scored"
                yield _finding(case, source.path, "same_image", found, fix)
        if case.label is None or not fact.label_digest or fact.voxels.keys() <= _BACKGROUND:
            continue
        first = labels.setdefault(fact.label_digest, case)
        if first.id != case.id and first.subject != case.subject and first.id not in twins:
            fix = "find out to which case this label belongs, and export the other label again"
            found = f"voxel for voxel the same label as {first.id}, whose image differs"
            yield _finding(case, case.label.path, "same_label", found, fix)


def _divided_series(pairs: Pairs) -> Iterator[Finding]:
    """DICOM series that lie in several folders and so count as several cases; whole copies are `same_image`."""
    found: dict[str, dict[tuple[str, ...], Case]] = {}
    for case, fact in pairs:
        if fact.series:
            found.setdefault(fact.series, {}).setdefault(fact.digests, case)
    for parts in found.values():
        if len(parts) > 1:
            first, *others = parts.values()
            text = f"its slices and those of {some([case.id for case in others])} have the same DICOM series uid"
            fix = "if they are one scan, put them into one folder; now its parts count as separate cases"
            yield _finding(first, first.images[0].path, "divided_series", text, fix)


def _says_of_labels(case: Case, other: Case, same: bool) -> str:
    if case.label is None and other.label is None:
        return ""
    if case.label is None or other.label is None:
        return ", which has a label" if case.label is None else ", which has no label"
    return ", with the same label" if same else ", with another label"


def _divided_subjects(cases: Sequence[Case]) -> Iterator[Finding]:
    """Patients whose scans the dataset itself puts on several sides: training (labelled or not), val and test."""
    sides: dict[str, dict[str, list[Case]]] = {}
    for case in cases:
        if case.part is not None:
            side = case.part if case.part in ("val", "test") else "train"
            sides.setdefault(case.subject, {}).setdefault(side, []).append(case)
    for subject, found in sides.items():
        if len(found) > 1:
            listed = "; ".join(f"{side}: {', '.join(case.id for case in own)}" for side, own in sorted(found.items()))
            last = next(reversed(found.values()))[0]
            text = f"patient {subject} is on {len(found)} sides of the split: {listed}"
            fix = "put all scans of a patient into one part; otherwise scores are too good"
            yield _finding(last, last.images[0].path, "divided_patient", text, fix)


# ---- sizes and grey levels


class Span(NamedTuple):
    """A range from a low to a high value."""

    low: float
    high: float

    @classmethod
    def of(cls, values: ArrayLike) -> Span:
        """Return the range from the lowest to the highest of some values."""
        return cls(float(np.min(values)), float(np.max(values)))

    def holds(self, value: float, *, shift: float = 0.0, factor: float = 1.0) -> bool:
        """Whether a value lies in the range, widened by a shift and a factor."""
        return self.low / factor - shift <= value <= self.high * factor + shift

    def __str__(self) -> str:
        low, high = f"{self.low:.3g}", f"{self.high:.3g}"
        return low if low == high else f"{low} to {high}"


def _outside(values: NDArray[np.float64], index: int, reach: float) -> Span | None:
    """The middle 80 % of the other values, if this one lies outside by more than `reach` and their width."""
    usual = Span(*map(float, np.percentile(np.delete(values, index), [10, 90])))
    reach = max(reach, usual.high - usual.low)
    return None if usual.holds(float(values[index]), shift=reach) else usual


def _odd_geometry(pairs: Pairs) -> Iterator[Finding]:
    seen = [(case, fact.look) for case, fact in pairs if fact.look is not None]
    if len(seen) <= FEWEST:
        return
    table = _sizes([look for _, look in seen])
    for index, (case, look) in enumerate(seen):
        for code, found, fix in _judge_size(look, table, index):
            yield _finding(case, case.images[0].path, code, found, fix)


def slice_axis(spacing: Sequence[float]) -> int | None:
    """Return the axis across which slices are thick; None if they are not."""
    axis = int(np.argmax(spacing))
    return axis if spacing[axis] > THICK_SLICE_RATIO * min(spacing) else None


def _mixed_slices(pairs: Pairs) -> Iterator[Finding]:
    """Thick slices across different axes of the body, so that no single spacing fits all cases."""
    stacks: dict[int, list[str]] = {}
    stored = set()
    for case, fact in pairs:
        if fact.look is not None and (axis := slice_axis(fact.look.spacing)) is not None:
            stacks.setdefault(axis, []).append(case.id)
            stored.add(slice_axis(fact.spacing or fact.look.spacing))
    if len(stacks) < 2:
        return
    told = "; ".join(f"{AXES[axis]} in {len(ids)} cases ({some(ids)})" for axis, ids in sorted(stacks.items()))
    fix = "make one dataset for each direction; a common spacing would lose slices or detail of some cases"
    if len(stored) == 1:
        fix = ("set data.recipe.orientation: stored, because all files store them along the same axis; "
               "data.recipe.spacing then refers to the axes of the files")  # fmt: skip
    found = f"thick slices lie across different axes of the body: {told}"
    yield Finding(None, pairs[0][0].images[0].path.parent, "warning", "mixed_slices", found, fix)


def out_of_family(id: str, label: Path, look: Look, voxels: dict[int, int], facts: Sequence[Facts]) -> list[Finding]:
    """Report how a label without an image differs from the cases of the dataset."""
    looks = [fact.look for fact in facts if fact.look is not None]
    if len(looks) < FEWEST:
        return []
    found = list(_judge_size(look, _sizes([*looks, look]), len(looks)))
    held = [set(fact.voxels) for fact in facts if fact.voxels]
    missed = sorted(set.intersection(*held) - voxels.keys()) if held else []
    if found and missed:
        code, text, fix = found[0]
        found[0] = code, f"{text}; it also lacks class {', '.join(map(str, missed))}, which all others hold", fix
    return [Finding(id, label, "warning", *each) for each in found]


def _sizes(looks: Sequence[Look]) -> NDArray[np.float64]:
    """`(cases, 2, 3)`: logarithms of spacing and shape."""
    return np.log([(look.spacing, look.shape) for look in looks])


def _judge_size(look: Look, table: NDArray[np.float64], index: int) -> Iterator[tuple[str, str, str]]:
    """Yield code, finding and fix of an unusual spacing and of an unusual shape."""
    if odd := _odd_axes(table[:, 0], index, np.log(SPACING_FACTOR)):
        found = f"spacing {by(look.spacing)} mm: {_tell(odd, 'mm')}"
        fix = "check the header; if it is right, expect this case to be harder to segment"
        yield "spacing_outlier", found, fix
    if odd := _odd_axes(table[:, 1], index, np.log(SIZE_FACTOR)):
        found = f"{by(look.shape)} voxels: {_tell(odd, 'voxels')}"
        fix = "check that it belongs to this dataset and is cropped like the others"
        yield "shape_outlier", found, fix


def _odd_axes(logs: NDArray[np.float64], index: int, reach: float) -> list[tuple[str, Span]]:
    usual = [(AXES[axis], _outside(logs[:, axis], index, reach)) for axis in range(3)]
    return [(axis, Span(*map(float, np.exp(found)))) for axis, found in usual if found is not None]


def _tell(odd: list[tuple[str, Span]], unit: str) -> str:
    return "most others have " + ", ".join(f"{usual} {unit} {axis}" for axis, usual in odd)


def _odd_levels(pairs: Pairs) -> Iterator[Finding]:
    """Unusual grey levels: with a unit (HU) they are compared themselves, otherwise only their range."""
    seen = [(case, fact.look) for case, fact in pairs if fact.look is not None and fact.look.levels]
    if len(seen) <= FEWEST:
        return
    levels = np.array([look.levels for _, look in seen])
    has_unit = bool(np.median(levels[:, 0]) <= UNIT_LOW)
    judge: Callable[[int], str] = (lambda i: _off_unit(levels, i)) if has_unit else (lambda i: _off_range(levels, i))
    for index, (case, _) in enumerate(seen):
        if found := judge(index):
            fix = "check whether it has another modality or unit, or was rescaled on export"
            yield _finding(case, case.images[0].path, "intensity_outlier", found, fix)


def _off_unit(levels: NDArray[np.float64], index: int) -> str:
    for column, name in ((0, "darkest"), (3, "middle"), (6, "brightest")):
        usual = _outside(levels[:, column], index, UNIT_SHIFT)
        if usual is None:
            continue
        text = f"its {name} grey level is {levels[index, column]:.4g}; most others have {usual}"
        if column == 0 and levels[index, 0] > -100:
            text += "; the others look like Hounsfield units, this one like unsigned values with an offset"
        return text
    return ""


def _off_range(levels: NDArray[np.float64], index: int) -> str:
    if levels[index, 0] <= UNIT_LOW and (np.delete(levels[:, 0], index) >= 0).all():
        return f"its grey levels start at {levels[index, 0]:.4g}, like Hounsfield units; no other case goes below 0"
    spans = np.log(levels[:, -1] - levels[:, 0])
    usual = _outside(spans, index, np.log(RANGE_FACTOR))
    if usual is None:
        return ""
    others = Span(float(np.exp(usual.low)), float(np.exp(usual.high)))
    return f"its grey levels span {np.exp(spans[index]):.4g}; those of most others span {others}"


def _identity(pairs: Pairs) -> Iterator[Finding]:
    """Files written from bare arrays: reported once if all are so, and singly if they are among others."""
    seen = [(case, fact.look) for case, fact in pairs if fact.look is not None]
    bare = [case for case, look in seen if look.is_identity]
    fix = "convert again from the source with its header; without it, distances, left and right may be wrong"
    if len(seen) > 1 and len(bare) == len(seen):
        found = f"all {len(seen)} images have an identity affine (1 mm voxels, first voxel at 0): no true geometry?"
        yield Finding(None, bare[0].images[0].path.parent, "warning", "bare_affine", found, fix)
        return
    true = [look for _, look in seen if not look.is_identity]
    if len(true) >= FEWEST and all(max(abs(mm - 1) for mm in look.spacing) > 0.01 for look in true):
        for case in bare:
            found = "identity affine (1 mm voxels, first voxel at 0), but no other image has 1 mm voxels"
            yield _finding(case, case.images[0].path, "bare_affine", found, fix)


# ---- labels


def _missed_classes(pairs: Pairs, classes: Sequence[str] | None) -> Iterator[Finding]:
    """Cases without classes that nearly all other labels hold; with few labels, cases without half of the classes."""
    labelled = [(case, fact) for case, fact in pairs if case.label is not None and fact.voxels.keys() - _BACKGROUND]
    names = dict(enumerate(classes or ()))
    values = sorted({value for _, fact in labelled for value in fact.voxels} - _BACKGROUND)
    lacking = {value: [case for case, fact in labelled if value not in fact.voxels] for value in values}
    rare = {value: cases for value, cases in lacking.items() if len(cases) <= max(1, RARE * len(labelled))}
    for case, _ in labelled:
        missing = [value for value, cases in rare.items() if case in cases]
        is_told = len(labelled) >= 2 * FEWEST or (
            len(labelled) > 2 and len(missing) > 1 and 2 * len(missing) >= len(values)
        )
        if not missing or not is_told:
            continue
        assert case.label is not None
        told = some([f"{value} ({names[value]})" if value in names else str(value) for value in missing])
        most = max(len(lacking[value]) for value in missing)
        least = "at least " * (len(missing) > 1)
        found = f"lacks class {told}, which {least}{len(labelled) - most} of {len(labelled)} labels hold"
        fix = "correct if the class is truly absent; its scores are then undefined for this case"
        if len(missing) > 1:
            found = f"holds {len(values) - len(missing)} of {len(values)} classes; it {found}"
            fix = ("if only these were annotated, training takes the others as background: complete the label, or "
                   "remove it so that the case counts as unlabelled")  # fmt: skip
        yield _finding(case, case.label.path, "class_missing", found, fix)


def _flips(pairs: Pairs) -> Iterator[Finding]:
    """Labels whose classes lie where those of the mirror image would.

    The position of each class, and of classes relative to each other, is compared along the left-right axis. Only
    what lies on one side in nearly all cases can show a flip; organs in the middle, or on both sides, cannot.
    """
    labelled = [(case, fact) for case, fact in pairs if case.label is not None and fact.sides.keys() - _BACKGROUND]
    if len(labelled) < FEWEST_SIDES:
        return
    table = _sides([fact for _, fact in labelled])
    for index, (case, _) in enumerate(labelled):
        assert case.label is not None
        as_is, mirrored = _misfit(table, index)
        if as_is > 6 and mirrored < 3 and as_is > 4 * mirrored:
            found = (
                "left and right look swapped: mirrored, its classes would lie "
                f"{as_is / max(mirrored, 0.1):.0f} times nearer to their usual places"
            )
            fix = "look at the case; if they are, mirror the label, or image and label, and correct the header"
            yield _finding(case, case.label.path, "flip_suspected", found, fix)


def _misfit(table: NDArray[np.float64], index: int) -> tuple[float, float]:
    """Distance of a case from the median of the others, in their spreads, as it is and mirrored; 0 if unknown."""
    known = np.isfinite(table[index])
    own, others = table[index, known], np.delete(table, index, 0)[:, known]
    shared = np.isfinite(others).sum(0) >= FEWEST_SIDES - 1
    own, others = own[shared], others[:, shared]
    if not own.size:
        return 0.0, 0.0
    middle = np.nanmedian(others, axis=0)
    spread = np.maximum(1.4826 * np.nanmedian(np.abs(others - middle), axis=0), 0.01)
    one_sided = (np.sign(others) == np.sign(middle)).sum(0) > 0.9 * np.isfinite(others).sum(0)
    told = (np.abs(middle) > 4 * spread) & one_sided
    if not told.any():
        return 0.0, 0.0
    as_is, mirrored = (float((np.abs(sign * own - middle) / spread)[told].mean()) for sign in (1, -1))
    return as_is, mirrored


def _sides(facts: Sequence[Facts]) -> NDArray[np.float64]:
    """`(cases, features)`: each class's place from left to right, then beside the mean of all; NaN where absent."""
    values = sorted({value for fact in facts for value in fact.sides} - _BACKGROUND)
    places = np.array([[fact.sides.get(value, np.nan) for value in values] for fact in facts])
    if len(values) < 2:
        return places
    return np.hstack([places, places - np.nanmean(places, axis=1, keepdims=True)])


def _namesakes(cases: Sequence[Case]) -> Iterator[Finding]:
    alike = namesakes({case.id: case.subject for case in cases})
    if alike is not None:
        found = f"{alike[0]} and {alike[1]} look like scans of one patient, but each case counts as its own patient"
        fix = f"if patients have several scans, set data.subject, such as {{pattern: '{PATIENT_FIRST}'}}"
        case = next(case for case in cases if case.id == alike[1])
        yield _finding(case, case.images[0].path, "patients_by_name", found, fix)


def _far(pairs: Pairs, apart: Sequence[Distance]) -> Iterator[Finding]:
    by_id = {case.id: case for case, _ in pairs}
    labelled = sum(case.label is not None and fact.look is not None for case, fact in pairs)
    limit = FAR * (1 + FEWEST / max(1, labelled))
    for id, score in apart:
        if score > limit:
            case = by_id[id]
            found = f"unlike every labelled case: {score:.1f} times the distance of the most unusual labelled case"
            fix = "look at it; if it is another kind of scan, leave it out, because it can harm training"
            yield _finding(case, case.images[0].path, "far_from_labelled", found, fix)
