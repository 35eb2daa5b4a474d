"""Cases that are unlike the rest of their dataset: what no file shows by itself.

An outlier is told by the others alone: it lies beyond the middle 80 % of their values by more than the width of that
range, and by more than a factor that scanners differ by. So a set of two protocols has none, and each finding can say
what is usual. Nothing here reads a file.
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
"""Cases to compare with; below, nothing is unusual."""
FEWEST_SIDES = 8
"""Labelled cases from which on left and right are compared."""
SPACING_FACTOR = 1.5
SIZE_FACTOR = 2.0
RANGE_FACTOR = 5.0
"""Grey levels of MRI have no unit, so ranges differ widely without a fault."""
UNIT_SHIFT = 300.0
"""Grey levels, where they have a unit (HU): more than air or water differ between scanners."""
UNIT_LOW = -200.0
"""Grey levels that reach so low have a unit, or else they would start at 0."""
FAR = 2.0
"""An unlabelled case is far off from this many times the largest distance that a labelled one has to the others; from
more where labelled cases are few, `FAR * (1 + FEWEST / labelled)`."""
ALIKE = 0.1
"""Spreads; where all labelled cases are nearer to each other, distances are in units of this one."""
RARE = 0.02
"""A class that no more than this share of the labelled cases lacks is missed in them."""

AXES = ("left-right", "front-back", "head-foot")
_BACKGROUND = {0}


def compare(
    cases: Sequence[Case],
    facts: Sequence[Facts],
    classes: Sequence[str] | None,
    apart: Sequence[Distance],
    orientation: str = "RAS",
) -> Iterator[Finding]:
    """What is odd about cases beside each other.

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
    """Unlabelled cases, the farthest from the labelled ones first; empty with fewer than `FEWEST` labelled cases.

    Sizes, spacings and grey levels of the images are compared, each in units of its spread among the labelled cases;
    the distance is the mean one to the three nearest labelled cases.
    """
    known = [(case, fact.look) for case, fact in zip(cases, facts, strict=True) if fact.look and fact.look.levels]
    labelled = np.array([_features(look) for case, look in known if case.label is not None])
    others = [(case.id, _features(look)) for case, look in known if case.label is None]
    if len(labelled) < FEWEST or not others:
        return ()
    middle = np.median(labelled, axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(labelled - middle), axis=0), 0.5 * labelled.std(0))
    spread = np.maximum(spread, 0.05)  # what all labelled cases share may still differ by 5 %
    own = np.array([_nearest(row, np.delete(labelled, i, 0), spread) for i, row in enumerate(labelled)])
    unit = max(own.max(), ALIKE)
    found = [Distance(id, float(_nearest(row, labelled, spread) / unit)) for id, row in others]
    return tuple(sorted(found, key=lambda each: (-each.score, each.case)))


def _features(look: Look) -> NDArray[np.float64]:
    """Logarithms of sizes and steps, and where the middle grey levels lie between the extremes."""
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
                found = f"voxel for voxel the image of {first.id}" + _says_of_labels(case, first, same)
                fix = "keep one of them; in two parts of a split, a score would be of what was trained on"
                yield _finding(case, source.path, "same_image", found, fix)
        if case.label is None or not fact.label_digest or fact.voxels.keys() <= _BACKGROUND:
            continue
        first = labels.setdefault(fact.label_digest, case)
        if first.id != case.id and first.subject != case.subject and first.id not in twins:
            fix = "find out whose label it is, and export the other again"
            found = f"voxel for voxel the label of {first.id}, whose image differs"
            yield _finding(case, case.label.path, "same_label", found, fix)


def _divided_series(pairs: Pairs) -> Iterator[Finding]:
    """DICOM series in several folders, which are as many cases then; whole copies are told of as such."""
    found: dict[str, dict[tuple[str, ...], Case]] = {}
    for case, fact in pairs:
        if fact.series:
            found.setdefault(fact.series, {}).setdefault(fact.digests, case)
    for parts in found.values():
        if len(parts) > 1:
            first, *others = parts.values()
            text = f"its slices and those of {some([case.id for case in others])} are one DICOM series by their uid"
            fix = (
                "if they are one scan, put them into one folder; as it is, its parts are scans, perhaps of two patients"
            )
            yield _finding(first, first.images[0].path, "divided_series", text, fix)


def _says_of_labels(case: Case, other: Case, same: bool) -> str:
    if case.label is None and other.label is None:
        return ""
    if case.label is None or other.label is None:
        return ", which has a label" if case.label is None else ", which has no label"
    return ", and so is the label" if same else ", with another label"


