"""Statistics of a comparison: bootstrap intervals, tests, ranks, and verdicts that put them into words.

The unit is the patient. A method's values are one number per patient for each of its trainings (`Replicate`): the mean
over that patient's cases, in the unit of the metric.

- Intervals are bootstrap percentiles. A resample draws patients and, independently, trainings, each with replacement
  (the pigeonhole bootstrap of Owen 2007, whose intervals tend to be slightly too wide). If a method was trained on
  several draws of labelled patients, whole draws are resampled, with all their seeds; otherwise seeds are. A single
  training is kept in every resample, so its interval does not include the spread of training.
- Methods with the same draws or seeds are resampled together, because the same labelled patients, initial weights and
  order of patches produced them; other methods are resampled independently. Both sides always get the same patients.
- With few units, plain percentiles are too narrow. So n - 1 of n units are drawn, which corrects the variance of a mean
  (McCarthy and Snowden 1985; Rao and Wu 1988), and the distance of each end from the estimate is multiplied by the
  ratio of the t quantile to the normal one, after Hesterberg's (2015) expanded percentiles, with the degrees of freedom
  of Satterthwaite (1946), so that three seeds count as three. Of simulated intervals for 8 to 100 patients, 91 to 96 %
  held the true mean if patients or three seeds varied most, 88 % with 8 patients of a skewed distribution or two seeds
  that varied more than patients, and over 99 % if chance in a patient's result of one training outweighed both.
  tests/test_statistics.py repeats some of these simulations. If some patients fail completely, with a Dice near 0, a
  sample may contain none of them and then cannot account for them: with 5 to 20 % of such patients, 73 to 88 % of 500
  intervals held the mean for 8 or 10 patients, 84 to 95 % for 20, and 89 to 96 % for 40.
- The tests of Wilcoxon, Friedman and Nemenyi take patients' means over trainings as fixed: they ask whether these
  trained networks differ, not whether the methods do. For two methods that differ only by lucky seeds (three each, with
  a spread of 0.3 times that of patients), such a p fell below 0.05 in 40 % of 1500 simulations. The verdict, which also
  requires the interval to exclude 0, called them different in 4 %. So neither a p alone nor mean ranks without places
  are evidence that methods differ.
- If many methods are compared with one reference, some seem to differ by lucky seeds alone. So the interval has a
  p-value too, corrected by Holm like Wilcoxon's, and a verdict on one of several comparisons requires both below 0.05.
- All results depend only on the arguments, not on the order of patients and trainings.

Papers: Owen, Annals of Applied Statistics 1 (2007); McCarthy and Snowden, Vital and Health Statistics 2-95 (1985);
Rao and Wu, JASA 83 (1988); Hesterberg, The American Statistician 69 (2015); Satterthwaite, Biometrics Bulletin 2
(1946); Wilcoxon, Biometrics Bulletin 1 (1945); Holm, Scandinavian Journal of Statistics 6 (1979); Friedman, JASA 32
(1937); Demsar, JMLR 7 (2006).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medssl.words import p_value

RESAMPLES = 10_000
LEVEL = 0.95
"""Level of all intervals."""
ALPHA = 0.05
"""p-values below this are significant."""
FEWEST_PATIENTS = 6
"""With fewer patients, the p of the Wilcoxon test cannot fall below 0.05, whatever the values."""
FEW_PATIENTS = 10
"""With fewer patients, a verdict states their number."""

_EXACT = 50
_CHUNK = 1_000
_DIGITS = 12

Array = NDArray[np.float64]


class Replicate(NamedTuple):
    """One training of a method."""

    draw: str
    """Name of the draw of labelled patients that it was trained on."""
    seed: int


Values = Mapping[Replicate, Mapping[str, float]]
"""For each training, a number per patient. A patient that a training lacks is a missing value."""


@dataclass(frozen=True)
class Interval:
    """A mean over patients and trainings with its bootstrap interval."""

    mean: float
    low: float | None
    """Lower end; None with a single patient, like `high`."""
    high: float | None
    patients: int
    trainings: int
    """Number of trainings of the method; in a comparison, of the method that has fewer."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Description:
    """Summary of the patients' values, each the mean over trainings."""

    mean: float
    sd: float | None
    """Standard deviation over patients; None for one patient."""
    median: float
    sd_of_trainings: float | None
    """Standard deviation of the trainings' means over patients; None for one training."""
    patients: int


