"""What the figures depend on besides the cell."""

from __future__ import annotations

import os
import platform
from typing import Any


def conditions(device: str) -> dict[str, Any]:
    """Columns that name the machine. A CPU is named by its instruction set, not by its model."""
    import torch

    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}".lower()
    return {
        "device": device,
        "device_name": name,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def file_stem(suite: str, found: dict[str, Any], threads: list[int], dtypes: list[str]) -> str:
    """A file name that says under which conditions a suite was run."""
    on = "gpu" if found["device"].startswith("cuda") else f"{found['cores']}cores"
    words = [f"attention-{suite}", found["device_name"], on, f"{'-'.join(map(str, threads))}threads"]
    words += [f"torch-{found['torch']}", "-".join(dtypes)]
    return "_".join("".join(c if c.isalnum() or c in ".-" else "-" for c in word.lower()) for word in words)
