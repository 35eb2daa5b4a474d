"""Warnings about a training run, found in its logged rows and given once each.

Most concern the pseudo-labels; others concern skipped steps and time spent waiting for patches.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

ROWS = 20
"""Smallest number of consecutive rows that must show a problem before it is reported."""
COLLAPSED, GROWN = 0.1, 4.0
"""Limits on a class's share of the pseudo-labels, relative to its share of the labels: below the first the class has
collapsed, above the second it has grown too large."""
AGREED, PARTED = 1e-3, 0.8
"""Limits on the number of voxels in which two networks differ, relative to the foreground: below the first they agree
everywhere, above the second the teacher is worse than its students."""
COPIED, LOST = 1e-6, 0.5
"""Limits on a teacher's lag: below the first it is a copy of its students, above the second it does not follow them."""
IDLE = 0.5
"""Largest acceptable share of the time that steps spend waiting for patches."""

WORDS = {
    "waiting": """more than half of the time has been spent waiting for patches for a while, so the device is often
        idle. The likely cause: the prepared folder is on a slow or shared disk, or other jobs use the CPU cores. Copy
        the folder to a local disk, or raise train.workers if cores are free.""",
    "skipped": """{share:.0%} of the steps have been skipped for a while because a loss or gradient was not finite. The
        likely cause: train.lr is too high, numbers overflow with train.precision fp16, or a case has extreme grey
        levels. Set train.precision=fp32 or lower train.lr, and check the data with `medssl check`.""",
    "nothing selected": """no unlabelled voxel has counted for a while, so the run learns from labels alone. The likely
        cause: {cause}.""",
    "zero": """{names} has been exactly 0 for a while and teaches nothing. The likely cause: its weight is 0, or the
        predictions that it compares are identical by construction. Check the weights and the noise of the method.""",
    "all selected": """every unlabelled voxel has counted for a while, so method.threshold rejects nothing. The likely
        cause: the network is confident in its mistakes too, or the threshold is too lenient, as that of uamt is at the
        end of its ramp. If validation Dice falls, raise method.threshold (lower it for uamt, where it limits the
        entropy) or use stronger augmentation.""",
    "copy": """a teacher has had its student's weights for a while, so it teaches nothing new. The likely cause: the
        student no longer learns (train.lr is too low, or its loss is 0), or method.ema_decay is near 0.""",
    "lost": """a teacher's weights have been far from its student's for a while, so it teaches an outdated state of the
        student. The likely cause: method.ema_decay is too close to 1 for this number of steps, or train.lr is too
        high.""",
    "parted": """student and teacher, or two predictions that a method compares, have differed for a while in nearly as
        many voxels as there are foreground voxels. The likely cause: the teacher is worse than its students, because it
        lags behind them or is the mean of students that have drifted apart. Check the Dice of the pseudo-labels
        (train.canaries=2), and {remedy}.""",
    "grown": """pseudo-labels assign class {name} to {pseudo:.2%} of the voxels, labels to {prior:.2%}: the class grows
        too large. The likely cause: the teacher has not learned enough from the labels yet, or confirms its own
        mistakes. Lower the weight of unlabelled patches, let it rise later, or compare with method supervised.""",
    "agreed": """student and teacher, or two students, have predicted the same class in nearly every voxel for a while,
        so they have little to teach each other. The likely cause: they have become the same network, or patches show
        only background. Add noise or stronger augmentation, or check train.foreground.""",
    "background": """all pseudo-labels have been background for a while. The likely cause: the teacher has not learned
        from the labels yet, or unlabelled voxels outweigh them. Compare with method supervised. Lower the weight of
        unlabelled patches, or let it rise later.""",
    "collapsed": """pseudo-labels assign class {name} to {pseudo:.2%} of the voxels, labels to {prior:.2%}: the class is
        dying out. The likely cause: {cause}. {remedy}. Note that train.foreground raises its share in the labels.""",
}
"""The warning for each problem: what is seen, the likely cause, what to do."""
LOWER = "lower method.threshold (raise it for uamt, where it limits the entropy)"
CLEANERS = {
    "threshold": ("method.threshold", LOWER),
    "largest_component": (
        "method.largest_component",
        "set method.largest_component=false if the class has several parts",
    ),
}
"""Settings that can remove a class from the pseudo-labels: what a warning calls them, and its advice."""

Row = Mapping[str, float]