@dataclass(frozen=True)
class Comparison:
    """The difference of one method minus another over the patients that both have."""

    difference: Interval
    effect: float | None
    """The mean difference over its standard deviation across patients (Cohen's d for pairs); None if that is 0."""
    p: float | None
    """p of the two-sided Wilcoxon signed-rank test over patients' means.

    Patients without a difference are left out, as Wilcoxon did; if none is left, p is 1. For up to 50 remaining
    patients, the distribution is exact, over all signs of the ranks, ties included; for more, it is approximated as
    normal and corrected for ties. None with fewer than `FEWEST_PATIENTS` patients.
    """
    p_interval: float | None
    """The smallest alpha at which the interval of level 1 - alpha excludes 0, at least 2 / `RESAMPLES`. Unlike `p`, it
    includes the spread of trainings. None for one patient."""
    p_holm: float | None = None
    """`p` corrected for all comparisons made together; None for a comparison on its own."""
    p_interval_holm: float | None = None
    """`p_interval`, corrected in the same way."""
    lean: int = 0
    """Sign of Wilcoxon's statistic: 1 if by the patients' ranks the first method has the larger values, -1 if the
    second has. It can differ from the sign of the mean if a few patients differ by much, and most of them slightly the
    other way."""

    @property
    def p_corrected(self) -> float | None:
        """The larger of both corrected p-values; None if they were not corrected."""
        return None if self.p_holm is None else max(self.p_holm, self.p_interval_holm or 0)


@dataclass(frozen=True)
class Ranking:
    """Methods ranked over the patients that all of them have. Rank 1 is the best."""

    names: tuple[str, ...]
    """The methods from the best mean rank to the worst; all fields below are in this order."""
    mean_ranks: tuple[float, ...]
    """Mean over patients of each method's rank; tied methods get the mean of their ranks."""
    places: tuple[tuple[float, ...], ...]
    """For each method, the share of resamples in which its mean comes first, second and so on. Methods of equal
    mean share the better place."""
    friedman: float | None
    """p of the Friedman test that all methods are equal; None for two methods, one patient, or if all values tie."""
    critical_difference: float
    """Mean ranks further apart than this differ significantly at 0.05, by Nemenyi's test."""
    patients: int


@dataclass(frozen=True)
class Scale:
    """How the numbers of a metric are printed: unit, factor, and which direction is better."""

    unit: str
    factor: float
    higher_is_better: bool


POINTS = Scale("points", 100, True)
DISTANCES = {"mm": Scale("mm", 1, False), "voxel": Scale("voxels", 1, False)}


# ---- one method


def describe(values: Values) -> Description:
    """Return mean, spread and median over patients, and the spread of trainings."""
    _, patients, table = _table(values)
    means = _means(table, 0)
    of_trainings = [float(np.mean(list(found.values()))) for found in values.values() if found]
    return Description(
        mean=float(means.mean()),
        sd=float(means.std(ddof=1)) if len(patients) > 1 else None,
        median=float(np.median(means)),
        sd_of_trainings=float(np.std(of_trainings, ddof=1)) if len(of_trainings) > 1 else None,
        patients=len(patients),
    )


def bootstrap_mean(values: Values, *, resamples: int = RESAMPLES) -> Interval:
    """Return the mean over patients, each the mean over trainings, with its bootstrap interval.

    Raises:
        ValueError: there is no value.
    """
    units, patients, table = _table(values)
    means = _resample([(units, table)], patients, resamples)[0]
    freedom = _freedom([_spread(_means(table, 0)), _spread(_means(table, 1))], len(patients))
    return _interval(float(_means(table, 0).mean()), means, freedom, len(patients), _trainings(values))


# ---- two methods


