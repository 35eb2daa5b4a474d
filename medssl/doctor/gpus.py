"""Check each GPU and its driver, or find out why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from medssl.doctor.findings import Finding
from medssl.driver import find_driver, why_no_gpu, why_no_kernels
from medssl.words import gib


def gpu_findings(env: dict[str, Any], asked: str) -> Iterator[Finding]:
    """Yield findings about the driver and each GPU, or why there is none."""
    import torch

    driver = find_driver()
    if driver is not None and env["gpus"]:
        yield Finding("ok", "driver", f"{driver}, {driver.known}; torch is built for CUDA {torch.version.cuda}",
                      values={"version": driver.version, "cuda": driver.cuda})  # fmt: skip
    found = [_gpu(index, name, asked) for index, name in enumerate(env["gpus"])]
    if not found:
        none = why_no_gpu(driver, torch.version.cuda, "" if asked == "cpu" else _reason())
        why = Finding("fault" if none.is_fault else "note", "GPU", none.found, none.fix)
        if asked.startswith("cuda"):
            fix = why.fix if driver else "use --device cpu, or a machine with a GPU and its driver"
            why = replace(why, state="fault", found=f"device {asked}: {why.found}", fix=fix)
        found = [why]
    yield from (replace(one, state="note") if asked == "cpu" and one.state == "fault" else one for one in found)


def gpus_to_try(env: dict[str, Any], asked: str) -> list[str]:
    """Return the GPUs to try: all, or the one that was asked for; none for `cpu`, because GPUs may be in use."""
    if asked in ("auto", "cuda"):
        return [f"cuda:{index}" for index in range(len(env["gpus"]))]
    return [] if asked == "cpu" or (asked.startswith("cuda") and not env["gpus"]) else [asked]


def _gpu(index: int, name: str, asked: str) -> Finding:
    """Describe a GPU; its free memory and precision only if it may be used."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    capability, built_for = (properties.major, properties.minor), torch.cuda.get_arch_list()
    values: dict[str, Any] = {"name": name, "total": properties.total_memory, "capability": list(capability)}
    words = [name, gib(properties.total_memory), f"compute capability {capability[0]}.{capability[1]}"]
    if asked in ("auto", "cuda", f"cuda:{index}"):
        values |= _state(index)
        words[1] = (
            f"{gib(values['free'])} of {words[1]} free" if values["free"] is not None else f"{words[1]}, none free"
        )
        words.append("bf16" if values["bf16"] else "no bf16, so fp16")
    found = ", ".join(words)
    why = why_no_kernels(capability, built_for)
    if why is None:
        return Finding("ok", f"GPU {index}", found, values=values)
    return Finding("fault", f"GPU {index}", f"{found}; {why.found}", why.fix, values)


def _state(index: int) -> dict[str, Any]:
    """Return the free bytes, None if not even torch itself fits, and whether `auto` is bf16."""
    import torch

    from medssl.device import choose_precision

    try:
        with torch.cuda.device(index):
            free, _ = torch.cuda.mem_get_info()
            return {"free": free, "bf16": choose_precision("auto", torch.device("cuda", index)) == torch.bfloat16}
    except RuntimeError:
        major, _ = torch.cuda.get_device_capability(index)
        return {"free": None, "bf16": major >= 8}


def _reason() -> str:
    """Return the error message of torch when it is asked for a GPU; empty if there is none."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return next(iter(str(error).splitlines()), "")
    return ""
