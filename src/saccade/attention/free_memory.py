"""How much memory a device has left, for backends that would rather refuse than be killed."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def free_bytes(device: torch.device) -> int | None:
    """Bytes that may still be taken there: on a CPU what the system calls available, within the limit of the process's
    control group; on CUDA what PyTorch has not handed out. None where nothing tells.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        free, _ = torch.cuda.mem_get_info(device)
        return min(total - torch.cuda.memory_allocated(device), free + torch.cuda.memory_reserved(device))
    if device.type != "cpu":
        return None
    found = [_number(_text(limit)) for limit in _LIMITS]
    available = [line.split()[1] for line in _text(_MEMINFO).splitlines() if line.startswith("MemAvailable:")]
    if available:
        found.append(int(available[0]) * 1024)
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min((size for size in found if size is not None), default=None)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None