def paired(ours: Values, theirs: Values, *, resamples: int = RESAMPLES) -> Comparison:
    """Compare two methods by their differences (ours minus theirs) in each patient.

    Raises:
        ValueError: no patient has values of both.
    """
    (our_units, _, our_table), (their_units, patients, their_table) = _tables([ours, theirs])
    differences = _means(our_table, 0) - _means(their_table, 0)
    one, other = _resample([(our_units, our_table), (their_units, their_table)], patients, resamples)
    if our_units == their_units:
        of_trainings = [_spread(_means(our_table, 1) - _means(their_table, 1))]
    else:
        of_trainings = [_spread(_means(our_table, 1)), _spread(_means(their_table, 1))]
    freedom = _freedom([_spread(differences), *of_trainings], len(patients))
    trainings = min(_trainings(ours), _trainings(theirs))
    mean, sd = float(differences.mean()), float(differences.std(ddof=1)) if len(patients) > 1 else 0.0
    return Comparison(
        difference=_interval(mean, one - other, freedom, len(patients), trainings),
        effect=mean / sd if sd > 10**-_DIGITS else None,
        p=_wilcoxon(differences),
        p_interval=_p_of_interval(mean, one - other, freedom) if len(patients) > 1 else None,
        lean=int(np.sign(_signed_ranks(differences).sum())),
    )


