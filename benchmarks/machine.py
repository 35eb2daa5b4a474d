"""The machine and software of a measurement, for its JSON file."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def facts() -> dict[str, Any]:
    """Return command, processor, threads, GPU and versions."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "command": " ".join(["python", *sys.argv]),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "monai": version("monai"),
    }


def tell(rows: list[dict[str, Any]], out: Path | None) -> None:
    """Print rows of results, and write them to a JSON file with the command and the processor."""
    for row in rows:
        print(json.dumps(row, indent=1))
    if out is not None:
        result = {"command": " ".join(["python", *sys.argv]), "processor": processor(), "rows": rows}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")


def processor() -> str:
    """Return the processor's name, followed by (AMX) if it can multiply bf16 matrices."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    values = {key.strip(): value.strip() for key, value in found.items()}
    return values.get("model name", platform.machine()) + (" (AMX)" if "amx_bf16" in values.get("flags", "") else "")
