"""Who looks at a training's logged rows and says, once and in plain words, what seems wrong with it.

That is mostly its pseudo-labels, and whether it waits for patches.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

ROWS = 20
"""The least number of rows in a row that show a fault before it is said."""
COLLAPSED, GROWN = 0.1, 4.0
"""A class has collapsed when its share of the pseudo-labels is below the first part of its share of the labels, and run
wild when it is above the second."""
AGREED, PARTED = 1e-3, 0.8
"""Networks agree everywhere when the voxels in which they differ are fewer than the first part of the foreground, and a
teacher knows less than its students when they are more than the second."""
COPIED, LOST = 1e-6, 0.5
"""A lag below the first is that of a copy; above the second a teacher does not follow."""
IDLE = 0.5
"""Patches come too slowly when steps wait for them for more than this share of their time."""

WORDS = {
    "waiting": """more than half of the time has gone into waiting for patches for a while, and the device idles. The
        likely cause: the prepared folder lies on a slow or shared disk, or other jobs take the cores. Copy it to a disk
        of this machine, or raise train.workers where cores are free.""",
    "skipped": """{share:.0%} of the steps have been left out for a while, as a loss or gradient was not finite. The
        likely cause: train.lr is too high, numbers overflow in train.precision fp16, or a case holds extreme grey
        levels. Set train.precision=fp32 or lower train.lr, and look at the data with `medssl check`.""",
    "nothing selected": """no unlabelled voxel has counted for a while, so the run learns from labels alone. The likely
        cause: {cause}.""",
    "zero": """{names} has been exactly 0 for a while and teaches nothing. The likely cause: its weight is 0, or what it
        compares is the same by construction. Look at the method's weights and noise.""",
    "all selected": """every unlabelled voxel has counted for a while, so nothing is selected. The likely cause: the
        network is sure of its mistakes too, or method.threshold lets all pass, as uamt's does at the end of its ramp.
        If validation Dice falls, raise it (lower it for uamt, where it bounds doubt) or augment more.""",
    "copy": """a teacher has had its student's weights for a while, so it teaches nothing new. The likely cause: the
        student no longer learns (train.lr, a loss of 0), or method.ema_decay is near 0.""",
    "lost": """a teacher's weights have been far from its student's for a while, so it teaches what the student has left
        behind. The likely cause: method.ema_decay is too near 1 for this number of steps, or train.lr is high.""",
    "parted": """student and teacher, or two answers that a method compares, have differed in nearly as many voxels as
        have foreground for a while. The likely cause: the teacher is worse than its students, as the mean of students
        that have parted is, or has stayed behind. Look at the Dice of pseudo-labels (train.canaries=2), and
        {remedy}.""",
    "grown": """pseudo-labels of {name} are {pseudo:.2%} of the voxels where labels are {prior:.2%}: the class is
        growing wild. The likely cause: the teacher has learned too little from the labels yet, or confirms its own
        mistakes. Give unlabelled patches less weight, let it rise later, or compare with method supervised.""",
    "agreed": """student and teacher, or two students, have named the same class in nearly every voxel for a while, so
        they have little to teach each other. The likely cause: they have become one network, or patches show background
        alone. Add noise or stronger augmentation, or look at train.foreground.""",
    "background": """pseudo-labels have been background alone for a while. The likely cause: the teacher has not learned
        from the labels yet, or unlabelled voxels outvoted them. Compare with method supervised; give unlabelled patches
        less weight, or let it rise later.""",
    "collapsed": """pseudo-labels of {name} are {pseudo:.2%} of the voxels where labels are {prior:.2%}: the class is
        dying out. The likely cause: {cause}. {remedy} mind that train.foreground raises its share among labels.""",
}
"""What is said of each fault: what is seen, the likely cause, what to do."""
LOWER = "lower method.threshold (raise it for uamt, where it bounds doubt)"
CLEANERS = {
    "threshold": ("a threshold", LOWER),
    "largest_component": ("the largest component", "set method.largest_component=false if it has several parts"),
}
"""Settings that may leave a class out, what they are called, and what to do about it."""

Row = Mapping[str, float]


class Watchman:
    """Keeps the last rows of a training's values and finds what all of them show.

    Rows in which other teachers followed are kept apart: those of groups that take turns, and of a stage without.
    What it says is a function of the rows, so a resumed run shows it the old rows first and hears nothing twice.
    """

    def __init__(self, classes: Sequence[str], rows: int = ROWS, settings: Collection[str] = ()) -> None:
        """
        Args:
            classes: names by label value, the background first.
            rows: how many rows in a row must show a fault.
            settings: names of the method's, for advice.
        """
        self.classes, self.settings = tuple(classes), frozenset(settings)
        self.wanted, self.rows = rows, deque[Row]()
        self.by_teachers = defaultdict[frozenset[str], deque[Row]](lambda: deque(maxlen=rows))
        self.said: set[str] = set()

    def look(self, row: Row) -> list[str]:
        """What this row and those before it show for the first time.

        Args:
            row: values by their column in metrics.csv; a row without losses, as of a validation, is passed over.
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
        """What a fault is about, and the words for it."""
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
                cause = "method.threshold asks for more than the network is sure of. Wait if training has just begun, "
                cause += f"else {LOWER}"
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
                remedy.append("give each student a teacher of its own (method.teachers=student)")
            yield "parted", WORDS["parted"].format(remedy=", or ".join(remedy))
        if not self._always("stat/selected", lambda share: share == 0):
            yield from self._classes()

    def _foreground(self) -> float:
        """The share of foreground in labels or pseudo-labels, whichever has more; of all voxels where none tells."""
        told = [name for name in ("stat/prior/0", "stat/pseudo/0") if all(name in row for row in self.rows)]
        return 1 - min((self._mean(name) for name in told), default=0.0)

    def _classes(self) -> Iterator[tuple[str, str]]:
        """Classes that pseudo-labels have lost, or have far too much of."""
        held = [CLEANERS[setting] for setting in CLEANERS if setting in self.settings]
        cause = "it is rare or hard"
        cause += f", and {' or '.join(name for name, _ in held)} leaves it out" if held else ", and is taught least"
        todo = ", or ".join(advice for _, advice in held) or "give unlabelled patches less weight"
        told = {"cause": cause, "remedy": f"{todo[0].upper()}{todo[1:]}; and"}
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