def corrected(family: Sequence[Comparison]) -> list[Comparison]:
    """Return comparisons made together, such as of all rows with one reference, with corrected p-values."""
    ps = holm([one.p for one in family]), holm([one.p_interval for one in family])
    return [replace(one, p_holm=p, p_interval_holm=q) for one, p, q in zip(family, *ps, strict=True)]


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return the p-values of one family, corrected by Holm for the family-wise error rate; None stays None."""
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    found: list[float | None] = [None] * len(ps)
    highest = 0.0
    for place, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - place) * p))
        found[i] = highest
    return found


def verdict(comparison: Comparison, scale: Scale = POINTS) -> str:
    """Return the result of a comparison in words.

    `better` and `worse` require `FEWEST_PATIENTS` patients, an interval that excludes 0, and a p-value below 0.05: for
    a comparison on its own that of Wilcoxon's test, for one of several both corrected ones. If a method has only one
    training, the verdict speaks of these networks only; if the patients' ranks lean the other way, of the average only.
    Everything else is inside the noise.
    """
    interval, p, of_all = comparison.difference, comparison.p, ""
    if comparison.p_corrected is not None:
        p, of_all = comparison.p_corrected, " for all comparisons together"
    mean = f"{told(interval.mean, scale, '+')} {scale.unit}"
    if interval.low is None or interval.high is None:
        return f"one patient: {mean}, no interval"
    name, ends = f"{100 * LEVEL:g} % interval", (interval.low, interval.high)
    word = "better" if (interval.mean > 0) == scale.higher_is_better else "worse"
    between = " to ".join(_end(end, scale, interval) for end in ends)
    differs, against_it = p is not None and p < ALPHA and interval.excludes_zero, comparison.lean * interval.mean < 0
    if differs and not against_it and interval.trainings > 1:
        low, high = (_end(end, scale, interval) for end in sorted(map(abs, ends)))
        text = f"{word} by {told(abs(interval.mean), scale)} {scale.unit} ({name} {low} to {high})"
    elif differs:
        start = (
            f"{word} on average, though the ranks of patients lean the other way"
            if against_it
            else f"these networks are {word}"
        )
        text = f"{start}: {mean}, {name} {between}"
    else:
        text = f"{'too few patients to tell' if p is None else 'inside the noise'}: {mean}, {name} {between}"
        if p is not None and interval.excludes_zero:
            text += f", but p = {p_value(p)}{of_all}"
    return "; ".join([text, *_doubts(interval)])


# ---- many methods


def rank(methods: Mapping[str, Values], *, higher_is_better: bool = True) -> Ranking:
    """Order two or more methods by their mean rank over patients, and measure how certain the order is.

    The Friedman test and the critical difference use only patients' means over trainings. The places come from the
    bootstrap, which resamples trainings as well.

    Raises:
        ValueError: fewer than two methods, or no patient has values of all.
    """
    if len(methods) < 2:
        raise ValueError(f"ranking needs two methods or more, got {len(methods)}")
    tables = _tables(list(methods.values()))
    patients, sign = tables[0][1], -1 if higher_is_better else 1
    values = sign * np.round([_means(table, 0) for _, _, table in tables], _DIGITS)  # (K, P)
    ranks = stats.rankdata(values, axis=0).mean(1)
    order = sorted(range(len(methods)), key=lambda i: ranks[i])
    means = sign * np.round(_resample([(u, t) for u, _, t in tables], patients, RESAMPLES), _DIGITS)
    places = np.array([(means < mine).sum(0) for mine in means])  # (K, B)
    shares = [[float((places[i] == place).mean()) for place in range(len(methods))] for i in order]
    varies = len(methods) > 2 and len(patients) > 1 and bool((values != values[0]).any())
    return Ranking(
        names=tuple(list(methods)[i] for i in order),
        mean_ranks=tuple(float(ranks[i]) for i in order),
        places=tuple(map(tuple, shares)),
        friedman=float(stats.friedmanchisquare(*values).pvalue) if varies else None,
        critical_difference=critical_difference(len(methods), len(patients)),
        patients=len(patients),
    )


def critical_difference(methods: int, patients: int) -> float:
    """Return how far apart two mean ranks must lie to differ at 0.05 when all pairs are compared (Nemenyi's test)."""
    quantile = stats.studentized_range.ppf(1 - ALPHA, methods, np.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(methods * (methods + 1) / (6 * patients)))


# ---- the bootstrap


def _tables(methods: Sequence[Values]) -> list[tuple[list[str], list[str], Array]]:
    """Return `_table` of each method, restricted to the patients that all methods have."""
    shared = set.intersection(*({patient for found in values.values() for patient in found} for values in methods))
    return [
        _table({key: {p: v for p, v in found.items() if p in shared} for key, found in values.items()})
        for values in methods
    ]


def _table(values: Values) -> tuple[list[str], list[str], Array]:
    """Return the units to resample, the patients, and a table of their values `(units, patients)`, NaN if missing.

    Units are draws of labelled patients; if there is one draw only, its seeds.
    """
    patients = sorted({patient for found in values.values() for patient in found})
    if not patients:
        raise ValueError("no patient has a value to compare")
    several = len({key.draw for key in values}) > 1
    groups: dict[str, list[Mapping[str, float]]] = {}
    for key in sorted(values):
        if values[key]:
            groups.setdefault(key.draw if several else f"{key.draw} {key.seed}", []).append(values[key])
    rows = [_means(np.array([[found.get(p, np.nan) for p in patients] for found in group]), 0)
            for group in groups.values()]  # fmt: skip
    return list(groups), patients, np.array(rows)


def _trainings(values: Values) -> int:
    return sum(1 for found in values.values() if found)


def _means(table: Array, axis: int) -> Array:
    """Return the means of the defined values along an axis; NaN where there is none."""
    known = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        means: Array = np.where(known, table, 0).sum(axis) / known.sum(axis)
    return means


def _resample(methods: Sequence[tuple[list[str], Array]], patients: Sequence[str], resamples: int) -> Array:
    """Return `(K, B)` means of K methods in B resamples, each of which draws the same patients for all methods."""
    found = np.empty((len(methods), resamples))
    of_patients = _drawn(patients, resamples)
    for mine, (units, table) in zip(found, methods, strict=True):
        of_units = _drawn(units, resamples)
        known = ~np.isnan(table)
        filled = np.where(known, table, 0)
        for start in range(0, resamples, _CHUNK):
            part = slice(start, start + _CHUNK)
            with np.errstate(invalid="ignore"):
                values = (of_units[part] @ filled) / (of_units[part] @ known)  # (B, P)
                weights = np.where(np.isnan(values), 0, of_patients[part])
                mine[part] = (weights * np.nan_to_num(values)).sum(1) / weights.sum(1)
    return found


def _drawn(names: Sequence[str], resamples: int) -> Array:
    """Return `(B, n)`: how often each of n units is in a resample of n - 1, which depends only on the units' names."""
    n = len(names)
    if n == 1:
        return np.ones((resamples, 1))
    rng = np.random.default_rng([0, zlib.crc32("\n".join(names).encode("utf-8", "surrogateescape"))])
    drawn = rng.integers(n, size=(resamples, n - 1)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def _spread(values: Array) -> tuple[float, int]:
    """Return the variance of the mean of some units and its degrees of freedom; for a single unit, 0 and 1."""
    known = values[~np.isnan(values)]
    return (float(known.var(ddof=1)) / len(known), len(known) - 1) if len(known) > 1 else (0.0, 1)


def _freedom(spreads: Sequence[tuple[float, int]], patients: int) -> float:
    """Return the degrees of freedom of a sum of variances, by Satterthwaite."""
    total = sum(variance for variance, _ in spreads)
    parts = sum(variance**2 / freedom for variance, freedom in spreads)
    return total**2 / parts if parts > 0 else patients - 1


def _interval(mean: float, resampled: Array, freedom: float, patients: int, trainings: int) -> Interval:
    if patients < 2:
        return Interval(mean, None, None, patients, trainings)
    (low,), (high,) = _ends(mean, resampled, freedom, np.array([(1 - LEVEL) / 2]))
    return Interval(mean, float(low), float(high), patients, trainings)


def _p_of_interval(mean: float, resampled: Array, freedom: float) -> float:
    tails = np.arange(1, len(resampled) // 2) / len(resampled)
    low, high = _ends(mean, resampled, freedom, tails)
    return min(1.0, 2 * max(tails[(low <= 0) & (high >= 0)].tolist(), default=1 / len(resampled)))


def _ends(mean: float, resampled: Array, freedom: float, tails: Array) -> tuple[Array, Array]:
    """Return the lower and upper ends of the intervals that leave out these shares on each side."""
    stretch = stats.t.ppf(tails, freedom) / stats.norm.ppf(tails)
    values = np.sort(resampled[~np.isnan(resampled)])
    cut = (tails * len(values)).astype(int)  # as many below as above, so that swapping the methods swaps the ends
    return mean - stretch * (mean - values[cut]), mean + stretch * (values[-1 - cut] - mean)


def _wilcoxon(differences: Array) -> float | None:
    if len(differences) < FEWEST_PATIENTS:
        return None
    signed = _signed_ranks(differences)
    if not len(signed):
        return 1.0
    if len(signed) > _EXACT:
        return float(stats.wilcoxon(signed, method="approx").pvalue)
    ranks = np.rint(2 * np.abs(signed)).astype(int)  # doubled, so that shared ranks are whole numbers
    chance = np.zeros(ranks.sum() + 1)  # probability of each sum of positive ranks if every sign is random
    chance[0] = 1
    for one in ranks:
        chance = (chance + np.roll(chance, one)) / 2  # the upper end is still 0, so nothing wraps around
    found = ranks[signed > 0].sum()
    return float(min(1.0, 2 * chance[: found + 1].sum(), 2 * chance[found:].sum()))


def _signed_ranks(differences: Array) -> Array:
    """Return Wilcoxon's ranks of the patients with a difference, each with the sign of the difference."""
    changed = np.round(differences, _DIGITS)  # smaller differences are ties that rounding errors broke
    changed = changed[changed != 0]
    ranks: Array = np.sign(changed) * stats.rankdata(np.abs(changed))
    return ranks


# ---- words


def told(value: float, scale: Scale, sign: str = "", digits: int = 1) -> str:
    """Return a number in the unit of a scale as text."""
    return f"{round(value * scale.factor, digits) + 0.0:{sign}.{digits}f}"  # adding 0 turns -0.0 into 0.0


def _end(value: float, scale: Scale, interval: Interval) -> str:
    """Return one end as text, with two digits if one would make an interval that excludes 0 seem to touch it."""
    return told(value, scale, digits=2 if interval.excludes_zero and abs(value) * scale.factor < 0.05 else 1)


def _doubts(interval: Interval) -> list[str]:
    found = [f"only {interval.patients} patients"] if interval.patients < FEW_PATIENTS else []
    return found + (["one seed: the spread of training is not in it"] if interval.trainings == 1 else [])
