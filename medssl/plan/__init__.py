"""The job behind `medssl plan`: a dataset's fingerprint to settings for it, with a reason for each.

The plan is a YAML file like those of `configs/data/`, to be read, changed and given to `prepare` and `train`. Rules
decide, and no clock, machine or chance: the same data and options give the same file. Spacing, strides and kernels
follow the reasoning of nnU-Net (Isensee et al., Nature Methods 2021); the patch is the largest that fits the memory.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medssl import __version__
from medssl.config import config_path, merge, parse
from medssl.data.cases import DatasetConfig
from medssl.data.fingerprint import Fingerprint, take_fingerprint
from medssl.data.inspect import listed
from medssl.data.io import read_label
from medssl.data.layouts import declared, read_layout
from medssl.data.outliers import AXES
from medssl.errors import ConfigError
from medssl.files import refuse_existing, whole_file, write_json
from medssl.methods.base import MethodConfig
from medssl.plan.choices import Choices, Plan, plain
from medssl.plan.fitting import Fitting, over
from medssl.plan.sections import augment_section, data_section, network_section, plan_spacing, train_section
from medssl.plan.shapes import shapes
from medssl.run import RunConfig
from medssl.words import how_many

SCATTERED = 0.7
"""A class is in pieces when less than this of it lies in the largest."""


def plan(
    source: Path,
    out: Path,
    dataset: DatasetConfig,
    *,
    vram: float = 8.0,
    method: Path = Path("configs/method/combined.yaml"),
    fingerprint: Path | None = None,
    workers: int = 2,
    overwrite: bool = False,
) -> tuple[Fingerprint, Plan]:
    """Look at a dataset and write settings for it.

    Args:
        dataset: names, classes and patients, see `dataset_of`; the recipe is the plan's to find.
        vram: GiB of the GPU to plan for; 0 plans for a CPU.
        method: the method file that the memory is reckoned with; its batch is the plan's.
        fingerprint: where to write all that was found, as JSON.

    Raises:
        ConfigError: `out` exists, or the method file does not fit.
        DataError: the dataset cannot be read.
        OutOfMemoryError: not even the smallest patch fits.
    """
    source, out = Path(source), Path(out)
    for path in (out, fingerprint):
        if path is not None:
            refuse_existing(path, overwrite)
    facts = take_fingerprint(source, dataset, workers=workers)
    made = make_plan(facts, dataset, vram=vram, method=method, source=source, out=out)
    for path in (out, fingerprint):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if fingerprint is not None:
        write_json(fingerprint, facts.to_json())
    with whole_file(out) as partial:
        partial.write_text(str(made), encoding="utf-8")
    return facts, made


def dataset_of(
    source: Path,
    given: dict[str, Any],
    *,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    layout: str | None = None,
) -> DatasetConfig:
    """What a plan keeps of a configuration's `data` section, completed by what the dataset says of itself.

    Args:
        given: the section; its recipe and places are left out.
        classes: names by label value, which win over the configuration and what the dataset declares.
        layout: a name of `LAYOUTS`; otherwise that of the section, otherwise the first that fits.

    Raises:
        ConfigError: nobody names the classes.
    """
    values = {key: value for key, value in given.items() if key not in ("recipe", "root", "splits")}
    values["name"] = name or values.get("name") or Path(source).resolve().name
    if layout is not None:
        values["layout"] = layout
    said = declared(source, values.get("layout"))
    if classes:
        values["classes"] = list(classes)
    elif "classes" not in values and said.classes:
        values |= {"classes": said.classes, "values": said.values, "ignore": said.ignore, "regions": said.regions}
    if not values.get("classes"):
        raise ConfigError(f"{source}: nobody names the classes{_seen(source, layout)}; "
                          "name them by label value, as in --classes background,tooth; where values are not 0, 1, 2 "
                          "and so on, give data.classes and data.values in a file by --config")  # fmt: skip
    if "channels" not in values and said.channels:
        values["channels"] = said.channels
    return parse(DatasetConfig, values, where="data")


def _seen(source: Path, layout: str | None) -> str:
    """The values of the first label, in words."""
    label = next((case.label for case in read_layout(source, layout=layout).cases if case.label is not None), None)
    if label is None:
        return ""
    values = np.unique(read_label(label).array)
    teeth = "; FDI numbers of teeth? Then add --config configs/data/teeth_fdi.yaml" if _are_teeth(values) else ""
    return f" ({label.path.name} holds {listed(values)}{teeth})"


def _are_teeth(values: Iterable[int]) -> bool:
    """Whether all are FDI numbers of permanent teeth, or background."""
    found = [int(value) for value in values if value]
    return bool(found) and all(value // 10 in range(1, 5) and value % 10 in range(1, 9) for value in found)


def make_plan(
    facts: Fingerprint,
    dataset: DatasetConfig,
    *,
    vram: float = 8.0,
    method: Path = Path("configs/method/combined.yaml"),
    source: Path = Path("SOURCE"),
    out: Path = Path("plan.yaml"),
) -> Plan:
    """Settings for a dataset, from its fingerprint; see `plan` for arguments and errors. Nothing is read or written.

    `source` and `out` are for the commands in the file's head.
    """
    theirs = _method_file(method)
    has_sides = bool(dataset.sides or dataset.likely_sides or dataset.teeth)  # which want left and right in one place
    seen, is_mixed = facts, facts.has_mixed_slices and not has_sides
    facts = facts.as_stored() if is_mixed else facts
    spacing, why = plan_spacing(facts)
    median = tuple(float(n) for n in np.median(facts.extents, 0) / spacing)
    choices: Choices = {
        "data": data_section(facts, dataset, spacing, why, as_stored=is_mixed),
        "augment": augment_section(spacing, dataset),
    }
    fitting = Fitting(choices, theirs, vram)
    shape, run = fitting.largest(shapes(median, spacing, on_cpu=not vram))
    choices["network"] = network_section(shape, vram)
    choices["train"] = train_section(facts, shape, median, run, method, vram)
    memory = fitting.memory(shape, run.train.accumulate)
    ordered: Choices = {key: choices[key] for key in ("data", "network", "augment", "train")}
    planned = parse(RunConfig, over(plain(ordered), theirs))
    head = _head(seen, source, out, method, [fitting.told(memory), *fitting.on_cpu(shape, run)])
    return Plan(head, ordered, memory, _hints(facts, planned.method))


def _method_file(path: Path) -> dict[str, Any]:
    values = merge([config_path(path)])
    if "method" not in values:
        raise ConfigError(f"{path}: has no section `method`; give a file such as configs/method/combined.yaml")
    decided = ["network"] if "network" in values else []
    decided += [f"train.{key}" for key in ("patch", "accumulate") if key in values.get("train", {})]
    if decided:
        raise ConfigError(f"{path}: sets {', '.join(decided)}, which a plan is to find; give a file without")
    return values


def _head(facts: Fingerprint, source: Path, out: Path, method: Path, memory: list[str]) -> list[str]:
    folder, file = shlex.quote(str(source)), shlex.quote(str(out))
    labels = ["Labels have a say in the shares of classes above, and in the hints at the end, and in no setting."]
    return [
        f"Made by medssl {__version__} plan. Change what you know better; then",
        f"  medssl prepare {folder} prepared --config {file}",
        "  medssl split prepared --help",
        f"  medssl train {file} {shlex.quote(str(method))} --set data.root=prepared",
        *facts.summary(),
        *(labels if facts.labels else []),
        *memory,
    ]


def _hints(facts: Fingerprint, method: MethodConfig) -> list[str]:
    """What the labels or the method ask for and no setting of the plan can say."""
    hints = []
    scattered = [one for one in facts.classes[1:] if one.cases and one.largest < SCATTERED]
    if scattered and getattr(method, "largest_component", False):
        told = ", ".join(f"{one.name} {one.largest:.0%}" for one in scattered)
        hints.append(f"--set method.largest_component=false: the largest piece of a class is but a part of it ({told})")
    if len(thick := facts.thick_axes.most_common()) > 1:
        told = ", ".join(f"{AXES[axis]} in {how_many(count, 'case')}" for axis, count in thick)
        hints.append(
            f"slices are thick {told}: one spacing loses slices, or detail, of some; make a dataset of each kind"
        )
    hints += [f"{one.name}: no label that was read holds it" for one in facts.classes[1:] if not one.cases]
    return hints
