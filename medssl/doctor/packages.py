"""Check packages: whether their versions are those that pyproject.toml requires, and whether they load."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

import medssl
from medssl.doctor.findings import Finding, said
from medssl.environment import PACKAGES, SLOW_TORCH, version_of

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_MODULES = {"pyyaml": "yaml", "simpleitk": "SimpleITK", "connected-components-3d": "cc3d"}
"""Module to import, for packages whose module has another name."""
_FOR_DEVELOPERS = "dev"
_FIRST = ("numpy", "torch")
"""Packages that others load; they are checked first, so that their errors are reported under their own names."""


def installation(env: dict[str, Any]) -> Iterator[Finding]:
    """Report medssl itself, Python and the system."""
    place = Path(medssl.__file__).parent
    found = f"{env['medssl']} in {place}; Python {env['python']}, {env['platform']}"
    if version_of("medssl") is None:
        fix = "package versions cannot be checked; run python -m pip install -e . in the repository"
        yield Finding("note", "medssl", f"{found}; runs without being installed", fix)
    else:
        yield Finding("ok", "medssl", found, values={"place": str(place)})


def required_packages(env: dict[str, Any]) -> Iterator[Finding]:
    """Report the versions of packages that can change a result, then each one that is missing, too old or broken."""
    faults = [fault for requirement in _required() if (fault := _fault(requirement, "packages"))]
    shown = [f"{name} {env[name] or 'missing'}" for name in PACKAGES]
    shown[0] += f" ({_build()})"
    yield Finding("note" if faults else "ok", "packages", ", ".join(shown))
    yield from faults


def optional_packages() -> Iterator[Finding]:
    """Report which packages of the extras are installed, then each of them that is too old or broken."""
    wanted = _optional()
    if not wanted:  # medssl is not installed
        return
    there = {one.name: version for one in wanted if (version := version_of(one.name))}
    absent = [one.name for one in wanted if one.name not in there]
    faults = [fault for one in wanted if one.name in there and (fault := _fault(one, "optional"))]
    found = ", ".join(f"{name} {version}" for name, version in there.items()) or "none"
    rest = f"; not installed: {', '.join(absent)}" if absent else ""
    yield Finding("note" if faults else "ok", "optional", found + rest,
                  values={**there, **dict.fromkeys(absent)})  # fmt: skip
    yield from faults


def fault_behind(error: Exception) -> Finding | None:
    """Return what is wrong with the package that failed to load; None if the error has another cause."""
    loading = [frame.f_globals for frame, _ in walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"]
    names = [error.name or ""] if isinstance(error, ImportError) else []
    names += [str(module.get("__name__")) for module in reversed(loading)]
    try:
        known = {_MODULES.get(one.name, one.name): one for one in (*_required(), *_optional())}
    except Exception as broken:  # versions cannot be compared then
        fix = "python -m pip install --force-reinstall packaging"
        return Finding("fault", "packages", f"packaging does not load ({said(broken)})", fix)
    suspects = dict.fromkeys(known[top] for name in names if (top := name.partition(".")[0]) in known)
    return next((fault for one in suspects if (fault := _fault(one, "packages"))), None)


def _fault(requirement: Requirement, topic: str) -> Finding | None:
    """Return what is wrong with a package, if anything."""
    name, found = requirement.name, version_of(requirement.name)
    wanted = f'"{name}{requirement.specifier}"'
    leave = f", or python -m pip uninstall {name}" if topic == "optional" else ""
    if found is None:
        return Finding("fault", topic, f"{name} is not installed", f"python -m pip install {wanted}")
    if not requirement.specifier.contains(found, prereleases=True):
        why = f" ({SLOW_TORCH})" if name == "torch" and found.startswith("2.9.") else ""
        text = f"{name} {found} is installed{why}, but medssl needs {requirement.specifier}"
        return Finding("fault", topic, text, f"python -m pip install {wanted}{leave}")
    try:
        import_module(_MODULES.get(name, name))
    except Exception as error:  # whatever a package may raise
        text, fix = f"{name} {found} does not load ({said(error)})", "python -m pip install --force-reinstall"
        return Finding("fault", topic, text, f"{fix} {wanted}{leave}", {"error": said(error)})
    return None


def _required() -> list[Requirement]:
    found = [one for one in _asked() if one.marker is None or one.marker.evaluate({"extra": ""})]
    return sorted(found, key=lambda one: one.name not in _FIRST)


def _optional() -> list[Requirement]:
    """Return the packages that the extras for users add, each once."""
    required = {str(one) for one in _required()}
    found: dict[str, Requirement] = {}
    for extra in _extras():
        for one in _asked():
            if str(one) not in required and one.marker is not None and one.marker.evaluate({"extra": extra}):
                found.setdefault(one.name, one)
    return list(found.values())


def _asked() -> list[Requirement]:
    """Return what the installed medssl requires; if it is not installed, the packages that can change a result, in any
    version."""
    from packaging.requirements import Requirement

    try:
        return [Requirement(line) for line in requires("medssl") or ()]
    except PackageNotFoundError:
        return [Requirement(name) for name in PACKAGES]


def _extras() -> list[str]:
    try:
        return [name for name in metadata("medssl").get_all("Provides-Extra") or () if name != _FOR_DEVELOPERS]
    except PackageNotFoundError:
        return []


def _build() -> str:
    """Return what torch was built for, in words."""
    try:
        import torch
    except Exception:
        return "does not load"
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
