"""Job of `medssl methods`: the available methods, their sources, and what a step of each costs.

Nothing here is written by hand for a method. Titles and sources come from the first comment of each file in
configs/method; networks are counted on the built method, forward and backward passes in a step with a tiny network.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from medssl.config import bundled, merge, parse
from medssl.errors import ConfigError
from medssl.methods import METHODS
from medssl.methods.base import Method
from medssl.networks import NetworkConfig, make_network
from medssl.parts.sample import Progress, TrainBatch
from medssl.parts.schedules import generator
from medssl.parts.views import bare
from medssl.run import parse_method

BATCH = 2
"""Number of labelled patches, and of unlabelled ones, in the counted step."""
LATE = Progress(90, 100)
"""Progress of the counted step, late enough to be past the first stage of every method."""
_TINY = {"name": "unet", "channels": [2, 4], "strides": [2]}
_SIDES = (4, 4, 6)


@dataclass(frozen=True)
class Cost:
    """Numbers of patches that pass through networks in a step."""

    student: int
    """Forward through students, with or without a gradient."""
    teacher: int
    """Forward through teachers."""
    backward: int
    """Backward through students."""


@dataclass(frozen=True)
class Entry:
    """A file of configs/method."""

    file: str
    title: str
    sources: tuple[str, ...]
    """arXiv numbers."""
    method: str
    """Value of `method.name`."""
    students: int
    teachers: int
    cost: Cost


def entries() -> list[Entry]:
    """Return all files of configs/method, in the order of their methods in `METHODS`."""
    known = bundled("method/supervised.yaml")
    assert known is not None
    found = [entry(path) for path in sorted(known.parent.glob("*.yaml"))]
    return sorted(found, key=lambda one: (list(METHODS).index(one.method), len(one.file)))


def entry(path: Path) -> Entry:
    """Return the entry of a file of configs/method."""
    values = merge([path])
    network = parse(NetworkConfig, {**values.get("network", {}), **_TINY}, where="network")
    torch.manual_seed(0)
    config = parse_method(values["method"])
    method = METHODS[config.name](config, lambda **changes: make_network(network.changed(**changes), 1, 2)).train()
    title, sources = said(path)
    students, teachers = len(method.students()), len(method.teachers())
    return Entry(path.name, title, sources, config.name, students, teachers, cost(method))


def said(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return the title and the arXiv numbers in the comment at the top of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")])
    title = re.split(r" \(|[.,:]", comment, maxsplit=1)[0]
    return title, tuple(dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{5})", comment)))


def cost(method: Method) -> Cost:
    """Count the patches that pass through the networks of a method in one step."""
    torch.manual_seed(0)
    image = torch.randn(2 * BATCH, 1, *_SIDES)
    label = torch.randint(0, 2, (BATCH, *_SIDES))
    batch = TrainBatch(image[:BATCH], label, image[BATCH:], tuple(range(BATCH)))
    counts: Counter[str] = Counter()
    handles = [
        bare(net).register_forward_hook(_counting(counts, kind))
        for kind, nets in (("student", method.students()), ("teacher", method.teachers()))
        for net in nets
    ]
    losses = method.step(batch, LATE, generator(0)).losses
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    for handle in handles:
        handle.remove()
    return Cost(counts["student"], counts["teacher"], counts["backward"])


def _counting(counts: Counter[str], kind: str) -> Callable[[nn.Module, Any, Tensor], None]:
    """A forward hook that counts patches, and once more when their gradient comes back."""

    def count(net: nn.Module, inputs: Any, logits: Tensor) -> None:
        counts[kind] += len(logits)
        if logits.requires_grad:
            logits.register_hook(lambda grad: counts.update(backward=len(grad)))  # type: ignore[no-untyped-call]

    return count


def print_entries(found: list[Entry]) -> None:
    """Print the methods as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("configs/method/", "method", "arXiv"):
        table.add_column(column, no_wrap=column != "method", overflow="fold" if column != "method" else "ellipsis")
    for column in ("networks", "forward", "back"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found:
        networks, forward = str(one.students), str(one.cost.student)
        if one.teachers:
            networks, forward = f"{one.students} + {one.teachers}", f"{one.cost.student} + {one.cost.teacher}"
        table.add_row(one.file, one.title, "\n".join(one.sources) or "-", networks, forward, str(one.cost.backward))
    console = Console()
    console.print(table)
    console.print(
        f"networks: students + teachers; forward: patches that pass through them in a step of {BATCH} labelled and "
        f"{BATCH} unlabelled patches; back: patches in the backward pass.\n"
        "Choose a method by its file: medssl train configs/data/NAME.yaml configs/method/bcp.yaml\n"
        "Describe a method and its settings: medssl methods NAME",
        highlight=False,
    )


def describe(name: str) -> str:
    """Return a description of a method: the docstrings of its module and class, and its settings.

    Args:
        name: of a method, or of a file in configs/method, whose values replace the defaults. A method without such a
            file is described with the defaults.

    Raises:
        ConfigError: no such method.
    """
    file = bundled(f"method/{name}.yaml")
    given = {"name": name} if file is None else merge([file])["method"]
    if given["name"] not in METHODS:
        raise ConfigError(f"{name!r} is not a method; choose {', '.join(METHODS)} or a file listed by `medssl methods`")
    method = METHODS[given["name"]]
    lines = [inspect.getdoc(sys.modules[method.__module__]) or "", "", inspect.getdoc(method) or "", "",
             "Settings:" if file is None else f"Settings, with the values of configs/method/{name}.yaml:"]  # fmt: skip
    return "\n".join([*lines, *_settings(method.Config, {key: given[key] for key in given if key != "name"}, "method")])


def _settings(model: type[BaseModel], given: Mapping[str, Any], where: str) -> Iterator[str]:
    """Lines with the value and the description of every setting, including those of nested sections."""
    for key, field in model.model_fields.items():
        value = given.get(key, field.get_default(call_default_factory=True))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner = value.model_dump() if isinstance(value, BaseModel) else value
            yield from _settings(field.annotation, inner, f"{where}.{key}")
        elif key != "name":
            yield f"  {where}.{key}: {value!r}"
            yield from (f"      {line}" for line in inspect.cleandoc(field.description or "").splitlines())