class Watchman:
    """Problems that all of the last rows of a training run show.

    Rows are kept apart by which teachers followed in them, because groups may take turns and a first stage may have no
    teacher. The warnings depend on the rows alone, so a resumed run shows the old rows first and repeats no warning.
    """

    def __init__(self, classes: Sequence[str], rows: int = ROWS, settings: Collection[str] = ()) -> None:
        """
        Args:
            classes: names by label value, the background first.
            rows: number of consecutive rows that must show a problem.
            settings: names of the method's settings, so that advice names only these.
        """
        self.classes, self.settings = tuple(classes), frozenset(settings)
        self.wanted, self.rows = rows, deque[Row]()
        self.by_teachers = defaultdict[frozenset[str], deque[Row]](lambda: deque(maxlen=rows))
        self.said: set[str] = set()

    def look(self, row: Row) -> list[str]:
        """Return the warnings for problems that show with this row for the first time.

        Args:
            row: values by their column in metrics.csv. A row without losses, such as one of a validation, is ignored.
        """
        if not any(name.startswith("loss/") for name in row):
            return []
        who = frozenset(name for name in row if name.startswith("stat/lag/"))
        self.rows = self.by_teachers[who]
        self.rows.append(row)
        if len(self.rows) < self.wanted:
            return []
        new = {about: words for about, words in self._faults() if about not in self.said}
        self.said |= new.keys()
        return [" ".join(words.split()) for words in new.values()]

    def _faults(self) -> Iterator[tuple[str, str]]:
        """Key and warning of each problem that the rows show."""
        zeros = [name for name in self._names("loss/") if self._always(name, lambda loss: loss == 0)]
        lags = self._names("stat/lag/")
        if self._always("waiting", lambda share: share > IDLE):
            yield "waiting", WORDS["waiting"]
        if self._always("skipped", lambda share: share > 0):
            yield "skipped", WORDS["skipped"].format(share=self._mean("skipped"))
        has_threshold = "threshold" in self.settings
        if self._always("stat/selected", lambda share: share == 0):
            cause = "the weight of pseudo-labels is 0; raise " + ("method.alpha" if "alpha" in self.settings else "it")
            if has_threshold:
                cause = "no prediction is certain enough for method.threshold. Wait if training has just begun; "
                cause += f"otherwise {LOWER}"
            yield "nothing selected", WORDS["nothing selected"].format(cause=cause)
        elif zeros:
            yield "zero", WORDS["zero"].format(names=", ".join(zeros))
        if has_threshold and self._always("stat/selected", lambda share: share == 1):
            yield "all selected", WORDS["all selected"]
        if any(self._always(name, lambda lag: lag < COPIED) for name in lags):
            yield "copy", WORDS["copy"]
        if any(self._always(name, lambda lag: lag > LOST) for name in lags):
            yield "lost", WORDS["lost"]
        if self._always("stat/pseudo/0", lambda share: share == 1) and self._mean("stat/prior/0") < 1:
            yield "background", WORDS["background"]
            return
        foreground = self._foreground()
        if any(self._always(name, lambda gap: gap < AGREED * foreground) for name in ("stat/gap", "stat/dissent")):
            yield "agreed", WORDS["agreed"]
        if self._always("stat/gap", lambda gap: gap > PARTED * foreground):
            remedy = ["lower method.ema_decay or train.lr" if "ema_decay" in self.settings else "lower train.lr"]
            if "teachers" in self.settings:
                remedy.append("give each student its own teacher (method.teachers=student)")
            yield "parted", WORDS["parted"].format(remedy=", or ".join(remedy))
        if not self._always("stat/selected", lambda share: share == 0):
            yield from self._classes()

    def _foreground(self) -> float:
        """Share of foreground in the labels or the pseudo-labels, whichever is larger; 1 if neither is logged."""
        told = [name for name in ("stat/prior/0", "stat/pseudo/0") if all(name in row for row in self.rows)]
        return 1 - min((self._mean(name) for name in told), default=0.0)

    def _classes(self) -> Iterator[tuple[str, str]]:
        """Problems of classes that the pseudo-labels have lost, or have far too much of."""
        held = [CLEANERS[setting] for setting in CLEANERS if setting in self.settings]
        cause = "the class is rare or difficult"
        cause += f", and {' or '.join(name for name, _ in held)} removes it" if held else " and contributes little"
        todo = ", or ".join(advice for _, advice in held) or "lower the weight of unlabelled patches"
        told = {"cause": cause, "remedy": f"{todo[0].upper()}{todo[1:]}"}
        for value, name in enumerate(self.classes):
            if all(f"stat/{kind}/{value}" in row for row in self.rows for kind in ("pseudo", "prior")):
                pseudo, prior = self._mean(f"stat/pseudo/{value}"), self._mean(f"stat/prior/{value}")
                if pseudo < COLLAPSED * prior:
                    yield f"class {value}", WORDS["collapsed"].format(name=name, pseudo=pseudo, prior=prior, **told)
                elif value > 0 and pseudo > GROWN * prior > 0:
                    yield f"class {value} grown", WORDS["grown"].format(name=name, pseudo=pseudo, prior=prior)

    def _names(self, prefix: str) -> list[str]:
        return [name for name in self.rows[-1] if name.startswith(prefix)]

    def _always(self, name: str, holds: Callable[[float], bool]) -> bool:
        return all(name in row and holds(row[name]) for row in self.rows)

    def _mean(self, name: str) -> float:
        return sum(row[name] for row in self.rows) / len(self.rows)
