"""The job behind `medssl plan`: choose settings for a dataset from its fingerprint, with a reason for each.

The plan is a YAML file like those of `configs/data/`, to be read, edited and given to `prepare` and `train`. Fixed
rules decide, without clock, machine or chance: the same data and options give the same file. Spacing, strides and
kernels follow the reasoning of nnU-Net (Isensee et al., Nature Methods 2021); the patch is the largest that fits into
memory.
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
"""A class counts as scattered if its largest component holds less than this share of it."""


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
        dataset: names, classes and patients, see `dataset_of`; the plan chooses the recipe itself.
        vram: GiB of the GPU to plan for; 0 plans for a CPU.
        method: the method file for which memory is estimated, and from which the batch sizes are taken.
        fingerprint: file for all that was found, as JSON; None writes none.

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
    """Return what a plan keeps of a configuration's `data` section, completed by what the dataset declares.

    Args:
        given: the section; its recipe and paths are left out.
        classes: names by label value, which take precedence over the configuration and the dataset.
        layout: a name of `LAYOUTS`; otherwise that of the section, otherwise the first that fits.

    Raises:
        ConfigError: no source names the classes.
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
        raise ConfigError(f"{source}: the names of the classes are missing{_seen(source, layout)}; give them in the "
                          "order of label values, as in --classes background,tooth; if the values are not 0, 1, 2 "
                          "and so on, set data.classes and data.values in a file for --config")  # fmt: skip
    if "channels" not in values and said.channels:
        values["channels"] = said.channels
    return parse(DatasetConfig, values, where="data")


def _seen(source: Path, layout: str | None) -> str:
    """Return the values in the first label map, in words."""
    label = next((case.label for case in read_layout(source, layout=layout).cases if case.label is not None), None)
    if label is None:
        return ""
    values = np.unique(read_label(label).array)
    teeth = "; if these are FDI tooth numbers, add --config configs/data/teeth_fdi.yaml" if _are_teeth(values) else ""
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
    """Choose settings for a dataset from its fingerprint; see `plan` for arguments and errors.

    Only the method file is read, and nothing is written. `source` and `out` are for the commands in the plan's head.
    """
    theirs = _method_file(method)
    has_sides = bool(dataset.sides or dataset.likely_sides or dataset.teeth)  # these need RAS axes
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
        raise ConfigError(f"{path}: has no section `method`; use a file such as configs/method/combined.yaml")
    decided = ["network"] if "network" in values else []
    decided += [f"train.{key}" for key in ("patch", "accumulate") if key in values.get("train", {})]
    if decided:
        raise ConfigError(f"{path}: sets {', '.join(decided)}, which the plan chooses; use a file without")
    return values


def _head(facts: Fingerprint, source: Path, out: Path, method: Path, memory: list[str]) -> list[str]:
    folder, file = shlex.quote(str(source)), shlex.quote(str(out))
    labels = ["Labels are used only for the shares of classes above and the hints at the end; no setting depends on "
              "them."]  # fmt: skip
    return [
        f"Made by medssl {__version__} plan. Edit it if you know better, then run",
        f"  medssl prepare {folder} prepared --config {file}",
        "  medssl split prepared --help",
        f"  medssl train {file} {shlex.quote(str(method))} --set data.root=prepared",
        *facts.summary(),
        *(labels if facts.labels else []),
        *memory,
    ]


def _hints(facts: Fingerprint, method: MethodConfig) -> list[str]:
    """Return what the labels suggest that no setting of the plan can express."""
    hints = []
    scattered = [one for one in facts.classes[1:] if one.cases and one.largest < SCATTERED]
    if scattered and getattr(method, "largest_component", False):
        told = ", ".join(f"{one.name} {one.largest:.0%}" for one in scattered)
        hints.append("--set method.largest_component=false: the largest component of a class is only part of it "
                     f"({told})")  # fmt: skip
    if len(thick := facts.thick_axes.most_common()) > 1:
        told = ", ".join(f"{AXES[axis]} in {how_many(count, 'case')}" for axis, count in thick)
        hints.append(
            f"slices are thick along different axes ({told}): with one spacing, some cases lose slices or detail; make "
            "a dataset for each kind"
        )
    hints += [f"{one.name}: in none of the labels that were read" for one in facts.classes[1:] if not one.cases]
    return hints