def _divided_subjects(cases: Sequence[Case]) -> Iterator[Finding]:
    """A patient whose scans the dataset itself puts on two sides; labelled and unlabelled ones are on the same."""
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
            fix = "put all scans of a patient into one part; scores are too good otherwise"
            yield _finding(last, last.images[0].path, "divided_patient", text, fix)


# ---- sizes and grey levels


class Span(NamedTuple):
    """From a low value to a high one."""

    low: float
    high: float

    @classmethod
    def of(cls, values: ArrayLike) -> Span:
        """From the lowest of some values to the highest."""
        return cls(float(np.min(values)), float(np.max(values)))

    def holds(self, value: float, *, shift: float = 0.0, factor: float = 1.0) -> bool:
        """Whether a value lies within, or beyond by no more than this."""
        return self.low / factor - shift <= value <= self.high * factor + shift

    def __str__(self) -> str:
        low, high = f"{self.low:.3g}", f"{self.high:.3g}"
        return low if low == high else f"{low} to {high}"


def _outside(values: NDArray[np.float64], index: int, reach: float) -> Span | None:
    """The middle 80 % of the other values, when this one lies beyond them by `reach` and by their width."""
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
    """The axis across which slices are thick, if they are."""
    axis = int(np.argmax(spacing))
    return axis if spacing[axis] > THICK_SLICE_RATIO * min(spacing) else None


def _mixed_slices(pairs: Pairs) -> Iterator[Finding]:
    """Thick slices that lie across another axis of the body from case to case, so that no one spacing fits."""
    stacks: dict[int, list[str]] = {}
    stored = set()
    for case, fact in pairs:
        if fact.look is not None and (axis := slice_axis(fact.look.spacing)) is not None:
            stacks.setdefault(axis, []).append(case.id)
            stored.add(slice_axis(fact.spacing or fact.look.spacing))
    if len(stacks) < 2:
        return
    told = "; ".join(f"{AXES[axis]} in {len(ids)} cases ({some(ids)})" for axis, ids in sorted(stacks.items()))
    fix = "make a dataset of each kind; in one, a spacing that suits some loses slices, or detail, of the others"
    if len(stored) == 1:
        fix = ("set data.recipe.orientation: stored, as all files have them along one axis; data.recipe.spacing is "
               "then for the axes of the files")  # fmt: skip
    found = f"slices are thick, and lie across another axis of the body from case to case: {told}"
    yield Finding(None, pairs[0][0].images[0].path.parent, "warning", "mixed_slices", found, fix)


def out_of_family(id: str, label: Path, look: Look, voxels: dict[int, int], facts: Sequence[Facts]) -> list[Finding]:
    """Whether a label that has no image is like the cases of the dataset."""
    looks = [fact.look for fact in facts if fact.look is not None]
    if len(looks) < FEWEST:
        return []
    found = list(_judge_size(look, _sizes([*looks, look]), len(looks)))
    held = [set(fact.voxels) for fact in facts if fact.voxels]
    missed = sorted(set.intersection(*held) - voxels.keys()) if held else []
    if found and missed:
        code, text, fix = found[0]
        found[0] = code, f"{text}; and it lacks class {', '.join(map(str, missed))}, which all others hold", fix
    return [Finding(id, label, "warning", *each) for each in found]


def _sizes(looks: Sequence[Look]) -> NDArray[np.float64]:
    """`(cases, 2, 3)`: logarithms of spacing and shape."""
    return np.log([(look.spacing, look.shape) for look in looks])


def _judge_size(look: Look, table: NDArray[np.float64], index: int) -> Iterator[tuple[str, str, str]]:
    """Code, finding and fix of an odd spacing and of an odd shape."""
    if odd := _odd_axes(table[:, 0], index, np.log(SPACING_FACTOR)):
        found = f"spacing {by(look.spacing)} mm: {_tell(odd, 'mm')}"
        fix = "look whether the header is right; if so, expect such a case to be harder to segment"
        yield "spacing_outlier", found, fix
    if odd := _odd_axes(table[:, 1], index, np.log(SIZE_FACTOR)):
        found = f"{by(look.shape)} voxels: {_tell(odd, 'voxels')}"
        fix = "look whether it belongs to this dataset, and whether it is cropped as the others are"
        yield "shape_outlier", found, fix


def _odd_axes(logs: NDArray[np.float64], index: int, reach: float) -> list[tuple[str, Span]]:
    usual = [(AXES[axis], _outside(logs[:, axis], index, reach)) for axis in range(3)]
    return [(axis, Span(*map(float, np.exp(found)))) for axis, found in usual if found is not None]


def _tell(odd: list[tuple[str, Span]], unit: str) -> str:
    return ", ".join(f"{axis} most others have {usual} {unit}" for axis, usual in odd)


