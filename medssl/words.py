"""Write numbers and names for messages."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
FEW = 5
"""Most names that a sentence lists."""
MANY = 20
"""Most lines that a message lists."""


def visible(text: str) -> str:
    """Return text for a terminal, with control characters spelled out; line breaks and tabs stay."""
    return _STEERING.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def some(names: Sequence[str], most: int = FEW) -> str:
    """Return the first few names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def some_lines(names: Iterable[str], most: int = MANY) -> list[str]:
    """Return the first names as indented lines, and how many more there are."""
    lines = [f"  {name}" for name in names]
    return lines[:most] + [f"  and {len(lines) - most} more"] * (len(lines) > most)


def listed(names: Sequence[str], most: int = FEW) -> str:
    """Return how many names there are, and the first few of them."""
    return f"{len(names)} ({some(names, most)})"


def how_many(number: int, noun: str) -> str:
    """Return a count with its noun, such as 1 file or 2 files."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def by(numbers: Iterable[float]) -> str:
    """Return numbers along axes as text, such as 5 x 6 x 7."""
    return " x ".join(f"{n:.6g}" if isinstance(n, float) else str(n) for n in numbers)


def plain(number: float) -> str:
    """Return a number with all of its digits and without an exponent."""
    if not math.isfinite(number):
        return str(number)
    digits = format(Decimal(str(number)), "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def gib(size: float) -> str:
    """Return a number of bytes in GiB, or in MiB below one GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """Return a duration in hours and minutes, or in seconds if it is short."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def p_value(p: float | None) -> str:
    """Return a p-value with three decimals, or four if three hide on which side of 0.05 it is; empty for None."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.4f}" if f"{p:.3f}" == "0.050" and p != 0.05 else f"{p:.3f}"
