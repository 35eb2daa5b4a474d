"""The job behind `medssl doctor`: whether this installation can do the work on this machine, and what to do if not.

Versions are told, and what matters is tried: convolutions on every device, and the files that jobs write. Nothing heavy
loads before it is looked at, and a probe that fails is a finding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from medssl.doctor.findings import Finding, as_plain, print_findings, quiet, said
from medssl.doctor.gpus import gpu_findings, gpus_to_try
from medssl.doctor.packages import fault_behind, installation, optional_packages, required_packages
from medssl.doctor.places import folder_findings, machine, shared_memory
from medssl.doctor.trials import try_arrays, try_convolution, try_volumes
from medssl.environment import environment, keep_quiet
from medssl.errors import DeviceError

__all__ = ["Finding", "as_plain", "diagnose", "fault_behind", "print_findings"]

Probe = Callable[..., Iterable[Finding]]


def diagnose(folder: Path, device: str = "auto") -> Iterator[Finding]:
    """Look at everything, and yield what is found as it is found.

    A package that does not load takes others along; each error is told once.

    Args:
        folder: where small files are written, read back and removed.
        device: must be usable; `cpu` leaves GPUs alone, whose faults then count as notes.

    Raises:
        ConfigError: the name means no device.
    """
    told = set()
    for finding in _all_findings(folder, device):
        error = finding.values.get("error")
        if error is None or error not in told:
            yield finding
        told.add(error)


def _all_findings(folder: Path, device: str) -> Iterator[Finding]:
    keep_quiet()
    with quiet():
        env = environment()
        has_torch = env["threads"] is not None
        if has_torch:
            _check_name(device)
    yield from _look("medssl", installation, env)
    yield from _look("packages", required_packages, env)
    yield from _look("optional", optional_packages)
    yield from _look("machine", machine, env)
    if has_torch:
        on_gpu = device.startswith("cuda") or (device != "cpu" and bool(env["gpus"]))
        yield from _look("/dev/shm", shared_memory, on_gpu)
        yield from _look("GPU", gpu_findings, env, device)
        for name in ("cpu", *gpus_to_try(env, device)):
            yield from _look(name, try_convolution, name, name in (device, f"{device}:0"))
    places = _look("disk", folder_findings, folder)
    yield from places
    if all(finding.state != "fault" for finding in places):
        yield from _look("blosc2", try_arrays, folder)
        yield from _look("NIfTI", try_volumes, folder)


def _look(topic: str, probe: Probe, *given: Any) -> list[Finding]:
    """What a probe finds; that it fails is a finding as well."""
    try:
        with quiet():
            return list(probe(*given))
    except Exception as error:
        fix = "mend the faults above first; if there are none, please report this with all lines"
        return [Finding("fault", topic, f"could not be tried ({said(error)})", fix, {"error": said(error)})]


def _check_name(device: str) -> None:
    from medssl.device import choose_device

    with contextlib.suppress(DeviceError):  # a finding, later
        choose_device(device)
