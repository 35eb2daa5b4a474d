"""The job behind `medssl doctor`: check whether this installation works on this machine, and say what to do if not.

It lists versions and tries what matters: convolutions on every device, and the files that jobs write. Nothing heavy is
loaded before it has been checked, and a probe that fails is itself a finding.
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
    """Check everything, and yield each finding as it is made.

    A package that does not load makes others fail; each error is reported once.

    Args:
        folder: where small files are written, read back and removed.
        device: the device that must be usable; with `cpu` no GPU is used, and faults of GPUs count as notes.

    Raises:
        ConfigError: `device` is not the name of a device.
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
    """Return what a probe finds; if it fails, that is a finding, too."""
    try:
        with quiet():
            return list(probe(*given))
    except Exception as error:
        fix = "fix the faults above first; if there are none, report this with all lines"
        return [Finding("fault", topic, f"could not be tried ({said(error)})", fix, {"error": said(error)})]


def _check_name(device: str) -> None:
    from medssl.device import choose_device

    with contextlib.suppress(DeviceError):  # a finding, later
        choose_device(device)