def _odd_levels(pairs: Pairs) -> Iterator[Finding]:
    """Where grey levels have a unit they are compared as they are, elsewhere by their range alone."""
    seen = [(case, fact.look) for case, fact in pairs if fact.look is not None and fact.look.levels]
    if len(seen) <= FEWEST:
        return
    levels = np.array([look.levels for _, look in seen])
    has_unit = bool(np.median(levels[:, 0]) <= UNIT_LOW)
    judge: Callable[[int], str] = (lambda i: _off_unit(levels, i)) if has_unit else (lambda i: _off_range(levels, i))
    for index, (case, _) in enumerate(seen):
        if found := judge(index):
            fix = "look whether it is another modality or unit, or was rescaled on export"
            yield _finding(case, case.images[0].path, "intensity_outlier", found, fix)


def _off_unit(levels: NDArray[np.float64], index: int) -> str:
    for column, name in ((0, "darkest"), (3, "middle"), (6, "brightest")):
        usual = _outside(levels[:, column], index, UNIT_SHIFT)
        if usual is None:
            continue
        text = f"its {name} grey level is {levels[index, column]:.4g}, most others have {usual}"
        if column == 0 and levels[index, 0] > -100:
            text += "; the others look like Hounsfield units, this one as if stored unsigned with an offset"
        return text
    return ""


def _off_range(levels: NDArray[np.float64], index: int) -> str:
    if levels[index, 0] <= UNIT_LOW and (np.delete(levels[:, 0], index) >= 0).all():
        return f"its grey levels start at {levels[index, 0]:.4g}, as Hounsfield units do; no other goes below 0"
    spans = np.log(levels[:, -1] - levels[:, 0])
    usual = _outside(spans, index, np.log(RANGE_FACTOR))
    if usual is None:
        return ""
    others = Span(float(np.exp(usual.low)), float(np.exp(usual.high)))
    return f"its grey levels span {np.exp(spans[index]):.4g}, those of most others {others}"


def _identity(pairs: Pairs) -> Iterator[Finding]:
    """Files that were written from bare arrays: said once where all are so, and of one that stands among others."""
    seen = [(case, fact.look) for case, fact in pairs if fact.look is not None]
    bare = [case for case, look in seen if look.is_identity]
    fix = "convert again from the source with its header; without spacing and sides, distances and flips mean little"
    if len(seen) > 1 and len(bare) == len(seen):
        found = f"all {len(seen)} images have 1 mm voxels, no direction and their first voxel at 0: no true geometry?"
        yield Finding(None, bare[0].images[0].path.parent, "warning", "bare_affine", found, fix)
        return
    true = [look for _, look in seen if not look.is_identity]
    if len(true) >= FEWEST and all(max(abs(mm - 1) for mm in look.spacing) > 0.01 for look in true):
        for case in bare:
            found = "1 mm voxels, no direction and the first voxel at 0, where no other image has 1 mm voxels"
            yield _finding(case, case.images[0].path, "bare_affine", found, fix)


# ---- labels


def _missed_classes(pairs: Pairs, classes: Sequence[str] | None) -> Iterator[Finding]:
    """Cases without classes that nearly all other labels hold; of few labels, such as lack half of the classes."""
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
        found = f"holds no class {told}, which {least}{len(labelled) - most} of {len(labelled)} labels hold"
        fix = "correct where it is truly absent; scores of the class are undefined there"
        if len(missing) > 1:
            found = f"holds {len(values) - len(missing)} of {len(values)} classes; it {found}"
            fix = ("if only these were drawn, the others would be taught as background: finish the label, or leave it "
                   "out, so that the case is unlabelled")  # fmt: skip
        yield _finding(case, case.label.path, "class_missing", found, fix)


def _flips(pairs: Pairs) -> Iterator[Finding]:
    """Labels whose classes lie where those of the mirror image would.

    Where a class lies, and how classes lie to each other, is compared along the left-right axis. Only what lies on
    one side in nearly all cases tells anything, so organs in the middle and sets of left and right ones stay silent.
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
                f"{as_is / max(mirrored, 0.1):.0f} times nearer to where they lie in the others"
            )
            fix = "look at the case; if so, mirror what is wrong, the label or both, and correct the header"
            yield _finding(case, case.label.path, "flip_suspected", found, fix)


def _misfit(table: NDArray[np.float64], index: int) -> tuple[float, float]:
    """Distance of a case from the median of the others, in their spreads, as it is and mirrored; 0 if nothing tells."""
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
        found = f"{alike[0]} and {alike[1]} look like one patient; each case counts as a patient of its own"
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
            found = f"unlike every labelled case: {score:.1f} times as far off as the oddest of these is from the rest"
            fix = "look at it; an unlabelled case of another kind can do harm, leave it out if it is one"
            yield _finding(case, case.images[0].path, "far_from_labelled", found, fix)
