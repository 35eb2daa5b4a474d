"""Settings with a reason for each, written as YAML with comments."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from medssl.memory import Memory

WIDTH = 120
"""Columns of the file."""


@dataclass(frozen=True)
class Choice:
    """A setting and the reason for it."""

    value: Any
    why: str = ""


Choices = dict[str, "Choice | Choices"]


@dataclass(frozen=True)
class Plan:
    """Settings by section, with text before and after them."""

    head: list[str]
    choices: Choices
    memory: Memory
    """What a step needs on the planned device."""
    hints: list[str] = field(default_factory=list)

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, as a configuration file holds them."""
        return plain(self.choices)

    def __str__(self) -> str:
        """The YAML file."""
        lines = [*_comments(self.head, 0), *_lines(self.choices, 0)]
        if self.hints:
            lines += [
                *_comments(["Hints"], 0),
                *(line for hint in self.hints for line in _comments([f"- {hint}"], 0)),
            ]
        return "\n".join(lines) + "\n"


def plain(choices: Choices) -> dict[str, Any]:
    """Return the values without their reasons, nested as they are."""
    return {key: one.value if isinstance(one, Choice) else plain(one) for key, one in choices.items()}


def _lines(choices: Choices, depth: int) -> Iterator[str]:
    """Yield YAML, one key per line, with its reason behind it or, if that is too long, on the lines before."""
    indent = "  " * depth
    for key, one in choices.items():
        if not isinstance(one, Choice):
            yield f"{indent}{key}:"
            yield from _lines(one, depth + 1)
            continue
        line = (
            indent + yaml.safe_dump({key: one.value}, default_flow_style=True, width=math.inf, allow_unicode=True)[1:-2]
        )
        beside = f"{line}  # {one.why}"
        if one.why and len(beside) > WIDTH:
            yield from _comments([one.why], depth)
        yield beside if one.why and len(beside) <= WIDTH else line


def _comments(texts: Sequence[str], depth: int) -> Iterator[str]:
    indent = "  " * depth + "# "
    for text in texts:
        lead = indent + " " * (len(text) - len(text.lstrip()))
        yield from textwrap.wrap(text.strip(), WIDTH, initial_indent=lead, subsequent_indent=lead + "  ",
                                 break_long_words=False, break_on_hyphens=False)  # fmt: skip
